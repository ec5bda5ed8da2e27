// x[m, k] w[n, k]^T, rows by rows: what all linear layers have in common.

#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace qcompile::cpu {

// The dot product of two rows. Float sums are kept in lanes, so that the compiler may add them side by side; their
// order is fixed all the same.
inline float Dot(const float* a, const float* b, int64_t k) {
  constexpr int kLanes = 16;
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += a[i + lane] * b[i + lane];
  }
  float sum = 0;
  for (; i < k; ++i) sum += a[i] * b[i];
  for (const float lane : lanes) sum += lane;
  return sum;
}

// Exact up to k = 131072 whatever the codes are; beyond that a sum may wrap around, as 32-bit products do elsewhere.
inline int32_t Dot(const int16_t* a, const int16_t* b, int64_t k) {
  uint32_t sum = 0;
  for (int64_t i = 0; i < k; ++i) sum += static_cast<uint32_t>(int32_t{a[i]} * int32_t{b[i]});
  return static_cast<int32_t>(sum);
}

// Calls store(row, column, sum) for every element of the product. load_x(row, out) and load_w(row, out) write one
// row as Element[k]. A block of rows of w stays in the cache while all of x goes by it.
template <class Element, class LoadX, class LoadW, class Store>
void Multiply(int64_t m, int64_t n, int64_t k, LoadX load_x, LoadW load_w, Store store) {
  constexpr int64_t kBlock = 32;
  std::vector<Element> x(k), w(std::min(n, kBlock) * k);
  for (int64_t first = 0; first < n; first += kBlock) {
    const int64_t count = std::min(kBlock, n - first);
    for (int64_t j = 0; j < count; ++j) load_w(first + j, w.data() + j * k);
    for (int64_t row = 0; row < m; ++row) {
      load_x(row, x.data());
      for (int64_t j = 0; j < count; ++j) store(row, first + j, Dot(x.data(), w.data() + j * k, k));
    }
  }
}

}  // namespace qcompile::cpu

// LayerNormQuant, RMSNormQuant and their Add forms: residual sum, normalization and row codes in one pass over the
// row. Mean and variance are found one after the other from the values in registers, in float32.

#include "codes.cuh"
#include "cuda/families.h"
#include "rows.cuh"

namespace qcompile::cuda {
namespace {

template <class Row>
__global__ void __launch_bounds__(Row::threads* rows_of_block<Row>) norm_quant(NormQuantArguments a) {
  using T = typename Row::Value;
  using AllThreads = Team<Row::threads>;
  constexpr int width = Row::width;
  const int64_t m = row_of_thread<Row>();
  if (m >= a.m) return;
  const int64_t start = m * a.k;
  Row row(static_cast<const T*>(a.x) + start, a.skip == nullptr ? nullptr : static_cast<const T*>(a.skip) + start, a.k);

  float mean = 0.0f;
  if (!a.rms) {
    float total = 0.0f;
    row.for_each([&](int64_t, const float(&x)[width]) {
#pragma unroll
      for (int i = 0; i < width; ++i) total += x[i];
    });
    mean = AllThreads::sum(total) / static_cast<float>(a.k);
  }
  float squares = 0.0f;
  row.for_each([&](int64_t, const float(&x)[width]) {
#pragma unroll
    for (int i = 0; i < width; ++i) squares += (x[i] - mean) * (x[i] - mean);
  });
  const float inverse = 1.0f / sqrtf(AllThreads::sum(squares) / static_cast<float>(a.k) + a.epsilon);

  const auto normalize = [&](int64_t column, const float(&x)[width], float(&y)[width]) {
    float gamma[width], beta[width] = {};
    read(a.gamma + column, gamma);
    if (a.beta != nullptr) read(a.beta + column, beta);
#pragma unroll
    for (int i = 0; i < width; ++i) y[i] = (x[i] - mean) * inverse * gamma[i] + beta[i];
  };
  unsigned largest = 0;
  row.for_each([&](int64_t column, const float(&x)[width]) {
    float y[width];
    normalize(column, x, y);
#pragma unroll
    for (int i = 0; i < width; ++i) largest = max(largest, magnitude_bits(y[i]));
  });
  const float scale = row_scale(AllThreads::largest(largest), a.code);

  uint8_t* codes = static_cast<uint8_t*>(a.x_q) + start;
  row.for_each([&](int64_t column, const float(&x)[width]) {
    float y[width];
    normalize(column, x, y);  // again: y beside x would need twice the registers
    write_codes(codes + column, y, scale, a.code);
    if (a.y != nullptr) write(static_cast<T*>(a.y) + start + column, y);
    if (a.sum != nullptr) write(static_cast<T*>(a.sum) + start + column, x);
  });
  if (threadIdx.x == 0) a.x_scale[m] = scale;
}

}  // namespace

size_t NormQuant_workspace(const NormQuantArguments&) { return 0; }

const char* NormQuant(const NormQuantArguments& a, void*, cudaStream_t stream) {
  const bool aligned = aligned_to_16({a.x, a.skip, a.gamma, a.beta, a.x_q, a.y, a.sum});
  return with_type(a.type, [&](auto zero) {
    return with_row<decltype(zero)>(a.k, aligned, [&](auto* none) {
      using Row = std::remove_pointer_t<decltype(none)>;
      return launch_rows<Row>(norm_quant<Row>, a, stream);
    });
  });
}

}  // namespace qcompile::cuda

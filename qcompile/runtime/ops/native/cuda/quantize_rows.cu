// QuantizeRows: codes of x with a scale for each row, as the row's largest magnitude asks.

#include "codes.cuh"
#include "cuda/families.h"
#include "rows.cuh"

namespace qcompile::cuda {
namespace {

template <class Row>
__global__ void __launch_bounds__(Row::threads* rows_of_block<Row>) quantize_rows(QuantizeRowsArguments a) {
  using T = typename Row::Value;
  constexpr int width = Row::width;
  const int64_t m = row_of_thread<Row>();
  if (m >= a.m) return;
  Row row(static_cast<const T*>(a.x) + m * a.k, nullptr, a.k);

  const auto kept = [&](int64_t column, const float(&x)[width], float(&y)[width]) {
    float keep[width];
    if (a.keep != nullptr) read(a.keep + column, keep);
#pragma unroll
    for (int i = 0; i < width; ++i) y[i] = a.keep != nullptr ? x[i] * keep[i] : x[i];
  };
  unsigned largest = 0;
  row.for_each([&](int64_t column, const float(&x)[width]) {
    float y[width];
    kept(column, x, y);
#pragma unroll
    for (int i = 0; i < width; ++i) largest = max(largest, magnitude_bits(y[i]));
  });
  const float scale = row_scale(Team<Row::threads>::largest(largest), a.code);

  uint8_t* codes = static_cast<uint8_t*>(a.x_q) + m * a.k;
  row.for_each([&](int64_t column, const float(&x)[width]) {
    float y[width];
    kept(column, x, y);
    write_codes(codes + column, y, scale, a.code);
  });
  if (threadIdx.x == 0) a.x_scale[m] = scale;
}

}  // namespace

size_t QuantizeRows_workspace(const QuantizeRowsArguments&) { return 0; }

const char* QuantizeRows(const QuantizeRowsArguments& a, void*, cudaStream_t stream) {
  const bool aligned = aligned_to_16({a.x, a.x_q, a.keep});
  return with_type(a.type, [&](auto zero) {
    return with_row<decltype(zero)>(a.k, aligned, [&](auto* none) {
      using Row = std::remove_pointer_t<decltype(none)>;
      return launch_rows<Row>(quantize_rows<Row>, a, stream);
    });
  });
}

}  // namespace qcompile::cuda

// LinearOutliersW8A8: codes of the rows without their outlier columns, the product of the codes as float32 in the
// workspace, and on top of it the product of the outlier columns, whose reads of w_columns serve several rows.

#include "activation.cuh"
#include "cuda/families.h"
#include "floats.cuh"
#include "launch.cuh"

namespace qcompile::cuda {
namespace {

constexpr int kRows = 8, kColumns = 128, kDepth = 32;  // of y in a block, and of x held at a time

template <class T>
__global__ void __launch_bounds__(kColumns) add_outliers(OutlierLinearArguments a, const float* rest) {
  __shared__ float held[kRows][kDepth];
  const int64_t first = int64_t{blockIdx.x} * kRows, column = int64_t{blockIdx.y} * kColumns + threadIdx.x;
  const T* const x = static_cast<const T*>(a.x);
  float sums[kRows] = {};
  for (int64_t start = 0; start < a.outliers; start += kDepth) {
    const int depth = a.outliers - start < kDepth ? static_cast<int>(a.outliers - start) : kDepth;
    __syncthreads();  // what was held has been read
    for (int i = threadIdx.x; i < kRows * kDepth; i += kColumns) {
      const int64_t row = first + i / kDepth;
      if (row >= a.m || i % kDepth >= depth) continue;
      const int64_t outlier = a.columns[start + i % kDepth];
      const bool is_column = outlier >= 0 && outlier < a.k;
      held[i / kDepth][i % kDepth] = is_column ? to_float(x[row * a.k + outlier]) : __uint_as_float(0x7fc00000u);
    }
    __syncthreads();
    if (column >= a.n) continue;
    for (int i = 0; i < depth; ++i) {
      const float w = to_float(static_cast<const T*>(a.w_columns)[(start + i) * a.n + column]);
#pragma unroll
      for (int row = 0; row < kRows; ++row) sums[row] += held[row][i] * w;
    }
  }
  if (column >= a.n) return;
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int64_t at = (first + row) * a.n + column;
    if (first + row < a.m) static_cast<T*>(a.y)[at] = rounded<T>(activate(rest[at] + sums[row], a.activation));
  }
}

// Where the parts of the workspace start.
struct Layout {
  size_t codes, scales, rest, library, end;
};

size_t section(size_t bytes) { return (bytes + 255) / 256 * 256; }

LinearArguments rest_of(const OutlierLinearArguments& a, const Layout& at, void* workspace) {
  char* const bytes = static_cast<char*>(workspace);
  LinearArguments rest{};
  rest.m = a.m, rest.n = a.n, rest.k = a.k;
  rest.x = bytes + at.codes, rest.x_scale = reinterpret_cast<float*>(bytes + at.scales), rest.scale_per_row = true;
  rest.w = a.w, rest.w_scale = a.w_scale, rest.bias = a.bias, rest.type = Type::f32;
  rest.y = bytes + at.rest;
  return rest;
}

Layout layout_of(const OutlierLinearArguments& a) {
  Layout at{};
  at.scales = section(a.m * a.k);
  at.rest = at.scales + section(a.m * sizeof(float));
  at.library = at.rest + section(a.m * a.n * sizeof(float));
  at.end = at.library + LinearW8A8_workspace(rest_of(a, at, nullptr));
  return at;
}

}  // namespace

size_t LinearOutliersW8A8_workspace(const OutlierLinearArguments& a) { return layout_of(a).end; }

const char* LinearOutliersW8A8(const OutlierLinearArguments& a, void* workspace, cudaStream_t stream) {
  if (a.n > int64_t{65535} * kColumns) return "more outputs than one launch can take";
  const Layout at = layout_of(a);
  char* const bytes = static_cast<char*>(workspace);
  const QuantizeRowsArguments rows{a.m,    a.k, a.x, a.type, Code::int8, bytes + at.codes,
                                   reinterpret_cast<float*>(bytes + at.scales), a.keep};
  if (const char* fault = QuantizeRows(rows, nullptr, stream)) return fault;
  if (const char* fault = LinearW8A8(rest_of(a, at, workspace), bytes + at.library, stream)) return fault;
  const dim3 grid(static_cast<unsigned>((a.m + kRows - 1) / kRows), static_cast<unsigned>((a.n + kColumns - 1) / kColumns));
  return with_type(a.type, [&](auto zero) {
    return launch(add_outliers<decltype(zero)>, grid, dim3(kColumns), 0, stream, a,
                  reinterpret_cast<const float*>(bytes + at.rest));
  });
}

}  // namespace qcompile::cuda

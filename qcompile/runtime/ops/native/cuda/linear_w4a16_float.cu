// LinearW4A16 on float32. Whoever asks for float32 gets float32 sums of float32 products: tensor cores would round x
// to the 11 bits of TF32, and for 11 bits the float16 operator is faster. So this kernel is plain: a block takes four
// rows of x and four columns of y, its warps share k, and every lane multiplies eight neighbours of k at a time.

#include "linear_w4a16.cuh"

namespace qcompile::cuda {
namespace {

constexpr int warps = 8, rows = 4, columns = 4;
constexpr int lane_k = 8, chunk_k = 32 * lane_k;

__global__ void __launch_bounds__(32 * warps) multiply(BlockLinearArguments a) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const int64_t first_row = int64_t{blockIdx.y} * rows, first_column = int64_t{blockIdx.x} * columns;
  const Blocks blocks(a);
  const unsigned base = 0x4b000000u | (blocks.sign_bits() & 15);  // 2^23

  float sums[rows][columns] = {};
  for (int64_t k = warp * chunk_k + lane * lane_k; k < a.k; k += warps * chunk_k) {
    float w[columns][lane_k];
#pragma unroll
    for (int j = 0; j < columns; ++j) {
      const int64_t column = first_column + j < a.n ? first_column + j : a.n - 1;  // past the end: any, not stored
      const int64_t block = blocks.index(column, k);
      const unsigned word = *reinterpret_cast<const unsigned*>(a.w + (column * a.k + k) / 2);
      const float scale = __half2float(same_bits<__half>(blocks.scale[block]));
      const unsigned zeros = blocks.zero == nullptr ? 0 : blocks.zero[block / 2];
      const float offset = 8388608.0f + blocks.zero_of(zeros, block % 2);
#pragma unroll
      for (int i = 0; i < lane_k; ++i) w[j][i] = (__uint_as_float((word >> 4 * i & 15) ^ base) - offset) * scale;
    }
#pragma unroll
    for (int i = 0; i < rows; ++i) {
      const int64_t row = first_row + i < a.m ? first_row + i : a.m - 1;
      float x[lane_k];
      read(static_cast<const float*>(a.x) + row * a.k + k, x);
#pragma unroll
      for (int j = 0; j < columns; ++j) {
#pragma unroll
        for (int l = 0; l < lane_k; ++l) sums[i][j] = fmaf(x[l], w[j][l], sums[i][j]);
      }
    }
  }

  __shared__ float of_warp[warps][rows * columns];
#pragma unroll
  for (int i = 0; i < rows * columns; ++i) {
    float sum = sums[i / columns][i % columns];
    for (int distance = 16; distance > 0; distance /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, distance);
    if (lane == 0) of_warp[warp][i] = sum;
  }
  __syncthreads();
  const int64_t m = first_row + threadIdx.x / columns, n = first_column + threadIdx.x % columns;
  if (threadIdx.x >= rows * columns || m >= a.m || n >= a.n) return;
  float sum = 0.0f;
  for (int from = 0; from < warps; ++from) sum += of_warp[from][threadIdx.x];
  if (a.bias != nullptr) sum += a.bias[n];
  static_cast<float*>(a.y)[m * a.n + n] = sum;
}

}  // namespace

const char* w4a16_float(const BlockLinearArguments& a, cudaStream_t stream) {
  const int64_t row_blocks = (a.m + rows - 1) / rows;
  if (row_blocks > 65535) return "more rows of float32 than one launch can take (262140)";
  const dim3 grid(static_cast<unsigned>((a.n + columns - 1) / columns), static_cast<unsigned>(row_blocks));
  return launch(multiply, grid, dim3(32 * warps), 0, stream, a);
}

}  // namespace qcompile::cuda

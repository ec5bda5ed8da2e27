// LinearW4A16 for a few rows of x. The weight is nearly all there is to read: each block of threads takes 32 rows of
// it, its warps share k among them, and every lane reads 16 bytes of four rows ahead of those it computes with. The
// tensor cores do the sums for 16 rows of x, however few there are.

#include "linear_w4a16.cuh"

namespace qcompile::cuda {
namespace {

constexpr int warps = 8, tiles = 4, columns = 8 * tiles;
constexpr int lane_k = 32;           // codes in the 16 bytes of a lane; no block of codes is smaller
constexpr int chunk_k = 4 * lane_k;  // what a warp does at a time

// What a lane reads of the weight for one chunk: row `group` of each tile, 32 codes at 32 `part`.
struct Weights {
  uint4 codes[tiles];
  uint16_t scale[tiles];
  uint8_t zeros[tiles];  // the byte with the zero point
};

template <class T>
__global__ void __launch_bounds__(32 * warps) decode(BlockLinearArguments a) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, part = lane % 4;
  const int64_t first_column = int64_t{blockIdx.x} * columns;
  const int64_t chunks = (a.k + chunk_k - 1) / chunk_k;
  const Blocks blocks(a);

  // Past the end of w: its last row, the last codes of a row. Such rows are not stored, and such k meet an x of zero.
  const auto column_at = [&](int tile) { return min(first_column + tile * 8 + group, a.n - 1); };
  const auto k_at = [&](int64_t chunk) { return min(chunk * chunk_k + part * lane_k, a.k - lane_k); };

  const auto read_weights = [&](int64_t chunk) {
    Weights weights;
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      const int64_t column = column_at(tile), k = k_at(chunk), block = blocks.index(column, k);
      weights.codes[tile] = __ldcs(reinterpret_cast<const uint4*>(a.w + (column * a.k + k) / 2));
      weights.scale[tile] = blocks.scale[block];
      weights.zeros[tile] = blocks.zero == nullptr ? 0 : blocks.zero[block / 2];
    }
    return weights;
  };
  const auto read_x = [&](int64_t row, int64_t k) {
    if (row >= a.m || k >= a.k) return uint4{0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) + row * a.k + k);
  };

  float sums[tiles][4] = {};
  Weights next = read_weights(warp);
  for (int64_t chunk = warp; chunk < chunks; chunk += warps) {
    const Weights weights = next;
    if (chunk + warps < chunks) next = read_weights(chunk + warps);
    const int64_t k = chunk * chunk_k + part * lane_k;
    uint4 x_low[4], x_high[4];
#pragma unroll
    for (int word = 0; word < 4; ++word) {
      x_low[word] = read_x(group, k + 8 * word);
      x_high[word] = read_x(group + 8, k + 8 * word);
    }
#pragma unroll
    for (int tile = 0; tile < tiles; ++tile) {
      const unsigned zero = blocks.zero_of(weights.zeros[tile], blocks.index(column_at(tile), k_at(chunk)) % 2);
      const Dequantizer<T> dequantizer(weights.scale[tile], zero, blocks.sign_bits());
      const unsigned words[4] = {weights.codes[tile].x, weights.codes[tile].y, weights.codes[tile].z,
                                 weights.codes[tile].w};
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        const unsigned w[4] = {dequantizer.pair(words[word], 0), dequantizer.pair(words[word], 1),
                               dequantizer.pair(words[word], 2), dequantizer.pair(words[word], 3)};
        multiply_32<T>(sums[tile], x_low[word], x_high[word], w);
      }
    }
  }

  __shared__ float of_warp[warps][decode_rows][columns];
#pragma unroll
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int i = 0; i < 4; ++i) of_warp[warp][group + i / 2 * 8][tile * 8 + 2 * part + i % 2] = sums[tile][i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < decode_rows * columns; i += 32 * warps) {
    const int row = i / columns, column = i % columns;
    const int64_t n = first_column + column;
    if (row >= a.m || n >= a.n) continue;
    float sum = 0.0f;
    for (int from = 0; from < warps; ++from) sum += of_warp[from][row][column];
    if (a.bias != nullptr) sum += a.bias[n];
    static_cast<T*>(a.y)[row * a.n + n] = rounded<T>(sum);
  }
}

}  // namespace

const char* w4a16_decode(const BlockLinearArguments& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((a.n + columns - 1) / columns));
  const auto kernel = a.type == Type::f16 ? decode<__half> : decode<__nv_bfloat16>;
  return launch(kernel, grid, dim3(32 * warps), 0, stream, a);
}

}  // namespace qcompile::cuda

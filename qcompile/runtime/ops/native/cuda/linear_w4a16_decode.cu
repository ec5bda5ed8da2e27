// LinearW4A16 for a few rows of x. The weight is nearly all there is to read: each block of threads takes 32 rows of
// it, its warps share k among them, and every lane reads 16 bytes of four rows ahead of those it computes with. The
// tensor cores do the sums for 8 or 16 rows of x, however few there are.

#include "linear_w4a16.cuh"

namespace qcompile::cuda {
namespace {

constexpr int warps = 8, w_tiles = 2, columns = 16 * w_tiles;
constexpr int lane_k = 32;           // codes in the 16 bytes of a lane; no block of codes is smaller
constexpr int chunk_k = 4 * lane_k;  // what a warp does at a time

// What a lane reads of one row of w for one chunk.
struct Codes {
  uint4 words;
  uint16_t scale;
  uint8_t zeros;  // the byte with the zero point
};

__device__ inline unsigned word_of(const uint4& words, int index) {
  return index == 0 ? words.x : index == 1 ? words.y : index == 2 ? words.z : words.w;
}

template <class T, int X_TILES>
__global__ void __launch_bounds__(32 * warps) decode(BlockLinearArguments a) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, part = lane % 4;
  const int64_t first_column = int64_t{blockIdx.x} * columns;
  const int k_end = static_cast<int>(a.k), chunks = (k_end + chunk_k - 1) / chunk_k;
  const Blocks blocks(a);

  // Rows of w, two to a tile. Past the end of w: its last row, the last codes of a row. Such rows are not stored, and
  // such k meet an x of zero.
  constexpr int w_rows = 2 * w_tiles;
  int64_t row_at[w_rows];
#pragma unroll
  for (int i = 0; i < w_rows; ++i) row_at[i] = min(first_column + 8 * i + group, a.n - 1);
  const auto k_at = [&](int chunk) { return min(chunk * chunk_k + part * lane_k, k_end - lane_k); };

  const auto read_codes = [&](int chunk, Codes(&codes)[w_rows]) {
    const int k = k_at(chunk);
#pragma unroll
    for (int i = 0; i < w_rows; ++i) {
      const int64_t block = blocks.index(row_at[i], k);
      codes[i].words = __ldcs(reinterpret_cast<const uint4*>(a.w + row_at[i] * (a.k / 2) + k / 2));
      codes[i].scale = blocks.scale[block];
      codes[i].zeros = blocks.zero == nullptr ? 0 : blocks.zero[block / 2];
    }
  };
  const auto read_x = [&](int row, int k) {
    if (row >= a.m || k >= k_end) return uint4{0, 0, 0, 0};
    return *reinterpret_cast<const uint4*>(static_cast<const T*>(a.x) + row * a.k + k);
  };

  float sums[w_tiles][X_TILES][4] = {};
  Codes next[w_rows];
  read_codes(warp, next);
  for (int chunk = warp; chunk < chunks; chunk += warps) {
    Codes codes[w_rows];
#pragma unroll
    for (int i = 0; i < w_rows; ++i) codes[i] = next[i];
    if (chunk + warps < chunks) read_codes(chunk + warps, next);

    const int k = chunk * chunk_k + part * lane_k;
    uint4 x[X_TILES][4];
#pragma unroll
    for (int i = 0; i < 4 * X_TILES; ++i) x[i / 4][i % 4] = read_x(i / 4 * 8 + group, k + i % 4 * 8);
    const auto dequantizer = [&](int i) {
      const unsigned place = blocks.index(row_at[i], k_at(chunk)) % 2;
      return Dequantizer<T>(codes[i].scale, blocks.zero_of(codes[i].zeros, place), blocks.sign_bits());
    };
#pragma unroll
    for (int tile = 0; tile < w_tiles; ++tile) {
      const Dequantizer<T> low = dequantizer(2 * tile), high = dequantizer(2 * tile + 1);
#pragma unroll
      for (int word = 0; word < 4; ++word) {
        unsigned w_low[4], w_high[4];
        dequantize(low, word_of(codes[2 * tile].words, word), w_low);
        dequantize(high, word_of(codes[2 * tile + 1].words, word), w_high);
#pragma unroll
        for (int j = 0; j < X_TILES; ++j) multiply_32<T>(sums[tile][j], w_low, w_high, x[j][word]);
      }
    }
  }

  constexpr int rows = 8 * X_TILES;
  __shared__ float of_warp[warps][rows][columns];
#pragma unroll
  for (int tile = 0; tile < w_tiles; ++tile) {
#pragma unroll
    for (int j = 0; j < X_TILES; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        of_warp[warp][8 * j + 2 * part + i % 2][16 * tile + i / 2 * 8 + group] = sums[tile][j][i];
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < rows * columns; i += 32 * warps) {
    const int row = i / columns, column = i % columns;
    const int64_t n = first_column + column;
    if (row >= a.m || n >= a.n) continue;
    float sum = 0.0f;
    for (int from = 0; from < warps; ++from) sum += of_warp[from][row][column];
    if (a.bias != nullptr) sum += a.bias[n];
    static_cast<T*>(a.y)[row * a.n + n] = rounded<T>(sum);
  }
}

template <class T>
const char* start(const BlockLinearArguments& a, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>((a.n + columns - 1) / columns));
  return launch(a.m <= 8 ? decode<T, 1> : decode<T, 2>, grid, dim3(32 * warps), 0, stream, a);
}

}  // namespace

const char* w4a16_decode(const BlockLinearArguments& a, cudaStream_t stream) {
  return a.type == Type::f16 ? start<__half>(a, stream) : start<__nv_bfloat16>(a, stream);
}

}  // namespace qcompile::cuda

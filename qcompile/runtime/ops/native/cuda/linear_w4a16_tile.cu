// LinearW4A16 for many rows of x. A block of threads computes ROWS x 128 values of y. Tiles of x and of the packed
// weight, 64 deep, are copied to shared memory some steps ahead; a weight becomes a float in a register, just before
// the tensor cores want it, and is never written anywhere. Where the tiles of y are too few to occupy a GPU, k is
// split among several blocks, whose float32 sums a second kernel adds up, always in the same order.

#include "linear_w4a16.cuh"

namespace qcompile::cuda {
namespace {

constexpr int warps = 8, threads = 32 * warps;
constexpr int columns = 128, depth = 64, stages = 3;

// One step along k. A piece is 16 bytes: 8 values of x, 32 codes of w. The four lanes that share a row read
// neighbouring pieces of x, or words of a piece of w, and a warp reads eight rows: pieces change places in every second
// row of x, and every second four rows of w, so that no two lanes meet in a bank of the memory.
template <int ROWS>
struct Stage {
  uint4 x[ROWS][depth / 8];
  uint4 w[columns][depth / 32];
  unsigned scale[columns][depth / 32];  // an aligned word of the tensor that holds the scale of these 32 codes
  unsigned zero[columns][depth / 32];   // the same of the zero points

  static __device__ int x_place(int row, int piece) { return piece ^ (row % 2 * 4); }
  static __device__ int w_place(int row, int piece) { return piece ^ (row / 4 % 2); }
};

// The warps stand in WARP_ROWS rows; each computes 16 X_TILES rows and 8 W_TILES columns.
template <class T, int X_TILES, int WARP_ROWS>
struct Tile {
  static constexpr int rows = 16 * X_TILES * WARP_ROWS;
  static constexpr int warp_columns = columns / (warps / WARP_ROWS), W_TILES = warp_columns / 8;
  using Shared = Stage<rows>;

  const BlockLinearArguments& a;
  int64_t first_row = int64_t{blockIdx.y} * rows, first_column = int64_t{blockIdx.x} * columns;
  Blocks blocks;
  float sums[X_TILES][W_TILES][4] = {};

  __device__ explicit Tile(const BlockLinearArguments& arguments) : a(arguments), blocks(arguments) {}

  // Starts the copies of the step at `k`; what lies past the end of a tensor becomes zero.
  __device__ void fetch(Shared& stage, int64_t k) const {
    for (int i = threadIdx.x; i < rows * (depth / 8); i += threads) {
      const int row = i / (depth / 8), piece = i % (depth / 8);
      const int64_t m = first_row + row, at = k + 8 * piece;
      const bool inside = m < a.m && at < a.k;
      const T* from = static_cast<const T*>(a.x) + (inside ? m * a.k + at : 0);
      copy_async<16>(&stage.x[row][Shared::x_place(row, piece)], from, inside ? 16 : 0);
    }
    const int row = threadIdx.x / 2, piece = threadIdx.x % 2;
    static_assert(threads == columns * (depth / 32));
    const int64_t n = first_column + row, at = k + 32 * piece;
    const bool inside = n < a.n && at < a.k;
    copy_async<16>(&stage.w[row][Shared::w_place(row, piece)], a.w + (inside ? (n * a.k + at) / 2 : 0),
                   inside ? 16 : 0);
    const int64_t count = a.n * blocks.per_row, block = inside ? blocks.index(n, at) : 0;
    const int64_t scales = 2 * (count - block / 2 * 2), zeros = (count - block / 8 * 8 + 1) / 2;  // bytes left
    copy_async<4>(&stage.scale[row][piece], a.w_scale + block / 2 * 2, inside ? min(scales, int64_t{4}) : 0);
    if (a.w_zero != nullptr) {
      copy_async<4>(&stage.zero[row][piece], a.w_zero + block / 8 * 4, inside ? min(zeros, int64_t{4}) : 0);
    }
  }

  __device__ void multiply(const Shared& stage, int64_t k) {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
    const int row = warp_row() * 16 * X_TILES + group, column = warp_column() * warp_columns + group;
#pragma unroll 1  // more would need more registers than two blocks on a multiprocessor have
    for (int step = 0; step < depth / 32; ++step) {
      uint4 x_low[X_TILES], x_high[X_TILES];
      const int place = Shared::x_place(row, 4 * step + part);  // rows that are 8 apart have the same
#pragma unroll
      for (int i = 0; i < X_TILES; ++i) {
        x_low[i] = stage.x[row + 16 * i][place];
        x_high[i] = stage.x[row + 16 * i + 8][place];
      }
#pragma unroll
      for (int j = 0; j < W_TILES; ++j) {
        const int tile_column = column + 8 * j;
        const unsigned word =
            reinterpret_cast<const unsigned*>(&stage.w[tile_column][Shared::w_place(tile_column, step)])[part];
        const auto block = static_cast<unsigned>(blocks.index(first_column + tile_column, k + 32 * step));
        const auto scale_bits = static_cast<uint16_t>(stage.scale[tile_column][step] >> block % 2 * 16);
        const unsigned zero = a.w_zero == nullptr ? 8 : stage.zero[tile_column][step] >> block % 8 * 4 & 15;
        const Dequantizer<T> dequantizer(__half2float(same_bits<__half>(scale_bits)), zero, blocks.sign_bits());
        const unsigned w[4] = {dequantizer.pair(word, 0), dequantizer.pair(word, 1), dequantizer.pair(word, 2),
                               dequantizer.pair(word, 3)};
#pragma unroll
        for (int i = 0; i < X_TILES; ++i) multiply_32<T>(sums[i][j], x_low[i], x_high[i], w);
      }
    }
  }

  // Calls store(m, n, value) for the values of this thread that lie in y.
  template <class Store>
  __device__ void for_each(Store store) const {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
#pragma unroll
    for (int i = 0; i < X_TILES; ++i) {
#pragma unroll
      for (int j = 0; j < W_TILES; ++j) {
#pragma unroll
        for (int value = 0; value < 4; ++value) {
          const int64_t m = first_row + (warp_row() * X_TILES + i) * 16 + value / 2 * 8 + group;
          const int64_t n = first_column + warp_column() * warp_columns + 8 * j + 2 * part + value % 2;
          if (m < a.m && n < a.n) store(m, n, sums[i][j][value]);
        }
      }
    }
  }

  static __device__ int warp_row() { return threadIdx.x / 32 / (warps / WARP_ROWS); }
  static __device__ int warp_column() { return threadIdx.x / 32 % (warps / WARP_ROWS); }
};

template <class T>
__device__ void write_y(const BlockLinearArguments& a, int64_t m, int64_t n, float sum) {
  if (a.bias != nullptr) sum += a.bias[n];
  static_cast<T*>(a.y)[m * a.n + n] = rounded<T>(sum);
}

// `partial`: sums of each share of k as [shares, m, n], or null: there is one share, write y.
template <class T, int X_TILES, int WARP_ROWS>
__global__ void __launch_bounds__(threads, 2) multiply_tile(BlockLinearArguments a, float* partial) {
  using Work = Tile<T, X_TILES, WARP_ROWS>;
  auto* stage = shared_memory<typename Work::Shared>();
  Work tile(a);
  const int64_t steps = (a.k + depth - 1) / depth;
  const int64_t begin = steps * blockIdx.z / gridDim.z, end = steps * (blockIdx.z + 1) / gridDim.z;

  for (int64_t step = begin; step < begin + stages - 1; ++step) {
    if (step < end) tile.fetch(stage[step % stages], step * depth);
    end_copy_group();
  }
  for (int64_t step = begin; step < end; ++step) {
    wait_for_copies<stages - 2>();
    __syncthreads();  // this step has arrived for all threads, and all have done with the one before
    const int64_t ahead = step + stages - 1;
    if (ahead < end) tile.fetch(stage[ahead % stages], ahead * depth);
    end_copy_group();
    tile.multiply(stage[step % stages], step * depth);
  }
  if (partial != nullptr) {
    float* share = partial + blockIdx.z * a.m * a.n;
    tile.for_each([&](int64_t m, int64_t n, float sum) { share[m * a.n + n] = sum; });
  } else {
    tile.for_each([&](int64_t m, int64_t n, float sum) { write_y<T>(a, m, n, sum); });
  }
}

template <class T>
__global__ void __launch_bounds__(threads) add_shares(BlockLinearArguments a, const float* partial, int shares) {
  const int64_t i = int64_t{blockIdx.x} * threads + threadIdx.x;
  if (i >= a.m * a.n) return;
  float sum = 0.0f;
  for (int share = 0; share < shares; ++share) sum += partial[share * a.m * a.n + i];
  write_y<T>(a, i / a.n, i % a.n, sum);
}

int rows_of_tile(int64_t m) { return m <= 32 ? 32 : m <= 64 ? 64 : 128; }

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// As many as bring the blocks near the number of multiprocessors of a large GPU, each with 8 steps or more. The same
// on every GPU, so that the sums are.
int shares_of_k(const BlockLinearArguments& a) {
  const int64_t tiles = ceil_div(a.m, rows_of_tile(a.m)) * ceil_div(a.n, columns);
  const int64_t most = a.k / depth / 8, wanted = 128 / tiles;
  return static_cast<int>(wanted < 1 || most < 1 ? 1 : wanted < most ? wanted : most);
}

template <class T, int X_TILES, int WARP_ROWS>
const char* start(const BlockLinearArguments& a, float* partial, cudaStream_t stream) {
  using Work = Tile<T, X_TILES, WARP_ROWS>;
  const int shares = shares_of_k(a);
  const int64_t row_tiles = ceil_div(a.m, Work::rows);
  if (row_tiles > 65535) return "more rows than one launch can take (8388480)";
  const dim3 grid(static_cast<unsigned>(ceil_div(a.n, columns)), static_cast<unsigned>(row_tiles), shares);
  float* sums = shares > 1 ? partial : nullptr;
  const char* error = launch(multiply_tile<T, X_TILES, WARP_ROWS>, grid, dim3(threads),
                             stages * sizeof(typename Work::Shared), stream, a, sums);
  if (error != nullptr || shares == 1) return error;
  const dim3 blocks(static_cast<unsigned>(ceil_div(a.m * a.n, threads)));
  return launch(add_shares<T>, blocks, dim3(threads), 0, stream, a, static_cast<const float*>(sums), shares);
}

template <class T>
const char* start(const BlockLinearArguments& a, float* partial, cudaStream_t stream) {
  switch (rows_of_tile(a.m)) {
    case 32: return start<T, 2, 1>(a, partial, stream);
    case 64: return start<T, 4, 1>(a, partial, stream);
    default: return start<T, 4, 2>(a, partial, stream);
  }
}

}  // namespace

size_t w4a16_tile_workspace(const BlockLinearArguments& a) {
  const int shares = shares_of_k(a);
  return shares == 1 ? 0 : sizeof(float) * shares * a.m * a.n;
}

const char* w4a16_tile(const BlockLinearArguments& a, float* partial, cudaStream_t stream) {
  return a.type == Type::f16 ? start<__half>(a, partial, stream) : start<__nv_bfloat16>(a, partial, stream);
}

}  // namespace qcompile::cuda

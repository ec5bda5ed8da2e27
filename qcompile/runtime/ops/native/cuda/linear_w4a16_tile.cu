// LinearW4A16 for many rows of x. A block of threads computes ROWS x 128 values of y. Tiles of x and of the packed
// weight, 64 deep, are copied to shared memory some steps ahead; a weight becomes a float in a register, just before
// the tensor cores want it, and is never written anywhere. Where the tiles of y are too few to occupy a GPU, k is
// split among several blocks, whose float32 sums a second kernel adds up, always in the same order.

#include "linear_w4a16.cuh"

namespace qcompile::cuda {
namespace {

constexpr int warps = 8, threads = 32 * warps;
constexpr int columns = 128, depth = 64, stages = 3;

// One step along k. A piece is 16 bytes: 8 values of x, 32 codes of w.
template <int ROWS>
struct Stage {
  uint4 x[ROWS][depth / 8];
  uint4 w[columns][depth / 32];
  unsigned scale[columns][depth / 32];  // an aligned word of the tensor that holds the scale of these 32 codes
  unsigned zero[columns][depth / 32];   // the same of the zero points
};

// Where a piece lies in its row. The four lanes that share a row read neighbouring pieces of x, or words of a piece of
// w, and a warp reads eight rows: pieces change places in every second row of x, and in every second four rows of w.
__device__ constexpr int x_place(int row, int piece) { return piece ^ (row % 2 * 4); }
__device__ constexpr int w_place(int row, int piece) { return piece ^ (row / 4 % 2); }

// Whether lanes that are served at once read from different banks: 8 of them 16 bytes each, or 32 of them a word.
constexpr bool no_lanes_meet(int step) {
  unsigned words = 0;
  for (int first = 0; first < 32; first += 8) {
    unsigned pieces = 0;
    for (int lane = first; lane < first + 8; ++lane) {
      const int group = lane / 4, part = lane % 4;
      pieces |= 1u << (group * (depth / 8) + x_place(group, 4 * step + part)) % 8;
      words |= 1u << (group * (depth / 8) + 4 * w_place(group, step) + part) % 32;
    }
    if (pieces != 0xff) return false;
  }
  return words == 0xffffffff;
}
static_assert(no_lanes_meet(0) && no_lanes_meet(1));

// The warps stand in WARP_ROWS rows; each computes 8 X_TILES rows and 16 W_TILES columns.
template <class T, int X_TILES, int WARP_ROWS>
struct Tile {
  static constexpr int rows = 8 * X_TILES * WARP_ROWS;
  static constexpr int warp_columns = columns / (warps / WARP_ROWS), W_TILES = warp_columns / 16;
  using Shared = Stage<rows>;

  const BlockLinearArguments& a;
  int64_t first_row = int64_t{blockIdx.y} * rows, first_column = int64_t{blockIdx.x} * columns;
  Blocks blocks;
  float sums[W_TILES][X_TILES][4] = {};

  __device__ explicit Tile(const BlockLinearArguments& arguments) : a(arguments), blocks(arguments) {}

  // Starts the copies of the step at `k`; what lies past the end of a tensor becomes zero.
  __device__ void fetch(Shared& stage, int k) const {
    constexpr int x_pieces = depth / 8, w_pieces = depth / 32, rows_at_once = threads / x_pieces;
    {
      const int row = threadIdx.x / x_pieces, piece = threadIdx.x % x_pieces;
      const T* from = static_cast<const T*>(a.x) + (first_row + row) * a.k + k + 8 * piece;
#pragma unroll
      for (int more = 0; more < rows; more += rows_at_once) {
        const bool inside = first_row + row + more < a.m && k + 8 * piece < a.k;
        copy_async<16>(&stage.x[row + more][x_place(row, piece)], from + more * a.k, inside ? 16 : 0);
      }
    }
    static_assert(threads == columns * w_pieces);
    const int row = threadIdx.x / w_pieces, piece = threadIdx.x % w_pieces;
    const int64_t n = first_column + row, at = k + 32 * piece;
    const bool inside = n < a.n && at < a.k;
    copy_async<16>(&stage.w[row][w_place(row, piece)], a.w + (n * a.k + at) / 2, inside ? 16 : 0);
    const int64_t block = blocks.index(n, at), block_count = a.n * blocks.per_row;
    const int64_t scales = 2 * (block_count - block / 2 * 2);  // bytes from the word to the end
    const int64_t zeros = (block_count - block / 8 * 8 + 1) / 2;
    copy_async<4>(&stage.scale[row][piece], a.w_scale + block / 2 * 2, inside ? min(scales, int64_t{4}) : 0);
    if (a.w_zero != nullptr) {
      copy_async<4>(&stage.zero[row][piece], a.w_zero + block / 8 * 4, inside ? min(zeros, int64_t{4}) : 0);
    }
  }

  __device__ void multiply(const Shared& stage, int k) {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
    const int row = warp_row() * 8 * X_TILES + group, column = warp_column() * warp_columns + group;
#pragma unroll 1  // more would need more registers than two blocks on a multiprocessor have
    for (int step = 0; step < depth / 32; ++step) {
      // The place of a block in its word is the same for columns that are a multiple of 8 apart.
      const unsigned block = group * static_cast<unsigned>(blocks.per_row) + ((k + 32 * step) >> blocks.log2_size);
      unsigned w[2 * W_TILES][4];
#pragma unroll
      for (int i = 0; i < 2 * W_TILES; ++i) {
        const int at = column + 8 * i, place = w_place(at, step);
        const auto scale = static_cast<uint16_t>(stage.scale[at][step] >> block % 2 * 16);
        const unsigned zero = blocks.zero_of(stage.zero[at][step], block % 8);
        const unsigned word = reinterpret_cast<const unsigned*>(&stage.w[at][place])[part];
        dequantize(Dequantizer<T>(scale, zero, blocks.sign_bits()), word, w[i]);
      }
      const int place = x_place(row, 4 * step + part);  // the same in rows that are 8 apart
#pragma unroll
      for (int j = 0; j < X_TILES; ++j) {
        const uint4 x = stage.x[row + 8 * j][place];
#pragma unroll
        for (int i = 0; i < W_TILES; ++i) multiply_32<T>(sums[i][j], w[2 * i], w[2 * i + 1], x);
      }
    }
  }

  // Calls store(m, n, value) for the values of this thread that lie in y.
  template <class Store>
  __device__ void for_each(Store store) const {
    const int lane = threadIdx.x % 32, group = lane / 4, part = lane % 4;
#pragma unroll
    for (int i = 0; i < W_TILES; ++i) {
#pragma unroll
      for (int j = 0; j < X_TILES; ++j) {
#pragma unroll
        for (int value = 0; value < 4; ++value) {
          const int64_t m = first_row + (warp_row() * X_TILES + j) * 8 + 2 * part + value % 2;
          const int64_t n = first_column + warp_column() * warp_columns + 16 * i + value / 2 * 8 + group;
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
  const int steps = (static_cast<int>(a.k) + depth - 1) / depth;
  const int share = blockIdx.z, shares = gridDim.z;
  const int begin = steps * share / shares, end = steps * (share + 1) / shares;

  int filled = 0, used = 0;  // stages, in turns
  const auto fetch = [&](int step) {
    if (step < end) tile.fetch(stage[filled], step * depth);
    end_copy_group();
    filled = filled + 1 < stages ? filled + 1 : 0;
  };
  for (int ahead = 0; ahead < stages - 1; ++ahead) fetch(begin + ahead);
  for (int step = begin; step < end; ++step) {
    wait_for_copies<stages - 2>();
    __syncthreads();  // this step has arrived for all threads, and all have done with the one before
    fetch(step + stages - 1);
    tile.multiply(stage[used], step * depth);
    used = used + 1 < stages ? used + 1 : 0;
  }
  if (partial != nullptr) {
    float* sums = partial + share * a.m * a.n;
    tile.for_each([&](int64_t m, int64_t n, float sum) { sums[m * a.n + n] = sum; });
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
    case 32: return start<T, 4, 1>(a, partial, stream);
    case 64: return start<T, 8, 1>(a, partial, stream);
    default: return start<T, 8, 2>(a, partial, stream);
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

// Kernels that look at a whole row before they write it: a row is read once and held in registers by the threads
// that share it, a warp or a block. A row that no block can hold, or that is not made of aligned pieces of 16 bytes, is
// read again at each look.

#pragma once

#include "floats.cuh"
#include "launch.cuh"

namespace qcompile::cuda {

// What the threads of one row find together; each of them gets the answer. All threads of the block call it when
// THREADS is more than a warp.
template <int THREADS>
struct Team {
  static __device__ float sum(float value) {
    for (int distance = 16; distance > 0; distance /= 2) value += __shfl_xor_sync(0xffffffffu, value, distance);
    return over_warps(value, [](float a, float b) { return a + b; });
  }

  static __device__ unsigned largest(unsigned value) {
    return over_warps(__reduce_max_sync(0xffffffffu, value), [](unsigned a, unsigned b) { return a > b ? a : b; });
  }

 private:
  template <class Value, class Combine>
  static __device__ Value over_warps(Value value, Combine combine) {
    if constexpr (THREADS > 32) {
      __shared__ Value of_warp[THREADS / 32];
      __syncthreads();  // the answers of an earlier call have been read
      if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
      __syncthreads();
      value = of_warp[0];
      for (int warp = 1; warp < THREADS / 32; ++warp) value = combine(value, of_warp[warp]);
    }
    return value;
  }
};

// A row of x, or of x + skip rounded to T. for_each(f) calls f(column, values) for the columns of this thread.
template <class T, int THREADS, int LOADS = 4>
struct HeldRow {
  using Value = T;
  static constexpr int threads = THREADS, width = 16 / sizeof(T);
  static constexpr int64_t longest = int64_t{THREADS} * width * LOADS;

  __device__ HeldRow(const T* x, const T* skip, int64_t k) : k_(k) {
    for_each([&](int64_t column, float (&values)[width]) {
      read(x + column, values);
      if (skip != nullptr) {
        float others[width];
        read(skip + column, others);
#pragma unroll
        for (int i = 0; i < width; ++i) values[i] = to_float(rounded<T>(values[i] + others[i]));
      }
    });
  }

  template <class Function>
  __device__ void for_each(Function function) {
#pragma unroll
    for (int i = 0; i < LOADS; ++i) {
      const int64_t column = (int64_t{i} * THREADS + threadIdx.x) * width;
      if (column < k_) function(column, values_[i]);
    }
  }

 private:
  int64_t k_;
  float values_[LOADS][width];
};

template <class T>
struct RereadRow {
  using Value = T;
  static constexpr int threads = 512, width = 1;

  __device__ RereadRow(const T* x, const T* skip, int64_t k) : x_(x), skip_(skip), k_(k) {}

  template <class Function>
  __device__ void for_each(Function function) {
    for (int64_t column = threadIdx.x; column < k_; column += threads) {
      float values[1] = {to_float(x_[column])};
      if (skip_ != nullptr) values[0] = to_float(rounded<T>(values[0] + to_float(skip_[column])));
      function(column, values);
    }
  }

 private:
  const T* x_;
  const T* skip_;
  int64_t k_;
};

// Calls `start` with a null pointer to the narrowest kind of row that holds k values.
template <class T, class Start>
const char* with_row(int64_t k, bool aligned, Start start) {
  if (!aligned || k % HeldRow<T, 32>::width != 0) return start(static_cast<RereadRow<T>*>(nullptr));
  if (k <= HeldRow<T, 32>::longest) return start(static_cast<HeldRow<T, 32>*>(nullptr));
  if (k <= HeldRow<T, 128>::longest) return start(static_cast<HeldRow<T, 128>*>(nullptr));
  if (k <= HeldRow<T, 512>::longest) return start(static_cast<HeldRow<T, 512>*>(nullptr));
  if (k <= HeldRow<T, 512, 8>::longest) return start(static_cast<HeldRow<T, 512, 8>*>(nullptr));
  return start(static_cast<RereadRow<T>*>(nullptr));
}

// A block holds one row, or four where a row needs only a warp: threadIdx.y tells them apart.
template <class Row>
constexpr int rows_of_block = Row::threads == 32 ? 4 : 1;

template <class Row, class Arguments>
const char* launch_rows(void (*kernel)(Arguments), const Arguments& arguments, cudaStream_t stream) {
  const int64_t blocks = (arguments.m + rows_of_block<Row> - 1) / rows_of_block<Row>;
  if (blocks > 0x7fffffff) return "more rows than one launch can take (2^31)";
  return launch(kernel, dim3(static_cast<unsigned>(blocks)), dim3(Row::threads, rows_of_block<Row>), 0, stream,
                arguments);
}

template <class Row>
__device__ int64_t row_of_thread() {
  return int64_t{blockIdx.x} * rows_of_block<Row> + threadIdx.y;
}

}  // namespace qcompile::cuda

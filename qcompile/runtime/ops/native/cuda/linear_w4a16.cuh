// The kernels of LinearW4A16, each in a file of its own; linear_w4a16.cu chooses.

#pragma once

#include "int4.cuh"
#include "launch.cuh"
#include "ptx.cuh"

namespace qcompile::cuda {

constexpr int64_t decode_rows = 16;

// float16 and bfloat16, m <= decode_rows: reads the weight once, as fast as memory gives it.
const char* w4a16_decode(const BlockLinearArguments&, cudaStream_t);

// float16 and bfloat16, any m: tiles in shared memory. `partial` has w4a16_tile_workspace(...) bytes.
size_t w4a16_tile_workspace(const BlockLinearArguments&);
const char* w4a16_tile(const BlockLinearArguments&, float* partial, cudaStream_t);

// float32, any m.
const char* w4a16_float(const BlockLinearArguments&, cudaStream_t);

// sums[16 rows, 8 columns] += x w^T over 32 values of k, by a warp. The order of k does not matter as long as x and w
// agree, so each lane takes eight neighbours: with group = lane / 4 and part = lane % 4, those at 8 part of rows group
// (x_low) and group + 8 (x_high) of x, and of row group of w. mma calls the first four of them 2 part, 2 part + 1,
// 2 part + 8 and 2 part + 9 of its 16, and the next mma the others.
template <class T>
__device__ void multiply_32(float (&sums)[4], uint4 x_low, uint4 x_high, const unsigned (&w)[4]) {
  mma<T>(sums, {x_low.x, x_high.x, x_low.y, x_high.y}, w[0], w[1]);
  mma<T>(sums, {x_low.z, x_high.z, x_low.w, x_high.w}, w[2], w[3]);
}

}  // namespace qcompile::cuda

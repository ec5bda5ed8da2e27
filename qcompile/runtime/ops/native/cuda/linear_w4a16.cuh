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

// sums[16 rows of w, 8 rows of x] += w x^T over 32 values of k, by a warp. The order of k does not matter as long as
// w and x agree, so each lane takes eight neighbours: with group = lane / 4 and part = lane % 4, those at 8 part of
// rows group (w_low) and group + 8 (w_high) of w, and of row group of x. mma calls the first four of them 2 part,
// 2 part + 1, 2 part + 8 and 2 part + 9 of its 16, and the next mma the others. w comes first since mma wants the
// registers of its first operand in an order that x, as it is loaded, does not have.
template <class T>
__device__ void multiply_32(float (&sums)[4], const unsigned (&w_low)[4], const unsigned (&w_high)[4], uint4 x) {
  mma<T>(sums, {w_low[0], w_high[0], w_low[1], w_high[1]}, x.x, x.y);
  mma<T>(sums, {w_low[2], w_high[2], w_low[3], w_high[3]}, x.z, x.w);
}

}  // namespace qcompile::cuda

// int8 and E4M3 codes of a row that has one scale. Divisions are exact to the last bit (IEEE), as in the operators'
// function bodies: the codes are the same.

#pragma once

#include <cuda_fp8.h>

#include "floats.cuh"

namespace qcompile::cuda {

// The bits of |value|. As integers they order like the magnitudes, with infinity above every number and NaN above
// infinity: a NaN anywhere in a row reaches its scale, where fmaxf would lose it.
__device__ inline unsigned magnitude_bits(float value) { return __float_as_uint(value) & 0x7fffffffu; }

__device__ inline float row_scale(unsigned largest_bits, Code code) {
  const float scale = __fdiv_rn(__uint_as_float(largest_bits), code == Code::int8 ? 127.0f : 448.0f);
  return scale == 0.0f ? 1.0f : scale;
}

__device__ inline uint8_t code_of(float value, float scale, Code code) {
  const float ratio = __fdiv_rn(value, scale);
  if (code == Code::e4m3) return __nv_cvt_float_to_fp8(ratio, __NV_SATFINITE, __NV_E4M3);
  // The limits matter where the scale is subnormal and so inexact, and for infinity and NaN.
  return static_cast<uint8_t>(__float2int_rn(fminf(fmaxf(ratio, -127.0f), 127.0f)));
}

template <int COUNT>
__device__ void write_codes(uint8_t* to, const float (&values)[COUNT], float scale, Code code) {
  Pack<uint8_t, COUNT> pack;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) pack.values[i] = code_of(values[i], scale, code);
  *reinterpret_cast<Pack<uint8_t, COUNT>*>(to) = pack;
}

}  // namespace qcompile::cuda

// What a linear layer does with a sum of products: scales, bias, activation, then a float of some type or a code.
//
// Activation and 16-bit type are run-time values, the same for every element, so that one kernel serves all of
// them: a branch costs little beside the stores, and a build has a fourth of the kernels. The stored type is a
// template parameter only where its width differs: float, Half (the bits of a float16 or a bfloat16), int8_t.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cutlass/array.h>
#include <cutlass/numeric_conversion.h>

#include "arguments.h"

namespace qcompile::cuda {

using Half = uint16_t;

// The part of LinearArguments that the epilogue decides by.
struct Finish {
  Activation activation = Activation::none;
  bool bf16 = false;  // of Half: bfloat16 rather than float16
};

__device__ __forceinline__ float activate(float y, Activation activation) {
  switch (activation) {
    case Activation::relu: return y > 0 || y != y ? y : 0.0f;  // a NaN stays one, as in ONNX's Relu
    case Activation::gelu: return 0.5f * y * (1.0f + erff(y * 0.70710678118654752f));
    case Activation::silu: return __fdividef(y, 1.0f + __expf(-y));
    default: return y;
  }
}

template <class Stored>
__device__ __forceinline__ Stored store(float y, float y_scale, bool bf16) {
  if constexpr (cute::is_same_v<Stored, Half>) {
    return bf16 ? __bfloat16_as_ushort(__float2bfloat16_rn(y)) : __half_as_ushort(__float2half_rn(y));
  } else if constexpr (cute::is_same_v<Stored, int8_t>) {
    // Divides, as QuantizeLinear does: a product with 1 / y_scale would round some ties the other way.
    return cutlass::NumericConverter<int8_t, float, cutlass::FloatRoundStyle::round_to_nearest>::convert(y / y_scale);
  } else {
    return y;
  }
}

// Both of CUTLASS's visitor trees call this with fragments of as many elements as one thread stores at once. Each
// operation is rounded for itself, in the order of the operator's definition: up to the activation the result is
// the definition's to the last bit.
template <class Stored, int N>
__device__ __forceinline__ cutlass::Array<Stored, N> finish(
    cutlass::Array<float, N> const& sum, cutlass::Array<float, N> const& x_scale,
    cutlass::Array<float, N> const& w_scale, cutlass::Array<float, N> const& bias,
    cutlass::Array<float, N> const& y_scale, Finish how) {
  cutlass::Array<Stored, N> y;
  CUTLASS_PRAGMA_UNROLL
  for (int i = 0; i < N; ++i) {
    float const scaled = __fmul_rn(__fmul_rn(sum[i], x_scale[i]), w_scale[i]);
    y[i] = store<Stored>(activate(__fadd_rn(scaled, bias[i]), how.activation), y_scale[i], how.bf16);
  }
  return y;
}

}  // namespace qcompile::cuda

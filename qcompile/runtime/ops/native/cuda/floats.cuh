// Values of a float type in memory, float32 in registers; several values in one load or store.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <initializer_list>

#include "arguments.h"

namespace qcompile::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T>
__device__ T rounded(float value);  // to the nearest T, half to even
template <>
__device__ inline float rounded<float>(float value) { return value; }
template <>
__device__ inline __half rounded<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ inline __nv_bfloat16 rounded<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// Aligned, so that the compiler moves it with the widest instructions there are, of 16 bytes.
template <class T, int COUNT>
struct alignas(COUNT * sizeof(T) < 16 ? COUNT * sizeof(T) : 16) Pack {
  T values[COUNT];
};

template <class T, int COUNT>
__device__ void read(const T* from, float (&values)[COUNT]) {
  const Pack<T, COUNT> pack = *reinterpret_cast<const Pack<T, COUNT>*>(from);
#pragma unroll
  for (int i = 0; i < COUNT; ++i) values[i] = to_float(pack.values[i]);
}

template <class T, int COUNT>
__device__ void write(T* to, const float (&values)[COUNT]) {
  Pack<T, COUNT> pack;
#pragma unroll
  for (int i = 0; i < COUNT; ++i) pack.values[i] = rounded<T>(values[i]);
  *reinterpret_cast<Pack<T, COUNT>*>(to) = pack;
}

inline bool aligned_to_16(std::initializer_list<const void*> pointers) {
  for (const void* pointer : pointers) {
    if (reinterpret_cast<uintptr_t>(pointer) % 16 != 0) return false;
  }
  return true;
}

// Calls `function` with a value of the C++ type that `type` names.
template <class Function>
const char* with_type(Type type, Function function) {
  switch (type) {
    case Type::f16: return function(__half());
    case Type::bf16: return function(__nv_bfloat16());
    default: return function(0.0f);
  }
}

}  // namespace qcompile::cuda

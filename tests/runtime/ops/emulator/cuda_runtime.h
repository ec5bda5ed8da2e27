// What plain C++ lacks of CUDA for our own kernels; their threads are fibers.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#define __global__
#define __device__
#define __shared__ static  // of the one block that runs
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::max;
using std::min;

#include "fibers.h"

using cudaStream_t = void*;
using cudaError_t = const char*;
constexpr cudaError_t cudaSuccess = nullptr;
constexpr int cudaFuncAttributeMaxDynamicSharedMemorySize = 0;
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

inline const char* cudaGetErrorString(cudaError_t error) { return error; }

template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel, int, int bytes) {
  return bytes > 163 * 1024 ? "more shared memory than a block can have" : nullptr;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments... arguments) {
  using namespace emulator;
  grid_size = config->gridDim;
  block_size = config->blockDim;
  const unsigned threads = block_size.x * block_size.y * block_size.z;
  if (threads == 0 || threads > 1024 || threads % 32 != 0) return "invalid number of threads";
  if (grid_size.x == 0 || grid_size.y > 65535 || grid_size.z > 65535) return "invalid number of blocks";
  if (fibers.size() != threads) fibers = std::vector<Fiber>(threads);
  warps.resize(threads / 32);
  body = [&] { kernel(arguments...); };
  for (unsigned z = 0; z < grid_size.z; ++z) {
    for (unsigned y = 0; y < grid_size.y; ++y) {
      for (unsigned x = 0; x < grid_size.x; ++x) {
        block_index = dim3(x, y, z);
        dynamic_memory.assign(config->dynamicSmemBytes / 16, uint4{~0u, ~0u, ~0u, ~0u});  // NaN until written
        if (const char* error = run_block()) return error;
      }
    }
  }
  return nullptr;
}

inline void __syncthreads() { emulator::wait(emulator::Fiber::at_block); }
inline float __shfl_xor_sync(unsigned, float value, int distance) {
  return emulator::exchange(value)[emulator::current->number % 32 ^ distance];
}
inline unsigned __reduce_max_sync(unsigned, unsigned value) {
  const auto all = emulator::exchange(value);
  return *std::max_element(all.begin(), all.end());
}

template <class To, class From>
To emulated_bits(From from) {
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}
inline unsigned __float_as_uint(float value) { return emulated_bits<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return emulated_bits<float>(bits); }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline int __float2int_rn(float value) { return static_cast<int>(std::nearbyint(value)); }
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned result = 0;
  for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  return result;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}

// Device memory is the host's.
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
template <class T>
cudaError_t cudaMalloc(T** data, size_t bytes) {
  *data = static_cast<T*>(std::aligned_alloc(256, (bytes + 255) / 256 * 256));
  memset(static_cast<void*>(*data), 0xff, bytes);
  return nullptr;
}
inline cudaError_t cudaFree(void* data) {
  std::free(data);
  return nullptr;
}
inline cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
  memcpy(to, from, bytes);
  return nullptr;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t) {
  return cudaMemcpy(to, from, bytes, kind);
}
inline cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return nullptr;
}
inline cudaError_t cudaDeviceSynchronize() { return nullptr; }
inline void atomicMin(unsigned long long* at, unsigned long long value) { *at = std::min(*at, value); }

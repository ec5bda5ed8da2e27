// A GPU in a few hundred lines, for kernels that plain C++ can compile: every thread of a block is a fiber that runs
// until it waits for its warp; a warp runs until it waits for its block. What this finds: wrong index arithmetic,
// barriers that are missing (warps are as far apart as barriers let them, in ascending or in descending order) and
// copies that nobody waited for (they happen only then). What it cannot find: anything about time.

#pragma once

#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <vector>

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

namespace emulator {

constexpr size_t stack_bytes = 64 * 1024;

struct Fiber {
  enum { ready, at_warp, at_block, done } state = ready;
  ucontext_t context;
  std::unique_ptr<char[]> stack{new char[stack_bytes]};
  dim3 index;
  int number = 0;
  unsigned exchanges = 0;
  std::deque<std::vector<std::function<void()>>> copies{1};  // groups; the last is still open
};

// What the lanes of a warp show each other. Two of them: a lane may come to the next before all have read the last.
struct Warp {
  alignas(16) unsigned char slots[2][32][32];
};

inline dim3 thread_index, block_index, block_size, grid_size;
inline Fiber* current = nullptr;
inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline std::vector<Warp> warps;
inline std::vector<uint4> dynamic_memory;
inline std::function<void()> body;
inline bool descending = false;  // the order in which the fibers run

inline void wait(decltype(Fiber::ready) state) {
  Fiber* self = current;
  self->state = state;
  swapcontext(&self->context, &scheduler);
}

inline void start() {
  body();
  current->state = Fiber::done;
  swapcontext(&current->context, &scheduler);
}

// Every lane's value, in all lanes of the warp.
template <class T>
std::array<T, 32> exchange(const T& mine) {
  static_assert(sizeof(T) <= 32);
  auto& slots = warps[current->number / 32].slots[current->exchanges++ % 2];
  memcpy(slots[current->number % 32], &mine, sizeof(T));
  wait(Fiber::at_warp);
  std::array<T, 32> all;
  for (int lane = 0; lane < 32; ++lane) memcpy(&all[lane], slots[lane], sizeof(T));
  return all;
}

// Runs a warp until all of it waits for the block, or is done.
inline void run_warp(int first) {
  for (;;) {
    int ran = 0, waiting = 0;
    for (int i = 0; i < 32; ++i) {
      Fiber& fiber = fibers[first + (descending ? 31 - i : i)];
      if (fiber.state == Fiber::ready) {
        ++ran;
        current = &fiber;
        thread_index = fiber.index;
        swapcontext(&scheduler, &fiber.context);
      }
      waiting += fiber.state == Fiber::at_warp;
    }
    if (waiting == 32) {
      for (int i = first; i < first + 32; ++i) fibers[i].state = Fiber::ready;
    } else if (ran == 0) {
      return;
    }
  }
}

// Null, or what went wrong.
inline const char* run_block() {
  const int count = static_cast<int>(fibers.size());
  for (int i = 0; i < count; ++i) {
    Fiber& fiber = fibers[i];
    fiber.state = Fiber::ready;
    fiber.number = i;
    fiber.exchanges = 0;
    fiber.copies = decltype(fiber.copies)(1);
    fiber.index = dim3(i % block_size.x, i / block_size.x % block_size.y, i / (block_size.x * block_size.y));
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, start, 0);
  }
  for (;;) {
    for (int i = 0; i < count / 32; ++i) run_warp(32 * (descending ? count / 32 - 1 - i : i));
    bool all_done = true;
    for (Fiber& fiber : fibers) {
      if (fiber.state == Fiber::at_warp) return "lanes wait for others of their warp, which have left";
      all_done &= fiber.state == Fiber::done;
      if (fiber.state == Fiber::at_block) fiber.state = Fiber::ready;
    }
    if (all_done) return nullptr;
  }
}

}  // namespace emulator

inline dim3 &threadIdx = emulator::thread_index, &blockIdx = emulator::block_index;
inline dim3 &blockDim = emulator::block_size, &gridDim = emulator::grid_size;

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
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments... arguments) {
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

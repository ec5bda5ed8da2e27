// What CUTLASS's device code finds on a device, in plain C++: included before everything else.

#pragma once

#include <cuda_runtime.h>

#include <cstdio>

#include "../emulator/fibers.h"

#define __launch_bounds__(...)

namespace emulator {

// Blocks run one after the other, in the order in which CUTLASS counts them: a block waits for earlier ones alone.
inline void wait_in_vain() {
  fputs("a block waits for one that has not run\n", stderr);
  abort();
}

}  // namespace emulator

inline void __syncthreads() { emulator::wait(emulator::Fiber::at_block); }
inline int __syncthreads_and(int) { abort(); }
inline void __syncwarp(unsigned = ~0u) { emulator::exchange(0); }
inline void __threadfence() {}
inline int __shfl_sync(unsigned, int value, int lane, int = 32) { return emulator::exchange(value)[lane]; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float value) { return std::exp(value); }
inline int atomicCAS(int* at, int expected, int value) {
  int const found = *at;
  if (found != expected) emulator::wait_in_vain();
  *at = value;
  return found;
}
inline void atomicAdd(int* at, int value) { *at += value; }
template <class T>
T __ldg(T const* from) {
  return *from;
}

namespace cutlass::arch {

inline int LaneId() { return threadIdx.x % 32; }
inline int SmId() { return 0; }

}  // namespace cutlass::arch

namespace emulator {

// As an access of the device: all of it or nothing, at a multiple of its size up to 16 bytes.
inline void copy(void* to, void const* from, size_t size, bool wanted) {
  if (!wanted) return;
  for (void const* at : {const_cast<void const*>(to), from}) {
    if (reinterpret_cast<uintptr_t>(at) % std::min<size_t>(size, alignof(int)) != 0) abort();
  }
  memcpy(to, from, size);
}

// ldmatrix: lanes 8i to 8i + 7 name the rows of matrix i, of which each lane gets four bytes.
template <int matrices>
void load_matrices(unsigned* to, void const* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) abort();
  auto const rows = exchange(static_cast<char const*>(row));
  int const lane = current->number % 32;
  for (int i = 0; i < matrices; ++i) memcpy(to + i, rows[8 * i + lane / 4] + 4 * (lane % 4), 4);
}

struct E4M3 {
  uint8_t bits;
};

inline int value_of(int8_t code) { return code; }
inline double value_of(E4M3 code) {
  int const exponent = code.bits >> 3 & 15, mantissa = code.bits & 7;
  double const size = exponent > 0 ? std::ldexp(8 + mantissa, exponent - 10) : std::ldexp(mantissa, -9);
  return code.bits >> 7 ? -size : size;  // no NaN: the tests' operands have none
}

inline int rounded(int64_t sum) {  // saturates
  return static_cast<int>(std::min<int64_t>(std::max<int64_t>(sum, INT32_MIN), INT32_MAX));
}
inline float rounded(double sum) { return static_cast<float>(sum); }

// mma.m16n8k32 of 8-bit codes, from the PTX manual's figures. Wide: holds the sum of 32 products and c exactly.
template <class Code, class Wide, class Sum>
void multiply(Sum* d, void const* a, void const* b, Sum const* c) {
  struct Registers {
    Code a[4][4], b[2][4];
  } mine;
  memcpy(&mine.a, a, sizeof(mine.a));
  memcpy(&mine.b, b, sizeof(mine.b));
  auto const lanes = exchange(mine);
  int const lane = current->number % 32;
  for (int i = 0; i < 4; ++i) {
    int const row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    Wide sum = c[i];
    for (int k = 0; k < 32; ++k) {
      sum += value_of(lanes[row % 8 * 4 + k % 16 / 4].a[row / 8 + k / 16 * 2][k % 4]) *
             value_of(lanes[column * 4 + k % 16 / 4].b[k / 16][k % 4]);
    }
    d[i] = rounded(sum);
  }
}

}  // namespace emulator

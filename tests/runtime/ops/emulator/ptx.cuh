// Stands for the header of this name: what the instructions do, from the PTX manual's figures.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace qcompile::cuda {

template <class T>
float half_of(unsigned pair, int index) {
  const T value = {static_cast<uint16_t>(pair >> 16 * index)};
  if constexpr (std::is_same_v<T, __half>) {
    return __half2float(value);
  } else {
    return __bfloat162float(value);
  }
}

template <class T>
void mma(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  struct Registers {
    unsigned a[4], b[2];
  };
  const auto lanes = emulator::exchange(Registers{{a[0], a[1], a[2], a[3]}, {b0, b1}});
  const int lane = emulator::current->number % 32;
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const unsigned left = lanes[row % 8 * 4 + k % 8 / 2].a[row / 8 + k / 8 * 2];
      const unsigned right = lanes[column * 4 + k % 8 / 2].b[k / 8];
      sums[i] += half_of<T>(left, k % 2) * half_of<T>(right, k % 2);
    }
  }
}

template <int size>
void copy_async(void* shared, const void* from, int valid) {
  if (reinterpret_cast<uintptr_t>(shared) % size != 0 || reinterpret_cast<uintptr_t>(from) % size != 0) abort();
  emulator::current->copies.back().push_back([=] {
    memset(shared, 0, size);
    memcpy(shared, from, valid);
  });
}

inline void end_copy_group() { emulator::current->copies.emplace_back(); }

template <int pending>
void wait_for_copies() {
  auto& groups = emulator::current->copies;
  for (; groups.size() > pending + 1; groups.pop_front()) {
    for (const auto& copy : groups.front()) copy();
  }
}

template <class T>
T* shared_memory() {
  return reinterpret_cast<T*>(emulator::dynamic_memory.data());
}

}  // namespace qcompile::cuda

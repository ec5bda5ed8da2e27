// A GPU in a few hundred lines, for kernels that plain C++ can compile: every thread of a block is a fiber that runs
// until it waits for its warp; a warp runs until it waits for its block. What this finds: wrong index arithmetic,
// barriers that are missing (warps are as far apart as barriers let them, in ascending or in descending order) and
// copies that nobody waited for (they happen only then). What it cannot find: anything about time.
//
// Who includes this has declared dim3 and uint4.

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

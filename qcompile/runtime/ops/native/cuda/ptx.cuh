// The two instructions that CUDA C++ has no function for: a small matrix product by the tensor cores of a warp, and
// copies from global to shared memory that go on behind the thread's back. Both are there since sm_80.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace qcompile::cuda {

// sums[16, 8] += a[16, 16] b[16, 8], by all lanes of a warp. With group = lane / 4 and part = lane % 4, a lane holds
//   a[0], a[1]  rows group, group + 8; columns 2 part, 2 part + 1       (a register holds two values, lower first)
//   a[2], a[3]  the same rows;         columns 2 part + 8, 2 part + 9
//   b0, b1      column group;          rows 2 part, 2 part + 1 and 2 part + 8, 2 part + 9
//   sums        rows group, group, group + 8, group + 8; columns 2 part, 2 part + 1, 2 part, 2 part + 1
template <class T>
__device__ void mma(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1);

// Volatile keeps it where all lanes come by: the compiler could move it to a branch that alone uses the sums.
template <>
__device__ inline void mma<__half>(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

template <>
__device__ inline void mma<__nv_bfloat16>(float (&sums)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
               "{%0, %1, %2, %3};"
               : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Starts to copy `size` bytes, 4 or 16, to an aligned place in shared memory: the first `valid` from `from`, zeros
// for the rest. `from` is aligned to `size`; past `valid` it is not read.
template <int size>
__device__ void copy_async(void* shared, const void* from, int valid) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  if constexpr (size == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
  } else {
    static_assert(size == 4);
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid) : "memory");
  }
}

// The copies that this thread started since the last call form a group.
__device__ inline void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the `pending` youngest groups of this thread are still under way.
template <int pending>
__device__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// The dynamic shared memory of the block.
template <class T>
__device__ T* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return reinterpret_cast<T*>(memory);
}

}  // namespace qcompile::cuda

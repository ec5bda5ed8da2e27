// One configuration of LinearW8A8 for Ampere or of LinearE4M3 for Ada, run thread by thread: operands come from stdin, y goes to stdout.
//
//   PROGRAM m n k type activation scale_per_row bias requantized processors descending

#include <cuda/linear_sm80.cuh>

using namespace qcompile;
using namespace qcompile::cuda;
using cutlass::gemm::GemmShape;

namespace {

constexpr size_t guard = 256;
constexpr unsigned char poison = 0xFF;

// Bytes at a multiple of 256, poisoned, with a guard before and after.
char* memory(size_t bytes) {
  char* const start = static_cast<char*>(aligned_alloc(guard, (bytes + 3 * guard) / guard * guard));
  memset(start, poison, (bytes + 3 * guard) / guard * guard);
  return start + guard;
}

template <class T>
const T* read(size_t count) {
  char* const to = memory(count * sizeof(T));
  if (fread(to, sizeof(T), count, stdin) != count) exit(2);
  return reinterpret_cast<const T*>(to);
}

template <class Stored>
int run(LinearArguments a, int processors) {
  using Kernel = sm80::Kernel<CODE, Stored, GemmShape<TILE>, GemmShape<WARP>, STAGES>;
  using Gemm = typename Kernel::GemmKernel;
  size_t const bytes = a.m * a.n * sizeof(Stored);
  a.y = memory(bytes);
  typename Gemm::Params params(Kernel::arguments(a), processors, 1);
  params.init_workspace(memory(params.get_workspace_size()), nullptr);
  auto* const shared = reinterpret_cast<typename Gemm::SharedStorage*>(memory(sizeof(typename Gemm::SharedStorage)));

  using namespace emulator;
  grid_size = params.get_grid_dims();
  block_size = dim3(Gemm::kThreadCount, 1, 1);
  fibers = std::vector<Fiber>(Gemm::kThreadCount);
  warps.resize(Gemm::kThreadCount / 32);
  body = [&] { Gemm::invoke(params, *shared); };
  for (unsigned x = 0; x < grid_size.x; ++x) {
    block_index = dim3(x, 0, 0);
    memset(shared, poison, sizeof(*shared));
    if (const char* const error = run_block()) return fprintf(stderr, "%s\n", error), 1;
  }
  auto* const y = static_cast<unsigned char*>(a.y);
  for (size_t i = 0; i < guard; ++i) {
    if (y[-1 - static_cast<ptrdiff_t>(i)] != poison || y[bytes + i] != poison) return fputs("overrun\n", stderr), 1;
  }
  return fwrite(y, 1, bytes, stdout) == bytes ? 0 : 2;
}

}  // namespace

namespace qcompile::cuda {

const Device& device() {
  static const Device none;
  return none;
}

}  // namespace qcompile::cuda

// The one call of CUDA's runtime on the way: it clears the flags that blocks wait for.
extern "C" cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t) {
  memset(to, value, bytes);
  return cudaSuccess;
}

int main(int count, char** words) {
  if (count != 11) return 2;
  auto const number = [&](int i) { return atoll(words[i]); };
  LinearArguments a{};
  a.m = number(1), a.n = number(2), a.k = number(3);
  a.type = static_cast<Type>(number(4)), a.activation = static_cast<Activation>(number(5));
  a.scale_per_row = number(6);
  emulator::descending = number(10);
  a.x = read<CODE>(a.m * a.k);
  a.x_scale = read<float>(a.scale_per_row ? a.m : 1);
  a.w = read<CODE>(a.n * a.k);
  a.w_scale = read<float>(a.n);
  if (number(7)) a.bias = read<float>(a.n);
  if (number(8)) a.y_scale = read<float>(1);
  int const processors = static_cast<int>(number(9));
  if constexpr (std::is_same_v<CODE, int8_t>) {
    if (a.y_scale != nullptr) return run<int8_t>(a, processors);
  }
  return a.type == Type::f32 ? run<float>(a, processors) : run<Half>(a, processors);
}

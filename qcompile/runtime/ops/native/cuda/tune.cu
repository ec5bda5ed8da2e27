// Doors of the library for tuning: which configurations a family of linear layers has on this device, how long each
// takes for a shape, and which one a shape shall run. The rest, and the file of choices, is Python's.
//
// Answers that are texts stay valid; null is "no such thing", or for qcompile_measure "it went well".

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "families.h"
#include "tuning.h"

#define QCOMPILE_EXPORT extern "C" __attribute__((visibility("default")))

namespace qcompile::cuda {
namespace {

constexpr int kWarm = 3, kTimed = 21;

bool kind_of(const char* family, Kind* kind) {
  if (std::strcmp(family, "LinearW8A8") == 0) return *kind = Kind::linear_w8a8, true;
  if (std::strcmp(family, "LinearE4M3") == 0) return *kind = Kind::linear_e4m3, true;
  return false;
}

// Codes over the whole range, none of them NaN in E4M3: the power that a product takes depends on its bits.
__global__ void fill_codes(uint8_t* codes, size_t count) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    const uint32_t mixed = (static_cast<uint32_t>(i) + 1) * 2654435761u;
    const auto code = static_cast<uint8_t>(mixed >> 24);
    codes[i] = (code & 0x7f) == 0x7f ? 0x3c : code;
  }
}

__global__ void fill_ones(float* values, size_t count) {
  for (size_t i = blockIdx.x * size_t(blockDim.x) + threadIdx.x; i < count; i += size_t(gridDim.x) * blockDim.x) {
    values[i] = 1.0f;
  }
}

// Device memory, a stream and two events, given back at the end.
class Bench {
 public:
  Bench() {
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    check(cudaEventCreate(&start));
    check(cudaEventCreate(&end));
  }
  ~Bench() {
    cudaStreamSynchronize(stream);
    for (void* part : parts_) cudaFree(part);
    cudaEventDestroy(start);
    cudaEventDestroy(end);
    cudaStreamDestroy(stream);
  }

  template <class T>
  T* take(size_t count) {
    void* part = nullptr;
    check(cudaMalloc(&part, count * sizeof(T) + 1));
    if (part != nullptr) parts_.push_back(part);
    return static_cast<T*>(part);
  }

  bool check(cudaError_t status) {
    if (error == cudaSuccess) error = status;
    return error == cudaSuccess;
  }

  cudaStream_t stream = nullptr;
  cudaEvent_t start = nullptr, end = nullptr;
  cudaError_t error = cudaSuccess;

 private:
  std::vector<void*> parts_;
};

// Microseconds of one launch, the median of some; before each the L2 cache is overwritten.
const char* measure(Kind kind, const LinearArguments& shape, double* microseconds) {
  Bench bench;
  LinearArguments a = shape;
  const size_t x = a.m * a.k, w = a.n * a.k;
  auto* const x_codes = bench.take<uint8_t>(x);
  auto* const w_codes = bench.take<uint8_t>(w);
  auto* const x_scale = bench.take<float>(a.m);
  auto* const w_scale = bench.take<float>(a.n);
  a.y = bench.take<uint16_t>(a.m * a.n);
  int ordinal = 0, l2 = 0;
  bench.check(cudaGetDevice(&ordinal));
  bench.check(cudaDeviceGetAttribute(&l2, cudaDevAttrL2CacheSize, ordinal));
  const size_t flushed = 2 * static_cast<size_t>(l2);
  auto* const flush = bench.take<uint8_t>(flushed);
  const bool int8 = kind == Kind::linear_w8a8;
  const size_t bytes = int8 ? LinearW8A8_workspace(a) : LinearE4M3_workspace(a);
  void* const workspace = bytes > 0 ? bench.take<uint8_t>(bytes) : nullptr;
  if (bench.error != cudaSuccess) return cudaGetErrorString(bench.error);

  fill_codes<<<1024, 256, 0, bench.stream>>>(x_codes, x);
  fill_codes<<<1024, 256, 0, bench.stream>>>(w_codes, w);
  fill_ones<<<64, 256, 0, bench.stream>>>(x_scale, a.m);
  fill_ones<<<64, 256, 0, bench.stream>>>(w_scale, a.n);
  a.x = x_codes, a.w = w_codes, a.x_scale = x_scale, a.w_scale = w_scale;

  std::vector<float> times;
  for (int i = 0; i < kWarm + kTimed; ++i) {
    cudaMemsetAsync(flush, i, flushed, bench.stream);  // also keeps the device busy while the host enqueues the rest
    cudaEventRecord(bench.start, bench.stream);
    const char* const refused = int8 ? LinearW8A8(a, workspace, bench.stream) : LinearE4M3(a, workspace, bench.stream);
    if (refused != nullptr) return refused;
    cudaEventRecord(bench.end, bench.stream);
    if (!bench.check(cudaEventSynchronize(bench.end))) return cudaGetErrorString(bench.error);
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, bench.start, bench.end);
    if (i >= kWarm) times.push_back(milliseconds * 1000);
  }
  std::nth_element(times.begin(), times.begin() + kTimed / 2, times.end());
  *microseconds = times[kTimed / 2];
  return nullptr;
}

}  // namespace
}  // namespace qcompile::cuda

using namespace qcompile;
using namespace qcompile::cuda;

// "NAME, driver DRIVER, CUDA RUNTIME" of the current device, versions as CUDA counts them (13000 is 13.0).
QCOMPILE_EXPORT const char* qcompile_device() {
  static char text[512];
  int ordinal = 0, driver = 0, runtime = 0;
  cudaDeviceProp properties;
  if (cudaGetDevice(&ordinal) != cudaSuccess || cudaGetDeviceProperties(&properties, ordinal) != cudaSuccess ||
      cudaDriverGetVersion(&driver) != cudaSuccess || cudaRuntimeGetVersion(&runtime) != cudaSuccess) {
    return nullptr;
  }
  std::snprintf(text, sizeof(text), "%s, driver %d, CUDA %d", properties.name, driver, runtime);
  return text;
}

// The name of a configuration of "LinearW8A8" or "LinearE4M3"; null beyond the last one.
QCOMPILE_EXPORT const char* qcompile_configuration(const char* family, int configuration) {
  Kind kind;
  if (!kind_of(family, &kind) || configuration < 0 || configuration >= linear_configurations(kind)) return nullptr;
  return linear_configuration_name(kind, configuration);
}

// The configuration that the family's rule picks for a shape; -1 where it has none.
QCOMPILE_EXPORT int qcompile_default(const char* family, int64_t m, int64_t n, int64_t k) {
  Kind kind;
  return kind_of(family, &kind) && linear_configurations(kind) > 0 ? linear_default(kind, m, n, k) : -1;
}

// Rows that are tuned together with m: the largest number of them.
QCOMPILE_EXPORT int64_t qcompile_row_bucket(int64_t m) { return row_bucket(m); }

QCOMPILE_EXPORT void qcompile_choose(const char* family, int64_t m, int64_t n, int64_t k, int configuration) {
  Kind kind;
  if (kind_of(family, &kind)) set_choice(kind, m, n, k, configuration);
}

QCOMPILE_EXPORT void qcompile_clear_choices() { clear_choices(); }

// Times the configuration that is chosen for a shape, float16 results, a scale for each row. Null, or what went wrong.
QCOMPILE_EXPORT const char* qcompile_measure(const char* family, int64_t m, int64_t n, int64_t k,
                                             double* microseconds) {
  Kind kind;
  if (!kind_of(family, &kind)) return "no family that can be tuned";
  LinearArguments shape{};
  shape.m = m, shape.n = n, shape.k = k;
  shape.scale_per_row = true;
  shape.activation = Activation::none;
  shape.type = Type::f16;
  return measure(kind, shape, microseconds);
}

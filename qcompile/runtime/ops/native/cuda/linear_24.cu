// Linear24, Linear24W8A8, Linear24E4M3: y = activation(x w^T + bias) with a weight of the 2:4 pattern, through
// cuSPARSELt.
//
// cuSPARSELt multiplies D = A B with A the sparse operand: A = w[n, k], B = x^T, and D, [n, m] in column-major
// order, is y[m, n] in row-major order. A row count that is no multiple of 16 is padded in the workspace.
//
//   floats        bias (rounded to the type) and ReLU are cuSPARSELt's; GELU and SiLU follow in place
//   int8, E4M3    cuSPARSELt writes the int32 or float32 sums; one kernel of ours does all that follows them:
//                 cuSPARSELt has no scales by row of x
//
// The weight is checked and compressed once, when the kernel is created. A plan depends on the number of rows: it is
// made when that number is first seen, which with a CUDA graph is the run before the capture.

#include <memory>
#include <string>

#include "activation.cuh"
#include "families.h"
#include "sparse_weight.cuh"

namespace qcompile::cuda {
namespace {

#ifdef QCOMPILE_HAS_CUSPARSELT

struct Finish {
  const float* x_scale;  // null: 1
  bool scale_per_row;
  const float* w_scale;  // null: 1
  const float* bias;     // null: 0
  Activation activation;
  const float* y_scale;  // int8 outputs
};

__device__ float sum_of(int32_t sum) { return static_cast<float>(sum); }
template <class T>
__device__ float sum_of(T sum) {
  return to_float(sum);
}

template <class Y>
__device__ Y stored(float value, float) {
  return rounded<Y>(value);
}
template <>
__device__ int8_t stored<int8_t>(float value, float y_scale) {
  return static_cast<int8_t>(max(-128, min(127, __float2int_rn(__fdiv_rn(value, y_scale)))));
}

// y from the sums of the m * n results, four neighbours a thread; n is a multiple of 4. y may be sums.
template <class Sum, class Y>
__global__ void finish(const Sum* sums, Y* y, int64_t m, int64_t n, Finish f) {
  const float y_scale = f.y_scale != nullptr ? *f.y_scale : 1.0f;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t quad = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; quad < m * n / 4; quad += stride) {
    const int64_t row = quad * 4 / n, column = quad * 4 % n;
    const float x_scale = f.x_scale != nullptr ? f.x_scale[f.scale_per_row ? row : 0] : 1.0f;
    const auto in = reinterpret_cast<const Pack<Sum, 4>*>(sums)[quad];
    Pack<Y, 4> out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float value = sum_of(in.values[i]) * x_scale;
      if (f.w_scale != nullptr) value *= f.w_scale[column + i];
      if (f.bias != nullptr) value += f.bias[column + i];
      out.values[i] = stored<Y>(activate(value, f.activation), y_scale);
    }
    reinterpret_cast<Pack<Y, 4>*>(y)[quad] = out;
  }
}

template <class Sum, class Y>
const char* run_finish(const void* sums, const LinearArguments& a, const Finish& f, cudaStream_t stream) {
  return launch(finish<Sum, Y>, blocks(a.m * a.n / 4), kThreads, 0, stream, static_cast<const Sum*>(sums),
                static_cast<Y*>(a.y), a.m, a.n, f);
}

template <class Sum>
const char* finish_codes(const void* sums, const LinearArguments& a, cudaStream_t stream) {
  const Finish f{a.x_scale, a.scale_per_row, a.w_scale, a.bias, a.activation, a.y_scale};
  if (a.y_scale != nullptr) return run_finish<Sum, int8_t>(sums, a, f, stream);
  return with_type(a.type, [&](auto y) { return run_finish<Sum, decltype(y)>(sums, a, f, stream); });
}

// Where the parts of the workspace start; a part of no bytes is not used.
struct Layout {
  size_t x, sums, library, end;  // padded x; sums, or padded y; cuSPARSELt's own
};

Layout layout_of(const SparseLinearArguments& a, const Types& types, const Plan& plan) {
  const bool ragged = padded(a.linear.m) != a.linear.m;
  const bool staged = ragged || a.operands != Operands::floats;
  Layout layout{};
  layout.sums = ragged ? section(padded(a.linear.m) * a.linear.k * types.operand_bytes) : 0;
  layout.library = layout.sums + (staged ? section(padded(a.linear.m) * a.linear.n * types.sum_bytes) : 0);
  layout.end = layout.library + section(plan.workspace);
  return layout;
}

#endif

}  // namespace

std::string Linear24_prepare(const SparseLinearArguments& a, std::shared_ptr<void>* prepared) {
#ifdef QCOMPILE_HAS_CUSPARSELT
  auto weight = std::make_shared<SparseWeight>();
  std::string error = weight->prepare(a);
  if (error.empty()) *prepared = std::move(weight);
  return error;
#else
  (void)a, (void)prepared;
  return "this library was built without cuSPARSELt's header: pip install nvidia-cusparselt-cu13 and build it again";
#endif
}

#ifdef QCOMPILE_HAS_CUSPARSELT

size_t Linear24_workspace(const SparseLinearArguments& a) {
  auto* weight = static_cast<SparseWeight*>(a.prepared);
  return layout_of(a, weight->types(), weight->plan(a.linear.m)).end;
}

const char* Linear24(const SparseLinearArguments& a, void* workspace, cudaStream_t stream) {
  auto* weight = static_cast<SparseWeight*>(a.prepared);
  const LinearArguments& l = a.linear;
  const Types& types = weight->types();
  const Plan& plan = weight->plan(l.m);
  if (!plan.error.empty()) return plan.error.c_str();  // lives as long as the node

  auto* const bytes = static_cast<char*>(workspace);
  const Layout layout = layout_of(a, types, plan);
  const int64_t rows = padded(l.m);
  const void* x = l.x;
  if (rows != l.m) {
    const size_t used = l.m * l.k * types.operand_bytes, all = rows * l.k * types.operand_bytes;
    cudaError_t error = cudaMemcpyAsync(bytes + layout.x, l.x, used, cudaMemcpyDeviceToDevice, stream);
    if (error == cudaSuccess) error = cudaMemsetAsync(bytes + layout.x + used, 0, all - used, stream);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    x = bytes + layout.x;
  }
  const bool floats = a.operands == Operands::floats;
  void* const sums = floats && rows == l.m ? l.y : bytes + layout.sums;
  if (weight->multiply(plan, x, sums, bytes + layout.library, stream) != CUSPARSE_STATUS_SUCCESS) {
    return "cuSPARSELt refused the multiplication";
  }

  if (!floats) {
    return a.operands == Operands::int8 ? finish_codes<int32_t>(sums, l, stream) : finish_codes<float>(sums, l, stream);
  }
  if (sums == l.y && (l.activation == Activation::none || l.activation == Activation::relu)) return nullptr;
  const Finish f{nullptr, false, nullptr, nullptr, l.activation, nullptr};
  return with_type(l.type, [&](auto y) { return run_finish<decltype(y), decltype(y)>(sums, l, f, stream); });
}

#else  // no kernel can be created, so that these are never called

size_t Linear24_workspace(const SparseLinearArguments&) { return 0; }
const char* Linear24(const SparseLinearArguments&, void*, cudaStream_t) { return "built without cuSPARSELt"; }

#endif

}  // namespace qcompile::cuda

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

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "cusparselt.h"
#include "families.h"

namespace qcompile::cuda {
namespace {

#ifdef QCOMPILE_HAS_CUSPARSELT

// ---- the 2:4 pattern ------------------------------------------------------------------------------------------

// Leaves in *first the least row with a group of four consecutive values of which more than two are not zero.
template <typename Bits>
__global__ void check_pattern(const Bits* w, Bits magnitude, int64_t groups, int64_t groups_per_row,
                              unsigned long long* first) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups; group += stride) {
    int values = 0;
    for (int i = 0; i < 4; ++i) values += (w[group * 4 + i] & magnitude) != 0;  // -0 is zero
    if (values > 2) atomicMin(first, static_cast<unsigned long long>(group / groups_per_row));
  }
}

// ---- what follows the sums ------------------------------------------------------------------------------------

struct Finish {
  const float* x_scale;  // null: 1
  bool scale_per_row;
  const float* w_scale;  // null: 1
  const float* bias;     // null: 0
  Activation activation;
  const float* y_scale;  // int8 outputs
};

__device__ float to_float(int32_t value) { return static_cast<float>(value); }
__device__ float to_float(float value) { return value; }
__device__ float to_float(__half value) { return __half2float(value); }
__device__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ void store(float value, float, float* y) { *y = value; }
__device__ void store(float value, float, __half* y) { *y = __float2half_rn(value); }
__device__ void store(float value, float, __nv_bfloat16* y) { *y = __float2bfloat16_rn(value); }
__device__ void store(float value, float y_scale, int8_t* y) {
  *y = static_cast<int8_t>(max(-128, min(127, __float2int_rn(value / y_scale))));
}

__device__ float activate(float value, Activation activation) {
  switch (activation) {
    case Activation::relu: return fmaxf(value, 0.0f);
    case Activation::gelu: return 0.5f * value * (1.0f + erff(value * 0.70710678118654752f));
    case Activation::silu: return value / (1.0f + expf(-value));
    default: return value;
  }
}

// y[i] from sums[i] for the m * n results, four neighbours a thread; n is a multiple of 4. y may be sums.
template <typename Sum, typename Y>
__global__ void finish(const Sum* sums, Y* y, int64_t m, int64_t n, Finish f) {
  struct alignas(4 * sizeof(Sum)) Sums { Sum at[4]; };
  struct alignas(4 * sizeof(Y)) Ys { Y at[4]; };
  const float y_scale = f.y_scale != nullptr ? *f.y_scale : 1.0f;
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t quad = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; quad < m * n / 4; quad += stride) {
    const int64_t row = quad * 4 / n, column = quad * 4 % n;
    const float x_scale = f.x_scale != nullptr ? f.x_scale[f.scale_per_row ? row : 0] : 1.0f;
    const Sums in = reinterpret_cast<const Sums*>(sums)[quad];
    Ys out;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float value = to_float(in.at[i]) * x_scale;
      if (f.w_scale != nullptr) value *= f.w_scale[column + i];
      if (f.bias != nullptr) value += f.bias[column + i];
      store(activate(value, f.activation), y_scale, &out.at[i]);
    }
    reinterpret_cast<Ys*>(y)[quad] = out;
  }
}

template <typename Y>
__global__ void round_bias(const float* bias, Y* rounded, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) store(bias[i], 1.0f, &rounded[i]);
}

constexpr int kThreads = 256;

unsigned blocks(int64_t threads) {
  const int64_t wanted = (threads + kThreads - 1) / kThreads;
  return static_cast<unsigned>(wanted < 65536 ? (wanted > 0 ? wanted : 1) : 65536);
}

template <typename Sum>
void finish_as(const Sum* sums, const LinearArguments& a, const Finish& f, cudaStream_t stream) {
  const unsigned grid = blocks(a.m * a.n / 4);
  if (a.y_scale != nullptr) {
    finish<<<grid, kThreads, 0, stream>>>(sums, static_cast<int8_t*>(a.y), a.m, a.n, f);
  } else if (a.type == Type::f32) {
    finish<<<grid, kThreads, 0, stream>>>(sums, static_cast<float*>(a.y), a.m, a.n, f);
  } else if (a.type == Type::f16) {
    finish<<<grid, kThreads, 0, stream>>>(sums, static_cast<__half*>(a.y), a.m, a.n, f);
  } else {
    finish<<<grid, kThreads, 0, stream>>>(sums, static_cast<__nv_bfloat16*>(a.y), a.m, a.n, f);
  }
}

// ---- the compressed weight and its plans ----------------------------------------------------------------------

constexpr int64_t kRows = 16;         // rows of x come in multiples of this
constexpr uint32_t kAlignment = 16;   // bytes; ours are at multiples of 256
constexpr size_t kSection = 256;      // sections of the workspace start at multiples of this

int64_t padded(int64_t m) { return (m + kRows - 1) / kRows * kRows; }
size_t section(size_t bytes) { return (bytes + kSection - 1) / kSection * kSection; }

struct Types {
  cudaDataType operand, sum;
  cusparseComputeType compute;
  size_t operand_bytes, sum_bytes;
};

Types types_of(Operands operands, Type type) {
  if (operands == Operands::int8) return {CUDA_R_8I, CUDA_R_32I, CUSPARSE_COMPUTE_32I, 1, 4};
  if (operands == Operands::e4m3) return {CUDA_R_8F_E4M3, CUDA_R_32F, CUSPARSE_COMPUTE_32F, 1, 4};
  const cudaDataType floats = type == Type::bf16 ? CUDA_R_16BF : CUDA_R_16F;
  return {floats, floats, CUSPARSE_COMPUTE_32F, 2, 2};
}

struct Plan {
  cusparseLtMatDescriptor_t x, y;
  cusparseLtMatmulDescriptor_t matmul;
  cusparseLtMatmulAlgSelection_t selection;
  cusparseLtMatmulPlan_t plan;
  size_t workspace = 0;
  std::string error;  // empty, or why there is no plan
};

class SparseWeight {
 public:
  ~SparseWeight() {
    for (auto& [rows, plan] : plans_) {
      if (!plan.error.empty()) continue;
      library_.MatmulPlanDestroy(&plan.plan);
      library_.MatmulAlgSelectionDestroy(&plan.selection);
      library_.MatDescriptorDestroy(&plan.x);
      library_.MatDescriptorDestroy(&plan.y);
    }
    if (described_) library_.MatDescriptorDestroy(&weight_);
    if (initialized_) library_.Destroy(&handle_);
    cudaFree(compressed_);
    cudaFree(bias_);
  }

  // Empty, or what is wrong. Waits for the device: for the creation of a kernel only.
  std::string prepare(const SparseLinearArguments& a) {
    if (!library_.error.empty()) return library_.error;
    if (a.operands == Operands::floats && a.linear.type == Type::f32) return "float32 operands have no 2:4 kernel";
    n_ = a.linear.n, k_ = a.linear.k;
    types_ = types_of(a.operands, a.linear.type);
    relu_ = a.operands == Operands::floats && a.linear.activation == Activation::relu;
    if (k_ % 32 != 0 || n_ % 8 != 0) {
      return "a weight " + shape() + " has no 2:4 kernel: N must be a multiple of 8, K of 32";
    }
    std::string error = check(a);
    if (error.empty()) error = compress(a.linear.w);
    if (error.empty() && a.operands == Operands::floats && a.linear.bias != nullptr) error = keep_bias(a.linear);
    return error;
  }

  // The plan for m rows, made when it is not there yet. Stays where it is as long as this object.
  const Plan& plan(int64_t m) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [found, missing] = plans_.try_emplace(padded(m));
    if (missing) make(padded(m), &found->second);
    return found->second;
  }

  cusparseStatus_t multiply(const Plan& plan, const void* x, void* sums, void* workspace, cudaStream_t stream) {
    const float one = 1.0f, zero = 0.0f;
    return library_.Matmul(&handle_, &plan.plan, &one, compressed_, x, &zero, sums, sums, workspace, &stream, 1);
  }

  const Types& types() const { return types_; }

 private:
  std::string shape() const { return "[" + std::to_string(n_) + ", " + std::to_string(k_) + "]"; }

  std::string check(const SparseLinearArguments& a) {
    unsigned long long* first = nullptr;
    unsigned long long row = ~0ull;
    const int64_t groups = n_ * k_ / 4;
    cudaDeviceSynchronize();  // the weight may still be on its way
    cudaError_t error = cudaMalloc(&first, sizeof(row));
    if (error == cudaSuccess) error = cudaMemcpy(first, &row, sizeof(row), cudaMemcpyHostToDevice);
    if (error == cudaSuccess) {
      if (a.operands == Operands::floats) {
        check_pattern<uint16_t><<<blocks(groups), kThreads>>>(static_cast<const uint16_t*>(a.linear.w), 0x7fff, groups,
                                                              k_ / 4, first);
      } else {
        const uint8_t magnitude = a.operands == Operands::int8 ? 0xff : 0x7f;
        check_pattern<uint8_t><<<blocks(groups), kThreads>>>(static_cast<const uint8_t*>(a.linear.w), magnitude, groups,
                                                             k_ / 4, first);
      }
      error = cudaGetLastError();
    }
    if (error == cudaSuccess) error = cudaMemcpy(&row, first, sizeof(row), cudaMemcpyDeviceToHost);
    cudaFree(first);
    if (error != cudaSuccess) return std::string("checking the weight failed: ") + cudaGetErrorString(error);
    if (row == ~0ull) return "";
    return "row " + std::to_string(row) + " of the weight " + shape() +
           " has more than two values other than zero in four consecutive ones";
  }

  std::string compress(const void* w) {
    cusparseStatus_t status = library_.Init(&handle_);
    if (status != CUSPARSE_STATUS_SUCCESS) return failed("starting", status);
    initialized_ = true;
    status = library_.StructuredDescriptorInit(&handle_, &weight_, n_, k_, k_, kAlignment, types_.operand,
                                               CUSPARSE_ORDER_ROW, CUSPARSELT_SPARSITY_50_PERCENT);
    if (status != CUSPARSE_STATUS_SUCCESS) return failed("taking a weight " + shape(), status);
    described_ = true;
    size_t bytes = 0, scratch_bytes = 0;
    status = library_.SpMMACompressedSize2(&handle_, &weight_, &bytes, &scratch_bytes);
    if (status != CUSPARSE_STATUS_SUCCESS) return failed("sizing a weight " + shape(), status);
    void* scratch = nullptr;
    cudaError_t error = cudaMalloc(&compressed_, bytes);
    if (error == cudaSuccess && scratch_bytes > 0) error = cudaMalloc(&scratch, scratch_bytes);
    if (error == cudaSuccess) {
      status = library_.SpMMACompress2(&handle_, &weight_, 1, CUSPARSE_OPERATION_NON_TRANSPOSE, w, compressed_, scratch,
                                       nullptr);
      error = cudaDeviceSynchronize();
    }
    cudaFree(scratch);
    if (error != cudaSuccess) return std::string("compressing the weight failed: ") + cudaGetErrorString(error);
    return status == CUSPARSE_STATUS_SUCCESS ? "" : failed("compressing a weight " + shape(), status);
  }

  std::string keep_bias(const LinearArguments& a) {
    cudaError_t error = cudaMalloc(&bias_, n_ * types_.sum_bytes);
    if (error == cudaSuccess) {
      if (a.type == Type::bf16) {
        round_bias<<<blocks(n_), kThreads>>>(a.bias, static_cast<__nv_bfloat16*>(bias_), n_);
      } else {
        round_bias<<<blocks(n_), kThreads>>>(a.bias, static_cast<__half*>(bias_), n_);
      }
      error = cudaDeviceSynchronize();
    }
    return error == cudaSuccess ? "" : std::string("keeping the bias failed: ") + cudaGetErrorString(error);
  }

  // Host work only. What cuSPARSELt refuses is kept in plan->error.
  void make(int64_t rows, Plan* plan) {
    const int32_t yes = 1;
    cusparseStatus_t status = library_.DenseDescriptorInit(&handle_, &plan->x, rows, k_, k_, kAlignment,
                                                           types_.operand, CUSPARSE_ORDER_ROW);
    const auto then = [&status](auto next) {
      if (status == CUSPARSE_STATUS_SUCCESS) status = next();
    };
    then([&] {
      return library_.DenseDescriptorInit(&handle_, &plan->y, n_, rows, n_, kAlignment, types_.sum, CUSPARSE_ORDER_COL);
    });
    then([&] {
      return library_.MatmulDescriptorInit(&handle_, &plan->matmul, CUSPARSE_OPERATION_NON_TRANSPOSE,
                                           CUSPARSE_OPERATION_TRANSPOSE, &weight_, &plan->x, &plan->y, &plan->y,
                                           types_.compute);
    });
    if (bias_ != nullptr) {
      then([&] {
        return library_.MatmulDescSetAttribute(&handle_, &plan->matmul, CUSPARSELT_MATMUL_BIAS_POINTER, &bias_,
                                               sizeof(bias_));
      });
    }
    if (relu_) {
      then([&] {
        return library_.MatmulDescSetAttribute(&handle_, &plan->matmul, CUSPARSELT_MATMUL_ACTIVATION_RELU, &yes,
                                               sizeof(yes));
      });
    }
    then([&] {
      return library_.MatmulAlgSelectionInit(&handle_, &plan->selection, &plan->matmul, CUSPARSELT_MATMUL_ALG_DEFAULT);
    });
    then([&] { return library_.MatmulPlanInit(&handle_, &plan->plan, &plan->matmul, &plan->selection); });
    then([&] { return library_.MatmulGetWorkspace(&handle_, &plan->plan, &plan->workspace); });
    if (status != CUSPARSE_STATUS_SUCCESS) {
      plan->error = failed("planning " + std::to_string(rows) + " rows for a weight " + shape(), status);
    }
  }

  std::string failed(const std::string& doing, cusparseStatus_t status) const {
    return "cuSPARSELt failed at " + doing + ": " + library_.GetErrorString(status);
  }

  const CuSparseLt& library_ = cusparselt();
  cusparseLtHandle_t handle_;
  cusparseLtMatDescriptor_t weight_;
  bool initialized_ = false, described_ = false, relu_ = false;
  int64_t n_ = 0, k_ = 0;
  Types types_{};
  void *compressed_ = nullptr, *bias_ = nullptr;  // on the device
  std::mutex mutex_;
  std::map<int64_t, Plan> plans_;  // by padded rows
};

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
    cudaMemcpyAsync(bytes + layout.x, l.x, used, cudaMemcpyDeviceToDevice, stream);
    cudaMemsetAsync(bytes + layout.x + used, 0, all - used, stream);
    x = bytes + layout.x;
  }
  const bool floats = a.operands == Operands::floats;
  void* const sums = floats && rows == l.m ? l.y : bytes + layout.sums;
  if (weight->multiply(plan, x, sums, bytes + layout.library, stream) != CUSPARSE_STATUS_SUCCESS) {
    return "cuSPARSELt refused the multiplication";
  }

  if (floats) {
    const Finish f{nullptr, false, nullptr, nullptr, l.activation, nullptr};
    const bool done = l.activation == Activation::none || l.activation == Activation::relu;
    if (!done || sums != l.y) {
      if (l.type == Type::f16) {
        finish<<<blocks(l.m * l.n / 4), kThreads, 0, stream>>>(static_cast<const __half*>(sums),
                                                                static_cast<__half*>(l.y), l.m, l.n, f);
      } else {
        finish<<<blocks(l.m * l.n / 4), kThreads, 0, stream>>>(static_cast<const __nv_bfloat16*>(sums),
                                                                static_cast<__nv_bfloat16*>(l.y), l.m, l.n, f);
      }
    }
  } else {
    const Finish f{l.x_scale, l.scale_per_row, l.w_scale, l.bias, l.activation, l.y_scale};
    if (a.operands == Operands::int8) {
      finish_as(static_cast<const int32_t*>(sums), l, f, stream);
    } else {
      finish_as(static_cast<const float*>(sums), l, f, stream);
    }
  }
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

#else  // no kernel can be created, so that these are never called

size_t Linear24_workspace(const SparseLinearArguments&) { return 0; }
const char* Linear24(const SparseLinearArguments&, void*, cudaStream_t) { return "built without cuSPARSELt"; }

#endif

}  // namespace qcompile::cuda

// A weight of the 2:4 pattern as cuSPARSELt wants it: checked and compressed once, with a plan for each number of rows.
// For linear_24.cu alone.

#pragma once

#include "cusparselt.h"

#ifdef QCOMPILE_HAS_CUSPARSELT

#include <cstdint>
#include <map>
#include <mutex>
#include <string>

#include "arguments.h"
#include "floats.cuh"
#include "launch.cuh"

namespace qcompile::cuda {
namespace {

constexpr int kThreads = 256;

unsigned blocks(int64_t threads) {
  return static_cast<unsigned>(min((threads + kThreads - 1) / kThreads, int64_t{65535}));
}

// Leaves in *first the least row with a group of four consecutive values of which more than two are not zero.
template <class Bits>
__global__ void check_pattern(const Bits* w, Bits magnitude, int64_t groups, int64_t groups_per_row,
                              unsigned long long* first) {
  const int64_t stride = int64_t(gridDim.x) * blockDim.x;
  for (int64_t group = int64_t(blockIdx.x) * blockDim.x + threadIdx.x; group < groups; group += stride) {
    int values = 0;
    for (int i = 0; i < 4; ++i) values += (w[group * 4 + i] & magnitude) != 0;  // -0 is zero
    if (values > 2) atomicMin(first, static_cast<unsigned long long>(group / groups_per_row));
  }
}

template <class Y>
__global__ void round_bias(const float* bias, Y* to, int64_t n) {
  const int64_t i = int64_t(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i < n) to[i] = rounded<Y>(bias[i]);
}

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

  template <class Bits>
  const char* run_check(const void* w, Bits magnitude, int64_t groups, unsigned long long* first) {
    return launch(check_pattern<Bits>, blocks(groups), kThreads, 0, nullptr, static_cast<const Bits*>(w), magnitude,
                  groups, k_ / 4, first);
  }

  std::string check(const SparseLinearArguments& a) {
    unsigned long long* first = nullptr;
    unsigned long long row = ~0ull;
    const int64_t groups = n_ * k_ / 4;
    cudaDeviceSynchronize();  // the weight may still be on its way
    cudaError_t error = cudaMalloc(&first, sizeof(row));
    if (error == cudaSuccess) error = cudaMemcpy(first, &row, sizeof(row), cudaMemcpyHostToDevice);
    const char* refused = nullptr;
    if (error == cudaSuccess) {
      if (a.operands == Operands::floats) {
        refused = run_check<uint16_t>(a.linear.w, 0x7fff, groups, first);
      } else {
        refused = run_check<uint8_t>(a.linear.w, a.operands == Operands::int8 ? 0xff : 0x7f, groups, first);
      }
    }
    if (error == cudaSuccess) error = cudaMemcpy(&row, first, sizeof(row), cudaMemcpyDeviceToHost);
    cudaFree(first);
    if (error != cudaSuccess) refused = cudaGetErrorString(error);
    if (refused != nullptr) return std::string("checking the weight failed: ") + refused;
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
    const char* refused = nullptr;
    if (error == cudaSuccess) {
      refused = with_type(a.type, [&](auto to) {
        return launch(round_bias<decltype(to)>, blocks(n_), kThreads, 0, nullptr, a.bias,
                      static_cast<decltype(to)*>(bias_), n_);
      });
      error = cudaDeviceSynchronize();
    }
    if (error != cudaSuccess) refused = cudaGetErrorString(error);
    return refused == nullptr ? "" : std::string("keeping the bias failed: ") + refused;
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

}  // namespace
}  // namespace qcompile::cuda

#endif

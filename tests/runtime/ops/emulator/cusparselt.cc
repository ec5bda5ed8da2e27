// A stand-in for cuSPARSELt: slow, strict about what is documented, and it keeps the weight in a form of its own.

#include "cusparseLt.h"

#include "cuda_bf16.h"
#include "cuda_fp16.h"

namespace {

constexpr size_t kScratch = 64, kWorkspace = 512;
constexpr uint8_t kPacked = 0x5a;  // what a compressed byte is mixed with: a dense weight would not do

size_t size_of(cudaDataType type) {
  if (type == CUDA_R_8I || type == CUDA_R_8F_E4M3) return 1;
  return type == CUDA_R_16F || type == CUDA_R_16BF ? 2 : 4;
}

float e4m3(uint8_t code) {
  const int exponent = code >> 3 & 15, fraction = code & 7;
  const float magnitude = exponent == 0 ? std::ldexp(float(fraction), -9) : std::ldexp(8.0f + fraction, exponent - 10);
  return code >> 7 ? -magnitude : magnitude;
}

float value(const uint8_t* bytes, cudaDataType type) {
  uint16_t half;
  memcpy(&half, bytes, size_of(type) == 2 ? 2 : 1);
  switch (type) {
    case CUDA_R_8I: return static_cast<int8_t>(*bytes);
    case CUDA_R_8F_E4M3: return e4m3(*bytes);
    case CUDA_R_16F: return __half2float({half});
    default: return __bfloat162float({half});
  }
}

bool fits(int64_t rows, int64_t cols, cudaDataType type) {
  const int64_t multiple = size_of(type) == 1 ? 16 : 8;
  return size_of(type) == 4 || (rows % 8 == 0 && cols % multiple == 0);
}

}  // namespace

extern "C" {

cusparseStatus_t cusparseLtInit(cusparseLtHandle_t*) { return CUSPARSE_STATUS_SUCCESS; }
cusparseStatus_t cusparseLtDestroy(const cusparseLtHandle_t*) { return CUSPARSE_STATUS_SUCCESS; }
cusparseStatus_t cusparseLtGetProperty(libraryPropertyType property, int* value) {
  *value = property == MAJOR_VERSION ? 0 : EMULATED_MINOR;
  return CUSPARSE_STATUS_SUCCESS;
}
const char* cusparseLtGetErrorString(cusparseStatus_t) { return "refused"; }

cusparseStatus_t cusparseLtDenseDescriptorInit(const cusparseLtHandle_t*, cusparseLtMatDescriptor_t* matrix,
                                               int64_t rows, int64_t cols, int64_t ld, uint32_t alignment,
                                               cudaDataType type, cusparseOrder_t order) {
  *matrix = {rows, cols, ld, type, order, false};
  const bool dense = ld == (order == CUSPARSE_ORDER_ROW ? cols : rows);
  return dense && alignment % 16 == 0 && fits(rows, cols, type) ? CUSPARSE_STATUS_SUCCESS : CUSPARSE_STATUS_NOT_SUPPORTED;
}

cusparseStatus_t cusparseLtStructuredDescriptorInit(const cusparseLtHandle_t* handle, cusparseLtMatDescriptor_t* matrix,
                                                    int64_t rows, int64_t cols, int64_t ld, uint32_t alignment,
                                                    cudaDataType type, cusparseOrder_t order, cusparseLtSparsity_t) {
  const auto status = cusparseLtDenseDescriptorInit(handle, matrix, rows, cols, ld, alignment, type, order);
  matrix->structured = true;
  return status;
}

cusparseStatus_t cusparseLtMatDescriptorDestroy(const cusparseLtMatDescriptor_t*) { return CUSPARSE_STATUS_SUCCESS; }

cusparseStatus_t cusparseLtMatmulDescriptorInit(const cusparseLtHandle_t*, cusparseLtMatmulDescriptor_t* matmul,
                                                cusparseOperation_t op_a, cusparseOperation_t op_b,
                                                const cusparseLtMatDescriptor_t* a, const cusparseLtMatDescriptor_t* b,
                                                const cusparseLtMatDescriptor_t* c, const cusparseLtMatDescriptor_t* d,
                                                cusparseComputeType compute) {
  *matmul = {a, b, c, d, op_a, op_b, compute, nullptr, 0};
  const bool right = a->structured && op_a == CUSPARSE_OPERATION_NON_TRANSPOSE && op_b == CUSPARSE_OPERATION_TRANSPOSE &&
                     a->cols == b->cols && d->rows == a->rows && d->cols == b->rows && a->type == b->type &&
                     a->order == CUSPARSE_ORDER_ROW && b->order == CUSPARSE_ORDER_ROW && d->order == CUSPARSE_ORDER_COL &&
                     (compute == CUSPARSE_COMPUTE_32I) == (a->type == CUDA_R_8I);
  return right ? CUSPARSE_STATUS_SUCCESS : CUSPARSE_STATUS_NOT_SUPPORTED;
}

cusparseStatus_t cusparseLtMatmulDescSetAttribute(const cusparseLtHandle_t*, cusparseLtMatmulDescriptor_t* matmul,
                                                  cusparseLtMatmulDescAttribute_t attribute, const void* data,
                                                  size_t bytes) {
  const bool bias = attribute == CUSPARSELT_MATMUL_BIAS_POINTER;
  if (bytes != (bias ? sizeof(void*) : sizeof(int32_t))) return CUSPARSE_STATUS_INVALID_VALUE;
  memcpy(bias ? static_cast<void*>(&matmul->bias) : &matmul->relu, data, bytes);
  return CUSPARSE_STATUS_SUCCESS;
}

cusparseStatus_t cusparseLtMatmulAlgSelectionInit(const cusparseLtHandle_t*, cusparseLtMatmulAlgSelection_t*,
                                                  const cusparseLtMatmulDescriptor_t*, cusparseLtMatmulAlg_t) {
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulAlgSelectionDestroy(const cusparseLtMatmulAlgSelection_t*) {
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulPlanInit(const cusparseLtHandle_t*, cusparseLtMatmulPlan_t* plan,
                                          const cusparseLtMatmulDescriptor_t* matmul,
                                          const cusparseLtMatmulAlgSelection_t*) {
  plan->matmul = *matmul;
  return CUSPARSE_STATUS_SUCCESS;
}
cusparseStatus_t cusparseLtMatmulPlanDestroy(const cusparseLtMatmulPlan_t*) { return CUSPARSE_STATUS_SUCCESS; }
cusparseStatus_t cusparseLtMatmulGetWorkspace(const cusparseLtHandle_t*, const cusparseLtMatmulPlan_t*, size_t* bytes) {
  *bytes = kWorkspace;
  return CUSPARSE_STATUS_SUCCESS;
}

cusparseStatus_t cusparseLtSpMMACompressedSize2(const cusparseLtHandle_t*, const cusparseLtMatDescriptor_t* w,
                                                size_t* bytes, size_t* scratch_bytes) {
  *bytes = w->rows * w->cols * size_of(w->type);
  *scratch_bytes = kScratch;
  return CUSPARSE_STATUS_SUCCESS;
}

cusparseStatus_t cusparseLtSpMMACompress2(const cusparseLtHandle_t*, const cusparseLtMatDescriptor_t* w, int is_a,
                                          cusparseOperation_t op, const void* dense, void* compressed, void* scratch,
                                          cudaStream_t) {
  if (!is_a || op != CUSPARSE_OPERATION_NON_TRANSPOSE) return CUSPARSE_STATUS_NOT_SUPPORTED;
  memset(scratch, 0xff, kScratch);
  const size_t bytes = w->rows * w->cols * size_of(w->type);
  for (size_t i = 0; i < bytes; ++i) {
    static_cast<uint8_t*>(compressed)[i] = static_cast<const uint8_t*>(dense)[i] ^ kPacked;
  }
  return CUSPARSE_STATUS_SUCCESS;
}

cusparseStatus_t cusparseLtMatmul(const cusparseLtHandle_t*, const cusparseLtMatmulPlan_t* plan, const void* alpha,
                                  const void* a, const void* b, const void* beta, const void*, void* d, void* workspace,
                                  cudaStream_t*, int32_t) {
  const cusparseLtMatmulDescriptor_t& matmul = plan->matmul;
  const int64_t n = matmul.d->rows, m = matmul.d->cols, k = matmul.a->cols;
  const cudaDataType in = matmul.a->type, out = matmul.d->type;
  if (*static_cast<const float*>(alpha) != 1 || *static_cast<const float*>(beta) != 0) return CUSPARSE_STATUS_NOT_SUPPORTED;
  memset(workspace, 0xff, kWorkspace);
  for (int64_t row = 0; row < m; ++row) {
    for (int64_t column = 0; column < n; ++column) {
      double sum = 0;
      for (int64_t i = 0; i < k; ++i) {
        uint8_t w[2];
        for (size_t j = 0; j < size_of(in); ++j) {
          w[j] = static_cast<const uint8_t*>(a)[(column * k + i) * size_of(in) + j] ^ kPacked;
        }
        sum += double{value(w, in)} * value(static_cast<const uint8_t*>(b) + (row * k + i) * size_of(in), in);
      }
      const int64_t at = row * n + column;  // column-major
      if (matmul.bias != nullptr) sum += value(static_cast<const uint8_t*>(matmul.bias) + column * 2, out);
      if (matmul.relu) sum = std::max(sum, 0.0);
      if (out == CUDA_R_32I) static_cast<int32_t*>(d)[at] = static_cast<int32_t>(sum);
      if (out == CUDA_R_32F) static_cast<float*>(d)[at] = static_cast<float>(sum);
      if (out == CUDA_R_16F) static_cast<__half*>(d)[at] = __float2half_rn(static_cast<float>(sum));
      if (out == CUDA_R_16BF) static_cast<__nv_bfloat16*>(d)[at] = __float2bfloat16_rn(static_cast<float>(sum));
    }
  }
  return CUSPARSE_STATUS_SUCCESS;
}

}

// As much of cuSPARSELt's interface as Linear24 uses, in our own words; cusparselt.cc plays the library.

#pragma once

#include "cuda_runtime.h"

enum cusparseStatus_t { CUSPARSE_STATUS_SUCCESS, CUSPARSE_STATUS_INVALID_VALUE = 3, CUSPARSE_STATUS_NOT_SUPPORTED = 10 };
enum cusparseOperation_t { CUSPARSE_OPERATION_NON_TRANSPOSE, CUSPARSE_OPERATION_TRANSPOSE };
enum cusparseOrder_t { CUSPARSE_ORDER_COL = 1, CUSPARSE_ORDER_ROW = 2 };
enum cudaDataType { CUDA_R_32F, CUDA_R_16F, CUDA_R_8I, CUDA_R_32I, CUDA_R_16BF, CUDA_R_8F_E4M3 };
enum libraryPropertyType { MAJOR_VERSION, MINOR_VERSION };
enum cusparseLtSparsity_t { CUSPARSELT_SPARSITY_50_PERCENT };
enum cusparseComputeType { CUSPARSE_COMPUTE_32I, CUSPARSE_COMPUTE_16F, CUSPARSE_COMPUTE_32F };
enum cusparseLtMatmulAlg_t { CUSPARSELT_MATMUL_ALG_DEFAULT };
enum cusparseLtMatmulDescAttribute_t { CUSPARSELT_MATMUL_ACTIVATION_RELU, CUSPARSELT_MATMUL_BIAS_POINTER };
constexpr int CUSPARSELT_VER_MAJOR = 0;

struct cusparseLtHandle_t {
  alignas(16) uint8_t data[512];
};
struct cusparseLtMatDescriptor_t {
  int64_t rows, cols, ld;
  cudaDataType type;
  cusparseOrder_t order;
  bool structured;
};
struct cusparseLtMatmulDescriptor_t {
  const cusparseLtMatDescriptor_t *a, *b, *c, *d;
  cusparseOperation_t op_a, op_b;
  cusparseComputeType compute;
  const void* bias;
  int32_t relu;
};
struct cusparseLtMatmulAlgSelection_t {
  int algorithm;
};
struct cusparseLtMatmulPlan_t {
  cusparseLtMatmulDescriptor_t matmul;
};

extern "C" {
cusparseStatus_t cusparseLtInit(cusparseLtHandle_t*);
cusparseStatus_t cusparseLtDestroy(const cusparseLtHandle_t*);
cusparseStatus_t cusparseLtGetProperty(libraryPropertyType, int*);
const char* cusparseLtGetErrorString(cusparseStatus_t);
cusparseStatus_t cusparseLtDenseDescriptorInit(const cusparseLtHandle_t*, cusparseLtMatDescriptor_t*, int64_t rows,
                                               int64_t cols, int64_t ld, uint32_t alignment, cudaDataType,
                                               cusparseOrder_t);
cusparseStatus_t cusparseLtStructuredDescriptorInit(const cusparseLtHandle_t*, cusparseLtMatDescriptor_t*, int64_t rows,
                                                    int64_t cols, int64_t ld, uint32_t alignment, cudaDataType,
                                                    cusparseOrder_t, cusparseLtSparsity_t);
cusparseStatus_t cusparseLtMatDescriptorDestroy(const cusparseLtMatDescriptor_t*);
cusparseStatus_t cusparseLtMatmulDescriptorInit(const cusparseLtHandle_t*, cusparseLtMatmulDescriptor_t*,
                                                cusparseOperation_t, cusparseOperation_t,
                                                const cusparseLtMatDescriptor_t* a, const cusparseLtMatDescriptor_t* b,
                                                const cusparseLtMatDescriptor_t* c, const cusparseLtMatDescriptor_t* d,
                                                cusparseComputeType);
cusparseStatus_t cusparseLtMatmulDescSetAttribute(const cusparseLtHandle_t*, cusparseLtMatmulDescriptor_t*,
                                                  cusparseLtMatmulDescAttribute_t, const void* data, size_t bytes);
cusparseStatus_t cusparseLtMatmulAlgSelectionInit(const cusparseLtHandle_t*, cusparseLtMatmulAlgSelection_t*,
                                                  const cusparseLtMatmulDescriptor_t*, cusparseLtMatmulAlg_t);
cusparseStatus_t cusparseLtMatmulAlgSelectionDestroy(const cusparseLtMatmulAlgSelection_t*);
cusparseStatus_t cusparseLtMatmulPlanInit(const cusparseLtHandle_t*, cusparseLtMatmulPlan_t*,
                                          const cusparseLtMatmulDescriptor_t*, const cusparseLtMatmulAlgSelection_t*);
cusparseStatus_t cusparseLtMatmulPlanDestroy(const cusparseLtMatmulPlan_t*);
cusparseStatus_t cusparseLtMatmulGetWorkspace(const cusparseLtHandle_t*, const cusparseLtMatmulPlan_t*, size_t* bytes);
cusparseStatus_t cusparseLtMatmul(const cusparseLtHandle_t*, const cusparseLtMatmulPlan_t*, const void* alpha,
                                  const void* a, const void* b, const void* beta, const void* c, void* d,
                                  void* workspace, cudaStream_t* streams, int32_t stream_count);
cusparseStatus_t cusparseLtSpMMACompressedSize2(const cusparseLtHandle_t*, const cusparseLtMatDescriptor_t*,
                                                size_t* bytes, size_t* scratch_bytes);
cusparseStatus_t cusparseLtSpMMACompress2(const cusparseLtHandle_t*, const cusparseLtMatDescriptor_t*, int is_a,
                                          cusparseOperation_t, const void* dense, void* compressed, void* scratch,
                                          cudaStream_t);
}

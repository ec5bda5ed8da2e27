// The kernels as functions that Python can call: null, or an error.

#include "cpu/families.h"
#include "cuda/families.h"
#include "cuda_runtime.h"

using namespace qcompile;

// In the place of CUTLASS, which has a test of its own.
size_t cuda::LinearW8A8_workspace(const LinearArguments&) { return 0; }
const char* cuda::LinearW8A8(const LinearArguments& a, void*, cudaStream_t) {
  cpu::LinearW8A8(a);
  return nullptr;
}

extern "C" {

void run_descending(bool descending) { emulator::descending = descending; }

const char* quantize_rows(int64_t m, int64_t k, const void* x, int type, int code, void* x_q, float* x_scale) {
  return cuda::QuantizeRows({m, k, x, Type(type), Code(code), x_q, x_scale}, nullptr, nullptr);
}

const char* norm_quant(int64_t m, int64_t k, const void* x, const void* skip, const float* gamma, const float* beta,
                       float epsilon, bool rms, int type, int code, void* x_q, float* x_scale, void* y, void* sum) {
  return cuda::NormQuant({m, k, x, skip, gamma, beta, epsilon, rms, Type(type), Code(code), x_q, x_scale, y, sum},
                         nullptr, nullptr);
}

const char* linear_outliers(int64_t m, int64_t n, int64_t k, int64_t outliers, const void* x, const float* keep,
                            const int64_t* columns, const void* w_columns, const void* w, const float* w_scale,
                            const float* bias, int activation, int type, void* y) {
  const OutlierLinearArguments arguments{m, n, k, outliers, x, keep, columns, w_columns, w, w_scale, bias,
                                         Activation(activation), Type(type), y};
  std::vector<char> workspace(cuda::LinearOutliersW8A8_workspace(arguments), '\xff');
  return cuda::LinearOutliersW8A8(arguments, workspace.data(), nullptr);
}

const char* linear_w4a16(int64_t m, int64_t n, int64_t k, int64_t block, const void* x, const uint8_t* w,
                         const uint16_t* w_scale, const uint8_t* w_zero, const float* bias, int type, void* y) {
  const BlockLinearArguments arguments{m, n, k, block, x, w, w_scale, w_zero, bias, Type(type), y};
  std::vector<float> workspace(cuda::LinearW4A16_workspace(arguments) / sizeof(float), NAN);
  return cuda::LinearW4A16(arguments, workspace.data(), nullptr);
}

}

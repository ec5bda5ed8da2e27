// Linear24 as a function that Python can call: prepares, runs, forgets. Null, or an error.

#include "cuda/families.h"
#include "cuda_runtime.h"

using namespace qcompile;

extern "C" const char* linear_24(int operands, int64_t m, int64_t n, int64_t k, const void* x, const float* x_scale,
                                 bool scale_per_row, const void* w, const float* w_scale, const float* bias,
                                 int activation, int type, const float* y_scale, void* y) {
  static std::string error;
  SparseLinearArguments arguments{};
  arguments.operands = Operands(operands);
  LinearArguments& linear = arguments.linear;
  linear.n = n, linear.k = k, linear.w = w, linear.bias = bias;
  linear.activation = Activation(activation), linear.type = Type(type);
  std::shared_ptr<void> prepared;
  error = cuda::Linear24_prepare(arguments, &prepared);
  if (!error.empty()) return error.c_str();
  arguments.prepared = prepared.get();
  linear.m = m, linear.x = x, linear.x_scale = x_scale, linear.scale_per_row = scale_per_row;
  linear.w_scale = w_scale, linear.y_scale = y_scale, linear.y = y;
  std::vector<char> workspace(cuda::Linear24_workspace(arguments), '\xff');
  const char* refused = cuda::Linear24(arguments, workspace.data(), nullptr);
  if (refused == nullptr) return nullptr;
  error = refused;
  return error.c_str();
}

// What a kernel is given: plain structs, shared by the CPU kernels and the CUDA kernels.
//
// Calling convention. A family F of operators that takes the struct Args has
//
//   namespace qcompile::cpu:   void F(const Args&);                                            (cpu/families.h)
//   namespace qcompile::cuda:  size_t F_workspace(const Args&);                                (cuda/families.h)
//                              const char* F(const Args&, void* workspace, cudaStream_t);
//
// Who calls has already checked shapes, ranks and element types, so that a kernel sees only what its operator
// allows; all tensors are dense and row-major. m may be 0 (the caller then returns before calling); n and k are
// at least 1. Pointers of a CUDA kernel lie on the device, scales and biases included, and each tensor starts at a
// multiple of 16 bytes. Float types x, w, y, skip and sum are `type`.
//
// A CUDA kernel launches on the stream it is given and returns: no allocation, no synchronisation, no copy to
// the host, so that a CUDA graph can capture it. `workspace` has the bytes its F_workspace asked for (null for
// zero). It answers null, or says in a string of static storage what it cannot do (an alignment it needs, an
// error of a launch), which becomes the node's error.

#pragma once

#include <cstddef>
#include <cstdint>

namespace qcompile {

enum class Type { f32, f16, bf16 };
enum class Activation { none, relu, gelu, silu };  // gelu is the exact form, x * (1 + erf(x / sqrt(2))) / 2
enum class Code { int8, e4m3 };                    // e4m3: FLOAT8E4M3FN, largest value 448

// y[m, n] = activation(x[m, k] w[n, k]^T * x_scale * w_scale + bias). LinearW8A8: x and w are int8, the sum is
// int32. LinearE4M3: x and w are E4M3, the sum is float32. Everything after the sum is float32.
struct LinearArguments {
  int64_t m, n, k;
  const void* x;
  const float* x_scale;  // one value, or m of them
  bool scale_per_row;    // x_scale has m values
  const void* w;
  const float* w_scale;  // n
  const float* bias;     // n, or null
  Activation activation;
  Type type;             // of y, when y_scale is null
  const float* y_scale;  // one value: y is int8, round-half-even(y / y_scale) saturated to [-128, 127]; or null
  void* y;
};

// LinearW4A16: y = x w'^T + bias, w' = (w - w_zero) * w_scale rounded to `type`; the sum is float32.
struct BlockLinearArguments {
  int64_t m, n, k, block;   // block: codes along k that share one scale
  const void* x;            // type[m, k]
  const uint8_t* w;         // 4-bit codes [n, k], two a byte, low half first: a row has k/2 bytes
  const uint16_t* w_scale;  // float16[n, k/block]
  const uint8_t* w_zero;    // uint4[n, k/block], packed over the flat tensor; null: w is int4 with zero point 0
  const float* bias;        // n, or null
  Type type;                // of x and y
  void* y;
};

// Linear24, Linear24W8A8, Linear24E4M3: as LinearArguments; w[n, k] is dense in memory and has at most 2 values
// other than zero in each aligned group of 4 along k.
enum class Operands { floats, int8, e4m3 };
struct SparseLinearArguments {
  LinearArguments linear;  // floats: x and w are `type`, x_scale and w_scale are null
  Operands operands;
  void* prepared;          // CUDA: what cuda::Linear24_prepare made of this node's weight; null on the CPU
};

// x_q[m, k] = codes of x / x_scale; x_scale[m] = max|x| of the row over 127 (int8) or 448 (E4M3), 1 for a row of zeros.
struct QuantizeRowsArguments {
  int64_t m, k;
  const void* x;
  Type type;
  Code code;
  void* x_q;
  float* x_scale;
  const float* keep = nullptr;  // k factors of x, or null
};

// LinearOutliersW8A8: x_q, x_scale = QuantizeRows(x * keep), then
// y = activation(x_q w^T * x_scale * w_scale + bias + x[columns] w_columns). The sums of floats are float32.
struct OutlierLinearArguments {
  int64_t m, n, k, outliers;
  const void* x;           // type[m, k]
  const float* keep;       // k: 0 for an outlier column, else 1
  const int64_t* columns;  // outliers; a number that is no column reads as NaN
  const void* w_columns;   // type[outliers, n]
  const void* w;           // int8[n, k]
  const float* w_scale;    // n
  const float* bias;       // n, or null
  Activation activation;
  Type type;               // of x, w_columns and y
  void* y;
};

// sum = x + skip, rounded to `type`; y = norm(sum) over the last axis, in float32; x_q, x_scale as QuantizeRows of y.
struct NormQuantArguments {
  int64_t m, k;
  const void *x, *skip;        // type[m, k]; skip may be null: sum is x
  const float *gamma, *beta;   // k; beta may be null
  float epsilon;
  bool rms;                    // RMS norm: no mean is taken off
  Type type;
  Code code;
  void* x_q;
  float* x_scale;              // m
  void *y, *sum;               // type[m, k], or null: nobody reads it
};

}  // namespace qcompile

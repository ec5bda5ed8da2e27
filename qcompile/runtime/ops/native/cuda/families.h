// The CUDA kernels, two functions a family: the bytes of workspace, and the launch. See arguments.h.
//
// A family is registered for the CUDA provider when its file is there: quantize_rows.cu, norm_quant.cu,
// linear_w8a8.cu, linear_e4m3.cu, linear_w4a16.cu, linear_24.cu. Other .cu files beside them are compiled too.

#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "arguments.h"

// Null where a family's file is not there.
#define QCOMPILE_OPTIONAL __attribute__((weak))

namespace qcompile::cuda {

QCOMPILE_OPTIONAL size_t QuantizeRows_workspace(const QuantizeRowsArguments&);
QCOMPILE_OPTIONAL const char* QuantizeRows(const QuantizeRowsArguments&, void* workspace, cudaStream_t);

QCOMPILE_OPTIONAL size_t NormQuant_workspace(const NormQuantArguments&);
QCOMPILE_OPTIONAL const char* NormQuant(const NormQuantArguments&, void* workspace, cudaStream_t);

QCOMPILE_OPTIONAL size_t LinearW8A8_workspace(const LinearArguments&);
QCOMPILE_OPTIONAL const char* LinearW8A8(const LinearArguments&, void* workspace, cudaStream_t);

QCOMPILE_OPTIONAL size_t LinearE4M3_workspace(const LinearArguments&);
QCOMPILE_OPTIONAL const char* LinearE4M3(const LinearArguments&, void* workspace, cudaStream_t);

QCOMPILE_OPTIONAL size_t LinearW4A16_workspace(const BlockLinearArguments&);
QCOMPILE_OPTIONAL const char* LinearW4A16(const BlockLinearArguments&, void* workspace, cudaStream_t);

// What Linear24 makes once for each node, when its kernel is created: the weight, and for float operands the bias, are
// constants on the device (m, x and y are not read). Empty and *prepared, or what is wrong. May wait for the device.
QCOMPILE_OPTIONAL std::string Linear24_prepare(const SparseLinearArguments&, std::shared_ptr<void>* prepared);
QCOMPILE_OPTIONAL size_t Linear24_workspace(const SparseLinearArguments&);
QCOMPILE_OPTIONAL const char* Linear24(const SparseLinearArguments&, void* workspace, cudaStream_t);

}  // namespace qcompile::cuda

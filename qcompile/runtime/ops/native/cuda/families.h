// The CUDA kernels, two functions a family: the bytes of workspace, and the launch. See arguments.h.
//
// A family is registered for the CUDA provider when its file is there: quantize_rows.cu, norm_quant.cu,
// linear_w8a8.cu, linear_e4m3.cu, linear_w4a16.cu, linear_24.cu. Other .cu files beside them are compiled too.

#pragma once

#include <cuda_runtime_api.h>

#include <memory>
#include <string>

#include "arguments.h"

namespace qcompile::cuda {

size_t QuantizeRows_workspace(const QuantizeRowsArguments&);
const char* QuantizeRows(const QuantizeRowsArguments&, void* workspace, cudaStream_t);

size_t NormQuant_workspace(const NormQuantArguments&);
const char* NormQuant(const NormQuantArguments&, void* workspace, cudaStream_t);

size_t LinearW8A8_workspace(const LinearArguments&);
const char* LinearW8A8(const LinearArguments&, void* workspace, cudaStream_t);

size_t LinearE4M3_workspace(const LinearArguments&);
const char* LinearE4M3(const LinearArguments&, void* workspace, cudaStream_t);

size_t LinearW4A16_workspace(const BlockLinearArguments&);
const char* LinearW4A16(const BlockLinearArguments&, void* workspace, cudaStream_t);

// What Linear24 makes once for each node, when its kernel is created: the weight, and for float operands the bias, are
// constants on the device (m, x and y are not read). Empty and *prepared, or what is wrong. May wait for the device.
std::string Linear24_prepare(const SparseLinearArguments&, std::shared_ptr<void>* prepared);
size_t Linear24_workspace(const SparseLinearArguments&);
const char* Linear24(const SparseLinearArguments&, void* workspace, cudaStream_t);

}  // namespace qcompile::cuda

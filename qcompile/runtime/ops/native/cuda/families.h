// The CUDA kernels, two functions a family: the bytes of workspace, and the launch. See arguments.h.
//
// Each family starts in a file of its name, such as quantize_rows.cu; the .cu files beside them are its parts.

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

size_t LinearOutliersW8A8_workspace(const OutlierLinearArguments&);
const char* LinearOutliersW8A8(const OutlierLinearArguments&, void* workspace, cudaStream_t);

size_t LinearW4A16_workspace(const BlockLinearArguments&);
const char* LinearW4A16(const BlockLinearArguments&, void* workspace, cudaStream_t);

// What Linear24 makes once for each node, when its kernel is created: the weight, and for float operands the bias, are
// constants on the device (m, x and y are not read). Empty and *prepared, or what is wrong. May wait for the device.
std::string Linear24_prepare(const SparseLinearArguments&, std::shared_ptr<void>* prepared);
size_t Linear24_workspace(const SparseLinearArguments&);
const char* Linear24(const SparseLinearArguments&, void* workspace, cudaStream_t);

}  // namespace qcompile::cuda

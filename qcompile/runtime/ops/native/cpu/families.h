// The CPU kernels, one function a family: plain reference code, one thread. See arguments.h.

#pragma once

#include "arguments.h"

namespace qcompile::cpu {

void QuantizeRows(const QuantizeRowsArguments&);
void NormQuant(const NormQuantArguments&);
void LinearW8A8(const LinearArguments&);
void LinearE4M3(const LinearArguments&);
void LinearOutliersW8A8(const OutlierLinearArguments&);
void LinearW4A16(const BlockLinearArguments&);
void Linear24(const SparseLinearArguments&);

}  // namespace qcompile::cpu

// CUDA kernels that do nothing, so that the library of operators can be registered where there is only the stub of CUDA.

#include "cuda/families.h"

#define EMPTY(F, Arguments)                         \
  size_t F##_workspace(const Arguments&) { return 0; } \
  const char* F(const Arguments&, void*, cudaStream_t) { return nullptr; }

namespace qcompile::cuda {

EMPTY(QuantizeRows, QuantizeRowsArguments)
EMPTY(NormQuant, NormQuantArguments)
EMPTY(LinearW8A8, LinearArguments)
EMPTY(LinearE4M3, LinearArguments)
EMPTY(LinearW4A16, BlockLinearArguments)
EMPTY(Linear24, SparseLinearArguments)
std::string Linear24_prepare(const SparseLinearArguments&, std::shared_ptr<void>*) { return ""; }

}  // namespace qcompile::cuda

#include "families.h"
#include "linear.h"

namespace qcompile::cuda {

size_t LinearE4M3_workspace(const LinearArguments& a) { return linear_workspace(Kind::linear_e4m3, a); }

const char* LinearE4M3(const LinearArguments& a, void* workspace, cudaStream_t stream) {
  return run_linear(Kind::linear_e4m3, a, workspace, stream);
}

}  // namespace qcompile::cuda

#include "families.h"
#include "linear.h"

namespace qcompile::cuda {

size_t LinearW8A8_workspace(const LinearArguments& a) { return linear_workspace(Kind::linear_w8a8, a); }

const char* LinearW8A8(const LinearArguments& a, void* workspace, cudaStream_t stream) {
  return run_linear(Kind::linear_w8a8, a, workspace, stream);
}

}  // namespace qcompile::cuda

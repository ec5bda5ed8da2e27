// The CUDA families by the CPU's kernels, for a CUDA whose memory is the host's: what is seen is how the library meets
// the runtime. The workspace is written from end to end, and each family answers a fault when it is asked for one.

#include <cstdlib>
#include <cstring>

#include "cpu/families.h"
#include "cuda/families.h"

namespace qcompile::cuda {
namespace {

constexpr size_t kWorkspace = 4096;

const char* Use(void* workspace, cudaStream_t stream) {
  if (stream == nullptr) return "there is no stream";
  std::memset(workspace, 0xFF, kWorkspace);
  return std::getenv("STAND_IN_FAULT");
}

}  // namespace

#define STAND_IN(Family, Arguments)                                                    \
  size_t Family##_workspace(const Arguments&) { return kWorkspace; }                   \
  const char* Family(const Arguments& args, void* workspace, cudaStream_t stream) {    \
    cpu::Family(args);                                                                 \
    return Use(workspace, stream);                                                     \
  }

STAND_IN(QuantizeRows, QuantizeRowsArguments)
STAND_IN(NormQuant, NormQuantArguments)
STAND_IN(LinearW8A8, LinearArguments)
STAND_IN(LinearE4M3, LinearArguments)
STAND_IN(LinearOutliersW8A8, OutlierLinearArguments)
STAND_IN(LinearW4A16, BlockLinearArguments)

// The prepared weight is the weight of the node: another one at run time is a fault.
struct Prepared {
  const void *w, *bias;
  int64_t n, k;
};

std::string Linear24_prepare(const SparseLinearArguments& args, std::shared_ptr<void>* prepared) {
  const LinearArguments& linear = args.linear;
  *prepared = std::make_shared<Prepared>(Prepared{linear.w, linear.bias, linear.n, linear.k});
  return linear.k % 32 == 0 ? "" : "k is no multiple of 32";
}

size_t Linear24_workspace(const SparseLinearArguments&) { return kWorkspace; }

const char* Linear24(const SparseLinearArguments& args, void* workspace, cudaStream_t stream) {
  const auto* made = static_cast<const Prepared*>(args.prepared);
  const LinearArguments& linear = args.linear;
  if (made->w != linear.w || made->bias != linear.bias || made->n != linear.n || made->k != linear.k) {
    return "this is not the weight that was prepared";
  }
  cpu::Linear24(args);
  return Use(workspace, stream);
}

}  // namespace qcompile::cuda

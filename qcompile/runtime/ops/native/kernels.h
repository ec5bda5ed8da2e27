// From a run of a node to the arguments of its kernel, on either provider.

#pragma once

#include <onnxruntime_c_api.h>

#include <memory>
#include <string>

#include "operators.h"

namespace qcompile {

enum class Provider { cpu, cuda };

// Those that this build has kernels for; each has all operators.
#ifdef QCOMPILE_CUDA
constexpr Provider kProviders[] = {Provider::cpu, Provider::cuda};
#else
constexpr Provider kProviders[] = {Provider::cpu};
#endif

// One node, as its session made it.
class Kernel {
 public:
  Kernel(const Operator& op, Provider provider, const OrtKernelInfo* info);

  // Throws a Fault that names the node and the operand.
  void Run(OrtKernelContext* context) const;

 private:
  void Prepare(const OrtKernelInfo* info);

  const Operator& op_;
  const Provider provider_;
  std::string node_;
  int64_t block_ = 0;
  float epsilon_ = 0;
  std::shared_ptr<OrtAllocator> allocator_;  // of the device's memory; null on the CPU
  std::shared_ptr<void> prepared_;           // what CUDA's Linear24 made of the weight
};

}  // namespace qcompile

// The device that the calling thread launches on.

#pragma once

#include <cuda_runtime_api.h>

namespace qcompile::cuda {

struct Device {
  int ordinal = -1;     // -1: there is none
  int capability = 0;   // 80, 89, 90, ...
  int processors = 0;   // streaming multiprocessors
};

// Asks the driver once for each device; afterwards it costs a cudaGetDevice, also while a graph is captured.
const Device& device();

}  // namespace qcompile::cuda

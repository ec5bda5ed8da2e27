// The kernels of LinearW8A8 and LinearE4M3: a table for each generation of tensor cores, chosen from at run time.
//
// A file named *_smNN.cu is compiled for the architectures of generation NN alone; QCOMPILE_SMNN says that it is in
// the library.

#pragma once

#include <cuda_runtime_api.h>

#include "arguments.h"
#include "tuning.h"

namespace qcompile::cuda {

struct Launcher {
  size_t (*workspace)(const LinearArguments&) = nullptr;
  const char* (*launch)(const LinearArguments&, void* workspace, cudaStream_t) = nullptr;
};

struct Configuration {
  const char* name;
  int tile_m, tile_n;  // of y, computed by one thread block
  int cluster_m;       // thread blocks below each other that run together, also where y ends above them
  bool splits_k;       // several thread blocks share a tile when there are too few tiles
  Launcher to_float, to_half, to_int8;
};

struct Configurations {
  const Configuration* first = nullptr;
  int count = 0;
};

Configurations linear_w8a8_sm80();
Configurations linear_w8a8_sm90();
Configurations linear_e4m3_sm89();
Configurations linear_e4m3_sm90();

// The steps that both families share.
size_t linear_workspace(Kind, const LinearArguments&);
const char* run_linear(Kind, const LinearArguments&, void* workspace, cudaStream_t);

}  // namespace qcompile::cuda

// The activation behind a linear layer, exact to rounding.

#pragma once

#include <cuda_runtime.h>

#include "arguments.h"

namespace qcompile::cuda {

__device__ inline float activate(float value, Activation activation) {
  switch (activation) {
    case Activation::relu: return value > 0 || value != value ? value : 0.0f;  // a NaN stays one
    case Activation::gelu: return 0.5f * value * (1.0f + erff(value * 0.70710678118654752f));
    case Activation::silu: return value / (1.0f + expf(-value));
    default: return value;
  }
}

}  // namespace qcompile::cuda

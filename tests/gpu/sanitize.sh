#!/bin/sh
# The GPU tests under NVIDIA's compute-sanitizer:   tests/gpu/sanitize.sh [memcheck|racecheck|initcheck|synccheck ...]
#
# Run in the project's root. Without an argument memcheck and racecheck run. Slow: some minutes each.
set -e
# Each tensor gets an allocation of its own, so that reading beyond it is an error and not the next tensor.
export PYTORCH_NO_CUDA_MEMORY_CACHING=1
for tool in ${*:-memcheck racecheck}; do
  echo "== $tool"
  compute-sanitizer --tool "$tool" --target-processes all --error-exitcode 1 \
    python3 -m pytest tests/gpu -m gpu -q -x -p no:cacheprovider
done

#include "device.h"

#include <mutex>

namespace qcompile::cuda {
namespace {

constexpr int most_devices = 64;
Device devices[most_devices];
std::once_flag asked[most_devices];
const Device none;

int attribute(cudaDeviceAttr which, int ordinal) {
  int value = 0;
  return cudaDeviceGetAttribute(&value, which, ordinal) == cudaSuccess ? value : 0;
}

}  // namespace

const Device& device() {
  int ordinal = 0;
  if (cudaGetDevice(&ordinal) != cudaSuccess || ordinal >= most_devices) return none;
  std::call_once(asked[ordinal], [ordinal] {
    devices[ordinal] = {ordinal,
                        10 * attribute(cudaDevAttrComputeCapabilityMajor, ordinal) +
                            attribute(cudaDevAttrComputeCapabilityMinor, ordinal),
                        attribute(cudaDevAttrMultiProcessorCount, ordinal)};
  });
  return devices[ordinal];
}

}  // namespace qcompile::cuda

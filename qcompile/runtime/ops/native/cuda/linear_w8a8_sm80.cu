#include "linear_sm80.cuh"

namespace qcompile::cuda {

// Shared memory: at most 99 KiB, what consumer cards of this generation give one thread block.
Configurations linear_w8a8_sm80() {
  using cutlass::gemm::GemmShape;
  static const Configuration all[] = {
      sm80::configuration<int8_t, GemmShape<32, 64, 128>, GemmShape<16, 32, 128>, 5>("32x64x128"),
      sm80::configuration<int8_t, GemmShape<64, 128, 128>, GemmShape<32, 64, 128>, 4>("64x128x128"),
      sm80::configuration<int8_t, GemmShape<128, 128, 64>, GemmShape<64, 64, 64>, 5>("128x128x64"),
      sm80::configuration<int8_t, GemmShape<128, 256, 64>, GemmShape<64, 64, 64>, 3>("128x256x64"),
  };
  return {all, sizeof(all) / sizeof(all[0])};
}

}  // namespace qcompile::cuda

#include "linear_sm80.cuh"

namespace qcompile::cuda {

// CUTLASS's plain multiply-add of E4M3 promotes the tensor cores' sums to float32 registers, as on Hopper.
Configurations linear_e4m3_sm89() {
  using cutlass::float_e4m3_t;
  using cutlass::gemm::GemmShape;
  static const Configuration all[] = {
      sm80::configuration<float_e4m3_t, GemmShape<32, 64, 128>, GemmShape<16, 32, 128>, 5>("32x64x128"),
      sm80::configuration<float_e4m3_t, GemmShape<128, 128, 64>, GemmShape<64, 32, 64>, 5>("128x128x64"),
  };
  return {all, sizeof(all) / sizeof(all[0])};
}

}  // namespace qcompile::cuda

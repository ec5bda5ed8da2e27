#include "linear_sm90.cuh"

namespace qcompile::cuda {

using namespace cute;
using cutlass::float_e4m3_t;
using Cooperative = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using PingPong = cutlass::gemm::KernelTmaWarpSpecializedPingpong;

// Tiles are as in linear_w8a8_sm90.cu, but no larger than two sums a thread allow.
Configurations linear_e4m3_sm90() {
  static const Configuration all[] = {
      sm90::configuration<float_e4m3_t, Shape<_64, _32, _128>, Shape<_1, _1, _1>, PingPong>(
          "64x32x128 ping-pong"),
      sm90::configuration<float_e4m3_t, Shape<_64, _128, _128>, Shape<_2, _1, _1>, PingPong>(
          "64x128x128 ping-pong"),
      sm90::configuration<float_e4m3_t, Shape<_128, _128, _128>, Shape<_2, _1, _1>, Cooperative>(
          "128x128x128 cooperative"),
  };
  return {all, sizeof(all) / sizeof(all[0])};
}

}  // namespace qcompile::cuda

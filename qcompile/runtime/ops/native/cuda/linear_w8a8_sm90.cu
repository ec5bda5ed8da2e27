#include "linear_sm90.cuh"

namespace qcompile::cuda {

using namespace cute;
using Cooperative = cutlass::gemm::KernelTmaWarpSpecializedCooperative;
using PingPong = cutlass::gemm::KernelTmaWarpSpecializedPingpong;
using cutlass::gemm::StreamKScheduler;

// Few rows: reading the weight decides, so narrow tiles that occupy all processors, or blocks that share a tile.
// Many rows: wide tiles, and clusters of two blocks that read a tile of the weight once.
Configurations linear_w8a8_sm90() {
  static const Configuration all[] = {
      sm90::configuration<int8_t, Shape<_64, _32, _128>, Shape<_1, _1, _1>, PingPong>(
          "64x32x128 ping-pong"),
      sm90::configuration<int8_t, Shape<_128, _128, _128>, Shape<_1, _1, _1>, Cooperative,
                          StreamKScheduler>("128x128x128 stream-K"),
      sm90::configuration<int8_t, Shape<_128, _128, _128>, Shape<_2, _1, _1>, PingPong>(
          "128x128x128 ping-pong"),
      sm90::configuration<int8_t, Shape<_128, _256, _128>, Shape<_2, _1, _1>, Cooperative>(
          "128x256x128 cooperative"),
  };
  return {all, sizeof(all) / sizeof(all[0])};
}

}  // namespace qcompile::cuda

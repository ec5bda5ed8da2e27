#include "linear.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "device.h"

namespace qcompile::cuda {
namespace {

Configurations configurations(Kind kind) {
  [[maybe_unused]] bool const codes8 = kind == Kind::linear_w8a8;
  [[maybe_unused]] int const capability = device().capability;
#ifdef QCOMPILE_SM90
  // Code for 90a runs on 9.0 and nothing else.
  if (capability == 90) return codes8 ? linear_w8a8_sm90() : linear_e4m3_sm90();
#endif
#ifdef QCOMPILE_SM89
  if (capability >= 89 && !codes8) return linear_e4m3_sm89();
#endif
#ifdef QCOMPILE_SM80
  if (capability >= 80 && codes8) return linear_w8a8_sm80();
#endif
  return {};
}

const Launcher& launcher(const Configuration& configuration, const LinearArguments& a) {
  if (a.y_scale != nullptr) return configuration.to_int8;
  return a.type == Type::f32 ? configuration.to_float : configuration.to_half;
}

// What a thread block of each configuration has to do, in the time of one product: its products, its loads (64
// products to a byte keeps the tensor cores of all generations busy), and with a split tile the sums that it
// writes and reads in the workspace. Rounded up to whole waves, except where tiles are split to fill the last one.
double cost(const Configuration& configuration, double m, double n, double k) {
  double const tile_m = configuration.tile_m, tile_n = configuration.tile_n;
  double const block = k * (tile_m * tile_n + 64 * (tile_m + tile_n));
  double const cluster_m = configuration.cluster_m;
  double const tiles = std::ceil(m / tile_m / cluster_m) * cluster_m * std::ceil(n / tile_n);
  double const waves = tiles / device().processors;
  if (!configuration.splits_k) return std::ceil(waves) * block;
  return waves * block + 64 * 8 * tile_m * tile_n;
}

}  // namespace

int linear_configurations(Kind kind) { return configurations(kind).count; }

const char* linear_configuration_name(Kind kind, int configuration) {
  auto const all = configurations(kind);
  return configuration >= 0 && configuration < all.count ? all.first[configuration].name : nullptr;
}

int linear_default(Kind kind, int64_t m, int64_t n, int64_t k) {
  auto const all = configurations(kind);
  auto const best = std::min_element(all.first, all.first + all.count, [&](auto const& one, auto const& other) {
    return cost(one, m, n, k) < cost(other, m, n, k);
  });
  return static_cast<int>(best - all.first);
}

int linear_configuration(Kind kind, int64_t m, int64_t n, int64_t k) {
  int const chosen = choice(kind, m, n, k);
  return chosen >= 0 && chosen < configurations(kind).count ? chosen : linear_default(kind, m, n, k);
}

size_t linear_workspace(Kind kind, const LinearArguments& a) {
  auto const all = configurations(kind);
  if (all.count == 0) return 0;  // run_linear says why
  return launcher(all.first[linear_configuration(kind, a.m, a.n, a.k)], a).workspace(a);
}

const char* run_linear(Kind kind, const LinearArguments& a, void* workspace, cudaStream_t stream) {
  auto const all = configurations(kind);
  if (all.count == 0) {
    return kind == Kind::linear_e4m3
               ? "LinearE4M3 needs a GPU of compute capability 8.9 or newer (Ada, Hopper), and a library built for it"
               : "LinearW8A8 needs a GPU of compute capability 8.0 or newer (Ampere), and a library built for it";
  }
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  if (a.m > most || a.n > most || a.k > most) return "a size is beyond 2^31 - 1";
  if (a.k % 16 != 0) return "K must be a multiple of 16 on CUDA";
  if (a.n % (a.y_scale != nullptr ? 16 : 8) != 0) {
    return "N must be a multiple of 8 on CUDA, of 16 when the output is requantized";
  }
  return launcher(all.first[linear_configuration(kind, a.m, a.n, a.k)], a).launch(a, workspace, stream);
}

}  // namespace qcompile::cuda

// The choice among kernels of linear layers, without the kernels: a made-up table for each generation, whose launches
// tell which configuration ran and what it would store.

#include <string>

#include "cuda/device.h"
#include "cuda/families.h"
#include "cuda/linear.h"

using namespace qcompile;
using namespace qcompile::cuda;

namespace {

Device now;
std::string ran;

template <char stored>
Launcher launcher() {
  return {[](const LinearArguments&) { return size_t{stored}; },
          [](const LinearArguments&, void*, cudaStream_t) -> const char* { return ran += stored, nullptr; }};
}

// As on Hopper: narrow, split along K, square, wide.
const Configuration hopper[] = {
    {"64x32", 64, 32, 1, false, launcher<'f'>(), launcher<'h'>(), launcher<'i'>()},
    {"128x128 split", 128, 128, 1, true, launcher<'f'>(), launcher<'h'>(), launcher<'i'>()},
    {"128x128", 128, 128, 2, false, launcher<'f'>(), launcher<'h'>(), launcher<'i'>()},
    {"128x256", 128, 256, 2, false, launcher<'f'>(), launcher<'h'>(), launcher<'i'>()},
};
const Configuration ampere[] = {{"ampere", 64, 64, 1, true, launcher<'f'>(), launcher<'h'>(), launcher<'i'>()}};
const Configuration ada[] = {{"ada", 64, 64, 1, true, launcher<'f'>(), launcher<'h'>(), {}}};

}  // namespace

namespace qcompile::cuda {

const Device& device() { return now; }
Configurations linear_w8a8_sm80() { return {ampere, 1}; }
Configurations linear_w8a8_sm90() { return {hopper, 4}; }
Configurations linear_e4m3_sm89() { return {ada, 1}; }
Configurations linear_e4m3_sm90() { return {hopper, 3}; }

}  // namespace qcompile::cuda

extern "C" {

void be_device(int capability) { now = {0, capability, 132}; }

const char* chosen(bool int8, int64_t m, int64_t n, int64_t k) {
  Kind const kind = int8 ? Kind::linear_w8a8 : Kind::linear_e4m3;
  return linear_configuration_name(kind, linear_configuration(kind, m, n, k));
}

void choose(bool int8, int64_t m, int64_t n, int64_t k, int configuration) {
  set_choice(int8 ? Kind::linear_w8a8 : Kind::linear_e4m3, m, n, k, configuration);
}

void forget() { clear_choices(); }

// "f", "h" or "i" for a result of 32 bits, of 16 bits, of codes; or what was refused.
const char* run(bool int8, int64_t m, int64_t n, int64_t k, int type, bool requantized) {
  float const y_scale = 1;
  LinearArguments arguments{};
  arguments.m = m, arguments.n = n, arguments.k = k, arguments.type = Type(type);
  if (requantized) arguments.y_scale = &y_scale;
  ran.clear();
  if (size_t const bytes = int8 ? LinearW8A8_workspace(arguments) : LinearE4M3_workspace(arguments)) ran += char(bytes);
  const char* const refused = (int8 ? LinearW8A8 : LinearE4M3)(arguments, nullptr, nullptr);
  return refused != nullptr ? refused : ran.c_str();
}

}

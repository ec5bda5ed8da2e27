// Which of its kernels a linear layer runs, by what was measured on this machine.
//
// A family has several kernels (configurations: a tile, a schedule), numbered from 0, and a rule that picks one for
// a shape. A process-wide table can overrule the rule for the shapes that somebody timed. Compute only reads the
// table; whoever fills it does so between runs, since a layer asks for its workspace and launches in two calls.

#pragma once

#include <cstdint>

namespace qcompile::cuda {

enum class Kind { linear_w8a8, linear_e4m3, linear_w4a16, linear_24 };

// Rows are tuned in buckets: m rounded up to a power of two, 8192 at most.
int64_t row_bucket(int64_t m);

void set_choice(Kind, int64_t m, int64_t n, int64_t k, int configuration);
void clear_choices();

// The configuration set for this shape, or -1.
int choice(Kind, int64_t m, int64_t n, int64_t k);

// LinearW8A8 and LinearE4M3 on the current device: how many configurations there are (0: the device has no kernel),
// the name of one ("128x256x128 cooperative"), the one that the rule picks, the one that runs.
int linear_configurations(Kind);
const char* linear_configuration_name(Kind, int configuration);
int linear_default(Kind, int64_t m, int64_t n, int64_t k);
int linear_configuration(Kind, int64_t m, int64_t n, int64_t k);

}  // namespace qcompile::cuda

#include "cpu/families.h"
#include "cpu/linear.h"

namespace qcompile::cpu {

void LinearW8A8(const LinearArguments& args) {
  Linear<int16_t>(args, [](const void* data, int64_t i) { return int16_t{static_cast<const int8_t*>(data)[i]}; });
}

void LinearE4M3(const LinearArguments& args) {
  Linear<float>(args, [](const void* data, int64_t i) { return FromE4M3(static_cast<const uint8_t*>(data)[i]); });
}

// Dense arithmetic: the zeros of the pattern are stored and multiplied like any other value.
void Linear24(const SparseLinearArguments& args) {
  const Type type = args.linear.type;
  switch (args.operands) {
    case Operands::int8: return LinearW8A8(args.linear);
    case Operands::e4m3: return LinearE4M3(args.linear);
    case Operands::floats:
      return Linear<float>(args.linear, [type](const void* data, int64_t i) { return Load(data, type, i); });
  }
}

}  // namespace qcompile::cpu

#include "cpu/families.h"
#include "cpu/numbers.h"
#include "cpu/products.h"

namespace qcompile::cpu {

void LinearW4A16(const BlockLinearArguments& args) {
  const auto load_x = [&](int64_t row, float* out) {
    for (int64_t i = 0; i < args.k; ++i) out[i] = Load(args.x, args.type, row * args.k + i);
  };
  const auto load_w = [&](int64_t row, float* out) {
    for (int64_t i = 0; i < args.k; ++i) {
      const int64_t at = row * args.k + i, block = at / args.block;
      const int code = args.w_zero != nullptr ? FromUint4(args.w, at) - FromUint4(args.w_zero, block)
                                              : FromInt4(args.w, at);
      out[i] = Rounded(static_cast<float>(code) * FromHalf(args.w_scale[block]), args.type);
    }
  };
  Multiply<float>(args.m, args.n, args.k, load_x, load_w, [&](int64_t row, int64_t column, float sum) {
    Store(args.y, args.type, row * args.n + column, args.bias != nullptr ? sum + args.bias[column] : sum);
  });
}

}  // namespace qcompile::cpu

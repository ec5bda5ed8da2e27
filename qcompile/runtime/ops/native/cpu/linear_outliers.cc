#include <algorithm>
#include <limits>
#include <vector>

#include "cpu/families.h"
#include "cpu/linear.h"

namespace qcompile::cpu {

void LinearOutliersW8A8(const OutlierLinearArguments& args) {
  std::vector<int8_t> codes(args.m * args.k);
  std::vector<float> scales(args.m), y(args.m * args.n);
  QuantizeRows({args.m, args.k, args.x, args.type, Code::int8, codes.data(), scales.data(), args.keep});
  LinearArguments rest{};
  rest.m = args.m, rest.n = args.n, rest.k = args.k;
  rest.x = codes.data(), rest.x_scale = scales.data(), rest.scale_per_row = true;
  rest.w = args.w, rest.w_scale = args.w_scale, rest.bias = args.bias, rest.y = y.data();
  LinearW8A8(rest);
  std::vector<float> sums(args.n);
  for (int64_t row = 0; row < args.m; ++row) {
    std::fill(sums.begin(), sums.end(), 0.0f);
    for (int64_t i = 0; i < args.outliers; ++i) {
      const int64_t column = args.columns[i];
      const float x = column >= 0 && column < args.k ? Load(args.x, args.type, row * args.k + column)
                                                     : std::numeric_limits<float>::quiet_NaN();
      for (int64_t j = 0; j < args.n; ++j) sums[j] += x * Load(args.w_columns, args.type, i * args.n + j);
    }
    for (int64_t j = 0; j < args.n; ++j) {
      const int64_t at = row * args.n + j;
      Store(args.y, args.type, at, Activated(y[at] + sums[j], args.activation));
    }
  }
}

}  // namespace qcompile::cpu

#include <cmath>
#include <vector>

#include "cpu/families.h"
#include "cpu/rows.h"

namespace qcompile::cpu {
namespace {

double Mean(const std::vector<float>& row, float center, bool squared) {
  double sum = 0;
  for (const float value : row) {
    const double d = double{value} - center;
    sum += squared ? d * d : d;
  }
  return sum / static_cast<double>(row.size());
}

}  // namespace

void NormQuant(const NormQuantArguments& args) {
  std::vector<float> row(args.k);
  for (int64_t m = 0; m < args.m; ++m) {
    const int64_t start = m * args.k;
    for (int64_t i = 0; i < args.k; ++i) {
      row[i] = Load(args.x, args.type, start + i);
      if (args.skip != nullptr) row[i] = Rounded(row[i] + Load(args.skip, args.type, start + i), args.type);
      if (args.sum != nullptr) Store(args.sum, args.type, start + i, row[i]);
    }
    const auto mean = args.rms ? 0.0f : static_cast<float>(Mean(row, 0, false));
    const auto deviation = std::sqrt(static_cast<float>(Mean(row, mean, true)) + args.epsilon);
    for (int64_t i = 0; i < args.k; ++i) {
      row[i] = (row[i] - mean) / deviation * args.gamma[i] + (args.beta != nullptr ? args.beta[i] : 0.0f);
      if (args.y != nullptr) Store(args.y, args.type, start + i, row[i]);
    }
    args.x_scale[m] = QuantizeRow(row.data(), args.k, args.code, static_cast<int8_t*>(args.x_q) + start);
  }
}

}  // namespace qcompile::cpu

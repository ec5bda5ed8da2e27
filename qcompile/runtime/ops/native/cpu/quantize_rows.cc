#include <vector>

#include "cpu/families.h"
#include "cpu/rows.h"

namespace qcompile::cpu {

void QuantizeRows(const QuantizeRowsArguments& args) {
  std::vector<float> row(args.k);
  for (int64_t m = 0; m < args.m; ++m) {
    for (int64_t i = 0; i < args.k; ++i) {
      row[i] = Load(args.x, args.type, m * args.k + i);
      if (args.keep != nullptr) row[i] *= args.keep[i];
    }
    args.x_scale[m] = QuantizeRow(row.data(), args.k, args.code, static_cast<int8_t*>(args.x_q) + m * args.k);
  }
}

}  // namespace qcompile::cpu

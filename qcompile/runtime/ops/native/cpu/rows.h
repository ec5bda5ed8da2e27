// Codes of one row of float32 with a scale of its own: QuantizeRows, and the end of NormQuant.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "arguments.h"
#include "cpu/numbers.h"

namespace qcompile::cpu {

// Writes codes[k] and gives the scale; a NaN among the values makes the scale NaN.
inline float QuantizeRow(const float* row, int64_t k, Code code, void* codes) {
  float largest = 0;
  for (int64_t i = 0; i < k; ++i) {
    const float magnitude = std::fabs(row[i]);
    if (!(magnitude <= largest)) largest = magnitude;
  }
  float scale = largest / (code == Code::int8 ? 127.0f : 448.0f);
  if (scale == 0) scale = 1;
  for (int64_t i = 0; i < k; ++i) {
    const float ratio = row[i] / scale;
    if (code == Code::int8) {
      static_cast<int8_t*>(codes)[i] = ToInt8(ratio, -127, 127);
    } else {
      static_cast<uint8_t*>(codes)[i] = ToE4M3(ratio);
    }
  }
  return scale;
}

}  // namespace qcompile::cpu

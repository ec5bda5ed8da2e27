// The one conversion to E4M3 that the kernels use.

#pragma once

#include "cuda_runtime.h"

enum { __NV_SATFINITE };
enum { __NV_E4M3 };

inline uint8_t __nv_cvt_float_to_fp8(float value, int, int) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) return 0x7f;
  if (magnitude >= 448.0f) return sign | 0x7e;
  const int exponent = std::max(magnitude == 0.0f ? -6 : std::ilogb(magnitude), -6);
  const int fraction = static_cast<int>(std::nearbyint(std::ldexp(magnitude, 3 - exponent)));  // 8 is 2^exponent
  return static_cast<uint8_t>(sign | (fraction + (exponent + 6) * 8));  // 16 carries into the exponent
}

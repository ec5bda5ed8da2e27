// float16 as CUDA spells it, in integer arithmetic.

#pragma once

#include "cuda_runtime.h"

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

inline float __half2float(__half value) {
  const int exponent = value.bits >> 10 & 31, fraction = value.bits & 1023;
  const float sign = value.bits >> 15 ? -1.0f : 1.0f;
  if (exponent == 31) return fraction == 0 ? sign * INFINITY : NAN;
  return sign * std::ldexp(static_cast<float>(exponent == 0 ? fraction : 1024 + fraction), std::max(exponent, 1) - 25);
}

inline __half __float2half_rn(float value) {
  const unsigned bits = __float_as_uint(value), magnitude = bits & 0x7fffffffu;
  unsigned half;
  if (magnitude > 0x7f800000u) {
    half = 0x7fff;
  } else if (magnitude >= 0x477ff000u) {  // 65520
    half = 0x7c00;
  } else if (magnitude < 0x38800000u) {  // 2^-14: the last bit of 0.5 + x counts 2^-24, as that of a subnormal
    half = __float_as_uint(__uint_as_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    half = (magnitude - 0x38000000u + 0xfff + (magnitude >> 13 & 1)) >> 13;
  }
  return {static_cast<uint16_t>((bits >> 16 & 0x8000u) | half)};
}

inline __half2 __hsub2(__half2 a, __half2 b) {
  const auto subtract = [](__half c, __half d) { return __float2half_rn(__half2float(c) - __half2float(d)); };
  return {subtract(a.x, b.x), subtract(a.y, b.y)};
}
inline __half2 __hmul2(__half2 a, __half2 b) {
  const auto multiply = [](__half c, __half d) { return __float2half_rn(__half2float(c) * __half2float(d)); };
  return {multiply(a.x, b.x), multiply(a.y, b.y)};
}

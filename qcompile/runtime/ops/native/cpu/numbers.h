// float16, bfloat16, E4M3 and 4-bit integers as bits, to float32 (exact) and back (to nearest, ties to even).
//
// Sources: IEEE 754-2019; "FP8 Formats for Deep Learning", Micikevicius et al., 2022 (E4M3: no infinities, one NaN).

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "arguments.h"

namespace qcompile::cpu {

inline uint32_t Bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

inline float FromBits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

// The integer nearest to `value`, a tie to the even one, whatever rounding mode the process has set.
inline float RoundHalfEven(float value) {
  const float down = std::floor(value), rest = value - down;
  if (rest != 0.5f) return rest < 0.5f ? down : down + 1;
  return std::fmod(down, 2.0f) == 0 ? down : down + 1;
}

// `bits` without its last `dropped` bits, rounded to nearest, ties to even.
inline uint32_t DropBits(uint32_t bits, int dropped) {
  const uint32_t odd = (bits >> dropped) & 1, half = uint32_t{1} << (dropped - 1);
  return (bits + half - 1 + odd) >> dropped;
}

// The magnitude of a finite float of `mantissa` bits whose exponent 0 (subnormals) stands for 2^(1 - bias). What
// rounds beyond the largest exponent comes out with more exponent bits than the format has: the caller sees to it.
inline uint32_t Narrow(float magnitude, int mantissa, int bias) {
  const int smallest = 1 - bias;
  int exponent;
  std::frexp(magnitude, &exponent);  // magnitude = f * 2^exponent, f in [0.5, 1)
  if (magnitude == 0 || exponent - 1 < smallest) {
    return static_cast<uint32_t>(RoundHalfEven(std::ldexp(magnitude, mantissa - smallest)));
  }
  const uint32_t rounded = DropBits(Bits(magnitude), 23 - mantissa);
  return rounded - (static_cast<uint32_t>(127 - bias) << mantissa);
}

// The float of a format with `mantissa` bits and `bias`; all exponents are finite.
inline float Widen(uint32_t magnitude, int mantissa, int bias) {
  const uint32_t exponent = magnitude >> mantissa, fraction = magnitude & ((1u << mantissa) - 1);
  if (exponent == 0) return std::ldexp(static_cast<float>(fraction), 1 - bias - mantissa);
  return FromBits(((exponent + 127 - bias) << 23) | (fraction << (23 - mantissa)));
}

inline float FromHalf(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, magnitude = half & 0x7FFF;
  if (magnitude >= 0x7C00) return FromBits(sign | 0x7F800000 | ((magnitude & 0x3FF) << 13));
  return FromBits(sign | Bits(Widen(magnitude, 10, 15)));
}

inline uint16_t ToHalf(float value) {
  const uint32_t sign = (Bits(value) >> 16) & 0x8000, magnitude = Bits(value) & 0x7FFFFFFF;
  if (magnitude > 0x7F800000) return static_cast<uint16_t>(sign | 0x7E00);
  if (magnitude >= 0x477FF000) return static_cast<uint16_t>(sign | 0x7C00);  // 65520 and above round to infinity
  return static_cast<uint16_t>(sign | Narrow(FromBits(magnitude), 10, 15));
}

inline float FromBFloat16(uint16_t value) { return FromBits(static_cast<uint32_t>(value) << 16); }

inline uint16_t ToBFloat16(float value) {
  if (std::isnan(value)) return static_cast<uint16_t>((Bits(value) >> 16) | 0x40);
  return static_cast<uint16_t>(DropBits(Bits(value), 16));
}

inline float FromE4M3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24, magnitude = code & 0x7F;
  if (magnitude == 0x7F) return std::numeric_limits<float>::quiet_NaN();
  return FromBits(sign | Bits(Widen(magnitude, 3, 7)));
}

// Beyond 448, infinities included, it saturates.
inline uint8_t ToE4M3(float value) {
  const uint8_t sign = std::signbit(value) ? 0x80 : 0;
  if (std::isnan(value)) return sign | 0x7F;
  const float magnitude = std::fabs(value);
  return static_cast<uint8_t>(sign | (magnitude >= 448 ? 0x7E : Narrow(magnitude, 3, 7)));
}

// `value` as a code in [low, high]; a NaN gives 0.
inline int8_t ToInt8(float value, int low, int high) {
  if (std::isnan(value)) return 0;
  const float rounded = RoundHalfEven(value);
  return static_cast<int8_t>(rounded < low ? low : rounded > high ? high : static_cast<int>(rounded));
}

// Element i of an array of 4-bit codes, two a byte, low half first.
inline int FromUint4(const uint8_t* codes, int64_t i) { return (codes[i / 2] >> (i % 2 * 4)) & 0xF; }
inline int FromInt4(const uint8_t* codes, int64_t i) { return (FromUint4(codes, i) ^ 8) - 8; }

// Element i of an array of a float type.
inline float Load(const void* data, Type type, int64_t i) {
  if (type == Type::f32) return static_cast<const float*>(data)[i];
  const uint16_t bits = static_cast<const uint16_t*>(data)[i];
  return type == Type::f16 ? FromHalf(bits) : FromBFloat16(bits);
}

inline void Store(void* data, Type type, int64_t i, float value) {
  if (type == Type::f32) {
    static_cast<float*>(data)[i] = value;
  } else {
    static_cast<uint16_t*>(data)[i] = type == Type::f16 ? ToHalf(value) : ToBFloat16(value);
  }
}

// `value` rounded to a float type.
inline float Rounded(float value, Type type) {
  if (type == Type::f32) return value;
  return type == Type::f16 ? FromHalf(ToHalf(value)) : FromBFloat16(ToBFloat16(value));
}

}  // namespace qcompile::cpu

// Blocks of 4-bit codes as floats.
//
// Eight codes lie in a 32-bit word, the first in the lowest bits. Small integers become floats without a conversion:
// put into the lowest bits of the float 2^p whose last bit counts 1, code q makes it 2^p + q. Subtracting 2^p + zero
// is then exact. Signed codes are read as unsigned ones with zero point 8, which flips the highest of their bits.

#pragma once

#include <cstring>

#include "floats.cuh"

namespace qcompile::cuda {

template <class To, class From>
__device__ To same_bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof(to));
  return to;
}

// The blocks of a weight [n, k]. What is read of one stays raw until it is needed, so that nobody waits for reads.
struct Blocks {
  const uint16_t* scale;
  const uint8_t* zero;  // null: signed codes
  int log2_size;        // of 32, 64 or 128 codes
  int64_t per_row;      // blocks along k

  __device__ explicit Blocks(const BlockLinearArguments& a)
      : scale(a.w_scale),
        zero(a.w_zero),
        log2_size(a.block == 32 ? 5 : a.block == 64 ? 6 : 7),
        per_row(a.k >> log2_size) {}

  __device__ int64_t index(int64_t row, int64_t k) const { return row * per_row + (k >> log2_size); }

  // The zero point of a block among those of the word that begins with it, or with a block before it.
  __device__ unsigned zero_of(unsigned word, unsigned index) const {
    return zero == nullptr ? 8 : word >> index * 4 & 15;
  }

  // The highest bit of codes that have one for the sign, to be flipped: in bits 0..3 and 16..19.
  __device__ unsigned sign_bits() const { return zero == nullptr ? 0x00080008u : 0; }
};

// Codes 2 pair and 2 pair + 1 of a word, in bits 0..3 and 16..19: byte `pair` of the word holds both, and of the word
// shifted by a code it holds the second lowest.
__device__ inline unsigned spread_pair(unsigned word, int pair) {
  const unsigned low = pair, high = 4 + pair;  // bytes of the first and the second argument
  return __byte_perm(word, word >> 4, low | low << 4 | high << 8 | high << 12) & 0x000f000fu;
}

// (code - zero) * scale rounded to T, two at a time.
template <class T>
struct Dequantizer;

template <>
struct Dequantizer<__half> {
  __half2 scale, offset;
  unsigned base;  // 2^10 twice

  __device__ Dequantizer(uint16_t scale_bits, unsigned zero, unsigned sign_bits)
      : scale(same_bits<__half2>(scale_bits * 0x00010001u)),
        offset(same_bits<__half2>((0x6400u + zero) * 0x00010001u)),
        base(0x64006400u | sign_bits) {}

  __device__ unsigned pair(unsigned word, int index) const {
    const __half2 codes = same_bits<__half2>(spread_pair(word, index) ^ base);
    return same_bits<unsigned>(__hmul2(__hsub2(codes, offset), scale));
  }
};

// A float16 scale is no bfloat16, so the product is taken in float32, where it is exact, and rounded once.
template <>
struct Dequantizer<__nv_bfloat16> {
  float scale, offset;
  unsigned base;  // 2^7 twice

  __device__ Dequantizer(uint16_t scale_bits, unsigned zero, unsigned sign_bits)
      : scale(__half2float(same_bits<__half>(scale_bits))),
        offset(-same_bits<float>((0x4300u + zero) << 16) * scale),
        base(0x43004300u | sign_bits) {}

  __device__ unsigned pair(unsigned word, int index) const {
    const unsigned codes = spread_pair(word, index) ^ base;
    const float low = __uint_as_float(codes << 16), high = __uint_as_float(codes & 0xffff0000u);
    return same_bits<unsigned>(__floats2bfloat162_rn(fmaf(low, scale, offset), fmaf(high, scale, offset)));
  }
};

// The eight values of a word.
template <class T>
__device__ void dequantize(const Dequantizer<T>& dequantizer, unsigned word, unsigned (&pairs)[4]) {
#pragma unroll
  for (int index = 0; index < 4; ++index) pairs[index] = dequantizer.pair(word, index);
}

}  // namespace qcompile::cuda

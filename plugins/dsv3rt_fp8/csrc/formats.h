// Unpacking stored weights to float32, for one instruction set. Included by kernels.simd.cpp only.
//
// A format F unpacks STEP = VECTORS * W values at a time; F::order(i) is the index, within those values, of the one that comes out
// as the i-th. e4m3 comes out times E4M3_UNIT (folded into the scale).
#pragma once
#include "dsv3rt_simd.h"
#include "kernels.h"

namespace DSV3RT_VARIANT {

#if defined(DSV3RT_512) || defined(DSV3RT_IS_AVX2)
#define DSV3RT_X86 1
#endif

struct E4M3Bits {  // e4m3 codes 0..127 as bfloat16 (exact), high and low bytes apart
  alignas(64) uint8_t high[128], low[128];
};

static constexpr E4M3Bits e4m3_bits() {
  E4M3Bits table{};
  for (int code = 0; code < 128; ++code) {
    int exponent = code >> 3, mantissa = code & 7, bits = 0;
    if (code == 127) {
      bits = 0x7fc0;
    } else if (exponent > 0) {
      bits = (exponent + 120) << 7 | mantissa << 4;
    } else if (mantissa > 0) {  // mantissa * 2^-9: shift up to a leading one
      int shift = mantissa >= 4 ? 1 : mantissa >= 2 ? 2 : 3;
      bits = (121 - shift) << 7 | ((mantissa << shift) & 7) << 4;
    }
    table.high[code] = static_cast<uint8_t>(bits >> 8);
    table.low[code] = static_cast<uint8_t>(bits & 0xff);
  }
  return table;
}

static constexpr E4M3Bits E4M3_BITS = e4m3_bits();

#if defined(DSV3RT_IS_AVX512VBMI)

constexpr float E4M3_UNIT = 1.0f;

struct FormatE4M3 {
  static constexpr int BYTES = 1, VECTORS = 4;
  static constexpr bool SCALED = true;
  static constexpr int order(int i) {  // unpack and even/odd split work within 16-byte lanes
    const int vector = i / 16, lane = i % 16 / 4, j = i % 4;
    return 16 * lane + 8 * (vector / 2) + 2 * j + vector % 2;
  }
  static inline void unpack(const uint8_t* p, V* out) {
    const __m512i v = _mm512_loadu_si512(p);
    const __m512i high = _mm512_ternarylogic_epi32(
        _mm512_permutex2var_epi8(_mm512_load_si512(E4M3_BITS.high), v, _mm512_load_si512(E4M3_BITS.high + 64)), v,
        _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);  // table | (v & sign)
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(E4M3_BITS.low), v, _mm512_load_si512(E4M3_BITS.low + 64));
    const __m512i a = _mm512_unpacklo_epi8(low, high), b = _mm512_unpackhi_epi8(low, high);
    const __m512i odd = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    out[0] = (V)_mm512_castsi512_ps(_mm512_slli_epi32(a, 16));
    out[1] = (V)_mm512_castsi512_ps(_mm512_and_si512(a, odd));
    out[2] = (V)_mm512_castsi512_ps(_mm512_slli_epi32(b, 16));
    out[3] = (V)_mm512_castsi512_ps(_mm512_and_si512(b, odd));
  }
};

#elif defined(DSV3RT_X86)

constexpr float E4M3_UNIT = 256.0f;  // the bits, moved into a float16's exponent and mantissa, are worth 2^-8 of the value

struct FormatE4M3 {
  static constexpr int BYTES = 1, VECTORS = 2;
  static constexpr bool SCALED = true;
  static constexpr int order(int i) { return i; }
  static inline void unpack(const uint8_t* p, V* out) {
#if defined(DSV3RT_512)
    const __m512i v = _mm512_cvtepi8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    const __m512i half = _mm512_and_si512(_mm512_slli_epi16(v, 7), _mm512_set1_epi16(static_cast<short>(0xBF80)));
    out[0] = (V)_mm512_cvtph_ps(_mm512_castsi512_si256(half));
    out[1] = (V)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1));
#else
    const __m256i v = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    const __m256i half = _mm256_and_si256(_mm256_slli_epi16(v, 7), _mm256_set1_epi16(static_cast<short>(0xBF80)));
    out[0] = (V)_mm256_cvtph_ps(_mm256_castsi256_si128(half));
    out[1] = (V)_mm256_cvtph_ps(_mm256_extracti128_si256(half, 1));
#endif
  }
};

#else

constexpr float E4M3_UNIT = 1.0f;

struct E4M3Values {
  uint32_t bits[256];
};
static constexpr E4M3Values e4m3_values() {
  E4M3Values table{};
  for (int code = 0; code < 256; ++code)
    table.bits[code] = (static_cast<uint32_t>(E4M3_BITS.high[code & 127]) << 24) |
                       (static_cast<uint32_t>(E4M3_BITS.low[code & 127]) << 16) | (static_cast<uint32_t>(code & 128) << 24);
  return table;
}
static constexpr E4M3Values E4M3_VALUES = e4m3_values();

struct FormatE4M3 {
  static constexpr int BYTES = 1, VECTORS = 2;
  static constexpr bool SCALED = true;
  static constexpr int order(int i) { return i; }
  static inline void unpack(const uint8_t* p, V* out) {
    uint32_t bits[2 * W];
    for (int i = 0; i < 2 * W; ++i) bits[i] = E4M3_VALUES.bits[p[i]];
    std::memcpy(out, bits, sizeof bits);
  }
};

#endif

struct FormatBF16 {
  static constexpr int BYTES = 2, VECTORS = 2;
  static constexpr bool SCALED = false;
#if defined(DSV3RT_X86)
  static constexpr int order(int i) { return i < W ? 2 * i : 2 * (i - W) + 1; }  // even ones, then odd ones
#else
  static constexpr int order(int i) { return i; }
#endif
  static inline void unpack(const uint8_t* p, V* out) {
#if defined(DSV3RT_X86)
    I pairs;
    std::memcpy(&pairs, p, sizeof pairs);
    out[0] = (V)(pairs << 16);
    out[1] = (V)(pairs & static_cast<int32_t>(0xffff0000u));
#else
    uint16_t bits[2 * W];
    std::memcpy(bits, p, sizeof bits);
    uint32_t wide[2 * W];
    for (int i = 0; i < 2 * W; ++i) wide[i] = static_cast<uint32_t>(bits[i]) << 16;
    std::memcpy(out, wide, sizeof wide);
#endif
  }
};

struct FormatF16 {
  static constexpr int BYTES = 2, VECTORS = 2;
  static constexpr bool SCALED = false;
  static constexpr int order(int i) { return i; }
  static inline void unpack(const uint8_t* p, V* out) {
#if defined(DSV3RT_512)
    out[0] = (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    out[1] = (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32)));
#elif defined(DSV3RT_X86)
    out[0] = (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    out[1] = (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 16)));
#else
    uint16_t bits[2 * W];
    std::memcpy(bits, p, sizeof bits);
    float wide[2 * W];
    for (int i = 0; i < 2 * W; ++i) wide[i] = half_to_float(bits[i]);
    std::memcpy(out, wide, sizeof wide);
#endif
  }
};

struct FormatF32 {
  static constexpr int BYTES = 4, VECTORS = 2;
  static constexpr bool SCALED = false;
  static constexpr int order(int i) { return i; }
  static inline void unpack(const uint8_t* p, V* out) {
    std::memcpy(out, p, 2 * sizeof(V));
  }
};

}  // namespace DSV3RT_VARIANT

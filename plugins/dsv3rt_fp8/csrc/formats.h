// Unpacking stored weights to float32, for one instruction set. Included by kernels.simd.cpp only.
//
// A format F is read STEP = VECTORS * W values at a time; F::order(i) is the index, within those values, of the one that comes out
// as the i-th. F::vectors(p, i, out) gives the vectors i .. i + TOGETHER - 1 of a step that begins at p: those that share the work
// of unpacking. Where F::STAGED, p is not the weights but a buffer that F::stage(weights, p) has filled, STAGE bytes a value: the
// half of the work that is done once however many tokens there are. Where F::SCALED, values come out times
// 1 / (F::UNIT * F::X_UNIT); activations are multiplied by X_UNIT when they are arranged, scales by UNIT.
#pragma once
#include "dsv3rt_simd.h"
#include "kernels.h"

namespace DSV3RT_VARIANT {

#if defined(DSV3RT_512) || defined(DSV3RT_IS_AVX2)
#define DSV3RT_X86 1
#endif

struct E4M3Bits {  // e4m3 codes 0..127 as bfloat16 (exact) times a power of two, high and low bytes apart
  alignas(64) uint8_t high[128], low[128];
};

static constexpr E4M3Bits e4m3_bits(int power) {
  E4M3Bits table{};
  for (int code = 0; code < 128; ++code) {
    int exponent = code >> 3, mantissa = code & 7, bits = 0;
    if (code == 127) {
      bits = 0x7fc0;
    } else if (exponent > 0) {
      bits = (exponent + 120 + power) << 7 | mantissa << 4;
    } else if (mantissa > 0) {  // mantissa * 2^-9: shift up to a leading one
      int shift = mantissa >= 4 ? 1 : mantissa >= 2 ? 2 : 3;
      bits = (121 + power - shift) << 7 | ((mantissa << shift) & 7) << 4;
    }
    table.high[code] = static_cast<uint8_t>(bits >> 8);
    table.low[code] = static_cast<uint8_t>(bits & 0xff);
  }
  return table;
}

static constexpr E4M3Bits E4M3_BITS = e4m3_bits(0);

static inline V f32_vector(const uint8_t* p) {
  V out;
  std::memcpy(&out, p, sizeof out);
  return out;
}

static inline V f16_vector(const uint8_t* p) {  // W values
#if defined(DSV3RT_512)
  return (V)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif defined(DSV3RT_X86)
  return (V)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
  uint16_t bits[W];
  std::memcpy(bits, p, sizeof bits);
  float wide[W];
  for (int i = 0; i < W; ++i) wide[i] = half_to_float(bits[i]);
  return f32_vector(reinterpret_cast<const uint8_t*>(wide));
#endif
}

#if defined(DSV3RT_X86)
static inline V bf16_vector(const uint8_t* p, int odd) {  // the even ones, or the odd ones, of 2 * W values
  I pairs;
  std::memcpy(&pairs, p, sizeof pairs);
  return odd ? odd_of(pairs) : even_of(pairs);
}
#endif

#if defined(DSV3RT_IS_AVX512VBMI)

static constexpr E4M3Bits E4M3_SCALED_BITS = e4m3_bits(-8);

// Staged as bfloat16, values of even index and then those of odd index, times 2^-8: so there is nothing to add to an exponent, a
// code's four bits stand below 0111. That is true of normal numbers. The few others (a code in some thousands, zeros too) are
// looked for, and 64 codes with one of them among them are taken from a table, which costs more than twice as much.
struct FormatE4M3 {
  static constexpr int BYTES = 1, STAGE = 2, VECTORS = 4, TOGETHER = 1;
  static constexpr bool SCALED = true, STAGED = true;
  static constexpr float UNIT = 256.0f, X_UNIT = 1.0f;
  static constexpr int order(int i) { return 4 * (i % W) + (i / W % 2 * 2 + i / (2 * W)); }
  static __attribute__((noinline)) void look_up(const uint8_t* p, uint8_t* even, uint8_t* odd) {
    const __m512i v = _mm512_loadu_si512(p), low_bytes = _mm512_set1_epi16(0x00FF);
    const uint8_t *high_table = E4M3_SCALED_BITS.high, *low_table = E4M3_SCALED_BITS.low;
    const __m512i high = _mm512_ternarylogic_epi32(
        _mm512_permutex2var_epi8(_mm512_load_si512(high_table), v, _mm512_load_si512(high_table + 64)), v,
        _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);  // table | (v & sign)
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(low_table), v, _mm512_load_si512(low_table + 64));
    _mm512_storeu_si512(even, _mm512_ternarylogic_epi32(low, low_bytes, _mm512_slli_epi16(high, 8), 0xEA));  // (a & b) | c
    _mm512_storeu_si512(odd, _mm512_or_si512(_mm512_srli_epi16(low, 8), _mm512_andnot_si512(low_bytes, high)));
  }
  // A code taken as a signed byte, times 16: seven bits where a bfloat16 has the lower four of its exponent and the upper three of
  // its mantissa, and above them copies of the sign, of which the topmost is kept.
  // Returns which codes these bits are wrong for.
  static inline __attribute__((always_inline)) __mmask64 stage_normal(const uint8_t* p, uint8_t* even, uint8_t* odd) {
    const __m512i v = _mm512_loadu_si512(p);
    const __m512i mask = _mm512_set1_epi16(static_cast<short>(0x87F0)), exponent = _mm512_set1_epi16(0x3800);
    const __m512i evens = _mm512_maddubs_epi16(_mm512_set1_epi16(0x0010), v);
    const __m512i odds = _mm512_maddubs_epi16(_mm512_set1_epi16(0x1000), v);
    _mm512_storeu_si512(even, _mm512_ternarylogic_epi32(evens, mask, exponent, 0xEA));  // (a & b) | c
    _mm512_storeu_si512(odd, _mm512_ternarylogic_epi32(odds, mask, exponent, 0xEA));
    return _mm512_testn_epi8_mask(v, _mm512_set1_epi8(0x78));
  }
  static inline __attribute__((always_inline)) void stage(const uint8_t* p, uint8_t* even, uint8_t* odd) {
    if (__builtin_expect(stage_normal(p, even, odd) != 0, 0)) look_up(p, even, odd);
  }
  static inline __attribute__((always_inline)) void stage(const uint8_t* p, uint8_t* out) { stage(p, out, out + 64); }
  static inline void vectors(const uint8_t* p, int i, V* out) { *out = bf16_vector(p + i / 2 * 64, i % 2); }
};

// The same values in the same order, unpacked in registers.
struct FormatE4M3Few {
  static constexpr int BYTES = 1, STAGE = 1, VECTORS = 4, TOGETHER = 4;
  static constexpr bool SCALED = true, STAGED = false;
  static constexpr float UNIT = 256.0f, X_UNIT = 1.0f;
  static inline void stage(const uint8_t*, uint8_t*) {}
  // As a normal number, a code whose exponent is 0 came out as (1 + m / 8) 2^-15, but is worth m / 8 * 2^-14.
  static inline __m512i with_subnormals(__m512i bits) {
    const __mmask16 wrong = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x07800000));
    const __m512i one = _mm512_set1_epi32(0x38800000), sign = _mm512_set1_epi32(static_cast<int32_t>(0x80000000u));
    const __m512 x = _mm512_castsi512_ps(bits), half = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(bits, sign, one, 0xEA));
    return _mm512_castps_si512(_mm512_mask_sub_ps(x, wrong, _mm512_add_ps(x, x), half));
  }
  static inline __attribute__((always_inline)) void vectors(const uint8_t* p, int, V* out) {
    const __m512i v = _mm512_loadu_si512(p);
    const __m512i mask = _mm512_set1_epi32(static_cast<int32_t>(0x87F00000u)), exponent = _mm512_set1_epi32(0x38000000);
    const __m512i evens = _mm512_maddubs_epi16(_mm512_set1_epi16(0x0010), v);
    const __m512i odds = _mm512_maddubs_epi16(_mm512_set1_epi16(0x1000), v);
    __m512i bits[4] = {_mm512_slli_epi32(evens, 16), evens, _mm512_slli_epi32(odds, 16), odds};
    for (int i = 0; i < 4; ++i) bits[i] = _mm512_ternarylogic_epi32(bits[i], mask, exponent, 0xEA);  // (a & b) | c
    if (__builtin_expect(_mm512_testn_epi8_mask(v, _mm512_set1_epi8(0x78)) != 0, 0))
      for (int i = 0; i < 4; ++i) bits[i] = with_subnormals(bits[i]);
    for (int i = 0; i < 4; ++i) out[i] = (V)bits[i];
  }
};

#elif defined(DSV3RT_X86)

struct FormatE4M3 {  // staged as float16, values of even index and then those of odd index
  static constexpr int BYTES = 1, STAGE = 2, VECTORS = 4, TOGETHER = 1;
  static constexpr bool SCALED = true, STAGED = true;
  static constexpr float UNIT = 256.0f, X_UNIT = 1.0f;  // in a float16's exponent and mantissa the bits are worth 2^-8 of the value
  static constexpr int order(int i) { return i < 2 * W ? 2 * i : 2 * (i - 2 * W) + 1; }
  // A code taken as a signed byte, times 128, has its sign in the topmost two bits and the other seven where a float16 has the
  // lower four of its exponent and the upper three of its mantissa. One instruction multiplies every second byte and widens it.
  static inline void stage(const uint8_t* p, uint8_t* out) {
#if defined(DSV3RT_512)
    const __m512i v = _mm512_loadu_si512(p), mask = _mm512_set1_epi16(static_cast<short>(0xBF80));
    _mm512_storeu_si512(out, _mm512_and_si512(_mm512_maddubs_epi16(_mm512_set1_epi16(0x0080), v), mask));
    _mm512_storeu_si512(
        out + 64, _mm512_and_si512(_mm512_maddubs_epi16(_mm512_set1_epi16(static_cast<short>(0x8000)), v), mask));
#else
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i mask = _mm256_set1_epi16(static_cast<short>(0xBF80));
    const __m256i even = _mm256_maddubs_epi16(_mm256_set1_epi16(0x0080), v);
    const __m256i odd = _mm256_maddubs_epi16(_mm256_set1_epi16(static_cast<short>(0x8000)), v);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_and_si256(even, mask));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + 32), _mm256_and_si256(odd, mask));
#endif
  }
  // From memory: widening what lies in a register costs a shuffle more, and those are what there is too little of.
  static inline void vectors(const uint8_t* p, int i, V* out) { *out = f16_vector(p + i * 2 * W); }
};

#if defined(DSV3RT_IS_AVX2)
// The bits at the bottom of a float32's exponent and the top of its mantissa, worth 2^-120 of the value: nothing is staged, and a
// vector takes two instructions. The smallest eight codes become subnormal numbers, though, exact but on other processors than
// AMD's a hundred times slower to multiply. Activations are scaled up, so that sums are no such numbers; none
// may exceed 2^64.
struct FormatE4M3Low {
  static constexpr int BYTES = 1, STAGE = 1, VECTORS = 4, TOGETHER = 2;
  static constexpr bool SCALED = true, STAGED = false;
  static constexpr float UNIT = 0x1p56f, X_UNIT = 0x1p64f;
  static constexpr int order(int i) { return 4 * (i % W) + (i / W % 2 * 2 + i / (2 * W)); }
  static inline void stage(const uint8_t*, uint8_t*) {}
  // A code taken as a signed byte, times 16: seven bits where a bfloat16 has the lower four of its exponent and the upper three of
  // its mantissa, and above them copies of the sign, of which the topmost is kept.
  static inline void vectors(const uint8_t* p, int i, V* out) {
    const __m256i v = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    const __m256i mask = _mm256_set1_epi32(static_cast<int32_t>(0x87F00000u));
    const __m256i codes = _mm256_maddubs_epi16(_mm256_set1_epi16(i == 0 ? 0x0010 : 0x1000), v);
    out[0] = (V)_mm256_and_si256(_mm256_slli_epi32(codes, 16), mask);
    out[1] = (V)_mm256_and_si256(codes, mask);
  }
};
#endif

#else

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

struct FormatE4M3 {  // staged as float32
  static constexpr int BYTES = 1, STAGE = 4, VECTORS = 2, TOGETHER = 1;
  static constexpr bool SCALED = true, STAGED = true;
  static constexpr float UNIT = 1.0f, X_UNIT = 1.0f;
  static constexpr int order(int i) { return i; }
  static inline void stage(const uint8_t* p, uint8_t* out) {
    for (int i = 0; i < 2 * W; ++i) std::memcpy(out + 4 * i, &E4M3_VALUES.bits[p[i]], 4);
  }
  static inline void vectors(const uint8_t* p, int i, V* out) { *out = f32_vector(p + i * 4 * W); }
};

#endif

struct FormatBF16 {
  static constexpr int BYTES = 2, STAGE = 2, VECTORS = 2, TOGETHER = 1;
  static constexpr bool SCALED = false, STAGED = false;
  static inline void stage(const uint8_t*, uint8_t*) {}
#if defined(DSV3RT_X86)
  static constexpr int order(int i) { return i < W ? 2 * i : 2 * (i - W) + 1; }  // even ones, then odd ones
  static inline void vectors(const uint8_t* p, int i, V* out) { *out = bf16_vector(p, i); }
#else
  static constexpr int order(int i) { return i; }
  static inline void vectors(const uint8_t* p, int i, V* out) {
    uint16_t bits[W];
    std::memcpy(bits, p + i * 2 * W, sizeof bits);
    uint32_t wide[W];
    for (int j = 0; j < W; ++j) wide[j] = static_cast<uint32_t>(bits[j]) << 16;
    *out = f32_vector(reinterpret_cast<const uint8_t*>(wide));
  }
#endif
};

struct FormatF16 {
  static constexpr int BYTES = 2, STAGE = 2, VECTORS = 2, TOGETHER = 1;
  static constexpr bool SCALED = false, STAGED = false;
  static constexpr int order(int i) { return i; }
  static inline void stage(const uint8_t*, uint8_t*) {}
  static inline void vectors(const uint8_t* p, int i, V* out) { *out = f16_vector(p + i * 2 * W); }
};

struct FormatF32 {
  static constexpr int BYTES = 4, STAGE = 4, VECTORS = 2, TOGETHER = 1;
  static constexpr bool SCALED = false, STAGED = false;
  static constexpr int order(int i) { return i; }
  static inline void stage(const uint8_t*, uint8_t*) {}
  static inline void vectors(const uint8_t* p, int i, V* out) { *out = f32_vector(p + i * 4 * W); }
};

// The format as products of one or two tokens read it: for these staging does not pay there.
template <class F>
struct Few {
  using Format = F;
};
#if defined(DSV3RT_IS_AVX512VBMI)
template <>
struct Few<FormatE4M3> {
  using Format = FormatE4M3Few;
};
#endif

}  // namespace DSV3RT_VARIANT

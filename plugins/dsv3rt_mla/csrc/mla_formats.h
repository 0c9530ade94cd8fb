// Stored number formats to and from float32 vectors, for one instruction set. For `.simd.cpp` files only.
#pragma once
#include "dsv3rt_simd.h"
#include "mla_kernels.h"

namespace DSV3RT_VARIANT {

// Unlike `V{} + x`, subtracting zero costs nothing: it changes no number, so the compiler drops it.
static inline V spread(float x) { return x - V{}; }

static inline V pick(I condition, V yes, V no) { return (V)((condition & (I)yes) | (~condition & (I)no)); }

// One multiply-add, fused exactly where v_fma is.
static inline float s_fma(float a, float b, float c) {
#if defined(DSV3RT_512) || defined(DSV3RT_IS_AVX2) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

static constexpr int64_t bytes_of(Stored format) { return format == Stored::F32 ? 4 : format == Stored::E4M3 ? 1 : 2; }

// What `load` and `value` must be multiplied with: e4m3 bits are read as a float16 whose exponent is 8 too small.
template <Stored F>
static constexpr float unit() {
  return F == Stored::E4M3 ? 256.0f : 1.0f;
}

// One number, short of `unit`.
template <Stored F>
static inline float value(const char* p) {
  if (F == Stored::F32) {
    float x;
    std::memcpy(&x, p, 4);
    return x;
  }
  if (F == Stored::E4M3) {
    const int bits = static_cast<signed char>(*p);
    return half_to_float(static_cast<uint16_t>((bits << 7) & 0xBF80));
  }
  uint16_t bits;
  std::memcpy(&bits, p, 2);
  return F == Stored::BF16 ? bf16_to_float(bits) : half_to_float(bits);
}

// W numbers, short of `unit`. No alignment needed.
template <Stored F>
static inline V load(const char* p) {
  if (F == Stored::F32) {
    V x;
    std::memcpy(&x, p, sizeof x);
    return x;
  }
#if defined(DSV3RT_512)
  const __m256i raw = F == Stored::E4M3 ? _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))
                                        : _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  if (F == Stored::BF16) return (V)_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16);
  if (F == Stored::F16) return (V)_mm512_cvtph_ps(raw);
  return (V)_mm512_cvtph_ps(_mm256_and_si256(_mm256_slli_epi16(raw, 7), _mm256_set1_epi16(static_cast<short>(0xBF80))));
#elif defined(DSV3RT_IS_AVX2)
  const __m128i raw = F == Stored::E4M3 ? _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)))
                                        : _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  if (F == Stored::BF16) return (V)_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16);
  if (F == Stored::F16) return (V)_mm256_cvtph_ps(raw);
  return (V)_mm256_cvtph_ps(_mm_and_si128(_mm_slli_epi16(raw, 7), _mm_set1_epi16(static_cast<short>(0xBF80))));
#else
  V x;
  for (int i = 0; i < W; ++i) x[i] = value<F>(p + i * bytes_of(F));
  return x;
#endif
}

template <Stored F>
static inline void widen_row(const char* p, int64_t count, float factor, float* out) {
  int64_t i = 0;
  for (; i + W <= count; i += W) v_store(out + i, load<F>(p + i * bytes_of(F)) * spread(factor));
  for (; i < count; ++i) out[i] = value<F>(p + i * bytes_of(F)) * factor;
}

static inline uint32_t to_bits(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// To nearest, ties to even; NaN stays NaN.
static inline uint16_t float_to_bf16(float x) {
  const uint32_t bits = to_bits(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : 0x7fc0u);
}

// To nearest, ties to even, of |x| up to 448; what is greater saturates, NaN stays NaN.
static inline uint8_t float_to_e4m3(float x) {
  const uint32_t bits = to_bits(x), magnitude = bits & 0x7fffffffu;
  // below 2^-6 codes are multiples of 2^-9: adding 1.5 * 2^14 rounds to such
  const uint32_t small = to_bits(from_bits(magnitude) + 24576.0f) - to_bits(24576.0f);
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  const uint32_t large = (rounded >> 20) - ((127u - 7u) << 3);
  uint32_t code = magnitude < 0x3c800000u ? small : large;
  code = code > 0x7eu || magnitude > 0x7f800000u ? (magnitude > 0x7f800000u ? 0x7fu : 0x7eu) : code;
  return static_cast<uint8_t>(code | (bits >> 24 & 0x80u));
}

static inline void narrow_row(const float* x, Stored format, int64_t count, char* out) {
  if (format == Stored::F32) {
    std::memcpy(out, x, static_cast<size_t>(count) * 4);
  } else if (format == Stored::BF16) {
    for (int64_t i = 0; i < count; ++i) {
      const uint16_t bits = float_to_bf16(x[i]);
      std::memcpy(out + 2 * i, &bits, 2);
    }
  } else {
    for (int64_t i = 0; i < count; ++i) out[i] = static_cast<char>(float_to_e4m3(x[i]));
  }
}

}  // namespace DSV3RT_VARIANT

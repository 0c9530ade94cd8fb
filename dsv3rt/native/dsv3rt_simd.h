// Vectors of float32 for files that are compiled once per instruction set (see build.py: their names end in `.simd.cpp`).
//
// Everything here is `static inline` or lives in the variant's own namespace, so that the linker can never mix code of two
// instruction sets; for the same reason such files use no templates of the standard library.
//
//     #include "dsv3rt_simd.h"
//     namespace DSV3RT_VARIANT { static void f(...) { V sum = v_zero(); ... }  extern const Kernels kernels = {&f, ...}; }
//
// V has W lanes; unaligned loads are free to use. `v_fma` is fused where the hardware can, in every use alike.
#pragma once
#include <cstdint>
#include <cstring>

#if defined(DSV3RT_IS_AVX512VBMI)
#define DSV3RT_VARIANT dsv3rt_avx512vbmi
#elif defined(DSV3RT_IS_AVX512)
#define DSV3RT_VARIANT dsv3rt_avx512
#elif defined(DSV3RT_IS_AVX2)
#define DSV3RT_VARIANT dsv3rt_avx2
#else
#define DSV3RT_VARIANT dsv3rt_portable
#endif
#if defined(DSV3RT_IS_AVX512VBMI) || defined(DSV3RT_IS_AVX512)
#define DSV3RT_512 1
#endif

#if defined(DSV3RT_512) || defined(DSV3RT_IS_AVX2)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace DSV3RT_VARIANT {

#if defined(DSV3RT_512)
constexpr int W = 16;
#elif defined(DSV3RT_IS_AVX2)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float V __attribute__((vector_size(4 * W)));
typedef int32_t I __attribute__((vector_size(4 * W)));
typedef float VU __attribute__((vector_size(4 * W), aligned(4), may_alias));

static inline V v_load(const float* p) { return *reinterpret_cast<const VU*>(p); }
static inline void v_store(float* p, V v) { *reinterpret_cast<VU*>(p) = v; }
static inline V v_set(float x) { return x - V{}; }  // folds to a broadcast: x - 0 is x, the sign of zero included
static inline V v_zero() { return V{}; }

// Of 2 * W values of bfloat16 those of even index and those of odd index.
static inline V even_of(I pairs) { return (V)(pairs << 16); }
static inline V odd_of(I pairs) { return (V)(pairs & static_cast<int32_t>(0xffff0000u)); }

static inline V v_fma(V a, V b, V c) {
#if defined(DSV3RT_512)
  return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(DSV3RT_IS_AVX2)
  return (V)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

// Lanes added pairwise, always in the same order.
static inline float v_sum(V v) {
  float lane[W];
  v_store(lane, v);
  for (int width = W / 2; width > 0; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return lane[0];
}

// Sums over the lanes of four vectors; each in the order of v_sum.
static inline void sum4(const V* v, float* out) {
#if defined(DSV3RT_512) || defined(DSV3RT_IS_AVX2)
  __m128 q[4];
  for (int i = 0; i < 4; ++i) {
#if defined(DSV3RT_512)
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256((__m512)v[i]), _mm512_extractf32x8_ps((__m512)v[i], 1));
#else
    const __m256 half = (__m256)v[i];
#endif
    q[i] = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  }
  const __m128 ab = _mm_add_ps(_mm_movelh_ps(q[0], q[1]), _mm_movehl_ps(q[1], q[0]));
  const __m128 cd = _mm_add_ps(_mm_movelh_ps(q[2], q[3]), _mm_movehl_ps(q[3], q[2]));
  _mm_storeu_ps(out, _mm_add_ps(_mm_shuffle_ps(ab, cd, 0x88), _mm_shuffle_ps(ab, cd, 0xDD)));
#else
  for (int i = 0; i < 4; ++i) out[i] = v_sum(v[i]);
#endif
}

static inline V v_max(V a, V b) {  // b where they are no numbers
#if defined(DSV3RT_512)
  return (V)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(DSV3RT_IS_AVX2)
  return (V)_mm256_max_ps((__m256)a, (__m256)b);
#else
  const I larger = a > b;
  return (V)((larger & (I)a) | (~larger & (I)b));
#endif
}
static inline V v_min(V a, V b) {
#if defined(DSV3RT_512)
  return (V)_mm512_min_ps((__m512)a, (__m512)b);
#elif defined(DSV3RT_IS_AVX2)
  return (V)_mm256_min_ps((__m256)a, (__m256)b);
#else
  const I smaller = a < b;
  return (V)((smaller & (I)a) | (~smaller & (I)b));
#endif
}

// e^x within 2 units in the last place; x is clamped to [-87, 88].
static inline V v_exp(V x) {
  x = v_min(v_max(x, v_set(-87.0f)), v_set(88.0f));
  const V magic = v_set(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  const V shifted = v_fma(x, v_set(1.44269504088896341f), magic);
  const V n = shifted - magic;
  V r = v_fma(n, v_set(-0.693145751953125f), x);  // ln 2 in two parts
  r = v_fma(n, v_set(-1.42860682030941723212e-6f), r);
  V p = v_set(1.9875691500e-4f);
  p = v_fma(p, r, v_set(1.3981999507e-3f));
  p = v_fma(p, r, v_set(8.3334519073e-3f));
  p = v_fma(p, r, v_set(4.1665795894e-2f));
  p = v_fma(p, r, v_set(1.6666665459e-1f));
  p = v_fma(p, r, v_set(5.0000001201e-1f));
  p = v_fma(p, r * r, r) + v_set(1.0f);
  const I power = ((I)shifted - (I)magic + 127) << 23;
  return p * (V)power;
}

// x / (1 + e^-x)
static inline V v_silu(V x) { return x / (v_set(1.0f) + v_exp(-x)); }

static inline void prefetch(const void* p) { __builtin_prefetch(p, 0, 3); }

// One value of a stored format as float32, for tails and for the portable variant.
static inline float from_bits(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
static inline float bf16_to_float(uint16_t bits) { return from_bits(static_cast<uint32_t>(bits) << 16); }
static inline float half_to_float(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16, magnitude = bits & 0x7fffu;
  if (magnitude >= 0x7c00u) return from_bits(sign | 0x7f800000u | (magnitude << 13));
  // the bits read as a float32 with a small exponent, scaled by an exact power of two (subnormals come out right)
  const float value = magnitude < 0x0400u ? static_cast<float>(magnitude) * 5.9604644775390625e-8f
                                          : from_bits((magnitude << 13) + (112u << 23));
  return sign ? -value : value;
}

}  // namespace DSV3RT_VARIANT

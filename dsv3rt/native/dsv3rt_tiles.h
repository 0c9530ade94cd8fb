// Products by the processor's tiles (Intel AMX), for `.simd.cpp` files; there where DSV3RT_TILES is defined.
//
// A tile is 16 rows of 64 bytes. `tile_multiply` adds the product of 16 x 32 and 32 x 16 bfloat16 numbers to 16 x 16 float32
// sums: sixteen times the multiply-adds of AVX-512 in float32. A float32 number is the exact sum of three bfloat16 ones (8 + 8 + 8
// bits of mantissa), so numbers that are themselves exact in bfloat16, as weights are, are multiplied with float32 activations at a
// third of that speed with float32's accuracy. (Subnormal numbers count as zero.)
//
// Weights are the left operand, as they lie in memory: 16 rows, 32 columns. Activations are the right one, "packed": for 32 columns
// and 16 tokens a tile for each of the three parts, with row j holding columns 2 j and 2 j + 1 of each token. So sums have a row
// for a row of the weights and a column for a token.
//
// Memory is touched from assembly here, where no address sanitizer looks: give addresses of whole tiles.
#pragma once
#include "dsv3rt_simd.h"
#include "dsv3rt_variants.h"

#if defined(DSV3RT_IS_AVX512VBMI) && defined(DSV3RT_HAS_AMX)
#define DSV3RT_TILES 1

namespace DSV3RT_VARIANT {

constexpr int64_t TILE_ROWS = 16;        // and tokens
constexpr int64_t TILE_COLUMNS = 32;     // of weights
constexpr int64_t TILE_BYTES = 1024;
constexpr int TILE_PARTS = 3;            // of a float32 number
constexpr int64_t TILE_STEPS = 4;        // of TILE_COLUMNS columns: what is summed up in tiles before it is added to what came before
constexpr int64_t TILE_BLOCK = TILE_STEPS * TILE_COLUMNS;

// Tiles are there between making and end of an object of this class; functions called in between must not want them too. All but
// tile 6 have `wide` columns of 32 bits, that one has 16. All but tile 7 have `high` rows, that one has 16: a product takes as many
// cycles as its left operand has rows.
class TilesInUse {
 public:
  explicit TilesInUse(int64_t wide = 16, int64_t high = TILE_ROWS) {
    alignas(64) struct {
      uint8_t palette, start, reserved[14];
      uint16_t row_bytes[16];
      uint8_t rows[16];
    } config = {};
    config.palette = 1;
    for (int i = 0; i < 8; ++i) {
      config.row_bytes[i] = static_cast<uint16_t>(i == 6 ? 64 : wide * 4);
      config.rows[i] = static_cast<uint8_t>(i == 7 ? TILE_ROWS : high);
    }
    asm volatile("ldtilecfg %0" ::"m"(config));
  }
  ~TilesInUse() { asm volatile("tilerelease"); }
  TilesInUse(const TilesInUse&) = delete;
  TilesInUse& operator=(const TilesInUse&) = delete;
};

template <int TILE>
static inline void tile_zero() {
  asm volatile("tilezero %%tmm%c0" ::"i"(TILE));
}
template <int TILE>
static inline void tile_load(const void* p, int64_t stride = 64) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(stride), "i"(TILE) : "memory");
}
template <int TILE>
static inline void tile_store(void* p, int64_t stride = 64) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(stride), "i"(TILE) : "memory");
}
template <int SUMS, int LEFT, int RIGHT>
static inline void tile_multiply() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(SUMS), "i"(LEFT), "i"(RIGHT));
}

// 16 x 16 numbers of 32 bits, in place.
static inline void transpose16(__m512i* a) {
  __m512i b[16];
  for (int i = 0; i < 16; i += 4) {
    const __m512i low = _mm512_unpacklo_epi32(a[i], a[i + 1]), high = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    const __m512i low2 = _mm512_unpacklo_epi32(a[i + 2], a[i + 3]), high2 = _mm512_unpackhi_epi32(a[i + 2], a[i + 3]);
    b[i] = _mm512_unpacklo_epi64(low, low2);
    b[i + 1] = _mm512_unpackhi_epi64(low, low2);
    b[i + 2] = _mm512_unpacklo_epi64(high, high2);
    b[i + 3] = _mm512_unpackhi_epi64(high, high2);
  }
  for (int i = 0; i < 4; ++i) {  // now a 4 x 4 matrix of 128-bit lanes for each i
    const __m512i even = _mm512_shuffle_i32x4(b[i], b[i + 4], 0x88), odd = _mm512_shuffle_i32x4(b[i], b[i + 4], 0xDD);
    const __m512i even2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0x88), odd2 = _mm512_shuffle_i32x4(b[i + 8], b[i + 12], 0xDD);
    a[i] = _mm512_shuffle_i32x4(even, even2, 0x88);
    a[i + 8] = _mm512_shuffle_i32x4(even, even2, 0xDD);
    a[i + 4] = _mm512_shuffle_i32x4(odd, odd2, 0x88);
    a[i + 12] = _mm512_shuffle_i32x4(odd, odd2, 0xDD);
  }
}

// 16 pairs of float32 numbers as pairs of their parts, the first of a pair in the lower half: part p at parts[p * step].
static inline void split_pairs(__m512 first, __m512 second, __m512i* parts, int64_t step) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int32_t>(0xffff0000u));
  for (int p = 0; p < TILE_PARTS; ++p) {
    const __m512i low = _mm512_castps_si512(first), high = _mm512_and_si512(_mm512_castps_si512(second), upper);
    parts[p * step] = _mm512_or_si512(_mm512_srli_epi32(low, 16), high);
    first = _mm512_sub_ps(first, _mm512_castsi512_ps(_mm512_and_si512(low, upper)));
    second = _mm512_sub_ps(second, _mm512_castsi512_ps(high));
  }
}

// A tile for each part, transposed.
static inline void store_parts(__m512i (*parts)[16], uint8_t* out) {
  for (int p = 0; p < TILE_PARTS; ++p) {
    transpose16(parts[p]);
    for (int j = 0; j < 16; ++j) _mm512_store_si512(out + p * TILE_BYTES + j * 64, parts[p][j]);
  }
}

// The right operand of 32 columns: x[t] points at the first one of token t, `tokens` <= 16, `size` <= 32; the rest is zero.
static inline void pack_step(const float* const* x, int64_t tokens, int64_t offset, int64_t size, uint8_t* out) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  const uint32_t there = size >= 32 ? 0xffffffffu : (1u << size) - 1;
  const __mmask16 low = static_cast<__mmask16>(there), high = static_cast<__mmask16>(there >> 16);
  __m512i parts[TILE_PARTS][16];
  for (int t = 0; t < 16; ++t) {
    if (t >= tokens) {
      for (int p = 0; p < TILE_PARTS; ++p) parts[p][t] = _mm512_setzero_si512();
      continue;
    }
    const __m512 a = _mm512_maskz_loadu_ps(low, x[t] + offset), b = _mm512_maskz_loadu_ps(high, x[t] + offset + 16);
    split_pairs(_mm512_permutex2var_ps(a, evens, b), _mm512_permutex2var_ps(a, odds, b), &parts[0][t], 16);
  }
  store_parts(parts, out);
}

// Tiles of sums: ROWS tiles of weights against TOKENS tiles of tokens, over `steps` steps. Weights: a tile for a step, TILE_STEPS
// for 16 rows. Activations: TILE_PARTS for a step, TILE_STEPS * TILE_PARTS for 16 tokens. Each tile of sums goes to `sums`.
template <int ROWS, int TOKENS>
static inline void multiply_tiles(const uint8_t* weights, const uint8_t* packed, int64_t steps, float* sums) {
  static_assert(ROWS * TOKENS <= 4 && TOKENS <= 2, "there are eight tiles");
  constexpr int64_t ROW_STEP = TILE_STEPS * TILE_BYTES, TOKEN_STEP = TILE_STEPS * TILE_PARTS * TILE_BYTES;
  tile_zero<0>();
  if (ROWS * TOKENS > 1) tile_zero<1>();
  if (ROWS * TOKENS > 2) tile_zero<2>();
  if (ROWS * TOKENS > 3) tile_zero<3>();
  for (int64_t step = 0; step < steps; ++step, weights += TILE_BYTES) {
    if (TOKENS == 2) {
      tile_load<4>(weights);
      if (ROWS > 1) tile_load<5>(weights + ROW_STEP);
    }
    for (int part = TILE_PARTS - 1; part >= 0; --part) {  // the smallest first
      const uint8_t* p = packed + (step * TILE_PARTS + part) * TILE_BYTES;
      tile_load<6>(p);
      if (TOKENS == 2) {
        tile_load<7>(p + TOKEN_STEP);
        tile_multiply<0, 4, 6>();
        tile_multiply<1, 4, 7>();
        if (ROWS > 1) tile_multiply<2, 5, 6>();
        if (ROWS > 1) tile_multiply<3, 5, 7>();
      } else {
        tile_load<4>(weights);
        tile_multiply<0, 4, 6>();
        if (ROWS > 1) tile_load<5>(weights + ROW_STEP);
        if (ROWS > 1) tile_multiply<1, 5, 6>();
        if (ROWS > 2) tile_load<4>(weights + 2 * ROW_STEP);
        if (ROWS > 2) tile_multiply<2, 4, 6>();
        if (ROWS > 3) tile_load<5>(weights + 3 * ROW_STEP);
        if (ROWS > 3) tile_multiply<3, 5, 6>();
      }
    }
  }
  tile_store<0>(sums);
  if (ROWS * TOKENS > 1) tile_store<1>(sums + 256);
  if (ROWS * TOKENS > 2) tile_store<2>(sums + 512);
  if (ROWS * TOKENS > 3) tile_store<3>(sums + 768);
}

}  // namespace DSV3RT_VARIANT
#endif

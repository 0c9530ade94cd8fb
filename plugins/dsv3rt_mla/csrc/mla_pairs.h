// Latent attention by AVX-512, for caches in bfloat16: numbers are widened in registers, two and two. Included by mla.simd.cpp
// only. See mla_kernels.h for the legend.
//
// Of 32 columns those of even index are one vector and those of odd index another: each takes one instruction. Queries lie in that
// order; contexts are put back into their own. All rows of a group see a token that has been loaded once.
#pragma once
#include "mla_ahead.h"
#include "mla_formats.h"
#include "mla_kernels.h"

#if defined(DSV3RT_512)
namespace DSV3RT_VARIANT {

constexpr int64_t PAIRS = 2 * W;  // columns widened together

static bool by_pairs(const Cache& cache, int64_t latent, int64_t rope) {
  return cache.latent_format == Stored::BF16 && cache.rope_format == Stored::BF16 && latent % PAIRS == 0 && rope % PAIRS == 0;
}

static int64_t pairs_bytes(int64_t rows, int64_t latent, int64_t rope) { return rows * (latent + rope) * 4; }

// How many rows are computed together from `row` on.
static int64_t together(int64_t rows, int64_t row) { return rows - row < TILE_GROUP / 2 ? GROUP : TILE_GROUP / 2; }

// Packed: [groups of rows][columns / PAIRS][even, odd][rows together] vectors.
static void pack_pairs(const float* queries, int64_t step, int64_t rows, int64_t latent, int64_t rope, uint8_t* packed) {
  const __m512i evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odds = _mm512_add_epi32(evens, _mm512_set1_epi32(1));
  float* out = reinterpret_cast<float*>(packed);
  for (int64_t row = 0, count; row < rows; row += count) {
    count = together(rows, row);
    for (int64_t c = 0; c < latent + rope; c += PAIRS, out += count * PAIRS)  // both whole pairs: a line has no gap
      for (int64_t r = 0; r < count; ++r) {
        const float* line = queries + (row + r) * step + c;
        const __m512 a = _mm512_loadu_ps(line), b = _mm512_loadu_ps(line + W);
        _mm512_storeu_ps(out + r * W, _mm512_permutex2var_ps(a, evens, b));
        _mm512_storeu_ps(out + (count + r) * W, _mm512_permutex2var_ps(a, odds, b));
      }
  }
}

// The sums of 16 vectors, each in the same order of additions.
static inline __m512 sum16(const V* v) {
  __m512 quarters[4], halves[2];
  for (int k = 0; k < 4; ++k) {  // of four vectors 128 bits each
    const __m512 a = (__m512)v[k], b = (__m512)v[4 + k], c = (__m512)v[8 + k], d = (__m512)v[12 + k];
    const __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xEE));
    const __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xEE));
    quarters[k] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xDD));
  }
  for (int k = 0; k < 2; ++k) {
    const __m512 a = quarters[2 * k], b = quarters[2 * k + 1];
    halves[k] = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  return _mm512_add_ps(_mm512_shuffle_ps(halves[0], halves[1], 0x44), _mm512_shuffle_ps(halves[0], halves[1], 0xEE));
}

// Into a register: compilers would rather load it with each of the instructions that use it, more than there are ports for.
static inline V load_once(const float* p) {
  V x = v_load(p);
  asm("" : "+v"(x));
  return x;
}

// sums[t * R + r] += query r . token t over `columns` columns
template <int R>
static inline __attribute__((always_inline)) void score_columns(const char* const* tokens, const float* queries, int64_t columns,
                                                                V* sums) {
  constexpr int T = TILE_GROUP / R;
  for (int64_t c = 0; c < columns; c += PAIRS, queries += R * PAIRS) {
    V even[T], odd[T];
#pragma GCC unroll 4
    for (int t = 0; t < T; ++t) {
      const __m512i pairs = _mm512_loadu_si512(tokens[t] + 2 * c);
      even[t] = even_of((I)pairs);
      odd[t] = odd_of((I)pairs);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V query = load_once(queries + r * W);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sums[t * R + r] = v_fma(query, even[t], sums[t * R + r]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V query = load_once(queries + (R + r) * W);
#pragma GCC unroll 4
      for (int t = 0; t < T; ++t) sums[t * R + r] = v_fma(query, odd[t], sums[t * R + r]);
    }
  }
}

// scores[t][r] of the R rows from `row` on.
template <int R>
static void score_pairs(const Piece& piece, int64_t row, Ahead& ahead, float* scores) {
  constexpr int T = TILE_GROUP / R;
  const Cache& cache = *piece.cache;
  const float* queries = reinterpret_cast<const float*>(piece.packed + pairs_bytes(row, piece.latent, piece.rope));
  for (int64_t s = 0; s < piece.count; s += T) {
    const char *latents[T], *keys[T];
    for (int64_t t = 0; t < T; ++t) {  // the last one several times, rather than what lies behind it
      const int64_t token = piece.first + (s + t < piece.count ? s + t : piece.count - 1);
      latents[t] = cache.latent + token * cache.latent_step;
      keys[t] = cache.rope + token * cache.rope_step;
    }
    V sums[TILE_GROUP] = {};
    score_columns<R>(latents, queries, piece.latent, sums);
    score_columns<R>(keys, queries + R * piece.latent, piece.rope, sums);
    alignas(64) float out[TILE_GROUP];
    _mm512_store_ps(out, sum16(sums));
    for (int t = 0; t < T; ++t) std::memcpy(scores + (s + t) * TILE_GROUP, out + t * R, R * sizeof(float));
    ahead.after(T * R * (piece.latent + piece.rope));
  }
}

// context[r] = context[r] * keep[r] + sum_s e^(score r, s) * latent s, of the R rows from `row` on and PAIRS columns.
template <int R>
static void context_pairs(const Piece& piece, int64_t row, const float* scores, Ahead& ahead, int64_t c) {
  const int64_t step = piece.cache->latent_step, width = padded(piece.latent);
  const char* latent = piece.cache->latent + piece.first * step + 2 * c;
  V even[R], odd[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) even[r] = odd[r] = v_zero();
  for (int64_t s = 0; s < piece.count; ++s, latent += step, scores += TILE_GROUP) {
    if (s % ASKING == 0) ahead.after(ASKING * R * PAIRS);
    const __m512i pairs = _mm512_loadu_si512(latent);
    const V first = even_of((I)pairs), second = odd_of((I)pairs);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const V p = spread(scores[r]);
      even[r] = v_fma(p, first, even[r]);
      odd[r] = v_fma(p, second, odd[r]);
    }
  }
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const V a = (V)_mm512_permutex2var_ps((__m512)even[r], low, (__m512)odd[r]);
    const V b = (V)_mm512_permutex2var_ps((__m512)even[r], high, (__m512)odd[r]);
    const V keep = spread(piece.keep[row + r]);
    float* out = piece.context + (row + r) * width + c;
    v_store(out, piece.fresh ? a : v_fma(v_load(out), keep, a));
    v_store(out + W, piece.fresh ? b : v_fma(v_load(out + W), keep, b));
  }
}

// N tokens' scores of TILE_GROUP / N rows.
template <int N>
static inline V load_scores(const float* p) {
  if (N == 1) return v_load(p);
  return (V)_mm512_insertf32x8(_mm512_castps256_ps512(_mm256_loadu_ps(p)), _mm256_loadu_ps(p + TILE_GROUP), 1);
}
template <int N>
static inline void store_scores(float* p, V scores) {
  if (N == 1) return v_store(p, scores);
  _mm256_storeu_ps(p, _mm512_castps512_ps256((__m512)scores));
  _mm256_storeu_ps(p + TILE_GROUP, _mm512_extractf32x8_ps((__m512)scores, 1));
}
static inline V other_half(V x) { return (V)_mm512_shuffle_f32x4((__m512)x, (__m512)x, 0x4E); }

// Scores of a group of up to TILE_GROUP / N rows become e^(score - most), 0 where a row may not see; zeros follow them up to a
// multiple of PAIRS tokens. Lanes are the rows of N tokens; whatever N, tokens of even number are added up apart from the others.
// `work`: that of a token, for `ahead`.
template <int N>
static void soften_tokens(const Piece& piece, int64_t row, float* scores, Ahead& ahead, int64_t work) {
  const int64_t rows = piece.rows - row < TILE_GROUP / N ? piece.rows - row : TILE_GROUP / N;
  const __mmask16 there = static_cast<__mmask16>((1u << rows) - 1);
  // none beyond the last one, which may be half of a vector
  const __m512i count = _mm512_set1_epi32(static_cast<int32_t>(piece.count));
  I visible = (I)_mm512_min_epi32(_mm512_maskz_loadu_epi32(there, piece.visible + row), count);
  V before = piece.fresh ? v_set(NEVER) : (V)_mm512_maskz_loadu_ps(there, piece.most + row);
  if (N == 2) {
    const __m512i next = _mm512_sub_epi32((__m512i)visible, _mm512_set1_epi32(1));
    visible = (I)_mm512_shuffle_i32x4((__m512i)visible, next, 0x44);
    before = (V)_mm512_shuffle_f32x4((__m512)before, (__m512)before, 0x44);
  }
  V all = before, sum[2] = {v_zero(), v_zero()};
  for (int32_t s = 0; s < piece.count; s += N)
    all = v_max(all, pick(visible > s, load_scores<N>(scores + s * TILE_GROUP), v_set(NEVER)));
  if (N == 2) all = v_max(all, other_half(all));
  for (int32_t s = 0; s < (piece.count + PAIRS - 1) / PAIRS * PAIRS; s += N) {
    V p = v_zero();
    if (s < piece.count) p = pick(visible > s, v_exp(load_scores<N>(scores + s * TILE_GROUP) - all), p);
    store_scores<N>(scores + s * TILE_GROUP, p);
    sum[s % 2] = sum[s % 2] + p;
    ahead.after(N * work);
  }
  const V added = sum[0] + (N == 2 ? other_half(sum[0]) : sum[1]);
  const V keep = v_exp(before - all), total = piece.fresh ? v_zero() : (V)_mm512_maskz_loadu_ps(there, piece.total + row);
  _mm512_mask_storeu_ps(piece.most + row, there, (__m512)all);
  _mm512_mask_storeu_ps(piece.keep + row, there, (__m512)keep);
  _mm512_mask_storeu_ps(piece.total + row, there, (__m512)v_fma(total, keep, added));
}

static void soften_rows(const Piece& piece, int64_t row, float* scores, Ahead& ahead, int64_t work) {
  if (piece.rows - row <= TILE_GROUP / 2) soften_tokens<2>(piece, row, scores, ahead, work);
  else soften_tokens<1>(piece, row, scores, ahead, work);
}

static void attend_by_pairs(const Piece& piece) {
  constexpr int64_t HALF = TILE_GROUP / 2;
  Ahead ahead(piece, piece.count * piece.rows * (2 * piece.latent + piece.rope));
  const auto scores = [&](int64_t row) { return piece.scores + row / TILE_GROUP * TILE_GROUP * CHUNK + row % TILE_GROUP; };
  for (int64_t row = 0; row < piece.rows; row += HALF) {
    if (together(piece.rows, row) == HALF) score_pairs<HALF>(piece, row, ahead, scores(row));
    else score_pairs<GROUP>(piece, row, ahead, scores(row));
  }
  for (int64_t row = 0; row < piece.rows; row += TILE_GROUP) soften_rows(piece, row, scores(row), ahead, 0);
  for (int64_t row = 0; row < piece.rows; row += HALF)
    for (int64_t c = 0; c < piece.latent; c += PAIRS) {
      if (together(piece.rows, row) == HALF) context_pairs<HALF>(piece, row, scores(row), ahead, c);
      else context_pairs<GROUP>(piece, row, scores(row), ahead, c);
    }
}

}  // namespace DSV3RT_VARIANT
#endif

// Latent attention by the processor's tiles, for caches in bfloat16: all heads share a latent, so the scores of a chunk of tokens
// and its contexts are two matrix products. Included by mla.simd.cpp only. See mla_kernels.h for the legend.
//
// Scores: tokens, as they lie in the cache, are the left operand, queries, in three parts (see dsv3rt_tiles.h), the right one.
// Contexts: the weights e^(score - most), in three parts, are the left operand, tokens, two and two interleaved, the right one.
// A row's arithmetic does not depend on the other rows here either.
#pragma once
#include "dsv3rt_tiles.h"
#include "mla_ahead.h"
#include "mla_formats.h"
#include "mla_kernels.h"
#include "mla_pairs.h"

#if defined(DSV3RT_TILES)
namespace DSV3RT_VARIANT {

constexpr int64_t PAIRED = 2 * TILE_ROWS;            // tokens of a tile of contexts' right operand, columns of one of scores' left
constexpr int64_t PACK = 16;                         // products of tiles in the time of packing PAIRED tokens' weights
constexpr int64_t TOKEN_TILES = 3;                   // of scores, computed together
static_assert(TILE_GROUP == TILE_ROWS && TILE_COLUMNS == PAIRED && PAIRED == PAIRS && W == 16 && CHUNK % PAIRED == 0);

static bool by_tiles(const Cache& cache, int64_t latent, int64_t rope) {
  return cache.latent_format == Stored::BF16 && cache.rope_format == Stored::BF16 && latent % TILE_COLUMNS == 0 &&
         rope % TILE_COLUMNS == 0;
}

static int64_t packed_bytes(int64_t rows, int64_t latent, int64_t rope) {
  return (rows + TILE_GROUP - 1) / TILE_GROUP * (latent + rope) / TILE_COLUMNS * TILE_PARTS * TILE_BYTES;
}

static void pack(const float* queries, int64_t step, int64_t rows, int64_t latent, int64_t rope, uint8_t* packed) {
  for (int64_t row = 0; row < rows; row += TILE_GROUP) {
    const int64_t count = rows - row < TILE_GROUP ? rows - row : TILE_GROUP;
    const float* lines[TILE_GROUP];
    for (int64_t r = 0; r < count; ++r) lines[r] = queries + (row + r) * step;
    for (int64_t c = 0; c < latent; c += TILE_COLUMNS, packed += TILE_PARTS * TILE_BYTES)
      pack_step(lines, count, c, TILE_COLUMNS, packed);
    for (int64_t c = 0; c < rope; c += TILE_COLUMNS, packed += TILE_PARTS * TILE_BYTES)
      pack_step(lines, count, padded(latent) + c, TILE_COLUMNS, packed);
  }
}

// Tokens as a left operand: 16 of them, their latents and their rope keys.
struct TokenTile {
  const char *latent, *rope;
  int64_t latent_step, rope_step;
};

// The tokens of a chunk in tiles. The last ones, where they do not fill a tile, are copied to `rest`, zeros after them.
static void find_tokens(const Piece& piece, char* rest, TokenTile* tiles) {
  const Cache& cache = *piece.cache;
  for (int64_t s = 0; s < piece.count; s += TILE_ROWS) {
    const char* latent = cache.latent + (piece.first + s) * cache.latent_step;
    const char* rope = cache.rope + (piece.first + s) * cache.rope_step;
    if (s + TILE_ROWS <= piece.count) {
      *tiles++ = {latent, rope, cache.latent_step, cache.rope_step};
      continue;
    }
    const int64_t bytes = 2 * piece.latent, rope_bytes = 2 * piece.rope;
    char* rope_rest = rest + TILE_ROWS * bytes;
    std::memset(rest, 0, static_cast<size_t>(TILE_ROWS * (bytes + rope_bytes)));
    for (int64_t i = 0; s + i < piece.count; ++i) {
      std::memcpy(rest + i * bytes, latent + i * cache.latent_step, static_cast<size_t>(bytes));
      std::memcpy(rope_rest + i * rope_bytes, rope + i * cache.rope_step, static_cast<size_t>(rope_bytes));
    }
    *tiles++ = {rest, rope_rest, bytes, rope_bytes};
  }
}

template <int N>
static inline void score_step(const char* const* at, const int64_t* steps, const uint8_t* packed) {
  tile_load<3>(at[0], steps[0]);
  if (N > 1) tile_load<4>(at[1], steps[1]);
  if (N > 2) tile_load<5>(at[2], steps[2]);
#pragma GCC unroll 3
  for (int part = TILE_PARTS - 1; part >= 0; --part) {  // the smallest first
    tile_load<6>(packed + part * TILE_BYTES);
    tile_multiply<0, 3, 6>();
    if (N > 1) tile_multiply<1, 4, 6>();
    if (N > 2) tile_multiply<2, 5, 6>();
  }
}

// scores[token][row] of N tiles of tokens and TILE_GROUP rows.
template <int N>
static void score_tiles(const Piece& piece, const TokenTile* tokens, const uint8_t* packed, Ahead& ahead, float* scores) {
  const int64_t steps = (piece.latent + piece.rope) / TILE_COLUMNS;
  const char* at[TOKEN_TILES];
  int64_t strides[TOKEN_TILES];
  tile_zero<0>();
  if (N > 1) tile_zero<1>();
  if (N > 2) tile_zero<2>();
  for (int64_t step = 0; step < steps; ++step, packed += TILE_PARTS * TILE_BYTES) {
    const int64_t c = step * TILE_COLUMNS;
    for (int i = 0; i < N; ++i) {
      const TokenTile& tile = tokens[i];
      at[i] = c < piece.latent ? tile.latent + 2 * c : tile.rope + 2 * (c - piece.latent);
      strides[i] = c < piece.latent ? tile.latent_step : tile.rope_step;
    }
    score_step<N>(at, strides, packed);
    ahead.after(TILE_PARTS * N);
  }
  tile_store<0>(scores);
  if (N > 1) tile_store<1>(scores + 256);
  if (N > 2) tile_store<2>(scores + 512);
}

// The weights of PAIRED tokens as left operands, one for a part: scores [token][row] in, [row][token] out.
static void pack_weights(const float* scores, uint8_t* out) {
  __m512i parts[TILE_PARTS][16];
  for (int j = 0; j < 16; ++j)
    split_pairs(_mm512_loadu_ps(scores + 2 * j * TILE_GROUP), _mm512_loadu_ps(scores + (2 * j + 1) * TILE_GROUP), &parts[0][j], 16);
  store_parts(parts, out);
}

// N tiles of columns of a chunk's latents, from `c` on, as right operands: [PAIRED tokens][N] tiles; of each 32 columns, those that
// unpacking within 16-byte lanes leaves in the lower half come first.
template <int N>
static void pair_tokens(const Piece& piece, const TokenTile* tokens, int64_t c, Ahead& ahead, uint8_t* out) {
  for (int64_t s = 0; s < piece.count; s += PAIRED, out += N * TILE_BYTES)
    for (int64_t j = 0; j < TILE_ROWS; ++j) {
      ahead.after(j % 2);
      const TokenTile& tile = tokens[(s + 2 * j) / TILE_ROWS];
      const char *first = tile.latent + 2 * j % TILE_ROWS * tile.latent_step + 2 * c, *second = first + tile.latent_step;
      const bool none = s + 2 * j / TILE_ROWS * TILE_ROWS >= piece.count;  // not even a tile that is not full
      for (int i = 0; i < N; i += 2) {
        const __m512i a = none ? _mm512_setzero_si512() : _mm512_loadu_si512(first + i * 32);
        const __m512i b = none ? _mm512_setzero_si512() : _mm512_loadu_si512(second + i * 32);
        _mm512_store_si512(out + i * TILE_BYTES + j * 64, _mm512_unpacklo_epi16(a, b));
        _mm512_store_si512(out + (i + 1) * TILE_BYTES + j * 64, _mm512_unpackhi_epi16(a, b));
      }
    }
}

// context = context * keep + weights . latents, of TILE_GROUP rows and N tiles of columns from `c` on.
template <int N>
static void context_tiles(const Piece& piece, int64_t row, const uint8_t* weights, const uint8_t* latents, int64_t c,
                          Ahead& ahead) {
  const int64_t width = padded(piece.latent);
  alignas(64) float sums[N][256];
  tile_zero<0>();
  tile_zero<1>();
  if (N > 2) tile_zero<2>(), tile_zero<3>();
  for (int64_t s = 0; s < piece.count; s += PAIRED, weights += TILE_PARTS * TILE_BYTES, latents += N * TILE_BYTES) {
    ahead.after(TILE_PARTS * N);
    tile_load<4>(weights + 2 * TILE_BYTES);  // the smallest first
    tile_load<5>(weights + TILE_BYTES);
    tile_load<6>(weights);
    tile_load<7>(latents);
    tile_multiply<0, 4, 7>();
    tile_multiply<0, 5, 7>();
    tile_multiply<0, 6, 7>();
    tile_load<7>(latents + TILE_BYTES);
    tile_multiply<1, 4, 7>();
    tile_multiply<1, 5, 7>();
    tile_multiply<1, 6, 7>();
    if (N <= 2) continue;
    tile_load<7>(latents + 2 * TILE_BYTES);
    tile_multiply<2, 4, 7>();
    tile_multiply<2, 5, 7>();
    tile_multiply<2, 6, 7>();
    tile_load<7>(latents + 3 * TILE_BYTES);
    tile_multiply<3, 4, 7>();
    tile_multiply<3, 5, 7>();
    tile_multiply<3, 6, 7>();
  }
  tile_store<0>(sums[0]);
  tile_store<1>(sums[1]);
  if (N > 2) tile_store<2>(sums[2]), tile_store<3>(sums[3]);
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
  for (int64_t r = 0; r < TILE_GROUP && row + r < piece.rows; ++r) {
    float* context = piece.context + (row + r) * width + c;
    const V keep = spread(piece.keep[row + r]);
    for (int i = 0; i < N; i += 2) {
      const __m512 low = _mm512_load_ps(sums[i] + r * 16), high = _mm512_load_ps(sums[i + 1] + r * 16);
      const V a = (V)_mm512_permutex2var_ps(low, first, high), b = (V)_mm512_permutex2var_ps(low, second, high);
      float* out = context + i * W;
      v_store(out, piece.fresh ? a : v_fma(v_load(out), keep, a));
      v_store(out + W, piece.fresh ? b : v_fma(v_load(out + W), keep, b));
    }
  }
}

// The same of a piece: the first group of rows pairs the tokens. Where it is the only one, every block of columns lies in the place
// of the one before, in the first-level cache.
template <int N>
static void context_block(const Piece& piece, int64_t row, const TokenTile* tokens, const uint8_t* weights, uint8_t* paired,
                          int64_t c, Ahead& ahead) {
  if (piece.rows > TILE_GROUP) paired += c / TILE_ROWS * (CHUNK / PAIRED) * TILE_BYTES;
  if (row == 0) pair_tokens<N>(piece, tokens, c, ahead, paired);
  context_tiles<N>(piece, row, weights, paired, c, ahead);
}

// Scores of all rows against a chunk's tokens.
static void score_rows(const Piece& piece, const TokenTile* tokens, int64_t tiles, Ahead& ahead) {
  const TilesInUse in_use;
  for (int64_t row = 0; row < piece.rows; row += TILE_GROUP) {
    const uint8_t* queries = piece.packed + packed_bytes(row, piece.latent, piece.rope);
    float* scores = piece.scores + row * CHUNK;
    for (int64_t t = 0; t < tiles; t += TOKEN_TILES) {
      float* out = scores + t * TILE_ROWS * TILE_GROUP;
      switch (tiles - t) {
        case 1: score_tiles<1>(piece, tokens + t, queries, ahead, out); break;
        case 2: score_tiles<2>(piece, tokens + t, queries, ahead, out); break;
        default: score_tiles<3>(piece, tokens + t, queries, ahead, out); break;
      }
    }
  }
}

static void attend_by_tiles(const Piece& piece) {
  const int64_t latent = piece.latent, tiles = (piece.count + TILE_ROWS - 1) / TILE_ROWS;
  uint8_t* paired = reinterpret_cast<uint8_t*>(piece.wide);
  TokenTile tokens[CHUNK / TILE_ROWS] = {};
  find_tokens(piece, reinterpret_cast<char*>(paired + CHUNK * latent * 2), tokens);
  // in products of tiles, which take 16 cycles; so does a vector of e^x, or four rows of pairs
  const int64_t pairs = (tiles + 1) / 2, groups = (piece.rows + TILE_GROUP - 1) / TILE_GROUP;
  const int64_t scored = TILE_PARTS * tiles * (latent + piece.rope) / TILE_COLUMNS, added = TILE_PARTS * pairs * latent / TILE_ROWS;
  Ahead ahead(piece, groups * (scored + (PAIRED + PACK) * pairs + added) + pairs * latent / 8);
  score_rows(piece, tokens, tiles, ahead);
  for (int64_t row = 0; row < piece.rows; row += TILE_GROUP) {
    alignas(64) uint8_t weights[CHUNK / PAIRED * TILE_PARTS * TILE_BYTES];
    float* scores = piece.scores + row * CHUNK;
    const TilesInUse in_use(TILE_ROWS, piece.rows - row < TILE_GROUP ? piece.rows - row : TILE_GROUP);
    soften_rows(piece, row, scores, ahead, 1);
    for (int64_t s = 0; s < piece.count; s += PAIRED) {
      pack_weights(scores + s * TILE_GROUP, weights + s / PAIRED * TILE_PARTS * TILE_BYTES);
      ahead.after(PACK);
    }
    int64_t c = 0;
    for (; c + 4 * TILE_ROWS <= latent; c += 4 * TILE_ROWS) context_block<4>(piece, row, tokens, weights, paired, c, ahead);
    if (c < latent) context_block<2>(piece, row, tokens, weights, paired, c, ahead);
  }
}

}  // namespace DSV3RT_VARIANT
#endif

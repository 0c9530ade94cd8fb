// Products of up to SOME tokens with E4M3 weights by the processor's tiles. Included by kernels.simd.cpp only.
//
// Without tiles these are limited by arithmetic: each token more costs a multiply-add for each of the weights, which have been
// unpacked for that. Tiles multiply 512 weights by 16 columns at once, so there is left what unpacks them to bfloat16. The columns
// are the parts of the tokens (see dsv3rt_tiles.h) side by side, three for a token: up to five tokens cost what one does. A
// column's sums do not depend on the others; a token's three are added at the end.
//
// TILE_ROWS rows are computed together, a block of BLOCK columns at a time; while one block is multiplied the next is staged.
// T tokens, N rows (outputs), K columns (inputs), L columns of tiles (3 T). Packed: [K / 32][groups of 16 of L][16 pairs][L] pairs,
// L being rounded up to 16 where there is more than one group; the order of the columns is that of FormatE4M3.
#pragma once
#include "dsv3rt_tiles.h"
#include "formats.h"

#if defined(DSV3RT_TILES)
namespace DSV3RT_VARIANT {

constexpr int64_t LINE = 64;        // weights staged at a time, two steps of tiles
constexpr int64_t BLOCKS_AHEAD = 8;  // how far in front of its use a block is fetched

struct Columns {
  int64_t tokens, count, groups, wide;  // wide: columns of a tile
  explicit Columns(int64_t tokens_)
      : tokens(tokens_), count(TILE_PARTS * tokens_), groups((count + 15) / 16), wide(groups == 1 ? count : 16) {}
  int64_t step_bytes() const { return groups * 16 * wide * 4; }
};

static int64_t few_packed_floats(int64_t tokens, int64_t columns) {
  // what is read beyond the last columns is multiplied by zeros, but must be there
  return (columns + BLOCK - 1) / BLOCK * TILE_STEPS * Columns(tokens).step_bytes() / 4;
}

struct Interleave3 {  // three columns of 16 lanes become rows of three: where each of 48 comes from, and which are of the third
  alignas(64) int32_t from[48];
  uint16_t third[3];
};
static constexpr Interleave3 interleave3_of() {
  Interleave3 table{};
  for (int i = 0; i < 48; ++i) {
    table.from[i] = i / 3 + i % 3 % 2 * 16;
    if (i % 3 == 2) table.third[i / 16] = static_cast<uint16_t>(table.third[i / 16] | 1 << i % 16);
  }
  return table;
}
static constexpr Interleave3 INTERLEAVE3 = interleave3_of();

static inline void interleave3(const __m512i* parts, uint8_t* out) {
  for (int i = 0; i < 3; ++i) {
    const __m512i from = _mm512_load_si512(INTERLEAVE3.from + 16 * i);
    const __m512i two = _mm512_permutex2var_epi32(parts[0], from, parts[1]);
    _mm512_storeu_si512(out + 64 * i, _mm512_mask_permutexvar_epi32(two, INTERLEAVE3.third[i], from, parts[2]));
  }
}

static void few_pack(const float* const* x, int64_t tokens, int64_t columns, float* packed) {
  const Columns c(tokens);
  uint8_t* out = reinterpret_cast<uint8_t*>(packed);
  const int64_t steps = (columns + BLOCK - 1) / BLOCK * TILE_STEPS;
  for (int64_t step = 0; step < steps; step += 2) {
    const int64_t column = step * TILE_COLUMNS, left = columns - column;
    __m512i parts[2][SOME * TILE_PARTS];
    for (int64_t t = 0; t < tokens; ++t) {
      float arranged[LINE], rest[LINE] = {};
      if (left < LINE && left > 0) std::memcpy(rest, x[t] + column, static_cast<size_t>(left) * sizeof(float));
      arrange_group<FormatE4M3>(left < LINE ? rest : x[t] + column, arranged);
      for (int half = 0; half < 2; ++half)
        split_pairs(_mm512_loadu_ps(arranged + 32 * half), _mm512_loadu_ps(arranged + 32 * half + 16),
                    parts[half] + TILE_PARTS * t, 1);
    }
    for (int half = 0; half < 2; ++half, out += c.step_bytes()) {
      if (tokens == 1) {
        interleave3(parts[half], out);
        continue;
      }
      for (int64_t group = 0; group < c.groups; ++group) {
        __m512i tile[16];
        for (int64_t i = 0; i < 16; ++i)
          tile[i] = 16 * group + i < c.count ? parts[half][16 * group + i] : _mm512_setzero_si512();
        transpose16(tile);
        const __mmask16 there = static_cast<__mmask16>((1u << c.wide) - 1);
        for (int64_t j = 0; j < 16; ++j) _mm512_mask_storeu_epi32(out + (group * 16 + j) * c.wide * 4, there, tile[j]);
      }
    }
  }
}

// A block of TILE_ROWS rows as tiles, one for a step.
struct alignas(64) StagedBlock {
  uint8_t tiles[TILE_STEPS][TILE_BYTES];
};

// Where the rows of a tile are: those that are missing are the last one once more.
struct TileRows {
  const uint8_t* data;
  int64_t at[TILE_ROWS];
  int64_t columns;

  // Rows [from, to) of the block at `column`, and those of the one at `ahead` asked for: block after block, as they will be used,
  // a stream for each row (a sixth faster than all rows one after another).
  inline __attribute__((always_inline)) void stage(int64_t column, int64_t from, int64_t to, const uint8_t* ahead,
                                                   StagedBlock& out) const {
    const int64_t size = columns - column;
#pragma GCC unroll 4
    for (int64_t r = from; r < to; ++r) {
      const uint8_t* p = data + at[r] + column;
      for (int64_t line = 0; line < BLOCK; line += LINE) __builtin_prefetch(ahead + at[r] + line, 0, 2);
      if (__builtin_expect(size >= BLOCK, 1)) {
        static_assert(BLOCK == 2 * LINE && TILE_STEPS == 4, "two lines, looked at together");
        uint8_t* tile = out.tiles[0] + r * 64;
        const __mmask64 wrong = FormatE4M3::stage_normal(p, tile, tile + TILE_BYTES);
        const __mmask64 wrong2 = FormatE4M3::stage_normal(p + LINE, tile + 2 * TILE_BYTES, tile + 3 * TILE_BYTES);
        if (__builtin_expect(!_kortestz_mask64_u8(wrong, wrong2), 0)) {
          FormatE4M3::look_up(p, tile, tile + TILE_BYTES);
          FormatE4M3::look_up(p + LINE, tile + 2 * TILE_BYTES, tile + 3 * TILE_BYTES);
        }
      } else {
        for (int64_t line = 0; line * LINE < size; ++line) {
          alignas(64) uint8_t rest[LINE] = {};
          const int64_t left = size - line * LINE;
          std::memcpy(rest, p + line * LINE, static_cast<size_t>(left < LINE ? left : LINE));
          FormatE4M3::stage(rest, out.tiles[2 * line] + r * 64, out.tiles[2 * line + 1] + r * 64);
        }
      }
    }
  }
};

// Rows that share their scales: y[t * y_stride + r].
template <int GROUPS>
static void few_rows_by_tiles(const Matrix& w, int64_t first, int64_t rows, const Columns& c, const uint8_t* packed, float* y,
                              int64_t y_stride) {
  StagedBlock staged[2];
  alignas(64) float part[GROUPS * 256], sums[GROUPS * 256];  // [groups][16 rows][wide]
  const int64_t height = rows < TILE_ROWS ? rows : TILE_ROWS, row_bytes = w.row_bytes();
  const int64_t stride = GROUPS > 1 ? 64 : c.wide * 4, step_bytes = GROUPS * 16 * stride;
  const uint8_t* scales = scales_of(w, first);
  TileRows now{w.data + first * row_bytes, {}, w.columns};
  for (int64_t r = 0; r < TILE_ROWS; ++r) now.at[r] = (r < height ? r : height - 1) * row_bytes;
  int turn = 0;
  const uint8_t* ahead = now.data;  // the rows that are fetched, and which of their columns
  int64_t ahead_column = 0;
  const auto advance = [&](int64_t blocks) {
    for (ahead_column += blocks * BLOCK; ahead_column >= w.columns;) {
      ahead_column -= (w.columns + BLOCK - 1) / BLOCK * BLOCK;
      if (ahead_column < 0) ahead_column = 0;
      ahead += TILE_ROWS * row_bytes;
    }
  };
  advance(BLOCKS_AHEAD);
  now.stage(0, 0, TILE_ROWS, ahead + ahead_column, staged[0]);
  for (int64_t row = 0, done = 0; done < rows; done += height) {
    const int64_t next_row = row + 2 * height <= rows ? row + height : rows - height;  // the last ones overlap those before
    for (int64_t i = 0; i < step_bytes / 4; i += W) v_store(sums + i, v_zero());
    for (int64_t column = 0; column < w.columns; column += BLOCK) {
      const StagedBlock& block = staged[turn];
      turn ^= 1;
      int64_t next = column + BLOCK;
      if (next >= w.columns) {
        next = 0;
        now.data = w.data + (first + next_row) * row_bytes;
      }
      advance(1);
      const uint8_t *fetched = ahead + ahead_column, *x = packed + column / TILE_COLUMNS * step_bytes;
      const int64_t steps = (w.columns - column + LINE - 1) / LINE * 2;
      tile_zero<0>();
      if (GROUPS > 1) tile_zero<1>();
      if (GROUPS > 2) tile_zero<2>();
#pragma GCC unroll 4
      for (int step = 0; step < TILE_STEPS; ++step, x += step_bytes) {
        now.stage(next, step * 4, step * 4 + 4, fetched, staged[turn]);
        if (step >= steps) continue;
        tile_load<6>(block.tiles[step]);
        tile_load<7>(x, stride);
        tile_multiply<0, 6, 7>();
        if (GROUPS > 1) tile_load<7>(x + TILE_BYTES, stride);
        if (GROUPS > 1) tile_multiply<1, 6, 7>();
        if (GROUPS > 2) tile_load<7>(x + 2 * TILE_BYTES, stride);
        if (GROUPS > 2) tile_multiply<2, 6, 7>();
      }
      tile_store<0>(part, stride);
      if (GROUPS > 1) tile_store<1>(part + 256, stride);
      if (GROUPS > 2) tile_store<2>(part + 512, stride);
      const V factor = v_set(scale_at<FormatE4M3>(scales, column));
      for (int64_t i = 0; i < step_bytes / 4; i += W) v_store(sums + i, v_fma(factor, v_load(part + i), v_load(sums + i)));
    }
    for (int64_t r = 0; r < height; ++r)
      for (int64_t t = 0; t < c.tokens; ++t) {
        float total = 0.0f;
        for (int64_t i = TILE_PARTS * (t + 1) - 1; i >= TILE_PARTS * t; --i)
          total += GROUPS > 1 ? sums[i / 16 * 256 + r * 16 + i % 16] : sums[r * c.wide + i];
        y[t * y_stride + row + r] = total;
      }
    row = next_row;
  }
}

static void few_dot(const Matrix& w, int64_t first, int64_t rows, const float* packed, int64_t tokens, float* y, int64_t y_stride) {
  const Columns c(tokens);
  const TilesInUse tiles(c.wide);  // 0..2: sums of a group of columns each; 6: weights; 7: activations
  const uint8_t* x = reinterpret_cast<const uint8_t*>(packed);
  for (int64_t row = 0, count; row < rows; row += count) {
    const int64_t edge = BLOCK - (first + row) % BLOCK;
    count = rows - row < edge ? rows - row : edge;
    switch (c.groups) {
      case 1: few_rows_by_tiles<1>(w, first + row, count, c, x, y + row, y_stride); break;
      case 2: few_rows_by_tiles<2>(w, first + row, count, c, x, y + row, y_stride); break;
      default: few_rows_by_tiles<3>(w, first + row, count, c, x, y + row, y_stride); break;
    }
  }
}

}  // namespace DSV3RT_VARIANT
#endif

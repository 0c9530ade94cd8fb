// Products of many tokens by the processor's tiles, for weights that are exact in bfloat16. Included by kernels.simd.cpp only.
//
// A block of BLOCK columns of up to BLOCK rows is staged as bfloat16 and multiplied with all tokens; its sums, float32, are then
// added, scaled, to those of the blocks before it. A token's result does not depend on the others.
// T tokens, N rows (outputs), K columns (inputs). Packed: [K blocks][T / 16][TILE_STEPS][TILE_PARTS] tiles.
#pragma once
#include "dsv3rt_tiles.h"
#include "formats.h"

#if defined(DSV3RT_TILES)
namespace DSV3RT_VARIANT {
static_assert(TILE_BLOCK == BLOCK, "what tiles sum up shares a scale");

static inline int64_t groups_of(int64_t tokens) { return (tokens + TILE_ROWS - 1) / TILE_ROWS; }

static int64_t many_packed_floats(int64_t tokens, int64_t columns) {
  return (columns + BLOCK - 1) / BLOCK * groups_of(tokens) * TILE_STEPS * TILE_PARTS * TILE_BYTES / 4;
}

static void many_pack(const float* const* x, int64_t tokens, int64_t columns, int64_t group, float* packed) {
  uint8_t* out = reinterpret_cast<uint8_t*>(packed);
  const int64_t first = group * TILE_ROWS, count = tokens - first < TILE_ROWS ? tokens - first : TILE_ROWS;
  for (int64_t column = 0; column < columns; column += TILE_COLUMNS) {
    const int64_t block = column / BLOCK * groups_of(tokens) + group, step = column % BLOCK / TILE_COLUMNS;
    pack_step(x + first, count, column, columns - column, out + (block * TILE_STEPS + step) * TILE_PARTS * TILE_BYTES);
  }
}

// 64 columns as bfloat16: two rows of tiles.
static inline void stage_half(Format format, const uint8_t* p, uint8_t* out) {
  __m512i first, second;
  if (format == Format::E4M3) {
    // in the order in which unpacking within 16-byte lanes leaves them in their own
    const __m512i order = _mm512_setr_epi64(0x0706050403020100, 0x2726252423222120, 0x0F0E0D0C0B0A0908, 0x2F2E2D2C2B2A2928,
                                            0x1716151413121110, 0x3736353433323130, 0x1F1E1D1C1B1A1918, 0x3F3E3D3C3B3A3938);
    const __m512i v = _mm512_permutexvar_epi8(order, _mm512_loadu_si512(p));
    const __m512i high = _mm512_ternarylogic_epi32(
        _mm512_permutex2var_epi8(_mm512_load_si512(E4M3_BITS.high), v, _mm512_load_si512(E4M3_BITS.high + 64)), v,
        _mm512_set1_epi8(static_cast<char>(0x80)), 0xF8);  // table | (v & sign)
    const __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(E4M3_BITS.low), v, _mm512_load_si512(E4M3_BITS.low + 64));
    first = _mm512_unpacklo_epi8(low, high);
    second = _mm512_unpackhi_epi8(low, high);
  } else {
    first = _mm512_loadu_si512(p);
    second = _mm512_loadu_si512(p + 64);
  }
  _mm512_store_si512(out, first);
  _mm512_store_si512(out + TILE_BYTES, second);
}

// Rows [first, first + rows) of a block of `size` columns as left operands, zeros after them, and the same of the next block fetched.
static void stage_block(const Matrix& w, int64_t first, int64_t rows, int64_t column, int64_t size, uint8_t* out) {
  const int64_t bytes = w.format == Format::E4M3 ? 1 : 2;
  for (int64_t r = 0; r < groups_of(rows) * TILE_ROWS; ++r) {
    uint8_t* row = out + r / TILE_ROWS * TILE_STEPS * TILE_BYTES + r % TILE_ROWS * 64;
    const uint8_t* p = w.data + (first + r) * w.row_bytes() + column * bytes;
    for (int64_t c = 0; c < size; c += 64, row += 2 * TILE_BYTES, p += 64 * bytes) {
      if (r < rows && c + 64 <= size) {
        prefetch(p + BLOCK * bytes);
        if (bytes == 2) prefetch(p + BLOCK * bytes + 64);
        stage_half(w.format, p, row);
      } else {
        uint8_t rest[128] = {};
        if (r < rows) std::memcpy(rest, p, static_cast<size_t>((size - c) * bytes));
        stage_half(w.format, rest, row);
      }
    }
  }
}

// sums += factor * part, a tile; or just that
static inline void add_tile(const float* part, float factor, bool fresh, float* sums) {
  const V scale = v_set(factor);
#pragma GCC unroll 16
  for (int i = 0; i < 256; i += W) v_store(sums + i, v_fma(v_load(part + i), scale, fresh ? v_zero() : v_load(sums + i)));
}

template <int ROWS, int TOKENS>
static void block_tiles(const uint8_t* weights, const uint8_t* packed, int64_t steps, float factor, bool fresh, int64_t groups,
                        float* sums) {
  alignas(64) float parts[ROWS * TOKENS * 256];
  multiply_tiles<ROWS, TOKENS>(weights, packed, steps, parts);
  for (int r = 0; r < ROWS; ++r)
    for (int t = 0; t < TOKENS; ++t) add_tile(parts + (r * TOKENS + t) * 256, factor, fresh, sums + (r * groups + t) * 256);
}

// y[t * y_stride + r] for a row of tiles of sums
static void write_rows(const float* sums, int64_t rows, int64_t tokens, float* y, int64_t y_stride) {
  const __mmask16 there = static_cast<__mmask16>((1u << rows) - 1);
  for (int64_t t = 0; t < tokens; t += TILE_ROWS, sums += 256) {
    __m512i tile[16];
    for (int i = 0; i < 16; ++i) tile[i] = _mm512_loadu_si512(sums + i * W);
    transpose16(tile);
    for (int64_t i = 0; i < TILE_ROWS && t + i < tokens; ++i)
      _mm512_mask_storeu_epi32(y + (t + i) * y_stride, there, tile[i]);
  }
}

static int64_t many_floats(int64_t tokens, int64_t rows) {
  // a stretch of rows that share a scale may begin and end in the middle of a tile
  return (groups_of(rows) + rows / BLOCK + 2) * groups_of(tokens) * 256 + BLOCK * BLOCK / 2;
}

static void many_dot(const Matrix& w, int64_t first, int64_t rows, const float* packed, int64_t tokens, float* y, int64_t y_stride,
                     float* scratch) {
  const TilesInUse tiles;
  const int64_t groups = groups_of(tokens);
  uint8_t* staged = reinterpret_cast<uint8_t*>(scratch);
  float* sums = scratch + BLOCK * BLOCK / 2;  // [tiles of rows][groups][16][16]
  const uint8_t* x = reinterpret_cast<const uint8_t*>(packed);
  for (int64_t column = 0; column < w.columns; column += BLOCK) {
    const int64_t size = w.columns - column < BLOCK ? w.columns - column : BLOCK, steps = (size + TILE_COLUMNS - 1) / TILE_COLUMNS;
    const bool fresh = column == 0;
    float* mine = sums;
    for (int64_t row = 0; row < rows;) {
      const int64_t edge = BLOCK - (first + row) % BLOCK, count = rows - row < edge ? rows - row : edge, high = groups_of(count);
      stage_block(w, first + row, count, column, size, staged);
      float factor = 1.0f;  // these are staged as they are
      if (w.format == Format::E4M3) factor = scale_at<FormatE4M3>(scales_of(w, first + row), column) / FormatE4M3::UNIT;
      for (int64_t t = 0; t < groups; t += 2) {
        const uint8_t* xs = x + (column / BLOCK * groups + t) * TILE_STEPS * TILE_PARTS * TILE_BYTES;
        for (int64_t r = 0, some; r < high; r += some) {
          const uint8_t* weights = staged + r * TILE_STEPS * TILE_BYTES;
          float* out = mine + (r * groups + t) * 256;
          const int64_t left = high - r;
          if (t + 1 < groups) {
            some = left < 2 ? 1 : 2;
            if (some == 2) block_tiles<2, 2>(weights, xs, steps, factor, fresh, groups, out);
            else block_tiles<1, 2>(weights, xs, steps, factor, fresh, groups, out);
          } else {
            some = left < 4 ? 1 : 4;
            if (some == 4) block_tiles<4, 1>(weights, xs, steps, factor, fresh, groups, out);
            else block_tiles<1, 1>(weights, xs, steps, factor, fresh, groups, out);
          }
        }
      }
      mine += high * groups * 256;
      row += count;
    }
  }
  for (int64_t row = 0; row < rows;) {
    const int64_t edge = BLOCK - (first + row) % BLOCK, end = row + (rows - row < edge ? rows - row : edge);
    for (; row < end; row += TILE_ROWS, sums += groups * 256)
      write_rows(sums, end - row < TILE_ROWS ? end - row : TILE_ROWS, tokens, y + row, y_stride);
    row = end;
  }
}

}  // namespace DSV3RT_VARIANT
#endif

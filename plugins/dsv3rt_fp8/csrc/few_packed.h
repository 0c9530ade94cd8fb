// Packing bfloat16 weights into 12 bits (see packed.h), and products of up to SOME tokens with them. Included by kernels.simd.cpp
// only.
//
// One or two tokens: weights are unpacked in registers, to the very vectors that FormatBF16 reads, and multiplied in its order. More
// tokens, a block with an escape among its weights, and what is left of a row after whole blocks: the block is unpacked to where
// FormatBF16 reads it from.
#pragma once
#include "packed.h"

#if defined(DSV3RT_X86)
namespace DSV3RT_VARIANT {

static_assert(PACKED_ROWS == ROWS, "a group is what is read together");
constexpr int64_t SOON = 2 * PACKED_BLOCK, LATER = 16 * PACKED_BLOCK;  // how far in front of its use a block is fetched
constexpr int SPAN_COLUMNS = 4 * W;      // columns that are unpacked together
constexpr int UNIT = 12 * W;             // bytes of two spans
#if defined(DSV3RT_512)
constexpr int64_t IN_REGISTERS = 2;      // tokens that there are registers for
constexpr int64_t MOST_PACKED = SOME;    // with more, unpacking costs more time than reading less saves
#else
constexpr int64_t IN_REGISTERS = 1, MOST_PACKED = 3;
#endif

// ---- vectors of bytes ---------------------------------------------------------------------------------------------------------

#if defined(DSV3RT_512)
typedef __m512i B;
static inline B b_load(const uint8_t* p) { return _mm512_loadu_si512(p); }
static inline void b_store(uint8_t* p, B v) { _mm512_storeu_si512(p, v); }
static inline B b_set(int value) { return _mm512_set1_epi8(static_cast<char>(value)); }
static inline B b_and(B a, B b) { return _mm512_and_si512(a, b); }
static inline B b_or(B a, B b) { return _mm512_or_si512(a, b); }
static inline B b_low(B v) { return _mm512_and_si512(v, b_set(15)); }
static inline B b_high(B v) { return b_low(_mm512_srli_epi16(v, 4)); }
static inline B b_raised(B v) { return _mm512_slli_epi16(v, 4); }  // of four bits
static inline B b_less(B a, B b) { return _mm512_subs_epu8(a, b); }  // at least 0
static inline B b_where_zero(B test, B v) { return _mm512_maskz_mov_epi8(_mm512_testn_epi8_mask(test, test), v); }
static inline uint64_t b_zeros(B v) { return _mm512_testn_epi8_mask(v, v); }
static inline B b_table(const uint8_t* p) { return _mm512_broadcast_i32x4(_mm_load_si128(reinterpret_cast<const __m128i*>(p))); }
static inline B b_look_up(B table, B index) { return _mm512_shuffle_epi8(table, index); }
static inline B b_joined(B bits, B v, int mask) { return _mm512_ternarylogic_epi32(bits, v, b_set(mask), 0xF8); }  // bits | v & mask
static inline B b_interleave(B a, B b, int half) { return half ? _mm512_unpackhi_epi8(a, b) : _mm512_unpacklo_epi8(a, b); }
static inline B w_narrow(B a, B b) { return _mm512_packus_epi16(a, b); }  // the inverse: words of at most 255
static inline B w_and(B v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi16(static_cast<short>(mask))); }
static inline B w_shifted(B v, int bits) { return _mm512_srli_epi16(v, static_cast<unsigned>(bits)); }
#else
typedef __m256i B;
static inline B b_load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
static inline void b_store(uint8_t* p, B v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
static inline B b_set(int value) { return _mm256_set1_epi8(static_cast<char>(value)); }
static inline B b_and(B a, B b) { return _mm256_and_si256(a, b); }
static inline B b_or(B a, B b) { return _mm256_or_si256(a, b); }
static inline B b_low(B v) { return _mm256_and_si256(v, b_set(15)); }
static inline B b_high(B v) { return b_low(_mm256_srli_epi16(v, 4)); }
static inline B b_raised(B v) { return _mm256_slli_epi16(v, 4); }
static inline B b_less(B a, B b) { return _mm256_subs_epu8(a, b); }
static inline B b_where_zero(B test, B v) { return _mm256_and_si256(_mm256_cmpeq_epi8(test, _mm256_setzero_si256()), v); }
static inline uint64_t b_zeros(B v) {
  return static_cast<uint32_t>(_mm256_movemask_epi8(_mm256_cmpeq_epi8(v, _mm256_setzero_si256())));
}
static inline B b_table(const uint8_t* p) { return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p))); }
static inline B b_look_up(B table, B index) { return _mm256_shuffle_epi8(table, index); }
static inline B b_joined(B bits, B v, int mask) { return _mm256_or_si256(bits, _mm256_and_si256(v, b_set(mask))); }
static inline B b_interleave(B a, B b, int half) { return half ? _mm256_unpackhi_epi8(a, b) : _mm256_unpacklo_epi8(a, b); }
static inline B w_narrow(B a, B b) { return _mm256_packus_epi16(a, b); }
static inline B w_and(B v, int mask) { return _mm256_and_si256(v, _mm256_set1_epi16(static_cast<short>(mask))); }
static inline B w_shifted(B v, int bits) { return _mm256_srli_epi16(v, bits); }
#endif

// ---- packing ------------------------------------------------------------------------------------------------------------------

// The floor of the window that most weights of a row lie in.
static uint8_t floor_of(const uint8_t* row, int64_t columns) {
  uint32_t counts[4][256] = {};  // four, so that equal neighbours need not wait for each other
  int64_t k = 0;
  const auto exponent = [&](int64_t i) {
    uint16_t bits;
    std::memcpy(&bits, row + 2 * i, 2);
    return bits >> 7 & 255;
  };
  for (; k + 4 <= columns; k += 4)
    for (int i = 0; i < 4; ++i) ++counts[i][exponent(k + i)];
  for (; k < columns; ++k) ++counts[0][exponent(k)];
  uint32_t inside = 0, most = 0;
  int best = 0;
  for (int e = 1; e < 256; ++e) {
    counts[0][e] += counts[1][e] + counts[2][e] + counts[3][e];
    inside += counts[0][e];
    if (e > 15) inside -= counts[0][e - 15];
    if (inside > most) {
      most = inside;
      best = e > 15 ? e - 15 : 0;
    }
  }
  return static_cast<uint8_t>(best);
}

static inline B sign_and_mantissa(B words) { return b_or(w_and(w_shifted(words, 8), 0x80), w_and(words, 0x7f)); }

// Packs BLOCK columns of a row. `escaped(column, bits)` is told of weights outside the window.
template <class Escaped>
static inline void pack_block(const uint8_t* words, uint8_t floor, uint8_t* out, Escaped&& escaped) {
  for (int64_t begin = 0; begin < BLOCK; begin += 2 * SPAN_COLUMNS, out += UNIT) {
    B codes[2];
    for (int span = 0; span < 2; ++span) {
      const int64_t column = begin + span * SPAN_COLUMNS;
      const B a = b_load(words + 2 * column), b = b_load(words + 2 * column + 4 * W);
      const B exponents = w_narrow(w_and(w_shifted(a, 7), 255), w_and(w_shifted(b, 7), 255));
      const B bytes = w_narrow(sign_and_mantissa(a), sign_and_mantissa(b));
      const B above = b_less(exponents, b_set(floor));
      codes[span] = b_where_zero(b_less(above, b_set(15)), above);
      b_store(out + (1 + span) * SPAN_COLUMNS, bytes);
      for (uint64_t left = b_zeros(codes[span]) & ~b_zeros(exponents); left; left &= left - 1) {
        const int place = __builtin_ctzll(left), lane = place / 16, word = place % 16;
        const int64_t at = column + word / 8 * 2 * W + lane * 8 + word % 8;
        uint16_t bits;
        std::memcpy(&bits, words + 2 * at, 2);
        escaped(at, bits);
      }
    }
    b_store(out, b_or(codes[0], b_raised(codes[1])));
  }
}

// Fills `packed` and then lets it be read; or gives it up: where there are too many escapes, or *stop is not 0. Returns whether it
// may be read.
static bool pack_weights(const uint8_t* data, int64_t rows, int64_t columns, uint8_t* packed, PackedWord* word, const int32_t* stop) {
  const PackedShape shape(rows, columns);
  PackedGroup* groups = reinterpret_cast<PackedGroup*>(packed + sizeof(PackedHead));
  Escape* escapes = reinterpret_cast<Escape*>(packed + shape.escapes);
  int64_t count = 0, escaped = 0;
  int64_t result = reinterpret_cast<int64_t>(packed);
  for (int64_t group = 0; group < shape.groups && result != PACKED_VOID; ++group) {
    uint8_t* out = packed + shape.blocks + group * shape.group_bytes;
    const int64_t first = group * PACKED_ROWS, size = rows - first < PACKED_ROWS ? rows - first : PACKED_ROWS;
    groups[group] = {};
    groups[group].first = static_cast<uint32_t>(count);
    for (int64_t r = 0; r < size; ++r) groups[group].floors[r] = floor_of(data + (first + r) * columns * 2, columns);
    for (int64_t column = 0; column < columns; column += BLOCK)
      for (int64_t r = 0; r < PACKED_ROWS; ++r, out += PACKED_ROW) {
        alignas(64) uint8_t rest[2 * BLOCK];
        const uint8_t* words = data + ((first + r) * columns + column) * 2;
        if (r >= size || columns - column < BLOCK) {
          std::memset(rest, 0, sizeof rest);
          if (r < size) std::memcpy(rest, words, static_cast<size_t>(columns - column) * 2);
          words = rest;
        }
        pack_block(words, groups[group].floors[r], out, [&](int64_t at, uint16_t bits) {
          if (++escaped > shape.most) return;
          escapes[count++] = {static_cast<uint32_t>(column + at), static_cast<uint16_t>(r), bits};
        });
      }
    if (escaped <= shape.most) escapes[count++] = {NO_COLUMN, 0, 0};
    if (escaped > shape.most || __atomic_load_n(stop, __ATOMIC_RELAXED) != 0) result = PACKED_VOID;
  }
  *reinterpret_cast<PackedHead*>(packed) = {W, shape.blocks, shape.escapes, count};
  int64_t state = __atomic_load_n(&word->state, __ATOMIC_RELAXED);
  while (state < PACKED_VOID)  // else it has been given up meanwhile
    if (__atomic_compare_exchange_n(&word->state, &state, result, false, __ATOMIC_RELEASE, __ATOMIC_RELAXED))
      return result != PACKED_VOID;
  return false;
}

// ---- products -----------------------------------------------------------------------------------------------------------------

struct Exponents {  // of a row's codes: the upper seven bits, and the lowest as a bfloat16's lower byte has it
  alignas(16) uint8_t high[16], low[16];
  void set(uint8_t floor) {
    for (int code = 0; code < 16; ++code) {
      const int exponent = code ? floor + code : 0;
      high[code] = static_cast<uint8_t>(exponent >> 1);
      low[code] = static_cast<uint8_t>((exponent & 1) << 7);
    }
  }
};

// Span number `span` of a row's block as two vectors of 2 W words, in the order of the columns.
static inline __attribute__((always_inline)) void unpack_span(const uint8_t* row, int span, const Exponents& exponents, B* words) {
  const uint8_t* unit = row + span / 2 * UNIT;
  const B pairs = b_load(unit), bytes = b_load(unit + (1 + span % 2) * SPAN_COLUMNS);
  const B codes = span % 2 ? b_high(pairs) : b_low(pairs);
  const B high = b_joined(b_look_up(b_table(exponents.high), codes), bytes, 0x80);
  const B low = b_joined(b_look_up(b_table(exponents.low), codes), bytes, 0x7f);
  for (int half = 0; half < 2; ++half) words[half] = b_interleave(low, high, half);
}

// sums[t][r] += w[r] . x[t] over a block without escapes
template <int TOKENS>
static inline __attribute__((always_inline)) void multiply_packed(const uint8_t* block, const Exponents* exponents,
                                                                  const float* const* x, int64_t column, V* sums) {
  V part[TOKENS][ROWS];
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r) part[t][r] = sums[t * ROWS + r];
#pragma GCC unroll 4
  for (int span = 0; span < BLOCK / SPAN_COLUMNS; ++span) {
    V values[TOKENS][4];
    for (int t = 0; t < TOKENS; ++t)
      for (int i = 0; i < 4; ++i) values[t][i] = v_load(x[t] + column + span * SPAN_COLUMNS + i * W);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r) {
      B words[2];
      unpack_span(block + r * PACKED_ROW, span, exponents[r], words);
      const V weights[4] = {even_of((I)words[0]), odd_of((I)words[0]), even_of((I)words[1]), odd_of((I)words[1])};
      for (int i = 0; i < 4; ++i)
        for (int t = 0; t < TOKENS; ++t) part[t][r] = v_fma(weights[i], values[t][i], part[t][r]);
    }
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r) sums[t * ROWS + r] = part[t][r];
}

// The same in memory: `size` columns of a block, any number of tokens, escapes and all. Returns the next escape.
static __attribute__((noinline)) const Escape* multiply_unpacked(const uint8_t* block, const Exponents* exponents,
                                                                 const Escape* escape, const float* const* x, int64_t tokens,
                                                                 int64_t column, int64_t size, V* sums) {
  alignas(64) uint8_t rows[ROWS][2 * BLOCK];
  for (int r = 0; r < ROWS; ++r)
    for (int span = 0; span < BLOCK / SPAN_COLUMNS; ++span) {
      B words[2];
      unpack_span(block + r * PACKED_ROW, span, exponents[r], words);
      for (int half = 0; half < 2; ++half) b_store(rows[r] + (2 * span + half) * 4 * W, words[half]);
    }
  for (; escape->column < column + BLOCK; ++escape) std::memcpy(rows[escape->row] + 2 * (escape->column - column), &escape->bits, 2);
  for (int64_t t = 0; t < tokens;) {
    const int64_t count = share(tokens - t, TILE);
    tile_of<FormatBF16>(count, {rows[0], 2 * BLOCK}, x + t, column, size, nullptr, sums + t * ROWS);
    t += count;
  }
  return escape;
}

// What comes later into the second-level cache, and what comes soon from there into the first: one fetch alone, near or far, is a
// seventh slower.
static inline __attribute__((always_inline)) void fetch_packed(const uint8_t* block) {
  for (int64_t line = 0; line < PACKED_BLOCK; line += 64) prefetch(block + SOON + line);
  for (int64_t line = 0; line < PACKED_BLOCK; line += 64) __builtin_prefetch(block + LATER + line, 0, 2);
}

// TOKENS 0: any number.
template <int TOKENS>
static void few_packed(const uint8_t* packed, int64_t columns, int64_t first, int64_t rows, const float* const* x, int64_t tokens,
                       float* y, int64_t y_stride) {
  const PackedHead* head = head_of(packed);
  const PackedGroup* group = reinterpret_cast<const PackedGroup*>(packed + sizeof(PackedHead)) + first / ROWS;
  const Escape* escapes = reinterpret_cast<const Escape*>(packed + head->escapes);
  const uint8_t* block = packed + head->blocks + first / ROWS * ((columns + BLOCK - 1) / BLOCK * PACKED_BLOCK);
  V sums[(TOKENS ? TOKENS : SOME) * ROWS];
  for (int64_t row = 0; row < rows; row += ROWS, ++group) {
    Exponents exponents[ROWS];
    for (int r = 0; r < ROWS; ++r) exponents[r].set(group->floors[r]);
    prefetch(group + 8);
    const Escape* escape = escapes + group->first;
    for (int64_t i = 0; i < tokens * ROWS; ++i) sums[i] = v_zero();
    for (int64_t column = 0; column < columns; column += BLOCK, block += PACKED_BLOCK) {
      const int64_t size = columns - column < BLOCK ? columns - column : BLOCK;
      fetch_packed(block);
      if constexpr (TOKENS > 0) {
        if (__builtin_expect(size == BLOCK && escape->column >= column + BLOCK, 1)) {
          multiply_packed<TOKENS>(block, exponents, x, column, sums);
          continue;
        }
      }
      escape = multiply_unpacked(block, exponents, escape, x, tokens, column, size, sums);
    }
    for (int64_t t = 0; t < tokens; ++t) {
      float out[ROWS];
      sum4(sums + t * ROWS, out);
      for (int64_t r = 0; r < ROWS && row + r < rows; ++r) y[t * y_stride + row + r] = out[r];
    }
  }
}

// The packed weights, if these rows of them may be read now; else says that they would have been.
static inline const uint8_t* packed_weights(const Matrix& w, int64_t first, int64_t tokens) {
  PackedWord* word = w.packed;
  if (word == nullptr || tokens > MOST_PACKED || first % ROWS != 0 || word->self != reinterpret_cast<int64_t>(word)) return nullptr;
  int64_t state = __atomic_load_n(&word->state, __ATOMIC_ACQUIRE);
  if (state == PACKED_EMPTY)
    __atomic_compare_exchange_n(&word->state, &state, PACKED_WANTED, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
  if (state <= PACKED_VOID) return nullptr;
  const uint8_t* packed = reinterpret_cast<const uint8_t*>(state);
  return head_of(packed)->lanes == W ? packed : nullptr;
}

static void packed_dot(const uint8_t* packed, int64_t columns, int64_t first, int64_t rows, const float* const* x, int64_t tokens,
                       float* y, int64_t y_stride) {
  if (tokens == 1) return few_packed<1>(packed, columns, first, rows, x, 1, y, y_stride);
  if (tokens <= IN_REGISTERS) return few_packed<IN_REGISTERS>(packed, columns, first, rows, x, tokens, y, y_stride);
  few_packed<0>(packed, columns, first, rows, x, tokens, y, y_stride);
}

}  // namespace DSV3RT_VARIANT
#endif

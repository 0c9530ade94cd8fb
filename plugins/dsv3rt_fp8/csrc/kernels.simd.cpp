// Products of a few or many tokens with stored weights, for one instruction set.
//
// Up to SOME tokens: ROWS rows of W are read together, a block of columns at a time; while one block is multiplied the next is
// staged and the ones after it fetched. Lanes run over columns, one accumulator for a row and a token, in one order of additions
// whatever the number of tokens. More: a panel of PANEL rows is unpacked and transposed, and lanes run over its rows, so that
// each value loaded serves more products; the order of additions is another.
// T tokens, N rows (outputs), K columns (inputs).
#include "formats.h"

namespace DSV3RT_VARIANT {

constexpr int ROWS = 4;            // rows of W read together
constexpr int64_t SHORT = 1024;    // bytes: shorter rows are of matrices that fit in a cache
constexpr int64_t PAGE = 4096;     // bytes of memory
constexpr int64_t AHEAD = PAGE;    // bytes: how far in front of its use a weight is fetched, at least
constexpr int64_t NEAR = 512;      // bytes: the same from the second-level cache into the first
constexpr int64_t CROWD = 128;     // tokens computed together: DEPTH columns of them fit in the second-level cache
constexpr int64_t DEPTH = 256;     // columns of a panel, which fits in the first-level cache
constexpr int64_t SPAN = 128;      // rows of W whose sums are kept
constexpr int PANEL = 2 * W;       // rows of a panel
#if defined(DSV3RT_512) || defined(__aarch64__)
constexpr int TILE = 6, CROWD_TILE = 12;  // tokens of a register tile (x ROWS, x 2 accumulators)
#else
constexpr int TILE = 3, CROWD_TILE = 6;
#endif

// How many tokens the next tile takes of those that are left: never a single one at the end if that can be helped.
static inline int64_t share(int64_t left, int64_t most) {
  return left <= most ? left : left < 2 * most ? (left + 1) / 2 : most;
}

// The scales of a row: one for each block of columns.
static inline const uint8_t* scales_of(const Matrix& w, int64_t row) {
  return w.scales + row / BLOCK * ((w.columns + BLOCK - 1) / BLOCK) * 4;
}

// What the values of F that come out in a block of columns are multiplied by.
template <class F>
static inline float scale_at(const uint8_t* scales, int64_t column) {
  if constexpr (F::SCALED) {
    float value;
    std::memcpy(&value, scales + column / BLOCK * 4, 4);
    return value * F::UNIT;
  }
  return 1.0f;
}

// Rows of W for F::vectors: row r at `p + r * stride`.
template <class F>
struct Piece {
  const uint8_t* p;
  int64_t stride_;
  inline int64_t stride() const { return F::STAGED ? BLOCK * F::STAGE : stride_; }
};

// `rows` rows of a block of `size` <= BLOCK columns, whatever its size: where they are, or in `buffer`, zeros after them.
template <class F>
static Piece<F> piece(const uint8_t* p, int64_t row_bytes, int rows, int64_t size, uint8_t* buffer) {
  constexpr int STEP = F::VECTORS * W;
  const int64_t whole = size / STEP * STEP;
  if (!F::STAGED && whole == size) return {p, row_bytes};
  for (int r = 0; r < rows; ++r, p += row_bytes) {
    uint8_t* out = buffer + r * BLOCK * F::STAGE;
    if (!F::STAGED) std::memcpy(out, p, static_cast<size_t>(whole * F::BYTES));
    if (F::STAGED)
      for (int64_t i = 0; i < whole; i += STEP) F::stage(p + i * F::BYTES, out + i * F::STAGE);
    if (whole == size) continue;
    uint8_t rest[STEP * F::BYTES] = {};
    std::memcpy(rest, p + whole * F::BYTES, static_cast<size_t>((size - whole) * F::BYTES));
    if (F::STAGED) F::stage(rest, out + whole * F::STAGE);
    if (!F::STAGED) std::memcpy(out + whole * F::BYTES, rest, sizeof rest);
  }
  return {buffer, BLOCK * F::STAGE};
}

// ---- up to SOME tokens --------------------------------------------------------------------------------------------------------

// How the rows of a ticket are gone through: R at a time, the last time overlapping those before; fewer rows than that each by
// itself, R times over.
struct Walk {
  int64_t rows, height, stride, ahead;
  Walk(const Matrix& w, int64_t rows_, int R) : rows(rows_), height(rows_ < R ? 1 : R), stride(rows_ < R ? 0 : w.row_bytes()) {
    const int64_t once = R * w.row_bytes();
    ahead = (AHEAD + once - 1) / once * once;
  }
  int64_t after(int64_t row) const { return row + 2 * height <= rows ? row + height : rows - height; }
};

// Fetches a part, as large as the block at `column`, of the rows that come after those at `p`. Rows shorter than a page are asked
// for in the order in which they lie, as one stream, not in that of the products: short runs come at half the speed. Longer rows
// come faster as a stream for each; with AVX-512 VBMI (on Intel's Emerald Rapids) FP8 does so whatever its length. With AVX-512 what
// comes later goes into the second-level cache, and what comes soon from there into the first: a tenth faster there. Always inline:
// a function that does nothing else is without effect in a compiler's eyes, and calls of it are left out.
template <class F, int R>
static inline __attribute__((always_inline)) void fetch(const Matrix& w, const uint8_t* p, int64_t column, int64_t ahead) {
#if defined(DSV3RT_IS_AVX512VBMI)
  const bool apart = F::SCALED || w.row_bytes() >= PAGE;
#else
  const bool apart = w.row_bytes() >= PAGE;
#endif
#if defined(DSV3RT_512)
  constexpr int level = 2;
  const int64_t row_bytes = w.row_bytes();
  int64_t near = column * F::BYTES + (NEAR < row_bytes ? NEAR : row_bytes);
  if (near >= row_bytes) near += (R - 1) * row_bytes;  // in the rows that are next
  for (int r = 0; r < R; ++r)
    for (int64_t line = 0; line < BLOCK * F::BYTES; line += 64) prefetch(p + near + r * row_bytes + line);
#else
  constexpr int level = 3;
#endif
  const int64_t stride = apart ? w.row_bytes() : BLOCK * F::BYTES;
  p += column * F::BYTES * (apart ? 1 : R) + ahead;
  for (int r = 0; r < R; ++r)
    for (int64_t line = 0; line < BLOCK * F::BYTES; line += 64) __builtin_prefetch(p + r * stride + line, 0, level);
}

template <class F, int R>
static inline __attribute__((always_inline)) void stage_rows(const uint8_t* p, int64_t stride, int64_t step, uint8_t* buffer) {
  constexpr int STEP = F::VECTORS * W;
  for (int r = 0; r < R; ++r) F::stage(p + r * stride + step * STEP * F::BYTES, buffer + (r * BLOCK + step * STEP) * F::STAGE);
}

// part[t][r] += w[r] . x[t] over a step, w as F::vectors reads it
template <class F, int TOKENS, int R>
static inline __attribute__((always_inline)) void multiply(const uint8_t* w, int64_t stride, const float* const* x, int64_t column,
                                                           V (*part)[R]) {
#pragma GCC unroll 4
  for (int i = 0; i < F::VECTORS; i += F::TOGETHER) {
    V values[TOKENS][F::TOGETHER];
    for (int t = 0; t < TOKENS; ++t)
      for (int j = 0; j < F::TOGETHER; ++j) values[t][j] = v_load(x[t] + column + (i + j) * W);
    for (int r = 0; r < R; ++r) {
      V weights[F::TOGETHER];
      F::vectors(w + r * stride, i, weights);
      for (int j = 0; j < F::TOGETHER; ++j)
        for (int t = 0; t < TOKENS; ++t) part[t][r] = v_fma(weights[j], values[t][j], part[t][r]);
    }
  }
}

// One or two tokens: while a block of rows is multiplied the next is staged, where it must be, with units that the products leave
// idle.
template <class F, int TOKENS, int R>
static void few_rows(const Matrix& w, int64_t first, int64_t rows, const float* const* x, float* y, int64_t y_stride) {
  constexpr int STEP = F::VECTORS * W;
  alignas(64) uint8_t buffers[2][R * BLOCK * F::STAGE];
  const Walk walk(w, rows, R);
  const int64_t columns = w.columns, stride = walk.stride;
  const auto size_at = [&](int64_t column) { return columns - column < BLOCK ? columns - column : BLOCK; };
  int turn = 0;
  const uint8_t* data = w.data + first * w.row_bytes();
  Piece<F> next = piece<F>(data, stride, R, size_at(0), buffers[0]);
  for (int64_t row = 0, done = 0; done < rows; done += walk.height, row = walk.after(row)) {
    V sums[TOKENS][4] = {};  // as many as are added up together
    const uint8_t* scales[R];
    for (int r = 0; r < R; ++r) scales[r] = F::SCALED ? scales_of(w, first + row + (stride ? r : 0)) : nullptr;
    for (int64_t column = 0; column < columns; column += BLOCK) {
      const Piece<F> now = next;
      const int64_t size = size_at(column);
      int64_t next_column = column + BLOCK;
      const uint8_t* p = data + next_column * F::BYTES;
      if (next_column >= columns) {
        next_column = 0;
        p = data = w.data + (first + walk.after(row)) * w.row_bytes();
      }
      uint8_t* buffer = buffers[turn ^= 1];
      fetch<F, R>(w, data, next_column, walk.ahead);
      V part[TOKENS][R];
      for (int t = 0; t < TOKENS; ++t)
        for (int r = 0; r < R; ++r) part[t][r] = F::SCALED ? v_zero() : sums[t][r];
      if (size == BLOCK && size_at(next_column) == BLOCK) {
        next = {F::STAGED ? buffer : p, stride};
#pragma GCC unroll 8
        for (int step = 0; step < BLOCK / STEP; ++step) {
          if (F::STAGED) stage_rows<F, R>(p, stride, step, buffer);
          multiply<F, TOKENS, R>(now.p + step * STEP * F::STAGE, now.stride(), x, column + step * STEP, part);
        }
      } else {
        next = piece<F>(p, stride, R, size_at(next_column), buffer);
        for (int64_t k = 0; k < size; k += STEP) multiply<F, TOKENS, R>(now.p + k * F::STAGE, now.stride(), x, column + k, part);
      }
      for (int r = 0; r < R; ++r) {
        const V factor = v_set(scale_at<F>(scales[r], column));
        for (int t = 0; t < TOKENS; ++t) sums[t][r] = F::SCALED ? v_fma(factor, part[t][r], sums[t][r]) : part[t][r];
      }
    }
    for (int t = 0; t < TOKENS; ++t) {
      float out[4];
      sum4(sums[t], out);
      for (int64_t r = 0; r < walk.height; ++r) y[t * y_stride + row + r] = out[r];
    }
  }
}

// Rows shorter than a page are read as one stream, and the fewer of them are read together the more it is one: two, where what is
// read is worth so much that two sums keep up with it (AVX2: 10 to 15 % faster; not tried elsewhere).
template <class F, int TOKENS>
static void few(const Matrix& w, int64_t first, int64_t rows, const float* const* x, float* y, int64_t y_stride) {
#if defined(DSV3RT_IS_AVX2)
  if constexpr (!F::SCALED) {
    if (w.row_bytes() >= SHORT && w.row_bytes() < PAGE) return few_rows<F, TOKENS, 2>(w, first, rows, x, y, y_stride);
  }
#endif
  few_rows<F, TOKENS, ROWS>(w, first, rows, x, y, y_stride);
}

// sums[t][r] += factors[r] * (w[r] . x[t]) over `size` columns of one block
template <class F, int TOKENS>
static __attribute__((noinline)) void tile(Piece<F> w, const float* const* x, int64_t column, int64_t size, const float* factors,
                                           V* sums) {
  constexpr int STEP = F::VECTORS * W;
  const float* token[TOKENS];
  for (int t = 0; t < TOKENS; ++t) token[t] = x[t] + column;
  V part[TOKENS][ROWS];
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r) part[t][r] = F::SCALED ? v_zero() : sums[t * ROWS + r];
  for (int64_t k = 0; k < size; k += STEP) multiply<F, TOKENS, ROWS>(w.p + k * F::STAGE, w.stride(), token, k, part);
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r)
      sums[t * ROWS + r] = F::SCALED ? v_fma(v_set(factors[r]), part[t][r], sums[t * ROWS + r]) : part[t][r];
}

template <class F>
static void tile_of(int64_t tokens, Piece<F> w, const float* const* x, int64_t column, int64_t size, const float* factors,
                    V* sums) {
  switch (tokens) {
    case 1: return tile<F, 1>(w, x, column, size, factors, sums);
    case 2: return tile<F, 2>(w, x, column, size, factors, sums);
    case 3: return tile<F, 3>(w, x, column, size, factors, sums);
#if defined(DSV3RT_512) || defined(__aarch64__)
    case 4: return tile<F, 4>(w, x, column, size, factors, sums);
    case 5: return tile<F, 5>(w, x, column, size, factors, sums);
    case 6: return tile<F, 6>(w, x, column, size, factors, sums);
#endif
    default: return;
  }
}

// Any number of them: the same sums, a few tokens at a time.
template <class F>
static void some(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y, int64_t y_stride) {
  constexpr int STEP = F::VECTORS * W;
  alignas(64) uint8_t buffer[ROWS * BLOCK * F::STAGE];
  V sums[SOME * ROWS];
  const Walk walk(w, rows, ROWS);
  for (int64_t row = 0, done = 0; done < rows; done += walk.height, row = walk.after(row)) {
    for (int64_t i = 0; i < tokens * ROWS; ++i) sums[i] = v_zero();
    const uint8_t* scales[ROWS];
    for (int r = 0; r < ROWS; ++r) scales[r] = F::SCALED ? scales_of(w, first + row + (walk.stride ? r : 0)) : nullptr;
    for (int64_t column = 0; column < w.columns; column += BLOCK) {
      const int64_t size = w.columns - column < BLOCK ? w.columns - column : BLOCK;
      const uint8_t *data = w.data + (first + row) * w.row_bytes(), *p = data + column * F::BYTES;
      float factors[ROWS];
      for (int r = 0; r < ROWS; ++r) factors[r] = scale_at<F>(scales[r], column);
      fetch<F, ROWS>(w, data, column, walk.ahead);
      Piece<F> now{F::STAGED ? buffer : p, walk.stride};
      if (size < BLOCK) now = piece<F>(p, walk.stride, ROWS, size, buffer);
      else if (F::STAGED)
        for (int step = 0; step < BLOCK / STEP; ++step) stage_rows<F, ROWS>(p, walk.stride, step, buffer);
      for (int64_t t = 0; t < tokens;) {
        const int64_t count = share(tokens - t, F::TOGETHER > 1 ? 2 : TILE);
        tile_of<F>(count, now, x + t, column, size, factors, sums + t * ROWS);
        t += count;
      }
    }
    for (int64_t t = 0; t < tokens; ++t) {
      float out[ROWS];
      sum4(sums + t * ROWS, out);
      for (int64_t r = 0; r < walk.height; ++r) y[t * y_stride + row + r] = out[r];
    }
  }
}

}  // namespace DSV3RT_VARIANT

#include "few_packed.h"

namespace DSV3RT_VARIANT {

// ---- more ---------------------------------------------------------------------------------------------------------------------

// out[c * out_stride + r] = in[r * in_stride + c], 8 x 8
static inline void transpose8(const float* in, int64_t in_stride, float* out, int64_t out_stride) {
#if defined(DSV3RT_X86)
  __m256 a[8], b[8];
  for (int i = 0; i < 4; ++i) {  // rows i and i + 4, their first half and their second
    const float *low = in + i * in_stride, *high = low + 4 * in_stride;
    a[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1);
    a[i + 4] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low + 4)), _mm_loadu_ps(high + 4), 1);
  }
  for (int i = 0; i < 8; i += 4) {
    b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    b[i + 2] = _mm256_unpacklo_ps(a[i + 2], a[i + 3]);
    b[i + 3] = _mm256_unpackhi_ps(a[i + 2], a[i + 3]);
  }
  for (int i = 0; i < 8; i += 4) {
    _mm256_storeu_ps(out + i * out_stride, _mm256_shuffle_ps(b[i], b[i + 2], 0x44));
    _mm256_storeu_ps(out + (i + 1) * out_stride, _mm256_shuffle_ps(b[i], b[i + 2], 0xEE));
    _mm256_storeu_ps(out + (i + 2) * out_stride, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44));
    _mm256_storeu_ps(out + (i + 3) * out_stride, _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xEE));
  }
#else
  for (int r = 0; r < 8; ++r)
    for (int c = 0; c < 8; ++c) out[c * out_stride + r] = in[r * in_stride + c];
#endif
}

// panel[k * PANEL + r] = the value of row first + r in column begin + k (in the order in which F is read), for `size` columns
// rounded up to a whole step; rows from `rows` on, and columns from w.columns on, are zero.
template <class F>
static void unpack_panel(const Matrix& w, int64_t first, int64_t rows, int64_t begin, int64_t size, float* panel) {
  constexpr int STEP = F::VECTORS * W;
  alignas(64) uint8_t buffer[BLOCK * F::STAGE];
  alignas(64) float values[8][BLOCK];
  for (int64_t column = begin; column < begin + size; column += BLOCK) {
    const int64_t width = begin + size - column < BLOCK ? begin + size - column : BLOCK, steps = (width + STEP - 1) / STEP;
    for (int64_t group = 0; group < PANEL; group += 8) {
      // one scale: a panel never crosses a block of rows
      const V scale = v_set(scale_at<F>(scales_of(w, first), column));
      for (int64_t r = 0; r < 8; ++r) {
        if (group + r >= rows) {
          std::memset(values[r], 0, sizeof values[r]);
          continue;
        }
        const uint8_t* p = w.data + (first + group + r) * w.row_bytes() + column * F::BYTES;
        for (int64_t line = 0; line < width * F::BYTES; line += 64) prefetch(p + PANEL * w.row_bytes() + line);
        p = piece<F>(p, w.row_bytes(), 1, width, buffer).p;
        for (int64_t step = 0; step < steps; ++step)
          for (int i = 0; i < F::VECTORS; i += F::TOGETHER) {
            V out[F::TOGETHER];
            F::vectors(p + step * STEP * F::STAGE, i, out);
            for (int j = 0; j < F::TOGETHER; ++j)
              v_store(values[r] + step * STEP + (i + j) * W, F::SCALED ? out[j] * scale : out[j]);
          }
      }
      float* out = panel + (column - begin) * PANEL + group;
      for (int64_t k = 0; k < steps * STEP; k += 8) transpose8(values[0] + k, BLOCK, out + k * PANEL, PANEL);
    }
  }
}

// sums[t][..] += panel . x[t] over `size` columns; sums [T, SPAN], of which this is PANEL columns. The columns of a panel are added
// up by themselves first: two short sums round less than a long one.
template <int TOKENS>
static void crowd_tile(const float* panel, int64_t size, const float* const* x, int64_t begin, float* sums, bool fresh) {
  V part[TOKENS][2];
  for (int t = 0; t < TOKENS; ++t)
    for (int i = 0; i < 2; ++i) part[t][i] = v_zero();
  const float* token[TOKENS];
  for (int t = 0; t < TOKENS; ++t) token[t] = x[t] + begin;
  for (int64_t k = 0; k < size; ++k) {
    const V low = v_load(panel + k * PANEL), high = v_load(panel + k * PANEL + W);
    for (int t = 0; t < TOKENS; ++t) {
      const V value = v_set(token[t][k]);
      part[t][0] = v_fma(low, value, part[t][0]);
      part[t][1] = v_fma(high, value, part[t][1]);
    }
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int i = 0; i < 2; ++i) {
      float* sum = sums + t * SPAN + i * W;
      v_store(sum, fresh ? part[t][i] : v_load(sum) + part[t][i]);
    }
}

static void crowd_tiles(const float* panel, int64_t size, const float* const* x, int64_t tokens, int64_t begin, float* sums,
                        bool fresh) {
  for (int64_t t = 0; t < tokens;) {
    const int64_t count = share(tokens - t, CROWD_TILE);
    const float* const* xs = x + t;
    float* out = sums + t * SPAN;
    switch (count) {
      case 1: crowd_tile<1>(panel, size, xs, begin, out, fresh); break;
      case 2: crowd_tile<2>(panel, size, xs, begin, out, fresh); break;
      case 3: crowd_tile<3>(panel, size, xs, begin, out, fresh); break;
      case 4: crowd_tile<4>(panel, size, xs, begin, out, fresh); break;
      case 5: crowd_tile<5>(panel, size, xs, begin, out, fresh); break;
      case 6: crowd_tile<6>(panel, size, xs, begin, out, fresh); break;
#if defined(DSV3RT_512) || defined(__aarch64__)
      case 7: crowd_tile<7>(panel, size, xs, begin, out, fresh); break;
      case 8: crowd_tile<8>(panel, size, xs, begin, out, fresh); break;
      case 9: crowd_tile<9>(panel, size, xs, begin, out, fresh); break;
      case 10: crowd_tile<10>(panel, size, xs, begin, out, fresh); break;
      case 11: crowd_tile<11>(panel, size, xs, begin, out, fresh); break;
      default: crowd_tile<12>(panel, size, xs, begin, out, fresh); break;
#endif
    }
    t += count;
  }
}

template <class F>
static void crowd(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y, int64_t y_stride,
                  float* scratch) {
  float *panel = scratch, *sums = scratch + PANEL * DEPTH;  // [DEPTH, PANEL], [tokens, SPAN]
  for (int64_t begin = 0; begin < w.columns; begin += DEPTH) {
    const int64_t size = begin + DEPTH < w.columns ? DEPTH : w.columns - begin;
    const int64_t whole = (size + F::VECTORS * W - 1) / (F::VECTORS * W) * (F::VECTORS * W);
    for (int64_t r = 0; r < rows; r += PANEL) {
      unpack_panel<F>(w, first + r, rows - r, begin, size, panel);
      crowd_tiles(panel, whole, x, tokens, begin, sums + r, begin == 0);
    }
  }
  for (int64_t t = 0; t < tokens; ++t) std::memcpy(y + t * y_stride, sums + t * SPAN, static_cast<size_t>(rows) * sizeof(float));
}

template <class F>
static void dot_format(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y,
                       int64_t y_stride, float* scratch) {
  if (tokens == 0) return;
  if (tokens == 1) return few<typename Few<F>::Format, 1>(w, first, rows, x, y, y_stride);
  if constexpr (F::TOGETHER == 1) {  // else two have too little room in the registers there
    if (tokens == 2) return few<typename Few<F>::Format, 2>(w, first, rows, x, y, y_stride);
  }
  if (tokens <= SOME) return some<F>(w, first, rows, x, tokens, y, y_stride);
  for (int64_t t = 0; t < tokens;) {
    const int64_t count = share(tokens - t, CROWD);
    for (int64_t r = 0; r < rows;) {
      const int64_t edge = SPAN - (first + r) % SPAN, span = rows - r < edge ? rows - r : edge;
      crowd<F>(w, first + r, span, x + t, count, y + t * y_stride + r, y_stride, scratch);
      r += span;
    }
    t += count;
  }
}

template <class E4M3>
static void dot(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y, int64_t y_stride,
                float* scratch) {
#if defined(DSV3RT_X86)
  if (const uint8_t* packed = packed_weights(w, first, tokens))
    return packed_dot(packed, w.columns, first, rows, x, tokens, y, y_stride);
#endif
  switch (w.format) {
    case Format::E4M3: return dot_format<E4M3>(w, first, rows, x, tokens, y, y_stride, scratch);
    case Format::BF16: return dot_format<FormatBF16>(w, first, rows, x, tokens, y, y_stride, scratch);
    case Format::F16: return dot_format<FormatF16>(w, first, rows, x, tokens, y, y_stride, scratch);
    case Format::F32: return dot_format<FormatF32>(w, first, rows, x, tokens, y, y_stride, scratch);
  }
}

static int64_t scratch_floats(int64_t tokens) {
  return tokens <= SOME ? 0 : PANEL * DEPTH + (tokens < CROWD ? tokens : CROWD) * SPAN;
}

// ---- activations --------------------------------------------------------------------------------------------------------------

template <class F>
static constexpr bool natural_format() {
  for (int i = 0; i < F::VECTORS * W; ++i)
    if (F::order(i) != i) return false;
  return true;
}

template <class E4M3>
static bool natural(Format format) {
  switch (format) {
    case Format::E4M3: return natural_format<E4M3>();
    case Format::BF16: return natural_format<FormatBF16>();
    case Format::F16: return natural_format<FormatF16>();
    default: return natural_format<FormatF32>();
  }
}

// Whether F's order is the even ones and then the odd ones; or, of SPLITS = 2, each of these again so divided.
template <class F, int SPLITS>
static constexpr bool even_odd() {
  constexpr int SIZE = F::VECTORS * W;
  for (int i = 0; i < SIZE; ++i) {
    int index = i;
    for (int split = 0; split < SPLITS; ++split) {
      const int part = SIZE >> (SPLITS - 1 - split), place = index % part;
      index = index - place + (place < part / 2 ? 2 * place : 2 * (place - part / 2) + 1);
    }
    if (F::order(i) != index) return false;
  }
  return true;
}

#if defined(DSV3RT_X86)
// 2 * W values: those of even index, those of odd index.
static inline void split(const float* x, float* even, float* odd) {
#if defined(DSV3RT_512)
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const __m512i index = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  _mm512_storeu_ps(even, _mm512_permutex2var_ps(a, index, b));
  _mm512_storeu_ps(odd, _mm512_permutex2var_ps(a, _mm512_add_epi32(index, _mm512_set1_epi32(1)), b));
#else
  const __m256 a = _mm256_loadu_ps(x), b = _mm256_loadu_ps(x + 8);  // the shuffles work within halves
  const __m256d evens = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0x88)), odds = _mm256_castps_pd(_mm256_shuffle_ps(a, b, 0xDD));
  _mm256_storeu_ps(even, _mm256_castpd_ps(_mm256_permute4x64_pd(evens, 0xD8)));
  _mm256_storeu_ps(odd, _mm256_castpd_ps(_mm256_permute4x64_pd(odds, 0xD8)));
#endif
}
#endif

template <class F>
static inline void arrange_group(const float* x, float* out) {
  constexpr int STEP = F::VECTORS * W;
  for (int step = 0; step < GROUP; step += STEP) {
#if defined(DSV3RT_X86)
    if (even_odd<F, 1>()) {
      for (int i = 0; i < STEP / 2; i += W) split(x + step + 2 * i, out + step + i, out + step + STEP / 2 + i);
      continue;
    }
    if (even_odd<F, 2>() && STEP == 4 * W) {
      float halves[4 * W];
      for (int i = 0; i < 2 * W; i += W) split(x + step + 2 * i, halves + i, halves + 2 * W + i);
      for (int i = 0; i < 4 * W; i += 2 * W) split(halves + i, out + step + i, out + step + i + W);
      continue;
    }
#endif
    for (int i = 0; i < STEP; ++i) out[step + i] = x[step + F::order(i)];
  }
  if constexpr (F::SCALED) {
    if (F::X_UNIT != 1.0f)
      for (int i = 0; i < GROUP; i += W) v_store(out + i, v_load(out + i) * v_set(F::X_UNIT));
  }
}

template <class F>
static void arrange_format(const float* x, int64_t columns, float* out) {
  const int64_t whole = columns / GROUP * GROUP;
  if (natural_format<F>()) {
    std::memcpy(out, x, static_cast<size_t>(whole) * sizeof(float));
  } else {
    for (int64_t group = 0; group < whole; group += GROUP) arrange_group<F>(x + group, out + group);
  }
  if (whole < columns) {
    float rest[GROUP] = {};
    std::memcpy(rest, x + whole, static_cast<size_t>(columns - whole) * sizeof(float));
    arrange_group<F>(rest, out + whole);
  }
}

template <class E4M3>
static void arrange(Format format, const float* x, int64_t columns, float* out) {
  switch (format) {
    case Format::E4M3: return arrange_format<E4M3>(x, columns, out);
    case Format::BF16: return arrange_format<FormatBF16>(x, columns, out);
    case Format::F16: return arrange_format<FormatF16>(x, columns, out);
    case Format::F32: return arrange_format<FormatF32>(x, columns, out);
  }
}

static void silu_mul(float* gate, const float* up, int64_t size) {
  int64_t i = 0;
  for (; i + W <= size; i += W) v_store(gate + i, v_silu(v_load(gate + i)) * v_load(up + i));
  if (i < size) {  // the same code for the rest, so that an element's result never depends on where it stands
    float g[W] = {}, u[W] = {};
    const size_t bytes = static_cast<size_t>(size - i) * sizeof(float);
    std::memcpy(g, gate + i, bytes);
    std::memcpy(u, up + i, bytes);
    v_store(g, v_silu(v_load(g)) * v_load(u));
    std::memcpy(gate + i, g, bytes);
  }
}

static void add_scaled(float* y, const float* x, float factor, int64_t size) {
  const V f = v_set(factor);
  int64_t i = 0;
  for (; i + W <= size; i += W) v_store(y + i, v_fma(f, v_load(x + i), v_load(y + i)));
  if (i < size) {
    float a[W] = {}, b[W] = {};
    const size_t bytes = static_cast<size_t>(size - i) * sizeof(float);
    std::memcpy(a, x + i, bytes);
    std::memcpy(b, y + i, bytes);
    v_store(b, v_fma(f, v_load(a), v_load(b)));
    std::memcpy(y + i, b, bytes);
  }
}

static bool has_nan(const uint8_t* codes, int64_t bytes) {
  uint8_t found = 0;
  for (int64_t i = 0; i < bytes; ++i) found |= static_cast<uint8_t>((codes[i] & 0x7f) == 0x7f);
  return found != 0;
}

}  // namespace DSV3RT_VARIANT

#include "few_tiles.h"
#include "tiles.h"

namespace DSV3RT_VARIANT {

#if defined(DSV3RT_TILES)
static bool by_few_tiles(Format format, int64_t tokens) { return format == Format::E4M3 && tokens <= SOME; }

static int64_t packed_floats(Format format, int64_t tokens, int64_t columns) {
  return by_few_tiles(format, tokens) ? few_packed_floats(tokens, columns) : many_packed_floats(tokens, columns);
}

static void pack(Format format, const float* const* x, int64_t tokens, int64_t columns, int64_t group, float* packed) {
  if (by_few_tiles(format, tokens)) return few_pack(x, tokens, columns, packed);
  many_pack(x, tokens, columns, group, packed);
}

static void tile_dot(const Matrix& w, int64_t first, int64_t rows, const float* packed, int64_t tokens, float* y, int64_t y_stride,
                     float* scratch) {
  if (by_few_tiles(w.format, tokens)) return few_dot(w, first, rows, packed, tokens, y, y_stride);
  many_dot(w, first, rows, packed, tokens, y, y_stride, scratch);
}

static int64_t tile_floats(Format format, int64_t tokens, int64_t rows) {
  return by_few_tiles(format, tokens) ? 0 : many_floats(tokens, rows);
}
#endif

template <class E4M3>
static constexpr Kernels table(Tiles tiles = {}) {
#if defined(DSV3RT_X86)
  constexpr auto pack = &pack_weights;
#else
  constexpr decltype(Kernels::pack_weights) pack = nullptr;
#endif
  return {&arrange<E4M3>, &natural<E4M3>, &dot<E4M3>, &scratch_floats, &silu_mul, &add_scaled, &has_nan, tiles, pack};
}
extern const Kernels kernels;
const Kernels kernels = table<FormatE4M3>();
#if defined(DSV3RT_IS_AVX2)
extern const Kernels amd_kernels;
const Kernels amd_kernels = table<FormatE4M3Low>();
#elif defined(DSV3RT_TILES)
extern const Kernels amx_kernels;
const Kernels amx_kernels = table<FormatE4M3>({&packed_floats, &pack, &tile_dot, &tile_floats});
#endif

}  // namespace DSV3RT_VARIANT

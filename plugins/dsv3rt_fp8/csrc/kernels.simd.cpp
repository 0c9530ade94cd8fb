// Products of a few or many tokens with stored weights, for one instruction set.
//
// Up to FEW tokens: weights are unpacked in registers and used at once (bound by memory). More: a set of ROWS rows is unpacked
// into a small buffer, DEPTH columns at a time, and multiplied with tiles of tokens out of the first-level cache; partial sums
// wait in memory, as whole vectors, so that the order of every addition is that of the first way.
#include "formats.h"

namespace DSV3RT_VARIANT {

constexpr int FEW = 4;             // tokens
constexpr int64_t SOME = 48;       // tokens
constexpr int ROWS = 4;            // rows of W computed together
constexpr int64_t SPAN = 32;       // rows of W whose partial sums are kept
constexpr int64_t CROWD = 128;     // tokens computed together
constexpr int64_t DEPTH = 1024;    // most columns unpacked at a time

// With some tokens, rows of W are read nearly in one stream, since memory is the limit; with a crowd, short pieces of many rows,
// so that both the piece and the tokens' columns stay in the caches.
struct Blocking {
  int64_t depth, span;
};
static inline Blocking blocking(int64_t tokens) { return tokens <= SOME ? Blocking{DEPTH, ROWS} : Blocking{DEPTH / 2, SPAN}; }
#if defined(DSV3RT_512) || defined(__aarch64__)
constexpr int TILE = 6;            // tokens of a register tile (x ROWS accumulators)
#else
constexpr int TILE = 3;
#endif

static inline float scale_at(const uint8_t* scales, int64_t i) {
  float value;
  std::memcpy(&value, scales + 4 * i, 4);
  return value * E4M3_UNIT;
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

static inline void put_sums(const V* sums, int rows, float* y) {  // one token's sums of up to ROWS rows
  V all[ROWS];
  for (int r = 0; r < ROWS; ++r) all[r] = r < rows ? sums[r] : v_zero();
  float out[ROWS];
  sum4(all, out);
  for (int r = 0; r < rows; ++r) y[r] = out[r];
}

template <class F>
struct RowReader {  // one row of W and its scales
  const uint8_t* data;
  const uint8_t* scales;

  void start(const Matrix& w, int64_t row) {
    data = w.data + row * w.row_bytes();
    scales = F::SCALED ? w.scales + 4 * (row / BLOCK) * ((w.columns + BLOCK - 1) / BLOCK) : nullptr;
  }
  static inline void unpack(const uint8_t* p, V scale, V* out) {
    F::unpack(p, out);
    if (F::SCALED)
      for (int i = 0; i < F::VECTORS; ++i) out[i] *= scale;
  }
  // The last, incomplete step of a row: missing values are zero.
  inline void unpack_tail(int64_t column, int64_t columns, V scale, V* out) const {
    uint8_t bytes[F::VECTORS * W * F::BYTES] = {};
    std::memcpy(bytes, data + column * F::BYTES, static_cast<size_t>((columns - column) * F::BYTES));
    unpack(bytes, scale, out);
  }
  inline V scale(int64_t column) const { return F::SCALED ? v_set(scale_at(scales, column / BLOCK)) : v_zero(); }
};

// ---- a few tokens -------------------------------------------------------------------------------------------------------------

template <class F, int TOKENS, int R>
static void few(const Matrix& w, int64_t row, const float* const* x, float* y, int64_t y_stride) {
  constexpr int STEP = F::VECTORS * W;
  RowReader<F> readers[R];
  for (int r = 0; r < R; ++r) readers[r].start(w, row + r);
  const int64_t stride = R * w.row_bytes(), ahead = stride * ((4095 + stride) / stride);
  V sums[TOKENS][R];
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < R; ++r) sums[t][r] = v_zero();
  const auto use = [&](int r, const V* values, int64_t column) __attribute__((always_inline)) {
    for (int t = 0; t < TOKENS; ++t)
      for (int i = 0; i < F::VECTORS; ++i) sums[t][r] = v_fma(values[i], v_load(x[t] + column + i * W), sums[t][r]);
  };
  for (int64_t block = 0; block < w.columns; block += BLOCK) {
    V scales[R];
    for (int r = 0; r < R; ++r) scales[r] = readers[r].scale(block);
    const int64_t end = block + BLOCK < w.columns ? block + BLOCK : w.columns;
    int64_t column = block;
    for (; column + STEP <= end; column += STEP) {
      for (int r = 0; r < R; ++r) {
        const uint8_t* p = readers[r].data + column * F::BYTES;
        for (int line = 0; line < STEP * F::BYTES; line += 64) prefetch(p + ahead + line);
        V values[F::VECTORS];
        RowReader<F>::unpack(p, scales[r], values);
        use(r, values, column);
      }
    }
    if (column < end) {
      for (int r = 0; r < R; ++r) {
        V values[F::VECTORS];
        readers[r].unpack_tail(column, end, scales[r], values);
        use(r, values, column);
      }
    }
  }
  for (int t = 0; t < TOKENS; ++t) put_sums(sums[t], R, y + t * y_stride);
}

template <class F, int TOKENS>
static void few_rows(const Matrix& w, int64_t first, int64_t rows, const float* const* x, float* y, int64_t y_stride) {
  int64_t r = 0;
  for (; r + ROWS <= rows; r += ROWS) few<F, TOKENS, ROWS>(w, first + r, x, y + r, y_stride);
  for (; r < rows; ++r) few<F, TOKENS, 1>(w, first + r, x, y + r, y_stride);
}

// ---- many tokens --------------------------------------------------------------------------------------------------------------

// Unpack columns [begin, begin + size) of one row; the rest up to a whole step is zero.
template <class F>
static void unpack_row(const RowReader<F>& reader, int64_t columns, int64_t begin, int64_t size, float* out) {
  constexpr int STEP = F::VECTORS * W;
  V values[F::VECTORS];
  const int64_t ahead = ROWS * columns * F::BYTES;
  int64_t column = begin;
  for (; column + STEP <= begin + size; column += STEP, out += STEP) {
    const uint8_t* p = reader.data + column * F::BYTES;
    for (int line = 0; line < STEP * F::BYTES; line += 64) prefetch(p + ahead + line);
    RowReader<F>::unpack(p, reader.scale(column), values);
    for (int i = 0; i < F::VECTORS; ++i) v_store(out + i * W, values[i]);
  }
  if (column < begin + size) {
    reader.unpack_tail(column, columns, reader.scale(column), values);
    for (int i = 0; i < F::VECTORS; ++i) v_store(out + i * W, values[i]);
  }
}

// sums[t][r] += w[r] . x[t] over `size` columns (a multiple of W). Partial sums: SPAN vectors a token.
template <int TOKENS>
static void tile(const float* w, int64_t size, const float* const* x, int64_t begin, V* partial, bool fresh) {
  V sums[TOKENS][ROWS];
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r) sums[t][r] = fresh ? v_zero() : partial[t * SPAN + r];
  for (int64_t k = 0; k < size; k += W) {
    V values[ROWS];
    for (int r = 0; r < ROWS; ++r) values[r] = v_load(w + r * DEPTH + k);
    for (int t = 0; t < TOKENS; ++t) {
      const V token = v_load(x[t] + begin + k);
      for (int r = 0; r < ROWS; ++r) sums[t][r] = v_fma(values[r], token, sums[t][r]);
    }
  }
  for (int t = 0; t < TOKENS; ++t)
    for (int r = 0; r < ROWS; ++r) partial[t * SPAN + r] = sums[t][r];
}

static void tiles(const float* w, int64_t size, const float* const* x, int64_t tokens, int64_t begin, V* partial, bool fresh) {
  int64_t t = 0;
  for (; t + TILE <= tokens; t += TILE) tile<TILE>(w, size, x + t, begin, partial + t * SPAN, fresh);
  x += t, partial += t * SPAN;
  switch (tokens - t) {
    case 1: return tile<1>(w, size, x, begin, partial, fresh);
    case 2: return tile<2>(w, size, x, begin, partial, fresh);
#if !defined(DSV3RT_IS_AVX2)
    case 3: return tile<3>(w, size, x, begin, partial, fresh);
    case 4: return tile<4>(w, size, x, begin, partial, fresh);
    case 5: return tile<5>(w, size, x, begin, partial, fresh);
#endif
    default: return;
  }
}

template <class F>
static void many(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y, int64_t y_stride,
                 float* scratch) {
  float* buffer = scratch;                                         // [ROWS, DEPTH]
  V* partial = reinterpret_cast<V*>(scratch + ROWS * DEPTH);       // [tokens, SPAN]
  const int64_t depth = blocking(tokens).depth;
  for (int64_t begin = 0; begin < w.columns; begin += depth) {
    const int64_t size = begin + depth < w.columns ? depth : w.columns - begin;
    const int64_t whole = (size + GROUP - 1) / GROUP * GROUP;
    for (int64_t r = 0; r < rows; r += ROWS) {
      for (int64_t i = 0; i < ROWS; ++i) {
        if (whole != size) std::memset(buffer + i * DEPTH + size / GROUP * GROUP, 0, GROUP * sizeof(float));
        if (r + i < rows) {
          RowReader<F> reader;
          reader.start(w, first + r + i);
          unpack_row<F>(reader, w.columns, begin, size, buffer + i * DEPTH);
        }
      }
      tiles(buffer, whole, x, tokens, begin, partial + r, begin == 0);
    }
  }
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t r = 0; r < rows; r += ROWS)
      put_sums(partial + t * SPAN + r, rows - r < ROWS ? static_cast<int>(rows - r) : ROWS, y + t * y_stride + r);
}

template <class F>
static void dot_format(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y,
                       int64_t y_stride, float* scratch) {
  switch (tokens <= FEW ? tokens : FEW + 1) {
    case 0: return;
    case 1: return few_rows<F, 1>(w, first, rows, x, y, y_stride);
    case 2: return few_rows<F, 2>(w, first, rows, x, y, y_stride);
    case 3: return few_rows<F, 3>(w, first, rows, x, y, y_stride);
    case 4: return few_rows<F, 4>(w, first, rows, x, y, y_stride);
    default: break;
  }
  for (int64_t t = 0; t < tokens; t += CROWD) {
    const int64_t count = tokens - t < CROWD ? tokens - t : CROWD, span = blocking(count).span;
    for (int64_t r = 0; r < rows; r += span)
      many<F>(w, first + r, rows - r < span ? rows - r : span, x + t, count, y + t * y_stride + r, y_stride, scratch);
  }
}

static void dot(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y, int64_t y_stride,
                float* scratch) {
  switch (w.format) {
    case Format::E4M3: return dot_format<FormatE4M3>(w, first, rows, x, tokens, y, y_stride, scratch);
    case Format::BF16: return dot_format<FormatBF16>(w, first, rows, x, tokens, y, y_stride, scratch);
    case Format::F16: return dot_format<FormatF16>(w, first, rows, x, tokens, y, y_stride, scratch);
    case Format::F32: return dot_format<FormatF32>(w, first, rows, x, tokens, y, y_stride, scratch);
  }
}

static int64_t scratch_floats(int64_t tokens) {
  return tokens <= FEW ? 0 : ROWS * DEPTH + (tokens < CROWD ? tokens : CROWD) * SPAN * W;
}

// ---- activations --------------------------------------------------------------------------------------------------------------

template <class F>
static bool natural_format() {
  for (int i = 0; i < F::VECTORS * W; ++i)
    if (F::order(i) != i) return false;
  return true;
}

static bool natural(Format format) {
  switch (format) {
    case Format::E4M3: return natural_format<FormatE4M3>();
    case Format::BF16: return natural_format<FormatBF16>();
    case Format::F16: return natural_format<FormatF16>();
    default: return natural_format<FormatF32>();
  }
}

template <class F>
static inline void arrange_group(const float* x, float* out) {
  constexpr int STEP = F::VECTORS * W;
  for (int step = 0; step < GROUP; step += STEP) {
#if defined(DSV3RT_512)
    if (F::VECTORS == 2) {
      alignas(64) int32_t index[2 * W];
      for (int i = 0; i < 2 * W; ++i) index[i] = F::order(i);
      const __m512 a = _mm512_loadu_ps(x + step), b = _mm512_loadu_ps(x + step + 16);
      _mm512_storeu_ps(out + step, _mm512_permutex2var_ps(a, _mm512_load_si512(index), b));
      _mm512_storeu_ps(out + step + 16, _mm512_permutex2var_ps(a, _mm512_load_si512(index + 16), b));
      continue;
    }
#endif
    for (int i = 0; i < STEP; ++i) out[step + i] = x[step + F::order(i)];
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

static void arrange(Format format, const float* x, int64_t columns, float* out) {
  switch (format) {
    case Format::E4M3: return arrange_format<FormatE4M3>(x, columns, out);
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

extern const Kernels kernels;
const Kernels kernels = {&arrange, &natural, &dot, &scratch_floats, &silu_mul, &add_scaled, &has_nan};

}  // namespace DSV3RT_VARIANT

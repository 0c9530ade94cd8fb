// Latent attention for one instruction set; see mla_kernels.h for the legend and for what each function computes.
#include "dsv3rt_simd.h"
#include "mla_ahead.h"
#include "mla_formats.h"
#include "mla_kernels.h"
#include "mla_pairs.h"
#include "mla_tiles.h"

namespace DSV3RT_VARIANT {

// Tiles of sums, of GROUP rows and TILE tokens, or vectors of a latent: enough sums to hide the latency of a multiply-add, few
// enough for the registers, and as square as can be.
constexpr int TILE = 3;
constexpr int64_t FEW = 2 * TILE;  // tokens that, once widened, stay in the first-level cache beside the queries of a group
constexpr int64_t AHEAD = 4096;  // bytes: how far in front of its use a row of kv_b_proj is fetched, at least

// ---- products with kv_b_proj --------------------------------------------------------------------------------------------------

// N rows of the matrix at once, columns [begin, end) of one scale block; coefficients are q[t][row] * scale.
template <Stored F, int N>
static void absorb_rows(const Matrix& w, int64_t row, int64_t begin, int64_t end, float scale, const float* q, int64_t q_step,
                        int64_t tokens, float* out) {
  const int64_t row_bytes = w.columns * bytes_of(F);
  const char* at = w.data + row * row_bytes;
  int64_t c = begin;
  if (tokens == 1) {  // the same, with the coefficients in registers
    V factor[N];
    for (int j = 0; j < N; ++j) factor[j] = spread(q[j] * scale);
    for (; c + W <= end; c += W) {
      V sum = v_load(out + c);
      for (int j = 0; j < N; ++j) sum = v_fma(load<F>(at + j * row_bytes + c * bytes_of(F)), factor[j], sum);
      v_store(out + c, sum);
    }
  }
  for (; c + W <= end; c += W) {
    V weight[N];
    for (int j = 0; j < N; ++j) weight[j] = load<F>(at + j * row_bytes + c * bytes_of(F));
    for (int64_t t = 0; t < tokens; ++t) {
      V sum = v_load(out + t * w.columns + c);
      for (int j = 0; j < N; ++j) sum = v_fma(weight[j], spread(q[t * q_step + j] * scale), sum);
      v_store(out + t * w.columns + c, sum);
    }
  }
  for (; c < end; ++c)
    for (int64_t t = 0; t < tokens; ++t) {
      float sum = out[t * w.columns + c];
      for (int j = 0; j < N; ++j) sum = s_fma(value<F>(at + j * row_bytes + c * bytes_of(F)), q[t * q_step + j] * scale, sum);
      out[t * w.columns + c] = sum;
    }
}

template <Stored F, int N>
static void absorb_group(const Matrix& w, int64_t row, const float* q, int64_t q_step, int64_t tokens, float* out) {
  if (F != Stored::E4M3) return absorb_rows<F, N>(w, row, 0, w.columns, 1.0f, q, q_step, tokens, out);
  const float* scales = w.scales + row / SCALE_BLOCK * w.scale_columns;
  for (int64_t c = 0; c < w.columns; c += SCALE_BLOCK) {
    const int64_t end = c + SCALE_BLOCK < w.columns ? c + SCALE_BLOCK : w.columns;
    absorb_rows<F, N>(w, row, c, end, scales[c / SCALE_BLOCK] * unit<F>(), q, q_step, tokens, out);
  }
}

template <Stored F>
static void absorb_all(const Matrix& w, int64_t first, int64_t rows, const float* q, int64_t q_step, int64_t tokens, float* out) {
  constexpr int N = 8;
  const int64_t row_bytes = w.columns * bytes_of(F);
  for (int64_t i = 0; i < tokens * w.columns; ++i) out[i] = 0.0f;
  int64_t p = 0;
  while (p < rows) {
    const int64_t row = first + p;
    // at twice the pace of the sums: the head's rows for values, which lie behind, are wanted soon
    const char* ahead = w.data + (row + p) * row_bytes + AHEAD;
    for (int64_t i = 0; i < 2 * N * row_bytes; i += 64) prefetch(ahead + i);
    // a group never crosses the border of a scale block
    const bool whole = p + N <= rows && (F != Stored::E4M3 || row / SCALE_BLOCK == (row + N - 1) / SCALE_BLOCK);
    if (whole) {
      absorb_group<F, N>(w, row, q + p, q_step, tokens, out);
      p += N;
    } else {
      absorb_group<F, 1>(w, row, q + p, q_step, tokens, out);
      p += 1;
    }
  }
}

static void absorb(const Matrix& w, int64_t first, int64_t rows, const float* q, int64_t q_step, int64_t tokens, float* out) {
  switch (w.format) {
    case Stored::F32: return absorb_all<Stored::F32>(w, first, rows, q, q_step, tokens, out);
    case Stored::BF16: return absorb_all<Stored::BF16>(w, first, rows, q, q_step, tokens, out);
    case Stored::F16: return absorb_all<Stored::F16>(w, first, rows, q, q_step, tokens, out);
    case Stored::E4M3: return absorb_all<Stored::E4M3>(w, first, rows, q, q_step, tokens, out);
  }
}

// N rows of the matrix times M tokens.
template <Stored F, int N, int M>
static void project_rows(const Matrix& w, int64_t row, const float* x, float* out, int64_t out_step) {
  const int64_t row_bytes = w.columns * bytes_of(F), block = F == Stored::E4M3 ? SCALE_BLOCK : w.columns;
  const char* at = w.data + row * row_bytes;
  V sum[N][M];
  float rest[N][M];
  for (int j = 0; j < N; ++j)
    for (int t = 0; t < M; ++t) sum[j][t] = v_zero(), rest[j][t] = 0.0f;
  for (int64_t begin = 0; begin < w.columns; begin += block) {
    const int64_t end = begin + block < w.columns ? begin + block : w.columns;
    V part[N][M];
    for (int j = 0; j < N; ++j)
      for (int t = 0; t < M; ++t) part[j][t] = v_zero();
    float scale[N];
    for (int j = 0; j < N; ++j)
      scale[j] = F == Stored::E4M3
                     ? w.scales[(row + j) / SCALE_BLOCK * w.scale_columns + begin / SCALE_BLOCK] * unit<F>()
                     : 1.0f;
    int64_t c = begin;
    for (; c + W <= end; c += W)
      for (int j = 0; j < N; ++j) {
        const V weight = load<F>(at + j * row_bytes + c * bytes_of(F));
        for (int t = 0; t < M; ++t) part[j][t] = v_fma(weight, v_load(x + t * w.columns + c), part[j][t]);
      }
    for (; c < end; ++c)
      for (int j = 0; j < N; ++j) {
        const float weight = value<F>(at + j * row_bytes + c * bytes_of(F)) * scale[j];
        for (int t = 0; t < M; ++t) rest[j][t] = s_fma(weight, x[t * w.columns + c], rest[j][t]);
      }
    for (int j = 0; j < N; ++j)
      for (int t = 0; t < M; ++t) sum[j][t] = v_fma(part[j][t], spread(scale[j]), sum[j][t]);
  }
  for (int j = 0; j < N; ++j)
    for (int t = 0; t < M; ++t) out[t * out_step + j] = v_sum(sum[j][t]) + rest[j][t];
}

template <Stored F, int N>
static void project_tokens(const Matrix& w, int64_t row, const float* x, int64_t tokens, float* out, int64_t out_step) {
  int64_t t = 0;
  for (; t + 2 <= tokens; t += 2) project_rows<F, N, 2>(w, row, x + t * w.columns, out + t * out_step, out_step);
  if (t < tokens) project_rows<F, N, 1>(w, row, x + t * w.columns, out + t * out_step, out_step);
}

template <Stored F>
static void project_all(const Matrix& w, int64_t first, int64_t rows, const float* x, int64_t tokens, float* out, int64_t out_step) {
  int64_t v = 0;
  for (; v + 4 <= rows; v += 4) project_tokens<F, 4>(w, first + v, x, tokens, out + v, out_step);
  for (; v < rows; ++v) project_tokens<F, 1>(w, first + v, x, tokens, out + v, out_step);
}

static void project(const Matrix& w, int64_t first, int64_t rows, const float* x, int64_t tokens, float* out, int64_t out_step) {
  switch (w.format) {
    case Stored::F32: return project_all<Stored::F32>(w, first, rows, x, tokens, out, out_step);
    case Stored::BF16: return project_all<Stored::BF16>(w, first, rows, x, tokens, out, out_step);
    case Stored::F16: return project_all<Stored::F16>(w, first, rows, x, tokens, out, out_step);
    case Stored::E4M3: return project_all<Stored::E4M3>(w, first, rows, x, tokens, out, out_step);
  }
}

// ---- the cache ----------------------------------------------------------------------------------------------------------------

static void widen(const void* source, Stored format, int64_t count, float* out) {
  const char* at = static_cast<const char*>(source);
  switch (format) {
    case Stored::F32: return widen_row<Stored::F32>(at, count, 1.0f, out);
    case Stored::BF16: return widen_row<Stored::BF16>(at, count, 1.0f, out);
    case Stored::F16: return widen_row<Stored::F16>(at, count, 1.0f, out);
    case Stored::E4M3: return widen_row<Stored::E4M3>(at, count, unit<Stored::E4M3>(), out);
  }
}

static void store(const Cache& cache, int64_t s, const float* x, const float* weight, float eps, int64_t latent,
                  const float* rope_key, int64_t rope, float* scratch) {
  V squares = v_zero();
  int64_t i = 0;
  for (; i + W <= latent; i += W) squares = v_fma(v_load(x + i), v_load(x + i), squares);
  float sum = v_sum(squares);
  for (; i < latent; ++i) sum = s_fma(x[i], x[i], sum);
  const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(latent) + eps);
  for (int64_t c = 0; c < latent; ++c) scratch[c] = x[c] * factor * weight[c];
  char* at = cache.latent + s * cache.latent_step;
  if (cache.latent_format == Stored::E4M3) {
    float greatest = 0.0f;
    for (int64_t c = 0; c < latent; ++c) greatest = __builtin_fabsf(scratch[c]) > greatest ? __builtin_fabsf(scratch[c]) : greatest;
    const float scale = greatest > 0.0f ? greatest / 448.0f : 1.0f;
    for (int64_t c = 0; c < latent; ++c) scratch[c] /= scale;
    std::memcpy(cache.scale + s * cache.scale_step, &scale, sizeof scale);
  }
  narrow_row(scratch, cache.latent_format, latent, at);
  narrow_row(rope_key, cache.rope_format, rope, cache.rope + s * cache.rope_step);
}

static inline void fill_zero(float* begin, float* end) {
  for (; begin < end; ++begin) *begin = 0.0f;
}

// A cached token as a line.
static void widen_token(const Cache& cache, int64_t s, int64_t latent, int64_t rope, float* out) {
  const char* at = cache.latent + s * cache.latent_step;
  float* key = out + padded(latent);
  fill_zero(out + latent, key);
  fill_zero(key + rope, key + padded(rope));
  if (cache.latent_format == Stored::E4M3) {
    float scale;
    std::memcpy(&scale, cache.scale + s * cache.scale_step, sizeof scale);
    widen_row<Stored::E4M3>(at, latent, scale * unit<Stored::E4M3>(), out);
  } else {
    widen(at, cache.latent_format, latent, out);
  }
  widen(cache.rope + s * cache.rope_step, cache.rope_format, rope, key);
}

// ---- attention ----------------------------------------------------------------------------------------------------------------

// scores[t][r] = query r . token t, of the GROUP rows from `row` on and TILE tokens.
static inline void score_tile(const Piece& piece, int64_t row, int64_t s) {
  const int64_t step = piece.step, size = padded(piece.latent) + padded(piece.rope);
  const float *wide = piece.wide + s * step, *queries = piece.queries + row * step;
  V sum[TILE][GROUP];
#pragma GCC unroll 4
  for (int t = 0; t < TILE; ++t)
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; ++r) sum[t][r] = v_zero();
  for (int64_t a = 0; a < size; a += W) {
    V token[TILE];
#pragma GCC unroll 4
    for (int t = 0; t < TILE; ++t) token[t] = v_load(wide + t * step + a);
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; ++r) {
      const V query = v_load(queries + r * step + a);
#pragma GCC unroll 4
      for (int t = 0; t < TILE; ++t) sum[t][r] = v_fma(query, token[t], sum[t][r]);
    }
  }
  float* scores = piece.scores + row * CHUNK + s * GROUP;
#pragma GCC unroll 4
  for (int t = 0; t < TILE; ++t) sum4(sum[t], scores + t * GROUP);
}

// context[r] = context[r] * keep[r] + sum_s e^(score r, s) * latent s, of the GROUP rows from `row` on and N vectors.
template <int N>
static void context_tile(const Piece& piece, int64_t row, Ahead& ahead, int64_t c) {
  const int64_t step = piece.step, count = piece.count, width = padded(piece.latent);
  const float *wide = piece.wide + c, *scores = piece.scores + row * CHUNK;
  float* context = piece.context + row * width + c;
  V sum[GROUP][N];
#pragma GCC unroll 4
  for (int r = 0; r < GROUP; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i)
      sum[r][i] = piece.fresh ? v_zero() : v_load(context + r * width + i * W) * spread(piece.keep[row + r]);
  for (int64_t s = 0; s < count; ++s, wide += step, scores += GROUP) {
    if (s % ASKING == 0) ahead.after(ASKING * N);
    V token[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) token[i] = v_load(wide + i * W);
#pragma GCC unroll 4
    for (int r = 0; r < GROUP; ++r) {
      const V p = spread(scores[r]);
#pragma GCC unroll 4
      for (int i = 0; i < N; ++i) sum[r][i] = v_fma(p, token[i], sum[r][i]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < GROUP; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < N; ++i) v_store(context + r * width + i * W, sum[r][i]);
}

// Scores of a group become e^(score - most), 0 where a row may not see. A vector holds several tokens' scores.
static void soften(const Piece& piece, int64_t row) {
  constexpr int TOKENS = W / static_cast<int>(GROUP);
  I unseen;  // how many tokens from the lane's own one on are too many: seen where negative
  float most[W];
  for (int i = 0; i < W; ++i) {
    const int64_t r = row + i % GROUP, visible = piece.visible[r] < piece.count ? piece.visible[r] : piece.count;
    unseen[i] = static_cast<int32_t>(i / GROUP - visible);
    most[i] = piece.fresh ? NEVER : piece.most[r];
  }
  float* scores = piece.scores + row * CHUNK;
  const V before = v_load(most);
  V greatest = before, sum = v_zero();
  for (int32_t s = 0; s < piece.count; s += TOKENS)
    greatest = v_max(greatest, pick(unseen + s < 0, v_load(scores + s * GROUP), spread(NEVER)));
  v_store(most, greatest);
  for (int i = 0; i < W; ++i)
    for (int j = i % GROUP; j < W; j += GROUP) most[i] = most[i] > greatest[j] ? most[i] : greatest[j];
  const V all = v_load(most), keep = v_exp(before - all);
  for (int32_t s = 0; s < piece.count; s += TOKENS) {
    const V p = pick(unseen + s < 0, v_exp(v_load(scores + s * GROUP) - all), v_zero());
    v_store(scores + s * GROUP, p);
    sum = sum + p;
  }
  for (int64_t r = 0; r < GROUP; ++r) {
    float total = sum[r];
    for (int64_t j = r + GROUP; j < W; j += GROUP) total += sum[j];
    piece.total[row + r] = s_fma(piece.fresh ? 0.0f : piece.total[row + r], keep[r], total);
    piece.most[row + r] = all[r];
    piece.keep[row + r] = keep[r];
  }
}

static void attend(const Piece& piece) {
  const int64_t rows = piece.rows, vectors = padded(piece.latent) / W, size = vectors + padded(piece.rope) / W;
  Ahead ahead(piece, piece.count * rows / GROUP * (size + vectors));
  for (int64_t s = 0; s < piece.count; s += FEW) {
    const int64_t end = s + FEW < piece.count ? s + FEW : piece.count;
    for (int64_t t = s; t < end; ++t)
      widen_token(*piece.cache, piece.first + t, piece.latent, piece.rope, piece.wide + t * piece.step);
    for (int64_t row = 0; row < rows; row += GROUP)
      // a last tile that is not full works on whatever `wide` holds: those scores are not used
      for (int64_t t = s; t < end; t += TILE) {
        score_tile(piece, row, t);
        ahead.after(TILE * size);
      }
  }
  for (int64_t row = 0; row < rows; row += GROUP) soften(piece, row);
  // never a single vector at the end if that can be helped
  for (int64_t c = 0, left = vectors, count; left > 0; c += count * W, left -= count) {
    count = left <= TILE ? left : left < 2 * TILE ? (left + 1) / 2 : TILE;
    for (int64_t row = 0; row < rows; row += GROUP) switch (count) {
        case 1: context_tile<1>(piece, row, ahead, c); break;
        case 2: context_tile<2>(piece, row, ahead, c); break;
        default: context_tile<TILE>(piece, row, ahead, c); break;
      }
  }
}

static void merge(const Piece& piece, int64_t begin, int64_t end, float* most, float* total, float* context) {
  const int64_t width = padded(piece.latent);
  for (int64_t row = begin; row < end; ++row) {
    const float before = most[row], now = piece.most[row], both = before > now ? before : now;
    const V keep = spread(v_exp(spread(before - both))[0]), add = spread(v_exp(spread(now - both))[0]);
    most[row] = both;
    total[row] = s_fma(piece.total[row], add[0], total[row] * keep[0]);
    for (int64_t c = row * width; c < (row + 1) * width; c += W)
      v_store(context + c, v_fma(v_load(piece.context + c), add, v_load(context + c) * keep));
  }
}

extern const MlaKernels mla_kernels;
#if defined(DSV3RT_512)
static void attend_512(const Piece& piece) { piece.packed == nullptr ? attend(piece) : attend_by_pairs(piece); }
const MlaKernels mla_kernels = {&absorb, &project, &store, &attend_512, &merge, &widen, &by_pairs, &pairs_bytes, &pack_pairs};
#else
const MlaKernels mla_kernels = {&absorb, &project, &store, &attend, &merge, &widen, nullptr, nullptr, nullptr};
#endif
#if defined(DSV3RT_TILES)
static void attend_amx(const Piece& piece) { piece.packed == nullptr ? attend(piece) : attend_by_tiles(piece); }
extern const MlaKernels mla_amx_kernels;
const MlaKernels mla_amx_kernels = {&absorb, &project, &store, &attend_amx, &merge, &widen, &by_tiles, &packed_bytes, &pack};
#endif

}  // namespace DSV3RT_VARIANT

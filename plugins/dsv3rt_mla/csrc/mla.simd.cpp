// Latent attention for one instruction set; see mla_kernels.h for the legend and for what each function computes.
#include "dsv3rt_simd.h"
#include "mla_formats.h"
#include "mla_kernels.h"

namespace DSV3RT_VARIANT {

// Accumulators of a product: enough to hide the latency of a multiply-add, few enough for the registers.
constexpr int G = 8;
#if defined(DSV3RT_512)
constexpr int WIDE_G = 16;  // where their addresses are one register and a constant
#else
constexpr int WIDE_G = 8;
#endif
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

static void widen_token(const Cache& cache, int64_t s, int64_t latent, int64_t rope, float* out) {
  const char* at = cache.latent + s * cache.latent_step;
  if (cache.latent_format == Stored::E4M3) {
    float scale;
    std::memcpy(&scale, cache.scale + s * cache.scale_step, sizeof scale);
    widen_row<Stored::E4M3>(at, latent, scale * unit<Stored::E4M3>(), out);
  } else {
    widen(at, cache.latent_format, latent, out);
  }
  widen(cache.rope + s * cache.rope_step, cache.rope_format, rope, out + latent);
}

// ---- attention ----------------------------------------------------------------------------------------------------------------

// scores[token][row] of G tokens; meanwhile `lines` cache lines from `ahead` on are fetched.
static void score_group(const float* wide, int64_t step, int64_t size, const float* query, float* scores, const char* ahead,
                        int64_t lines) {
  V sum[G];
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) sum[g] = v_zero();
  const int64_t steps = lines > 0 ? (size + lines - 1) / lines : size;  // multiply-adds between two fetches
  for (int64_t a = 0; a < size; a += steps, ahead += 64) {
    if (lines > 0) prefetch(ahead);
    const int64_t count = a + steps < size ? steps : size - a;
    // the tokens' addresses as few bases and one step: all fit into registers
    const float *w0 = wide + a, *w1 = w0 + 4 * step, *q = query + a * W;
    for (int64_t i = 0; i < count; ++i, ++w0, ++w1, q += W) {
      const V row = v_load(q);
#pragma GCC unroll 16
      for (int g = 0; g < 4; ++g) sum[g] = v_fma(spread(w0[g * step]), row, sum[g]);
#pragma GCC unroll 16
      for (int g = 0; g < 4; ++g) sum[4 + g] = v_fma(spread(w1[g * step]), row, sum[4 + g]);
    }
  }
#pragma GCC unroll 16
  for (int g = 0; g < G; ++g) v_store(scores + g * W, sum[g]);
}

// context[c][row] of N consecutive c.
template <int N>
static void context_of(const Piece& piece, int64_t c) {
  const float *wide = piece.wide + c, *probs = piece.scores;
  float* context = piece.context + c * W;
  const int64_t step = piece.wide_step, count = piece.count;
  V sum[N];
#pragma GCC unroll 16
  for (int g = 0; g < N; ++g) sum[g] = v_zero();
  for (int64_t s = 0; s < count; ++s) {
    const V p = v_load(probs + s * W);
#pragma GCC unroll 16
    for (int g = 0; g < N; ++g) sum[g] = v_fma(spread(wide[s * step + g]), p, sum[g]);
  }
#pragma GCC unroll 16
  for (int g = 0; g < N; ++g) v_store(context + g * W, sum[g]);
}

// Scores become e^(score - most), 0 where a row may not see.
static void soften(const Piece& piece) {
  I visible = I{} + static_cast<int32_t>(CHUNK);
  if (piece.visible != nullptr) std::memcpy(&visible, piece.visible, sizeof visible);
  V most = spread(NEVER), total = v_zero();
  for (int64_t s = 0; s < piece.count; ++s) {
    const I seen = visible > static_cast<int32_t>(s);
    const V score = pick(seen, v_load(piece.scores + s * W), spread(NEVER));
    v_store(piece.scores + s * W, score);
    most = v_max(most, score);
  }
  for (int64_t s = 0; s < piece.count; ++s) {
    const I seen = visible > static_cast<int32_t>(s);
    const V p = pick(seen, v_exp(v_load(piece.scores + s * W) - most), v_zero());
    v_store(piece.scores + s * W, p);
    total = total + p;
  }
  v_store(piece.most, most);
  v_store(piece.total, total);
}

static void attend(const Piece& piece) {
  const int64_t size = piece.latent + piece.rope, end = piece.first + piece.count;
  const int64_t lines = piece.widen ? G * piece.cache->latent_step / 64 + 1 : 0;
  for (int64_t s = 0; s < piece.count; s += G) {
    // a last group that is not full works on whatever `wide` holds: those scores are not used
    const int64_t next = piece.first + s + G;
    if (piece.widen)
      for (int64_t i = piece.first + s; i < (next < end ? next : end); ++i)
        widen_token(*piece.cache, i, piece.latent, piece.rope, piece.wide + (i - piece.first) * piece.wide_step);
    score_group(piece.wide + s * piece.wide_step, piece.wide_step, size, piece.query, piece.scores + s * W,
                piece.cache->latent + next * piece.cache->latent_step, lines);
  }
  soften(piece);
  int64_t c = 0;
  for (; c + WIDE_G <= piece.latent; c += WIDE_G) context_of<WIDE_G>(piece, c);
  for (; c + 4 <= piece.latent; c += 4) context_of<4>(piece, c);
  for (; c < piece.latent; ++c) context_of<1>(piece, c);
}

static void merge(const Piece& piece, float* most, float* total, float* context) {
  const V before = v_load(most), now = v_load(piece.most), both = v_max(before, now);
  const V keep = v_exp(before - both), add = v_exp(now - both);
  v_store(most, both);
  v_store(total, v_fma(v_load(piece.total), add, v_load(total) * keep));
  for (int64_t c = 0; c < piece.latent; ++c)
    v_store(context + c * W, v_fma(v_load(piece.context + c * W), add, v_load(context + c * W) * keep));
}

extern const MlaKernels mla_kernels;
const MlaKernels mla_kernels = {W, &absorb, &project, &store, &attend, &merge, &widen};

}  // namespace DSV3RT_VARIANT

// Latent attention, one table of functions per instruction set (mla.simd.cpp), and the structures they share with mla.cpp.
//
// Legend: T new tokens, H heads, C kv latent rank, R rope dims, A = C + R, P no-rope dims, V value dims, S cached tokens.
// A row is one (token, head): row = t * H + h. Rows lie in the lanes of vectors: `width` rows are a bundle, and what belongs to a
// bundle is stored [..][width]. A lane's arithmetic does not depend on the other lanes, nor on how many bundles there are.
#pragma once
#include <cstdint>

enum class Stored : int { F32, BF16, F16, E4M3 };

// Tokens of the cache attended to at a time: at most CHUNK, and of the first CHUNK fewer, so that a short past is work for several
// threads. Where a chunk begins depends on its number alone.
constexpr int64_t CHUNK = 128, FIRST_CHUNKS = 4;
constexpr int64_t chunk_begin(int64_t i) {
  return i < FIRST_CHUNKS ? CHUNK / FIRST_CHUNKS * i : CHUNK * (i - FIRST_CHUNKS + 1);
}
// How many chunks hold `tokens` tokens.
constexpr int64_t chunks_of(int64_t tokens) {
  constexpr int64_t size = CHUNK / FIRST_CHUNKS;
  return tokens <= CHUNK ? (tokens + size - 1) / size : FIRST_CHUNKS + (tokens - 1) / CHUNK;
}
constexpr int64_t SCALE_BLOCK = 128;
constexpr float NEVER = -1e30f;  // the score of what may not be seen

// Rows of a row-major matrix as it lies in the checkpoint; value = weight * scale of its 128x128 block when it is e4m3.
struct Matrix {
  const char* data;
  Stored format;
  int64_t columns;
  const float* scales;  // nullptr unless e4m3
  int64_t scale_columns;
};

// The cache of one sequence: token s has its latent [C] at latent + s * latent_step bytes, its rope key [R] likewise, and, when
// latents are e4m3, the float32 scale they are to be multiplied with.
struct Cache {
  char* latent;
  int64_t latent_step;
  Stored latent_format;
  char* rope;
  int64_t rope_step;
  Stored rope_format;
  char* scale;  // nullptr unless e4m3
  int64_t scale_step;
};

// One bundle of rows against one chunk of tokens.
struct Piece {
  const Cache* cache;
  int64_t first, count;  // the chunk's tokens
  int64_t latent, rope;  // C, R
  bool widen;            // fill `wide` from the cache first (once per chunk)
  float* wide;           // [CHUNK][A], tokens `wide_step` floats apart
  int64_t wide_step;
  const float* query;    // [A][width], scaled
  const int32_t* visible;  // [width]: how many of the chunk's tokens each row may see; nullptr: all
  float* scores;         // [CHUNK][width]
  float* most;           // out [width]: each row's greatest score
  float* total;          // out [width]: sum of e^(score - most)
  float* context;        // out [C][width]: sum of e^(score - most) * latent
};

struct MlaKernels {
  int64_t width;
  // out[t][C] = sum_p q[t][p] * w[first + p][C], for T queries `q_step` floats apart; out rows are C apart
  void (*absorb)(const Matrix& w, int64_t first, int64_t rows, const float* q, int64_t q_step, int64_t tokens, float* out);
  // out[t][v] = sum_c x[t][c] * w[first + v][c]; x rows are C apart
  void (*project)(const Matrix& w, int64_t first, int64_t rows, const float* x, int64_t tokens, float* out, int64_t out_step);
  // Normalise a latent, x [C] with `weight` [C], and write it and its rope key into the cache at token s
  void (*store)(const Cache& cache, int64_t s, const float* x, const float* weight, float eps, int64_t latent,
                const float* rope_key, int64_t rope, float* scratch);
  void (*attend)(const Piece& piece);
  // Add a chunk's (most, total, context) to those of the chunks before it
  void (*merge)(const Piece& piece, float* most, float* total, float* context);
  // A stored row as float32
  void (*widen)(const void* source, Stored format, int64_t count, float* out);
};

namespace dsv3rt_portable { extern const MlaKernels mla_kernels; }
#if defined(__x86_64__)
namespace dsv3rt_avx2 { extern const MlaKernels mla_kernels; }
namespace dsv3rt_avx512 { extern const MlaKernels mla_kernels; }
namespace dsv3rt_avx512vbmi { extern const MlaKernels mla_kernels; }
#endif

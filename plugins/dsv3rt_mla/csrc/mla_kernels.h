// Latent attention, one table of functions per instruction set (mla.simd.cpp), and the structures they share with mla.cpp.
//
// Legend: T new tokens, H heads, C kv latent rank, R rope dims, P no-rope dims, V value dims, S cached tokens.
// A row is one (token, head): row = t * H + h. A row's arithmetic does not depend on the other rows, nor on how many there are.
// Queries and widened tokens lie in lines: a latent, zeros up to a whole number of vectors, a rope key, zeros likewise. Rows are
// computed in groups; those of a last group that is not full have queries of zero and see nothing.
#pragma once
#include <cstdint>

enum class Stored : int { F32, BF16, F16, E4M3 };

// Tokens of the cache that one thread attends to before its sums are added to those of all: at most SPAN, and of the first SPAN
// fewer, so that a short past is work for several threads. Where a span begins depends on its number alone.
constexpr int64_t SPAN = 192, FIRST_SPANS = 6;
constexpr int64_t span_begin(int64_t i) {
  return i < FIRST_SPANS ? SPAN / FIRST_SPANS * i : SPAN * (i - FIRST_SPANS + 1);
}
// How many spans hold `tokens` tokens.
constexpr int64_t spans_of(int64_t tokens) {
  constexpr int64_t size = SPAN / FIRST_SPANS;
  return tokens <= SPAN ? (tokens + size - 1) / size : FIRST_SPANS + (tokens - 1) / SPAN;
}
constexpr int64_t GROUP = 4;   // rows computed together
constexpr int64_t TILE_GROUP = 16;  // and by tiles; of pairs (mla_pairs.h) the rows whose scores lie together
constexpr int64_t CHUNK = 96;  // tokens of a span worked on at a time: widened, they stay in the second-level cache
// The floats of a vector are among these; what is padded to so many is padded for every instruction set.
constexpr int64_t LANES = 16;
constexpr int64_t padded(int64_t size) { return (size + LANES - 1) / LANES * LANES; }
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

// All rows of a sequence against one chunk of tokens. What belongs to a row is kept from chunk to chunk of a span.
struct Piece {
  const Cache* cache;
  int64_t first, count;  // the chunk's tokens
  int64_t latent, rope;  // C, R
  int64_t rows;          // whole groups
  int64_t step;            // floats from line to line
  float* wide;             // lines of the tokens, room for CHUNK
  const float* queries;    // lines of the rows, scaled
  const int32_t* visible;  // [rows]: how many tokens, from the chunk's first one on, each row may see; any number
  bool fresh;              // the first chunk of a span
  const uint8_t* packed;   // the queries as `pack` has left them; nullptr where they are not packed
  const char* ahead;       // latents of the chunk that this thread will probably be at next
  int64_t ahead_bytes;     // 0 if there is none
  float* scores;           // [groups][CHUNK][GROUP], or [groups of TILE_GROUP][CHUNK][TILE_GROUP]
  float* most;             // [rows]: the greatest score
  float* total;            // [rows]: sum of e^(score - most)
  float* keep;             // [rows]: e^(most before this chunk - most)
  float* context;          // [rows][padded(C)]: sum of e^(score - most) * latent
};

struct MlaKernels {
  // out[t][C] = sum_p q[t][p] * w[first + p][C], for T queries `q_step` floats apart; out rows are C apart
  void (*absorb)(const Matrix& w, int64_t first, int64_t rows, const float* q, int64_t q_step, int64_t tokens, float* out);
  // out[t][v] = sum_c x[t][c] * w[first + v][c]; x rows are C apart
  void (*project)(const Matrix& w, int64_t first, int64_t rows, const float* x, int64_t tokens, float* out, int64_t out_step);
  // Normalise a latent, x [C] with `weight` [C], and write it and its rope key into the cache at token s
  void (*store)(const Cache& cache, int64_t s, const float* x, const float* weight, float eps, int64_t latent,
                const float* rope_key, int64_t rope, float* scratch);
  void (*attend)(const Piece& piece);
  // Add the sums of a span's rows [begin, end) to those of the spans before it; `context` has the layout of a piece's
  void (*merge)(const Piece& piece, int64_t begin, int64_t end, float* most, float* total, float* context);
  // A stored row as float32
  void (*widen)(const void* source, Stored format, int64_t count, float* out);
  // Whether queries are packed for such a cache, the bytes that takes, and how it is done: for tiles, or for AVX-512 with caches in
  // bfloat16. All null where there is neither.
  bool (*packs)(const Cache& cache, int64_t latent, int64_t rope);
  int64_t (*packed_bytes)(int64_t rows, int64_t latent, int64_t rope);
  void (*pack)(const float* queries, int64_t step, int64_t rows, int64_t latent, int64_t rope, uint8_t* packed);
};

namespace dsv3rt_portable { extern const MlaKernels mla_kernels; }
#if defined(__x86_64__)
namespace dsv3rt_avx2 { extern const MlaKernels mla_kernels; }
namespace dsv3rt_avx512 { extern const MlaKernels mla_kernels; }
namespace dsv3rt_avx512vbmi { extern const MlaKernels mla_kernels, mla_amx_kernels; }
#endif

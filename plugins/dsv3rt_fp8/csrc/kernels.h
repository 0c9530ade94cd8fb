// The functions of kernels.simd.cpp, one table per instruction set; and what a stored matrix is.
//
// A product y = x W^T of up to SOME tokens sums over the columns of W with one float32 accumulator per lane, in one fixed order: so
// a token's result is bitwise the same alone and beside others. With more tokens the order is another, by tiles too.
#pragma once
#include <cstdint>

enum class Format : int64_t { E4M3 = 0, BF16 = 1, F16 = 2, F32 = 3 };

constexpr int64_t SOME = 16;    // tokens, at least as many as are promised to be independent of each other
constexpr int64_t GROUP = 64;   // rows of x are padded to a multiple of this
constexpr int64_t BLOCK = 128;  // rows and columns that share a scale

constexpr int64_t padded(int64_t columns) { return (columns + GROUP - 1) / GROUP * GROUP; }

// From one arranged row to the next: rows a multiple of a page apart would fall on each other in the caches.
constexpr int64_t row_stride(int64_t columns) { return padded(columns) + 16; }

struct PackedWord;

// A row-major matrix as it lies in the checkpoint; pointers may be unaligned.
struct Matrix {
  const uint8_t* data;
  const uint8_t* scales;  // E4M3: float32 [ceil(rows/128), ceil(columns/128)], else null
  Format format;
  int64_t columns;
  PackedWord* packed = nullptr;  // BF16: where to find the same in fewer bytes, see packed.h

  int64_t row_bytes() const { return columns * (format == Format::E4M3 ? 1 : format == Format::F32 ? 4 : 2); }
};

// Products by the processor's tiles: of any number of tokens with E4M3, of more than SOME with BF16. All null where there are none.
// Up to SOME tokens, a token's result is bitwise the same alone and beside others here too.
struct Tiles {
  // How many floats `tokens` packed rows of x take.
  int64_t (*packed_floats)(Format format, int64_t tokens, int64_t columns);
  // Rows [16 * group, 16 * group + 16) of x, as tiles want them.
  void (*pack)(Format format, const float* const* x, int64_t tokens, int64_t columns, int64_t group, float* packed);
  // As Kernels::dot, with packed rows.
  void (*dot)(const Matrix& w, int64_t first, int64_t rows, const float* packed, int64_t tokens, float* y, int64_t y_stride,
              float* scratch);
  int64_t (*scratch_floats)(Format format, int64_t tokens, int64_t rows);
};

struct Kernels {
  // Reorder and scale one row of x as `format` is unpacked, and pad it with zeros to padded(columns).
  void (*arrange)(Format format, const float* x, int64_t columns, float* arranged);
  // Whether `arrange` only pads.
  bool (*natural)(Format format);
  // y[t * y_stride + r] = W[first + r] . x[t] for r < rows, t < tokens; x[t] are arranged rows. `scratch_floats` says how many
  // floats of scratch it needs.
  void (*dot)(const Matrix& w, int64_t first, int64_t rows, const float* const* x, int64_t tokens, float* y, int64_t y_stride,
              float* scratch);
  int64_t (*scratch_floats)(int64_t tokens);
  // gate = silu(gate) * up
  void (*silu_mul)(float* gate, const float* up, int64_t size);
  // y += factor * x
  void (*add_scaled)(float* y, const float* x, float factor, int64_t size);
  // Whether any byte is one of e4m3's two NaN codes.
  bool (*has_nan)(const uint8_t* codes, int64_t bytes);
  Tiles tiles;
  // Packs bfloat16 weights as packed.h says, and whether that may be read now. Null where no packed weights are read.
  bool (*pack_weights)(const uint8_t* data, int64_t rows, int64_t columns, uint8_t* packed, PackedWord* word, const int32_t* stop);
};

namespace dsv3rt_portable { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace dsv3rt_avx2 { extern const Kernels kernels, amd_kernels; }
namespace dsv3rt_avx512 { extern const Kernels kernels; }
namespace dsv3rt_avx512vbmi { extern const Kernels kernels, amx_kernels; }
#endif

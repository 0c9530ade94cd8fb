// What linear.cpp and experts.cpp share: choosing kernels, reading tensors as matrices, arranging activations.
// T tokens, N rows (outputs), K columns (inputs).
#pragma once
#include "dsv3rt_native.h"
#include "kernels.h"
#include "packed.h"

inline const Kernels& kernels() {
#if defined(__x86_64__)
  switch (dsv3rt::selected_variant) {
#if defined(DSV3RT_HAS_AMX)
    case dsv3rt::VARIANT_AMX: return dsv3rt_avx512vbmi::amx_kernels;
#endif
    case dsv3rt::VARIANT_AVX512VBMI: return dsv3rt_avx512vbmi::kernels;
    case dsv3rt::VARIANT_AVX512: return dsv3rt_avx512::kernels;
    case dsv3rt::VARIANT_AVX2AMD: return dsv3rt_avx2::amd_kernels;
    case dsv3rt::VARIANT_AVX2: return dsv3rt_avx2::kernels;
    default: break;
  }
#endif
  return dsv3rt_portable::kernels;
}

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t PREFILL_TOKENS = 512;  // tokens worked on at a time, so that scratch stays bounded

// The T rows of x in the order in which a format is unpacked: x itself where possible, else a copy in this thread's scratch.
template <class Tag>
class Arranged {
 public:
  // `parallel_threads` > 1 spreads the copying.
  Arranged(Format format, const float* x, int64_t tokens, int64_t columns, int64_t threads) {
    rows_ = reinterpret_cast<const float**>(dsv3rt::scratch<RowsTag>(tokens * static_cast<int64_t>(sizeof(float*) / 4)));
    if (kernels().natural(format) && columns % GROUP == 0) {
      for (int64_t t = 0; t < tokens; ++t) rows_[t] = x + t * columns;
      return;
    }
    const int64_t width = row_stride(columns);
    float* out = dsv3rt::scratch<Tag>(tokens * width);
    for (int64_t t = 0; t < tokens; ++t) rows_[t] = out + t * width;
    const auto arrange = kernels().arrange;
    if (threads <= 1 || tokens <= 16) {
      for (int64_t t = 0; t < tokens; ++t) arrange(format, x + t * columns, columns, out + t * width);
      return;
    }
    dsv3rt::Tickets work;
    work.reset(tokens);
    dsv3rt::parallel(threads, tokens, [&](int64_t) {
      work.run([&](int64_t t) { arrange(format, x + t * columns, columns, out + t * width); });
    });
  }
  const float* const* rows() const { return rows_; }

 private:
  struct RowsTag {};
  const float** rows_;
};

// Rows of a matrix that one ticket covers: whole register sets, small enough that all threads have work.
inline int64_t ticket_rows(int64_t rows, int64_t threads, int64_t most) {
  int64_t size = most;
  while (size > 16 && divide_up(rows, size) < 4 * threads) size /= 2;
  return size;
}

// Where to find the packed weights of a bfloat16 matrix: an int64 tensor that is a PackedWord.
inline PackedWord* packed_of(const Tensor& packed, const Tensor& weight) {
  dsv3rt::check(weight.dtype() == dsv3rt::torch_api.bfloat16 && packed.dtype() == dsv3rt::torch_api.int64 &&
                    packed.dims() == 1 && packed.size(0) == 2 && packed.contiguous(),
                "packed weights are those of a bfloat16 matrix, found by an int64 [2]");
  return packed.data<PackedWord>();
}

struct DotScratch {};
struct PackedTag {};

// What a strip of rows costs by tiles beside its weights (filling and emptying the pipeline, adding the parts) pays from so many
// columns on: below, a decode step of a small model took 0.8 ms by tiles and 0.55 without.
constexpr int64_t FEW_TILES_COLUMNS = 512;

// The products of so many tokens with such weights, of `columns` at least, by tiles; null where that is not to be had. A few tokens
// with bfloat16 are read as fast without.
inline const Tiles* tiles_for(Format format, int64_t tokens, int64_t columns) {
  const bool served =
      tokens > SOME ? format == Format::E4M3 || format == Format::BF16 : format == Format::E4M3 && columns >= FEW_TILES_COLUMNS;
  return served && kernels().tiles.dot != nullptr ? &kernels().tiles : nullptr;
}

// The rows of x packed for tiles, in this thread's scratch.
inline const float* packed(const Tiles& tiles, Format format, const float* const* x, int64_t tokens, int64_t columns,
                           int64_t threads) {
  float* out = dsv3rt::scratch<PackedTag>(tiles.packed_floats(format, tokens, columns));
  dsv3rt::Tickets work;
  work.reset(divide_up(tokens, 16));
  dsv3rt::parallel(tokens > SOME ? threads : 1, tokens, [&](int64_t) {
    work.run([&](int64_t group) { tiles.pack(format, x, tokens, columns, group, out); });
  });
  return out;
}

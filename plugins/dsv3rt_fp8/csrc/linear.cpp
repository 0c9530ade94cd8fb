// Operators fp8_linear, dense_linear and packed_linear: y = x W^T with W as it lies in the checkpoint; the search for NaN codes;
// and packing.
#include "products.h"

DSV3RT_LIBRARY_MAIN

namespace {

using dsv3rt::check;
using dsv3rt::torch_api;

Format dense_format(int32_t dtype) {
  if (dtype == torch_api.bfloat16) return Format::BF16;
  if (dtype == torch_api.float16) return Format::F16;
  check(dtype == torch_api.float32, "dense_linear: the weight must be float32, bfloat16 or float16");
  return Format::F32;
}

struct XTag {};
struct RowsTag {};

// By tiles: `tokens` <= PREFILL_TOKENS.
void tile_product(const Tiles& tiles, const Matrix& w, int64_t rows, const float* x, int64_t tokens, float* y) {
  const int64_t threads = dsv3rt::threads_for(rows * w.row_bytes() * std::max<int64_t>(1, tokens / 2));
  const float** xs = reinterpret_cast<const float**>(dsv3rt::scratch<RowsTag>(2 * tokens));
  for (int64_t t = 0; t < tokens; ++t) xs[t] = x + t * w.columns;
  const float* ready = packed(tiles, w.format, xs, tokens, w.columns, threads);
  const int64_t span = ticket_rows(rows, threads, tokens > SOME ? BLOCK : GROUP);
  dsv3rt::Tickets work;
  work.reset(divide_up(rows, span), threads);
  dsv3rt::parallel(std::min(threads, divide_up(rows, span)), tokens, [&](int64_t thread) {
    float* own = dsv3rt::scratch<DotScratch>(tiles.scratch_floats(w.format, tokens, span));
    const auto some_rows = [&](int64_t i) {
      const int64_t first = i * span;
      tiles.dot(w, first, std::min(span, rows - first), ready, tokens, y + first, rows, own);
    };
    work.run(some_rows, thread);
  });
}

void product(const Matrix& w, int64_t rows, const float* x, int64_t tokens, float* y) {
  const int64_t work_per_token = rows * w.row_bytes();
  const int64_t threads = dsv3rt::threads_for(work_per_token * std::max<int64_t>(1, tokens / 2));
  const Kernels& k = kernels();
  for (int64_t begin = 0; begin < tokens; begin += PREFILL_TOKENS) {
    const int64_t count = std::min(PREFILL_TOKENS, tokens - begin);
    if (const Tiles* tiles = tiles_for(w.format, tokens, w.columns)) {
      tile_product(*tiles, w, rows, x + begin * w.columns, count, y + begin * rows);
      continue;
    }
    const Arranged<XTag> arranged(w.format, x + begin * w.columns, count, w.columns, threads);
    const float* const* xs = arranged.rows();
    const int64_t span = ticket_rows(rows, threads, count > 16 ? 128 : 64), scratch = k.scratch_floats(count);
    dsv3rt::Tickets work;
    work.reset(divide_up(rows, span), threads);
    dsv3rt::parallel(std::min(threads, divide_up(rows, span)), tokens, [&](int64_t thread) {
      float* own = dsv3rt::scratch<DotScratch>(scratch);
      const auto some_rows = [&](int64_t i) {
        const int64_t first = i * span;
        k.dot(w, first, std::min(span, rows - first), xs, count, y + begin * rows + first, rows, own);
      };
      work.run(some_rows, thread);
    });
  }
}

Tensor linear(const Tensor& x, const Tensor& weight, const uint8_t* scales, Format format, PackedWord* packed = nullptr) {
  const int64_t dims = x.dims();
  check(dims >= 1 && dims <= 8 && weight.dims() == 2 && weight.contiguous(), "linear: x must be [..., K] and the weight [N, K]");
  const float* data = x.floats("linear: x must be contiguous float32");
  const int64_t rows = weight.size(0), columns = weight.size(1);
  check(x.size(-1) == columns, "linear: x and the weight differ in their last dimension");
  int64_t sizes[8], tokens = 1;
  for (int64_t d = 0; d + 1 < dims; ++d) tokens *= sizes[d] = x.size(d);
  sizes[dims - 1] = rows;
  Tensor y = Tensor::empty(sizes, dims, torch_api.float32);
  product({weight.data<uint8_t>(), scales, format, columns, packed}, rows, data, tokens, y.data<float>());
  return y;
}

Tensor fp8_linear(const Tensor& x, const Tensor& weight, const Tensor& scale_inv) {
  check(weight.dtype() == torch_api.e4m3 && weight.dims() == 2, "fp8_linear: the weight must be float8_e4m3fn [N, K]");
  check(scale_inv.dtype() == torch_api.float32 && scale_inv.dims() == 2 && scale_inv.contiguous() &&
            scale_inv.size(0) == divide_up(weight.size(0), BLOCK) && scale_inv.size(1) == divide_up(weight.size(1), BLOCK),
        "fp8_linear: the scales must be float32 [ceil(N/128), ceil(K/128)]");
  return linear(x, weight, scale_inv.data<uint8_t>(), Format::E4M3);
}

Tensor dense_linear(const Tensor& x, const Tensor& weight) { return linear(x, weight, nullptr, dense_format(weight.dtype())); }

Tensor packed_linear(const Tensor& x, const Tensor& weight, const Tensor& packed) {
  return linear(x, weight, nullptr, Format::BF16, packed_of(packed, weight));
}

}  // namespace

DSV3RT_EXPORT int32_t aoti_torch_cpu_fp8_linear(dsv3rt::Handle x, dsv3rt::Handle weight, dsv3rt::Handle scale_inv,
                                                dsv3rt::Handle* y) {
  return dsv3rt::shim_call(
      y, [&] { return fp8_linear(Tensor::borrow(x), Tensor::borrow(weight), Tensor::borrow(scale_inv)); });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_dense_linear(dsv3rt::Handle x, dsv3rt::Handle weight, dsv3rt::Handle* y) {
  return dsv3rt::shim_call(y, [&] { return dense_linear(Tensor::borrow(x), Tensor::borrow(weight)); });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_packed_linear(dsv3rt::Handle x, dsv3rt::Handle weight, dsv3rt::Handle packed,
                                                   dsv3rt::Handle* y) {
  return dsv3rt::shim_call(
      y, [&] { return packed_linear(Tensor::borrow(x), Tensor::borrow(weight), Tensor::borrow(packed)); });
}

// Bytes of memory for the packed weights of a bfloat16 matrix; 0 where no packed weights are read.
DSV3RT_EXPORT int64_t dsv3rt_packed_bytes(int64_t rows, int64_t columns) {
  return kernels().pack_weights != nullptr ? PackedShape(rows, columns).bytes : 0;
}

// Fills such memory, by this thread alone, unless *stop becomes 1, and notes in the word that it may be read. Returns whether.
DSV3RT_EXPORT int dsv3rt_pack_weights(const uint8_t* data, int64_t rows, int64_t columns, uint8_t* packed, PackedWord* word,
                                      const int32_t* stop) {
  return kernels().pack_weights != nullptr && kernels().pack_weights(data, rows, columns, packed, word, stop);
}

// From now on the plain weights are read.
DSV3RT_EXPORT void dsv3rt_discard_packed(PackedWord* word) { __atomic_store_n(&word->state, PACKED_VOID, __ATOMIC_RELEASE); }

// Bytes that a product reads of packed weights; 0 where it reads the plain ones.
DSV3RT_EXPORT int64_t dsv3rt_packed_read_bytes(int64_t rows, int64_t columns, const PackedWord* word) {
  const int64_t state = __atomic_load_n(&word->state, __ATOMIC_ACQUIRE);
  if (state <= PACKED_VOID || word->self != reinterpret_cast<int64_t>(word)) return 0;
  const PackedShape shape(rows, columns);
  const int64_t escapes = head_of(reinterpret_cast<const uint8_t*>(state))->count * static_cast<int64_t>(sizeof(Escape));
  return shape.escapes - static_cast<int64_t>(sizeof(PackedHead)) + escapes;
}

// Whether `bytes` e4m3 codes hold a NaN. Reads with all threads.
DSV3RT_EXPORT int dsv3rt_has_nan(const uint8_t* codes, int64_t bytes) {
  constexpr int64_t piece = 1 << 20;
  std::atomic<bool> found{false};
  dsv3rt::Tickets work;
  const int64_t threads = dsv3rt::threads_for(bytes);
  work.reset(divide_up(bytes, piece), threads);
  dsv3rt::parallel(threads, 1, [&](int64_t thread) {
    const auto search = [&](int64_t i) {
      if (kernels().has_nan(codes + i * piece, std::min(piece, bytes - i * piece))) found = true;
    };
    work.run(search, thread);
  });
  return found;
}

void register_experts(dsv3rt::Registrar& registrar);

DSV3RT_OPERATORS {
  DSV3RT_OP("fp8_linear(Tensor x, Tensor weight, Tensor scale_inv) -> Tensor", fp8_linear);
  DSV3RT_OP("dense_linear(Tensor x, Tensor weight) -> Tensor", dense_linear);
  DSV3RT_OP("packed_linear(Tensor x, Tensor weight, Tensor packed) -> Tensor", packed_linear);
  register_experts(registrar);
}

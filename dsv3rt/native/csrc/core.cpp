// Operators of the core: rms_norm, add_rms_norm, those of choice.h; and a plain read of memory to measure the machine with.
// T rows, D row size.
#include "choice.h"
#include "core_variant.h"

DSV3RT_LIBRARY_MAIN

namespace {

using dsv3rt::check;
using dsv3rt::torch_api;

struct Rows {
  const float* data;
  int64_t count, size, stride;
};

// x [..., D] as rows with one stride: a contiguous tensor, or a slice of the last dimension of one.
Rows rows_of(const Tensor& x) {
  const int64_t dims = x.dims();
  check(dims >= 1 && x.dtype() == torch_api.float32, "rms_norm: x must be float32 [..., D]");
  const int64_t *sizes = x.sizes(), *strides = x.strides();
  const int64_t size = sizes[dims - 1];
  check(size <= 1 || strides[dims - 1] == 1, "rms_norm: the last dimension of x must be contiguous");
  int64_t count = 1, stride = size, expected = -1;
  for (int64_t d = dims - 2; d >= 0; --d) {
    if (sizes[d] == 1) continue;
    if (expected < 0) stride = strides[d];
    check(expected < 0 || strides[d] == expected, "rms_norm: the rows of x must lie at one stride");
    count *= sizes[d];
    expected = strides[d] * sizes[d];
  }
  if (sizes[0] == 0) count = 0;
  return {x.data<float>(), count, size, stride};
}

WeightKind kind_of(const Tensor& weight, int64_t size) {
  check(weight.dims() == 1 && weight.size(0) == size && weight.contiguous(), "rms_norm: the weight must be [D]");
  const int32_t dtype = weight.dtype();
  if (dtype == torch_api.float32) return WeightKind::F32;
  if (dtype == torch_api.bfloat16) return WeightKind::BF16;
  check(dtype == torch_api.float16, "rms_norm: the weight must be float32, bfloat16 or float16");
  return WeightKind::F16;
}

constexpr int64_t ROWS_A_TICKET = 16;

template <class F>
void over_rows(int64_t count, int64_t size, F&& row) {
  const int64_t tickets = (count + ROWS_A_TICKET - 1) / ROWS_A_TICKET;
  dsv3rt::Tickets work;
  work.reset(tickets);
  const int64_t threads = std::min<int64_t>(tickets, dsv3rt::threads_for(count * size * 4));
  dsv3rt::parallel(threads, count, [&](int64_t) {
    work.run([&](int64_t ticket) {
      const int64_t end = std::min(count, (ticket + 1) * ROWS_A_TICKET);
      for (int64_t t = ticket * ROWS_A_TICKET; t < end; ++t) row(t);
    });
  });
}

Tensor rms_norm(const Tensor& x, const Tensor& weight, double eps) {
  const Rows in = rows_of(x);
  const WeightKind kind = kind_of(weight, in.size);
  Tensor y = Tensor::empty(x.sizes(), x.dims(), torch_api.float32);
  float* out = y.data<float>();
  const void* w = weight.data<void>();
  const CoreKernels& k = kernels();
  over_rows(in.count, in.size, [&](int64_t t) {
    k.rms_norm(in.data + t * in.stride, w, kind, in.size, static_cast<float>(eps), out + t * in.size);
  });
  return y;
}

std::tuple<Tensor, Tensor> add_rms_norm(const Tensor& x, const Tensor& residual, const Tensor& weight, double eps) {
  const Rows in = rows_of(x), other = rows_of(residual);
  check(in.count == other.count && in.size == other.size, "add_rms_norm: x and residual differ in shape");
  const WeightKind kind = kind_of(weight, in.size);
  Tensor sum = Tensor::empty(x.sizes(), x.dims(), torch_api.float32);
  Tensor y = Tensor::empty(x.sizes(), x.dims(), torch_api.float32);
  float *sums = sum.data<float>(), *out = y.data<float>();
  const void* w = weight.data<void>();
  const CoreKernels& k = kernels();
  over_rows(in.count, in.size, [&](int64_t t) {
    float* row = sums + t * in.size;
    k.add(in.data + t * in.stride, other.data + t * other.stride, in.size, row);
    k.rms_norm(row, w, kind, in.size, static_cast<float>(eps), out + t * in.size);
  });
  return {std::move(sum), std::move(y)};
}

}  // namespace

DSV3RT_OPERATORS {
  DSV3RT_OP("greatest(Tensor x, int k) -> (Tensor, Tensor)", greatest);
  DSV3RT_OP("draw_draft(Tensor logits, Tensor rule, Tensor uniform, int k) -> (Tensor, Tensor, Tensor)", draw_draft);
  DSV3RT_OP(
      "settle_drafts(Tensor drafts, Tensor logits, Tensor draft_ids, Tensor draft_probs, Tensor rule, Tensor uniforms) -> "
      "(Tensor, Tensor, Tensor)",
      settle_drafts);
  DSV3RT_OP("rms_norm(Tensor x, Tensor weight, float eps) -> Tensor", rms_norm);
  DSV3RT_OP("add_rms_norm(Tensor x, Tensor residual, Tensor weight, float eps) -> (Tensor, Tensor)", add_rms_norm);
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_rms_norm(dsv3rt::Handle x, dsv3rt::Handle weight, double eps, dsv3rt::Handle* y) {
  return dsv3rt::shim_call(y, [&] { return rms_norm(Tensor::borrow(x), Tensor::borrow(weight), eps); });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_add_rms_norm(dsv3rt::Handle x, dsv3rt::Handle residual, dsv3rt::Handle weight, double eps,
                                                  dsv3rt::Handle* sum, dsv3rt::Handle* y) {
  return dsv3rt::shim_call(
      sum, y, [&] { return add_rms_norm(Tensor::borrow(x), Tensor::borrow(residual), Tensor::borrow(weight), eps); });
}

// Read `bytes` (a multiple of 8) once with all threads, as fast as the machine can. Returns a checksum.
DSV3RT_EXPORT uint64_t dsv3rt_read(const void* data, int64_t bytes) {
  constexpr int64_t piece = 256 << 10;
  const CoreKernels& k = kernels();
  dsv3rt::Tickets work;
  work.reset((bytes + piece - 1) / piece);
  std::atomic<uint64_t> sum{0};
  dsv3rt::parallel(dsv3rt::threads_for(bytes), 1, [&](int64_t) {
    work.run([&](int64_t i) {
      const int64_t begin = i * piece, size = std::min(piece, bytes - begin);
      sum += k.read(reinterpret_cast<const uint64_t*>(static_cast<const char*>(data) + begin), size / 8);
    });
  });
  return sum;
}

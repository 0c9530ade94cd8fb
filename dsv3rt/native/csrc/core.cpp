// Operators of the core: rms_norm, add_rms_norm, greatest; and a plain read of memory to measure the machine with.
// T rows, D row size, K greatest values.
#include <cmath>
#include <limits>

#include "core_kernels.h"
#include "dsv3rt_native.h"

DSV3RT_LIBRARY_MAIN

namespace {

using dsv3rt::check;
using dsv3rt::torch_api;

const CoreKernels& kernels() {
#if defined(__x86_64__)
  switch (dsv3rt::selected_variant) {
    case dsv3rt::VARIANT_AMX:
    case dsv3rt::VARIANT_AVX512VBMI: return dsv3rt_avx512vbmi::core_kernels;
    case dsv3rt::VARIANT_AVX512: return dsv3rt_avx512::core_kernels;
    case dsv3rt::VARIANT_AVX2AMD:
    case dsv3rt::VARIANT_AVX2: return dsv3rt_avx2::core_kernels;
    default: break;
  }
#endif
  return dsv3rt_portable::core_kernels;
}

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

struct Found {};

// Ids of the `wanted` greatest of a row, in order: NaN first, of equals the lowest id.
void greatest_of_row(const float* x, int64_t size, int64_t wanted, int64_t* ids) {
  const auto before = [x](int64_t a, int64_t b) {
    const bool odd_a = std::isnan(x[a]), odd_b = std::isnan(x[b]);
    if (odd_a || odd_b) return odd_a && (!odd_b || a < b);
    return x[a] > x[b] || (x[a] == x[b] && a < b);
  };
  // what is found is cut back to the greatest so far when there is no more room, and then only greater ones are found
  const int64_t room = 4 * wanted + LANES;
  int64_t* found = reinterpret_cast<int64_t*>(dsv3rt::scratch<Found>(2 * room));
  int64_t at = 0, count = 0;
  float floor = std::numeric_limits<float>::quiet_NaN();  // which nothing is at most
  while (at < size) {
    count += kernels().above(x, &at, size, floor, found + count, room - count);
    if (count <= wanted || (at < size && count + LANES <= room)) continue;
    std::nth_element(found, found + wanted - 1, found + count, before);
    count = wanted;
    floor = x[found[wanted - 1]];
    if (std::isnan(floor)) break;
  }
  std::sort(found, found + wanted, before);
  std::copy(found, found + wanted, ids);
}

std::tuple<Tensor, Tensor> greatest(const Tensor& x, int64_t wanted) {
  const int64_t dims = x.dims();
  check(dims == 2 && wanted > 0 && wanted <= x.size(1), "greatest: x must be [T, D], with D at least as large as k");
  const float* data = x.floats("greatest: x must be contiguous float32");
  const int64_t rows = x.size(0), size = x.size(1), shape[2] = {rows, wanted};
  Tensor values = Tensor::empty(shape, 2, torch_api.float32), ids = Tensor::empty(shape, 2, torch_api.int64);
  float* out = values.data<float>();
  int64_t* out_ids = ids.data<int64_t>();
  dsv3rt::Tickets work;
  work.reset(rows);
  dsv3rt::parallel(std::min(rows, dsv3rt::threads_for(rows * size * 4)), rows, [&](int64_t) {
    work.run([&](int64_t t) {
      greatest_of_row(data + t * size, size, wanted, out_ids + t * wanted);
      for (int64_t i = t * wanted; i < (t + 1) * wanted; ++i) out[i] = data[t * size + out_ids[i]];
    });
  });
  return {std::move(values), std::move(ids)};
}

}  // namespace

DSV3RT_OPERATORS {
  DSV3RT_OP("greatest(Tensor x, int k) -> (Tensor, Tensor)", greatest);
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

DSV3RT_EXPORT int32_t aoti_torch_cpu_greatest(dsv3rt::Handle x, int64_t k, dsv3rt::Handle* values, dsv3rt::Handle* ids) {
  return dsv3rt::shim_call(values, ids, [&] { return greatest(Tensor::borrow(x), k); });
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

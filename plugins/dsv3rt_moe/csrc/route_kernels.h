// The functions of route.simd.cpp, one table per instruction set.
#pragma once
#include <cstdint>

struct RouteKernels {
  // logits[n * step + e] = x[n] . weight[e] for N tokens and `experts` rows of `size`; a product does not depend on the others
  void (*logits)(const float* x, int64_t tokens, const float* weight, int64_t experts, int64_t size, float* logits, int64_t step);
  // In place: 1 / (1 + e^-x), or softmax
  void (*sigmoid)(float* scores, int64_t experts);
  void (*softmax)(float* scores, int64_t experts);
};

namespace dsv3rt_portable { extern const RouteKernels route_kernels; }
#if defined(__x86_64__)
namespace dsv3rt_avx2 { extern const RouteKernels route_kernels; }
namespace dsv3rt_avx512 { extern const RouteKernels route_kernels; }
namespace dsv3rt_avx512vbmi { extern const RouteKernels route_kernels; }
#endif

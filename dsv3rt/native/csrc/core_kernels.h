// The functions of core.simd.cpp, one table per instruction set.
#pragma once
#include <cstdint>

constexpr int64_t LANES = 16;  // a vector has at most so many

enum class WeightKind : int { F32, BF16, F16 };

struct CoreKernels {
  // y = x / sqrt(mean(x^2) + eps) * weight, one row of `size`
  void (*rms_norm)(const float* x, const void* weight, WeightKind kind, int64_t size, float eps, float* y);
  // sum = x + residual, one row
  void (*add)(const float* x, const float* residual, int64_t size, float* sum);
  // Positions of values above `floor` (NaN is above everything), ascending, from `*begin` on: as many as fit into `room`,
  // at least LANES, or up to the end. Returns how many, with `*begin` where to go on.
  int64_t (*above)(const float* x, int64_t* begin, int64_t size, float floor, int64_t* found, int64_t room);
  // sum of e^((x - top) / divisor) over a row
  double (*sum_exp)(const float* x, int64_t size, float top, float divisor);
  // a checksum of `words` 64-bit words: a plain read
  uint64_t (*read)(const uint64_t* data, int64_t words);
};

namespace dsv3rt_portable { extern const CoreKernels core_kernels; }
#if defined(__x86_64__)
namespace dsv3rt_avx2 { extern const CoreKernels core_kernels; }
namespace dsv3rt_avx512 { extern const CoreKernels core_kernels; }
namespace dsv3rt_avx512vbmi { extern const CoreKernels core_kernels; }
#endif

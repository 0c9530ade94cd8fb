// RMS norm and a plain read, for one instruction set.
#include "core_kernels.h"
#include "dsv3rt_simd.h"

namespace DSV3RT_VARIANT {

static inline float weight_at(const void* weight, WeightKind kind, int64_t i) {
  switch (kind) {
    case WeightKind::BF16: {
      uint16_t bits;
      std::memcpy(&bits, static_cast<const char*>(weight) + 2 * i, 2);
      return bf16_to_float(bits);
    }
    case WeightKind::F16: {
      uint16_t bits;
      std::memcpy(&bits, static_cast<const char*>(weight) + 2 * i, 2);
      return half_to_float(bits);
    }
    default: {
      float value;
      std::memcpy(&value, static_cast<const char*>(weight) + 4 * i, 4);
      return value;
    }
  }
}

template <WeightKind kind>
static void scale_row(const float* x, const void* weight, int64_t size, float factor, float* y) {
  for (int64_t i = 0; i < size; ++i) y[i] = x[i] * factor * weight_at(weight, kind, i);
}

static void rms_norm(const float* x, const void* weight, WeightKind kind, int64_t size, float eps, float* y) {
  V sum0 = v_zero(), sum1 = v_zero();
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W) {
    const V a = v_load(x + i), b = v_load(x + i + W);
    sum0 = v_fma(a, a, sum0);
    sum1 = v_fma(b, b, sum1);
  }
  float sum = v_sum(sum0 + sum1);
  for (; i < size; ++i) sum += x[i] * x[i];
  const float factor = 1.0f / __builtin_sqrtf(sum / static_cast<float>(size) + eps);
  if (kind == WeightKind::BF16) return scale_row<WeightKind::BF16>(x, weight, size, factor, y);
  if (kind == WeightKind::F16) return scale_row<WeightKind::F16>(x, weight, size, factor, y);
  scale_row<WeightKind::F32>(x, weight, size, factor, y);
}

static void add(const float* x, const float* residual, int64_t size, float* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] = x[i] + residual[i];
}

static uint64_t read(const uint64_t* data, int64_t words) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < words; ++i) sum += data[i];
  return sum;
}

extern const CoreKernels core_kernels;
const CoreKernels core_kernels = {&rms_norm, &add, &read};

}  // namespace DSV3RT_VARIANT

// RMS norm, what choosing tokens needs, and a plain read, for one instruction set.
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

// A bit for each lane of x that is not at most `floor`.
static inline uint32_t lanes_above(V x, float floor) {
#if defined(DSV3RT_512)
  return _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(floor), _CMP_NLE_UQ);
#elif defined(DSV3RT_IS_AVX2)
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)x, _mm256_set1_ps(floor), _CMP_NLE_UQ)));
#else
  uint32_t bits = 0;
  for (int i = 0; i < W; ++i) bits |= static_cast<uint32_t>(!(x[i] <= floor)) << i;
  return bits;
#endif
}

static int64_t above(const float* x, int64_t* begin, int64_t size, float floor, int64_t* found, int64_t room) {
  int64_t i = *begin, count = 0;
  for (; i + W <= size && count + W <= room; i += W)
    for (uint32_t bits = lanes_above(v_load(x + i), floor); bits != 0; bits &= bits - 1) found[count++] = i + __builtin_ctz(bits);
  if (i + W > size)
    for (; i < size && count < room; ++i)
      if (!(x[i] <= floor)) found[count++] = i;
  *begin = i;
  return count;
}

static double sum_exp(const float* x, int64_t size, float top, float divisor) {
  V sum = v_zero();
  int64_t i = 0;
  for (; i + W <= size; i += W) sum += v_exp((v_load(x + i) - v_set(top)) / v_set(divisor));
  double total = v_sum(sum);
  for (; i < size; ++i) total += v_exp(v_set((x[i] - top) / divisor))[0];
  return total;
}

static uint64_t read(const uint64_t* data, int64_t words) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < words; ++i) sum += data[i];
  return sum;
}

extern const CoreKernels core_kernels;
const CoreKernels core_kernels = {&rms_norm, &add, &above, &sum_exp, &read};

}  // namespace DSV3RT_VARIANT

// Router logits and their scores, for one instruction set.
#include "dsv3rt_simd.h"
#include "route_kernels.h"

namespace DSV3RT_VARIANT {

static inline float fused(float a, float b, float c) {
#if defined(DSV3RT_512) || defined(DSV3RT_IS_AVX2) || defined(__aarch64__)
  return __builtin_fmaf(a, b, c);
#else
  return a * b + c;
#endif
}

// M tokens times N experts. Each product adds up in the same order whatever M and N are.
template <int M, int N>
static void block(const float* x, const float* weight, int64_t size, float* logits, int64_t step) {
  V even[M][N], odd[M][N];
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) even[m][n] = odd[m][n] = v_zero();
  int64_t i = 0;
  for (; i + 2 * W <= size; i += 2 * W)
    for (int n = 0; n < N; ++n) {
      const V first = v_load(weight + n * size + i), second = v_load(weight + n * size + i + W);
      for (int m = 0; m < M; ++m) {
        even[m][n] = v_fma(first, v_load(x + m * size + i), even[m][n]);
        odd[m][n] = v_fma(second, v_load(x + m * size + i + W), odd[m][n]);
      }
    }
  for (int m = 0; m < M; ++m)
    for (int n = 0; n < N; ++n) {
      float sum = v_sum(even[m][n] + odd[m][n]);
      for (int64_t j = i; j < size; ++j) sum = fused(weight[n * size + j], x[m * size + j], sum);
      logits[m * step + n] = sum;
    }
}

template <int N>
static void all_tokens(const float* x, int64_t tokens, const float* weight, int64_t size, float* logits, int64_t step) {
  int64_t m = 0;
  for (; m + 2 <= tokens; m += 2) block<2, N>(x + m * size, weight, size, logits + m * step, step);
  if (m < tokens) block<1, N>(x + m * size, weight, size, logits + m * step, step);
}

static void logits(const float* x, int64_t tokens, const float* weight, int64_t experts, int64_t size, float* out, int64_t step) {
  int64_t e = 0;
  for (; e + 4 <= experts; e += 4) all_tokens<4>(x, tokens, weight + e * size, size, out + e, step);
  for (; e < experts; ++e) all_tokens<1>(x, tokens, weight + e * size, size, out + e, step);
}

// f of each, W at a time; the last ones through a buffer.
template <class F>
static void each(float* x, int64_t count, F f) {
  int64_t i = 0;
  for (; i + W <= count; i += W) v_store(x + i, f(v_load(x + i)));
  if (i == count) return;
  float rest[W] = {0};
  for (int64_t j = i; j < count; ++j) rest[j - i] = x[j];
  v_store(rest, f(v_load(rest)));
  for (int64_t j = i; j < count; ++j) x[j] = rest[j - i];
}

static void sigmoid(float* scores, int64_t experts) {
  each(scores, experts, [](V x) { return v_set(1.0f) / (v_set(1.0f) + v_exp(-x)); });
}

static void softmax(float* scores, int64_t experts) {
  float most = scores[0], sum = 0.0f;
  for (int64_t e = 1; e < experts; ++e) most = scores[e] > most ? scores[e] : most;
  each(scores, experts, [most](V x) { return v_exp(x - v_set(most)); });
  for (int64_t e = 0; e < experts; ++e) sum += scores[e];
  for (int64_t e = 0; e < experts; ++e) scores[e] /= sum;
}

extern const RouteKernels route_kernels;
const RouteKernels route_kernels = {&logits, &sigmoid, &softmax};

}  // namespace DSV3RT_VARIANT

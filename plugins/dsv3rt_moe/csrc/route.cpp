// The operator `route`: which experts a token goes to, with what weights; one call for what is a dozen in torch.
//
// Legend: N tokens, D hidden, E experts, G groups, K chosen experts.
#include <limits>

#include "dsv3rt_native.h"
#include "route_kernels.h"

DSV3RT_LIBRARY_MAIN

namespace {

using dsv3rt::check;
using dsv3rt::torch_api;

const RouteKernels& kernels() {
#if defined(__x86_64__)
  switch (dsv3rt::selected_variant) {
    case dsv3rt::VARIANT_AMX:
    case dsv3rt::VARIANT_AVX512VBMI: return dsv3rt_avx512vbmi::route_kernels;
    case dsv3rt::VARIANT_AVX512: return dsv3rt_avx512::route_kernels;
    case dsv3rt::VARIANT_AVX2AMD:
    case dsv3rt::VARIANT_AVX2: return dsv3rt_avx2::route_kernels;
    default: break;
  }
#endif
  return dsv3rt_portable::route_kernels;
}

constexpr float NEVER = -std::numeric_limits<float>::infinity();
constexpr int64_t EXPERTS_A_TICKET = 16;

struct Scores {};
struct Choice {};

// The greatest of those not taken yet, the first among equals; one of them even if all are NaN.
int64_t take_best(const float* values, int64_t count, bool* taken) {
  int64_t best = -1;
  for (int64_t i = 0; i < count; ++i)
    if (!taken[i] && (best < 0 || values[i] > values[best])) best = i;
  taken[best] = true;
  return best;
}

// Experts outside the `keep` best groups are out. A group is worth the sum of its `best` (1 or 2) greatest scores.
void keep_groups(float* choice, int64_t experts, int64_t groups, int64_t keep, int64_t best) {
  constexpr int64_t most_groups = 256;
  check(groups <= most_groups, "route: too many groups");
  const int64_t size = experts / groups;
  float worth[most_groups];
  bool kept[most_groups] = {false};
  for (int64_t g = 0; g < groups; ++g) {
    float first = NEVER, second = NEVER;
    for (int64_t i = g * size; i < (g + 1) * size; ++i) {
      if (choice[i] > first) {
        second = first;
        first = choice[i];
      } else if (choice[i] > second) {
        second = choice[i];
      }
    }
    worth[g] = best == 1 || size == 1 ? first : first + second;
  }
  for (int64_t i = 0; i < keep; ++i) take_best(worth, groups, kept);
  for (int64_t g = 0; g < groups; ++g)
    if (!kept[g]) std::fill(choice + g * size, choice + (g + 1) * size, NEVER);
}

std::tuple<Tensor, Tensor> route(const Tensor& x, const Tensor& weight, const Tensor& bias, int64_t groups, int64_t keep,
                                 int64_t best_of_group, int64_t chosen, bool softmax, bool renormalise, double scale) {
  const float* rows = x.floats("route: x must be contiguous float32 [N, D]");
  const float* matrix = weight.floats("route: the weight must be contiguous float32 [E, D]");
  const float* biases = bias.floats("route: the bias must be contiguous float32");
  check(x.dims() == 2 && weight.dims() == 2 && weight.size(1) == x.size(1), "route: x [N, D] and weight [E, D] do not fit");
  const int64_t tokens = x.size(0), size = x.size(1), experts = weight.size(0);
  constexpr int64_t most_experts = 4096;
  check(experts <= most_experts && chosen <= experts && groups >= 1 && experts % groups == 0 && keep <= groups,
        "route: these experts cannot be grouped and chosen so");
  check(bias.numel() == 0 || bias.numel() == experts, "route: the bias must be empty or [E]");
  float* scores = dsv3rt::scratch<Scores>(tokens * experts);
  const RouteKernels& k = kernels();
  dsv3rt::Tickets work;
  work.reset((experts + EXPERTS_A_TICKET - 1) / EXPERTS_A_TICKET);
  dsv3rt::parallel(dsv3rt::threads_for(experts * size * 4), tokens, [&](int64_t) {
    work.run([&](int64_t i) {
      const int64_t first = i * EXPERTS_A_TICKET, count = std::min(EXPERTS_A_TICKET, experts - first);
      k.logits(rows, tokens, matrix + first * size, count, size, scores + first, experts);
    });
  });

  const int64_t shape[2] = {tokens, chosen};
  Tensor weights = Tensor::empty(shape, 2, torch_api.float32), ids = Tensor::empty(shape, 2, torch_api.int64);
  float *out = weights.data<float>(), *choice = dsv3rt::scratch<Choice>(experts);
  int64_t* out_ids = ids.data<int64_t>();
  for (int64_t n = 0; n < tokens; ++n, out += chosen, out_ids += chosen) {
    float* own = scores + n * experts;
    (softmax ? k.softmax : k.sigmoid)(own, experts);
    for (int64_t e = 0; e < experts; ++e) choice[e] = bias.numel() ? own[e] + biases[e] : own[e];
    if (groups > 1 && best_of_group > 0) keep_groups(choice, experts, groups, keep, best_of_group);
    bool taken[most_experts];
    std::fill(taken, taken + experts, false);
    float sum = 0.0f;
    for (int64_t i = 0; i < chosen; ++i) {
      out_ids[i] = take_best(choice, experts, taken);
      out[i] = own[out_ids[i]];
      sum += out[i];
    }
    const float factor = static_cast<float>(scale), total = sum + 1e-20f;
    for (int64_t i = 0; i < chosen; ++i) out[i] = (renormalise ? out[i] / total : out[i]) * factor;
  }
  return {std::move(weights), std::move(ids)};
}

}  // namespace

DSV3RT_OPERATORS {
  DSV3RT_OP(
      "route(Tensor x, Tensor weight, Tensor bias, int groups, int keep, int best_of_group, int chosen, bool softmax, "
      "bool renormalise, float scale) -> (Tensor, Tensor)",
      route);
}

using dsv3rt::Handle;

DSV3RT_EXPORT int32_t aoti_torch_cpu_route(Handle x, Handle weight, Handle bias, int64_t groups, int64_t keep,
                                           int64_t best_of_group, int64_t chosen, int32_t softmax, int32_t renormalise,
                                           double scale, Handle* weights, Handle* ids) {
  return dsv3rt::shim_call(weights, ids, [&] {
    return route(Tensor::borrow(x), Tensor::borrow(weight), Tensor::borrow(bias), groups, keep, best_of_group, chosen,
                 softmax != 0, renormalise != 0, scale);
  });
}

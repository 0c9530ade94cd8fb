// Operators that choose tokens from logits: greatest, draw_draft, settle_drafts. What they compute is said, and written in torch,
// in ops.py and drafts.py; each is one call for what is a dozen or two there.
//
// Legend: T rows, D row size, V vocabulary, C candidates of a row, best first.
#include "choice.h"

#include <cmath>
#include <functional>
#include <limits>

#include "core_variant.h"

namespace {

using dsv3rt::check;
using dsv3rt::torch_api;

constexpr int32_t FLOAT64 = 7;  // c10::ScalarType::Double

struct Found {};
struct Keys {};

// A number that is greater, the greater `value` is, and of equals the lower `id` is. NaN is greater than all.
uint64_t key_of(float value, int64_t id) {
  uint32_t bits = std::numeric_limits<uint32_t>::max();
  if (!std::isnan(value)) {
    value += 0.0f;  // -0 becomes 0, its equal
    std::memcpy(&bits, &value, sizeof bits);
    bits = bits >> 31 ? ~bits : bits | 0x80000000u;
  }
  return static_cast<uint64_t>(bits) << 32 | (0xffffffffu - static_cast<uint32_t>(id));
}

int64_t id_of(uint64_t key) { return 0xffffffffu - static_cast<uint32_t>(key); }

// Ids of the `wanted` greatest of a row, in order: NaN first, of equals the lowest id.
void greatest_of_row(const float* x, int64_t size, int64_t wanted, int64_t* ids) {
  // what is found is cut back to the greatest so far when there is no more room, and then only greater ones are found
  const int64_t room = 4 * wanted + LANES;
  int64_t* found = reinterpret_cast<int64_t*>(dsv3rt::scratch<Found>(2 * room));
  uint64_t* keys = reinterpret_cast<uint64_t*>(dsv3rt::scratch<Keys>(2 * room));
  int64_t at = 0, count = 0;
  float floor = std::numeric_limits<float>::quiet_NaN();  // which nothing is at most
  while (at < size) {
    const int64_t more = kernels().above(x, &at, size, floor, found, room - count);
    for (int64_t i = 0; i < more; ++i) keys[count++] = key_of(x[found[i]], found[i]);
    if (count <= wanted || (at < size && count + LANES <= room)) continue;
    std::nth_element(keys, keys + wanted - 1, keys + count, std::greater<>());
    count = wanted;
    floor = x[id_of(keys[wanted - 1])];
    if (std::isnan(floor)) break;
  }
  std::sort(keys, keys + wanted, std::greater<>());
  std::transform(keys, keys + wanted, ids, id_of);
}

// One row after another, on as many threads as are worth it.
template <class F>
void over_rows(int64_t rows, int64_t size, F&& row) {
  dsv3rt::Tickets work;
  work.reset(rows);
  dsv3rt::parallel(std::min(rows, dsv3rt::threads_for(rows * size * 4)), rows, [&](int64_t) { work.run(row); });
}

struct Rule {
  float temperature, top_k, top_p, min_p;

  explicit Rule(const Tensor& rule) {
    check(rule.dims() == 1 && rule.size(0) == 4, "the rule must be [4]");
    const float* values = rule.floats("the rule must be contiguous float32");
    temperature = values[0], top_k = values[1], top_p = values[2], min_p = values[3];
  }
};

// How many of the `count` best, whose weights fall, the rule keeps when all tokens together weigh `mass`.
int64_t kept_of(const float* weights, int64_t count, const Rule& rule, double mass) {
  double before = 0;
  int64_t kept = 0;
  for (; kept < count; before += weights[kept++]) {
    if (rule.top_p < 1 && before >= rule.top_p * mass) break;
    if (!(weights[kept] >= rule.min_p)) break;
  }
  return kept;
}

// Candidates of a row and their probabilities, 0 for what the rule leaves out. False where it does not leave out all tokens that
// are no candidates, or the logits are not numbers (the probabilities then neither).
bool shortlist_of_row(const float* x, int64_t size, const Rule& rule, int64_t count, int64_t* ids, float* probs) {
  greatest_of_row(x, size, count, ids);
  const float top = x[ids[0]];
  if (!std::isfinite(top)) {
    std::fill(probs, probs + count, std::numeric_limits<float>::quiet_NaN());
    return false;
  }
  double all = 0;
  for (int64_t i = 0; i < count; ++i) all += probs[i] = std::exp((x[ids[i]] - top) / rule.temperature);
  const bool limited = rule.top_k > 0 && rule.top_k < static_cast<float>(size);
  int64_t among = count;
  if (limited) {
    among = std::min(count, static_cast<int64_t>(rule.top_k));
    const float last = x[ids[among - 1]];
    while (among < count && x[ids[among]] >= last) ++among;  // ties with the k-th stay
    all = 0;
    for (int64_t i = 0; i < among; ++i) all += probs[i];
  }
  int64_t kept = kept_of(probs, among, rule, all);
  // what all others weigh matters seldom: no more than the last candidate each
  if (!limited && rule.top_p < 1 && kept != kept_of(probs, among, rule, all + static_cast<double>(size - count) * probs[count - 1]))
    kept = kept_of(probs, among, rule, kernels().sum_exp(x, size, top, rule.temperature));
  double sum = 0;
  for (int64_t i = 0; i < kept; ++i) sum += probs[i];
  for (int64_t i = 0; i < count; ++i) probs[i] = i < kept ? static_cast<float>(probs[i] / sum) : 0.0f;
  return count == size || (kept < count && !(limited && among == count));
}

// An index with probability weights / sum(weights), from a number in [0, 1).
int64_t draw(const float* weights, int64_t count, double uniform) {
  double total = 0;
  for (int64_t i = 0; i < count; ++i) total += weights[i];
  const double point = uniform * total;
  double sum = 0;
  int64_t last = 0;  // rounding may put the point on the total itself: then the last that has any weight is meant
  for (int64_t i = 0; i < count; ++i) {
    if (weights[i] > 0) last = i;
    sum += weights[i];
    if (sum > point) return i;
  }
  return last;
}

// What a row's distribution gives to one token.
float share_of(int64_t token, const int64_t* ids, const float* probs, int64_t count) {
  for (int64_t i = 0; i < count; ++i)
    if (ids[i] == token) return probs[i];
  return 0.0f;
}

const int64_t* integers(const Tensor& x, const char* complaint) {
  check(x.dtype() == torch_api.int64 && x.contiguous(), complaint);
  return x.data<int64_t>();
}

const double* numbers(const Tensor& x, int64_t count) {
  check(x.dtype() == FLOAT64 && x.contiguous() && x.numel() == count, "the random numbers must be contiguous float64, one a draw");
  return x.data<double>();
}

struct Ids {};
struct Probs {};
struct Left {};

}  // namespace

std::tuple<Tensor, Tensor> greatest(const Tensor& x, int64_t wanted) {
  const int64_t dims = x.dims();
  check(dims == 2 && wanted > 0 && wanted <= x.size(1), "greatest: x must be [T, D], with D at least as large as k");
  check(x.size(1) < int64_t{1} << 32, "greatest: a row is too long");
  const float* data = x.floats("greatest: x must be contiguous float32");
  const int64_t rows = x.size(0), size = x.size(1), shape[2] = {rows, wanted};
  Tensor values = Tensor::empty(shape, 2, torch_api.float32), ids = Tensor::empty(shape, 2, torch_api.int64);
  float* out = values.data<float>();
  int64_t* out_ids = ids.data<int64_t>();
  over_rows(rows, size, [&](int64_t t) {
    greatest_of_row(data + t * size, size, wanted, out_ids + t * wanted);
    for (int64_t i = t * wanted; i < (t + 1) * wanted; ++i) out[i] = data[t * size + out_ids[i]];
  });
  return {std::move(values), std::move(ids)};
}

std::tuple<Tensor, Tensor, Tensor> draw_draft(const Tensor& logits, const Tensor& rule, const Tensor& uniform, int64_t wanted) {
  check(logits.dims() == 2 && wanted > 0 && wanted <= logits.size(1) && logits.size(1) < int64_t{1} << 32,
        "draw_draft: logits must be [T, V], with V at least as large as k");
  const float* data = logits.floats("draw_draft: logits must be contiguous float32");
  const int64_t rows = logits.size(0), size = logits.size(1), shape[2] = {rows, wanted};
  const double number = *numbers(uniform, 1);
  const Rule by(rule);
  Tensor drafts = Tensor::empty(&rows, 1, torch_api.int64);
  Tensor ids = Tensor::empty(shape, 2, torch_api.int64), probs = Tensor::empty(shape, 2, torch_api.float32);
  int64_t *out = drafts.data<int64_t>(), *out_ids = ids.data<int64_t>();
  float* out_probs = probs.data<float>();
  over_rows(rows, size, [&](int64_t t) {
    int64_t* own = out_ids + t * wanted;
    shortlist_of_row(data + t * size, size, by, wanted, own, out_probs + t * wanted);
    out[t] = own[draw(out_probs + t * wanted, wanted, number)];
  });
  return {std::move(drafts), std::move(ids), std::move(probs)};
}

std::tuple<Tensor, Tensor, Tensor> settle_drafts(const Tensor& drafts, const Tensor& logits, const Tensor& draft_ids,
                                                 const Tensor& draft_probs, const Tensor& rule, const Tensor& uniforms) {
  check(logits.dims() == 2 && draft_ids.dims() == 2 && draft_probs.dims() == 2, "settle_drafts: logits [T, V], draft_* [T, C]");
  const float* data = logits.floats("settle_drafts: logits must be contiguous float32");
  const int64_t rows = logits.size(0), size = logits.size(1), count = draft_ids.size(1), one = 1;
  check(rows > 0 && count > 0 && count <= size && size < int64_t{1} << 32 && draft_ids.size(0) == rows &&
            draft_probs.size(0) == rows && draft_probs.size(1) == count && drafts.numel() == rows,
        "settle_drafts: drafts [T], logits [T, V] and draft_* [T, C] do not fit");
  const int64_t* wanted = integers(drafts, "settle_drafts: drafts must be contiguous int64");
  const int64_t* q_ids = integers(draft_ids, "settle_drafts: draft_ids must be contiguous int64");
  const float* q = draft_probs.floats("settle_drafts: draft_probs must be contiguous float32");
  const double* uniform = numbers(uniforms, rows);
  const Rule by(rule);
  int64_t* ids = reinterpret_cast<int64_t*>(dsv3rt::scratch<Ids>(2 * rows * count));
  float *p = dsv3rt::scratch<Probs>(rows * count), *left = dsv3rt::scratch<Left>(count);
  std::atomic<bool> whole{true};
  over_rows(rows, size, [&](int64_t t) {
    if (!shortlist_of_row(data + t * size, size, by, count, ids + t * count, p + t * count)) whole = false;
  });

  int64_t accepted = 0;
  for (; accepted + 1 < rows; ++accepted) {
    const int64_t at = accepted * count, draft = wanted[accepted];
    if (!(uniform[accepted] * share_of(draft, q_ids + at, q + at, count) < share_of(draft, ids + at, p + at, count))) break;
  }
  const int64_t at = accepted * count;
  float sum = 0;
  for (int64_t i = 0; i < count; ++i) {
    left[i] = p[at + i];
    if (left[i] > 0) left[i] = std::max(0.0f, left[i] - share_of(ids[at + i], q_ids + at, q + at, count));
    sum += left[i];
  }
  // nothing is left when p = q but for rounding: then p itself is as good
  const int64_t token = ids[at + draw(sum > 0 ? left : p + at, count, uniform[rows - 1])];

  Tensor settled = Tensor::empty(&rows, 1, torch_api.int64), kept = Tensor::empty(&one, 1, torch_api.int64);
  Tensor fine = Tensor::empty(&one, 1, torch_api.int64);
  int64_t* out = settled.data<int64_t>();
  for (int64_t t = 0; t < rows; ++t) out[t] = t < accepted ? wanted[t] : token;
  *kept.data<int64_t>() = accepted;
  *fine.data<int64_t>() = whole;
  return {std::move(settled), std::move(kept), std::move(fine)};
}

using dsv3rt::Handle;

static void hand_over(std::tuple<Tensor, Tensor, Tensor> results, Handle* first, Handle* second, Handle* third) {
  *first = std::get<0>(results).release();
  *second = std::get<1>(results).release();
  *third = std::get<2>(results).release();
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_greatest(Handle x, int64_t k, Handle* values, Handle* ids) {
  return dsv3rt::shim_call(values, ids, [&] { return greatest(Tensor::borrow(x), k); });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_draw_draft(Handle logits, Handle rule, Handle uniform, int64_t k, Handle* drafts, Handle* ids,
                                                Handle* probs) {
  return dsv3rt::shim_call([&] {
    hand_over(draw_draft(Tensor::borrow(logits), Tensor::borrow(rule), Tensor::borrow(uniform), k), drafts, ids, probs);
  });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_settle_drafts(Handle drafts, Handle logits, Handle draft_ids, Handle draft_probs, Handle rule,
                                                   Handle uniforms, Handle* settled, Handle* accepted, Handle* fine) {
  return dsv3rt::shim_call([&] {
    hand_over(settle_drafts(Tensor::borrow(drafts), Tensor::borrow(logits), Tensor::borrow(draft_ids), Tensor::borrow(draft_probs),
                            Tensor::borrow(rule), Tensor::borrow(uniforms)),
              settled, accepted, fine);
  });
}

// Operators experts, fp8_ffn, dense_ffn and packed_ffn: y = down(silu(gate x) * (up x)), for the experts a router chose, or for
// one network.
//
// Two phases in one parallel region. First: rows of gate and up, GROUP at a time, for every expert that some token chose, into h.
// Then: rows of y, each from all experts; a token's experts are added in the order of its slots, so that nothing depends on which
// other tokens are there. Many tokens go by tiles where the processor has them: compute_by_tiles.
// T tokens, K slots of a token, P = T*K pairs, D hidden, F intermediate, E experts.
#include <vector>

#include "products.h"

namespace {

using dsv3rt::check;
using dsv3rt::torch_api;

struct Network {
  Matrix gate, up, down;
};

struct Visit {  // an expert and the pairs that want it: sorted places [begin, end)
  int64_t expert, begin, end;
};

// The pairs sorted by expert: experts ascending, pairs of one expert ascending.
struct Plan {
  std::vector<int64_t> pairs;  // place -> pair
  std::vector<int64_t> place;  // pair -> place
  std::vector<Visit> visits;
  int64_t most = 0;  // pairs of the busiest expert

  void sort(const int64_t* ids, int64_t count, int64_t experts) {
    keys_.resize(static_cast<size_t>(count));
    for (int64_t p = 0; p < count; ++p) {
      check(ids[p] >= 0 && ids[p] < experts, "experts: an id is out of range");
      keys_[static_cast<size_t>(p)] = {ids[p], p};
    }
    std::sort(keys_.begin(), keys_.end());
    pairs.resize(keys_.size());
    place.resize(keys_.size());
    visits.clear();
    most = 0;
    for (int64_t at = 0; at < count; ++at) {
      const auto [expert, pair] = keys_[static_cast<size_t>(at)];
      pairs[static_cast<size_t>(at)] = pair;
      place[static_cast<size_t>(pair)] = at;
      if (visits.empty() || visits.back().expert != expert) visits.push_back({expert, at, at});
      most = std::max(most, ++visits.back().end - visits.back().begin);
    }
  }

  void all_to_one(int64_t tokens) {
    visits.assign(1, {0, 0, tokens});
    most = tokens;
    pairs.resize(static_cast<size_t>(tokens));
    for (int64_t t = 0; t < tokens; ++t) pairs[static_cast<size_t>(t)] = t;
  }

 private:
  std::vector<std::pair<int64_t, int64_t>> keys_;  // expert, pair
};

struct XTag {};
struct HTag {};
struct OwnTag {};
struct RowsTag {};

struct Shape {
  int64_t tokens, slots, hidden, intermediate;
};

// The rows of one visit packed for tiles; a thread keeps those of the visit it is at.
class PackedVisit {
 public:
  const float* of(const Tiles& tiles, Format format, const Plan& plan, int64_t visit, const float* x, int64_t stride, int64_t slots,
                  int64_t columns) {
    const auto [expert, begin, end] = plan.visits[static_cast<size_t>(visit)];
    const int64_t count = end - begin;
    if (visit == visit_) return data_;
    visit_ = visit;
    data_ = dsv3rt::scratch<PackedTag>(tiles.packed_floats(format, count, columns));
    const float** rows = reinterpret_cast<const float**>(dsv3rt::scratch<RowsTag>(2 * count));
    for (int64_t i = 0; i < count; ++i) rows[i] = x + plan.pairs[static_cast<size_t>(begin + i)] / slots * stride;
    for (int64_t group = 0; group < divide_up(count, 16); ++group) tiles.pack(format, rows, count, columns, group, data_);
    return data_;
  }

 private:
  int64_t visit_ = -1;
  float* data_ = nullptr;
};

struct DownTag {};

// y by tiles, in three phases: experts one after another, a thread's tickets those of neighbouring rows, so that what it has
// packed serves many of them; at the end a token's experts are added.
template <class Networks>
void compute_by_tiles(const Tiles& tiles, const Networks& networks, const Plan& plan, const Shape& shape, int64_t threads,
                      const float* x, const float* weights, float* y) {
  const Kernels& k = kernels();
  const auto [tokens, slots, hidden, intermediate] = shape;
  const int64_t pairs = tokens * slots, visits = static_cast<int64_t>(plan.visits.size());
  const Format format = networks(plan.visits[0].expert).gate.format;
  float* h = dsv3rt::scratch<HTag>(pairs * intermediate);                           // [P, F]
  float* down = weights == nullptr ? y : dsv3rt::scratch<DownTag>(pairs * hidden);  // [P, D]
  const int64_t span = tokens > SOME ? BLOCK : ticket_rows(std::min(intermediate, hidden), threads, GROUP);
  const int64_t inner = divide_up(intermediate, span), outer = divide_up(hidden, span);
  dsv3rt::Tickets first, second, third;
  first.reset(visits * inner, threads);
  second.reset(visits * outer, threads);
  third.reset(weights == nullptr ? 0 : tokens, threads);

  dsv3rt::parallel(threads, tokens, [&](int64_t thread) {
    float* own = dsv3rt::scratch<DotScratch>(tiles.scratch_floats(format, plan.most, span));
    float* gate = dsv3rt::scratch<OwnTag>(2 * plan.most * span);
    PackedVisit xs, hs;

    const auto into_h = [&](int64_t ticket) {
      const Visit& visit = plan.visits[static_cast<size_t>(ticket / inner)];
      const Network network = networks(visit.expert);
      const int64_t row = ticket % inner * span, size = std::min(span, intermediate - row), count = visit.end - visit.begin;
      const float* packed = xs.of(tiles, format, plan, ticket / inner, x, hidden, slots, hidden);
      float* up = gate + count * span;
      tiles.dot(network.gate, row, size, packed, count, gate, span, own);
      tiles.dot(network.up, row, size, packed, count, up, span, own);
      for (int64_t i = 0; i < count; ++i) {
        k.silu_mul(gate + i * span, up + i * span, size);
        std::memcpy(h + plan.pairs[static_cast<size_t>(visit.begin + i)] * intermediate + row, gate + i * span,
                    static_cast<size_t>(size) * sizeof(float));
      }
    };
    first.run(into_h, thread);
    first.wait();

    const auto out_of_h = [&](int64_t ticket) {
      const Visit& visit = plan.visits[static_cast<size_t>(ticket / outer)];
      const int64_t row = ticket % outer * span, size = std::min(span, hidden - row), count = visit.end - visit.begin;
      const float* packed = hs.of(tiles, format, plan, ticket / outer, h, intermediate, 1, intermediate);
      tiles.dot(networks(visit.expert).down, row, size, packed, count, down + visit.begin * hidden + row, hidden, own);
    };
    second.run(out_of_h, thread);
    second.wait();

    const auto into_y = [&](int64_t t) {
      std::memset(y + t * hidden, 0, static_cast<size_t>(hidden) * sizeof(float));
      for (int64_t p = t * slots; p < (t + 1) * slots; ++p)
        k.add_scaled(y + t * hidden, down + plan.place[static_cast<size_t>(p)] * hidden, weights[p], hidden);
    };
    third.run(into_y, thread);
  });
}

// networks(e) -> Network, all in one format. weights null: one slot of weight 1.
template <class Networks>
void compute(const Networks& networks, const Plan& plan, const Shape& shape, const float* x, const float* weights, float* y) {
  const Kernels& k = kernels();
  const auto [tokens, slots, hidden, intermediate] = shape;
  const int64_t pairs = tokens * slots, width = row_stride(intermediate), visits = static_cast<int64_t>(plan.visits.size());
  const Matrix sample = networks(plan.visits[0].expert).gate;
  const Format format = sample.format;
  const int64_t bytes = 3 * intermediate * sample.row_bytes();
  const int64_t threads = dsv3rt::threads_for(bytes * std::max(visits, pairs / 2));
  if (const Tiles* tiles = tiles_for(format, tokens, std::min(hidden, intermediate)))
    return compute_by_tiles(*tiles, networks, plan, shape, threads, x, weights, y);
  const Arranged<XTag> arranged(format, x, tokens, hidden, threads);
  const float* const* xs = arranged.rows();
  float* h = dsv3rt::scratch<HTag>(pairs * width);  // [P, width], in the order that `down` is unpacked in

  const int64_t groups = divide_up(intermediate, GROUP), span = ticket_rows(hidden, threads, pairs > 64 ? 128 : 64);
  const int64_t dot_floats = k.scratch_floats(plan.most), own_floats = std::max(2 * plan.most * GROUP, pairs * span);
  dsv3rt::Tickets first, second;
  first.reset(visits * groups, threads);
  second.reset(divide_up(hidden, span), threads);

  dsv3rt::parallel(threads, tokens, [&](int64_t thread) {
    float* dots = dsv3rt::scratch<DotScratch>(dot_floats);
    float* own = dsv3rt::scratch<OwnTag>(own_floats);
    const float** rows = reinterpret_cast<const float**>(dsv3rt::scratch<RowsTag>(plan.most * 2));

    const auto into_h = [&](int64_t ticket) {
      const Visit& visit = plan.visits[static_cast<size_t>(ticket / groups)];
      const Network network = networks(visit.expert);
      const int64_t row = ticket % groups * GROUP, size = std::min(GROUP, intermediate - row), count = visit.end - visit.begin;
      const int64_t* mine = plan.pairs.data() + visit.begin;
      for (int64_t i = 0; i < count; ++i) rows[i] = xs[mine[i] / slots];
      float *gate = own, *up = own + count * GROUP;
      k.dot(network.gate, row, size, rows, count, gate, GROUP, dots);
      k.dot(network.up, row, size, rows, count, up, GROUP, dots);
      for (int64_t i = 0; i < count; ++i) {
        k.silu_mul(gate + i * GROUP, up + i * GROUP, size);
        k.arrange(format, gate + i * GROUP, size, h + mine[i] * width + row);
      }
    };
    first.run(into_h, thread);
    first.wait();

    const auto into_y = [&](int64_t ticket) {
      const int64_t row = ticket * span, size = std::min(span, hidden - row);
      for (const Visit& visit : plan.visits) {
        const int64_t count = visit.end - visit.begin;
        for (int64_t i = 0; i < count; ++i) rows[i] = h + plan.pairs[static_cast<size_t>(visit.begin + i)] * width;
        if (weights == nullptr) {
          k.dot(networks(0).down, row, size, rows, count, y + row, hidden, dots);
        } else {
          k.dot(networks(visit.expert).down, row, size, rows, count, own + visit.begin * span, span, dots);
        }
      }
      if (weights == nullptr) return;
      for (int64_t t = 0; t < tokens; ++t) std::memset(y + t * hidden + row, 0, static_cast<size_t>(size) * sizeof(float));
      for (int64_t p = 0; p < pairs; ++p)
        k.add_scaled(y + p / slots * hidden + row, own + plan.place[static_cast<size_t>(p)] * span, weights[p], size);
    };
    second.run(into_y, thread);
  });
}

constexpr const char* EXPERTS_SHAPES =
    "experts: x must be float32 [T, D], weights float32 [T, K], ids int64 [T, K], table int64 [E, 3, 3], all contiguous";

Tensor experts(const Tensor& x, const Tensor& weights, const Tensor& ids, const Tensor& table, int64_t intermediate,
               int64_t format) {
  check(x.dims() == 2 && weights.dims() == 2 && ids.dims() == 2 && table.dims() == 3, EXPERTS_SHAPES);
  const int64_t tokens = x.size(0), hidden = x.size(1), slots = ids.size(1), count = table.size(0);
  check(weights.size(0) == tokens && ids.size(0) == tokens && weights.size(1) == slots && table.size(1) == 3 &&
            table.size(2) == 3 && ids.contiguous() && table.contiguous() && ids.dtype() == torch_api.int64 &&
            table.dtype() == torch_api.int64 && intermediate > 0 && format >= 0 && format <= 3,
        EXPERTS_SHAPES);
  const float *xs = x.floats(EXPERTS_SHAPES), *w = weights.floats(EXPERTS_SHAPES);
  const int64_t *chosen = ids.data<int64_t>(), *pointers = table.data<int64_t>();
  Tensor y = Tensor::empty(x.sizes(), 2, torch_api.float32);
  float* out = y.data<float>();
  const auto networks = [&](int64_t expert) {
    const auto matrix = [&](int64_t which, int64_t columns) {
      const int64_t* entry = pointers + (expert * 3 + which) * 3;
      return Matrix{reinterpret_cast<const uint8_t*>(entry[0]), reinterpret_cast<const uint8_t*>(entry[1]),
                    static_cast<Format>(format), columns, reinterpret_cast<PackedWord*>(entry[2])};
    };
    return Network{matrix(0, hidden), matrix(1, hidden), matrix(2, intermediate)};
  };
  for (int64_t begin = 0; begin < tokens; begin += PREFILL_TOKENS) {
    const int64_t some = std::min(PREFILL_TOKENS, tokens - begin);
    static thread_local Plan plan;
    plan.sort(chosen + begin * slots, some * slots, count);
    compute(networks, plan, {some, slots, hidden, intermediate}, xs + begin * hidden, w + begin * slots, out + begin * hidden);
  }
  return y;
}

constexpr const char* FFN_SHAPES = "ffn: x must be contiguous float32 [..., D], gate and up [F, D], down [D, F] in one format";

Tensor ffn(const Tensor& x, const Network& network, int64_t intermediate) {
  const int64_t hidden = network.gate.columns;
  const float* xs = x.floats(FFN_SHAPES);
  check(x.dims() >= 1 && x.size(-1) == hidden, FFN_SHAPES);
  const int64_t tokens = hidden ? x.numel() / hidden : 0;
  Tensor y = Tensor::empty(x.sizes(), x.dims(), torch_api.float32);
  float* out = y.data<float>();
  for (int64_t begin = 0; begin < tokens; begin += PREFILL_TOKENS) {
    const int64_t some = std::min(PREFILL_TOKENS, tokens - begin);
    static thread_local Plan plan;
    plan.all_to_one(some);
    compute([&](int64_t) { return network; }, plan, {some, 1, hidden, intermediate}, xs + begin * hidden, nullptr,
            out + begin * hidden);
  }
  return y;
}

Matrix matrix_of(const Tensor& weight, const uint8_t* scales, Format format, PackedWord* packed = nullptr) {
  check(weight.dims() == 2 && weight.contiguous(), FFN_SHAPES);
  return {weight.data<uint8_t>(), scales, format, weight.size(1), packed};
}

int64_t intermediate_of(const Tensor& gate, const Tensor& up, const Tensor& down) {
  const int64_t rows = gate.size(0), columns = gate.size(1);
  check(up.size(0) == rows && up.size(1) == columns && down.size(0) == columns && down.size(1) == rows, FFN_SHAPES);
  return rows;
}

Tensor dense_ffn(const Tensor& x, const Tensor& gate, const Tensor& up, const Tensor& down) {
  const int32_t dtype = gate.dtype();
  const Format format = dtype == torch_api.bfloat16 ? Format::BF16 : dtype == torch_api.float16 ? Format::F16 : Format::F32;
  check((format != Format::F32 || dtype == torch_api.float32) && up.dtype() == dtype && down.dtype() == dtype, FFN_SHAPES);
  const Network network{matrix_of(gate, nullptr, format), matrix_of(up, nullptr, format), matrix_of(down, nullptr, format)};
  return ffn(x, network, intermediate_of(gate, up, down));
}

Tensor packed_ffn(const Tensor& x, const Tensor& gate, const Tensor& gate_packed, const Tensor& up, const Tensor& up_packed,
                  const Tensor& down, const Tensor& down_packed) {
  const Network network{matrix_of(gate, nullptr, Format::BF16, packed_of(gate_packed, gate)),
                        matrix_of(up, nullptr, Format::BF16, packed_of(up_packed, up)),
                        matrix_of(down, nullptr, Format::BF16, packed_of(down_packed, down))};
  return ffn(x, network, intermediate_of(gate, up, down));
}

const uint8_t* scales_of(const Tensor& scales, const Tensor& weight) {
  check(weight.dtype() == torch_api.e4m3 && scales.dtype() == torch_api.float32 && scales.dims() == 2 && scales.contiguous() &&
            scales.size(0) == divide_up(weight.size(0), BLOCK) && scales.size(1) == divide_up(weight.size(1), BLOCK),
        "fp8_ffn: weights must be float8_e4m3fn [N, K] with scales float32 [ceil(N/128), ceil(K/128)]");
  return scales.data<uint8_t>();
}

Tensor fp8_ffn(const Tensor& x, const Tensor& gate, const Tensor& gate_scale_inv, const Tensor& up, const Tensor& up_scale_inv,
               const Tensor& down, const Tensor& down_scale_inv) {
  const Network network{matrix_of(gate, scales_of(gate_scale_inv, gate), Format::E4M3),
                        matrix_of(up, scales_of(up_scale_inv, up), Format::E4M3),
                        matrix_of(down, scales_of(down_scale_inv, down), Format::E4M3)};
  return ffn(x, network, intermediate_of(gate, up, down));
}

}  // namespace

void register_experts(dsv3rt::Registrar& registrar) {
  DSV3RT_OP("experts(Tensor x, Tensor weights, Tensor ids, Tensor table, int intermediate, int format) -> Tensor", experts);
  DSV3RT_OP("dense_ffn(Tensor x, Tensor gate, Tensor up, Tensor down) -> Tensor", dense_ffn);
  DSV3RT_OP(
      "packed_ffn(Tensor x, Tensor gate, Tensor gate_packed, Tensor up, Tensor up_packed, Tensor down, Tensor down_packed) -> Tensor",
      packed_ffn);
  DSV3RT_OP(
      "fp8_ffn(Tensor x, Tensor gate, Tensor gate_scale_inv, Tensor up, Tensor up_scale_inv, Tensor down, "
      "Tensor down_scale_inv) -> Tensor",
      fp8_ffn);
}

using dsv3rt::Handle;

DSV3RT_EXPORT int32_t aoti_torch_cpu_experts(Handle x, Handle weights, Handle ids, Handle table, int64_t intermediate,
                                             int64_t format, Handle* y) {
  return dsv3rt::shim_call(y, [&] {
    return experts(Tensor::borrow(x), Tensor::borrow(weights), Tensor::borrow(ids), Tensor::borrow(table), intermediate, format);
  });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_dense_ffn(Handle x, Handle gate, Handle up, Handle down, Handle* y) {
  return dsv3rt::shim_call(
      y, [&] { return dense_ffn(Tensor::borrow(x), Tensor::borrow(gate), Tensor::borrow(up), Tensor::borrow(down)); });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_packed_ffn(Handle x, Handle gate, Handle gate_packed, Handle up, Handle up_packed,
                                                Handle down, Handle down_packed, Handle* y) {
  return dsv3rt::shim_call(y, [&] {
    return packed_ffn(Tensor::borrow(x), Tensor::borrow(gate), Tensor::borrow(gate_packed), Tensor::borrow(up),
                      Tensor::borrow(up_packed), Tensor::borrow(down), Tensor::borrow(down_packed));
  });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_fp8_ffn(Handle x, Handle gate, Handle gate_scale_inv, Handle up, Handle up_scale_inv,
                                             Handle down, Handle down_scale_inv, Handle* y) {
  return dsv3rt::shim_call(y, [&] {
    return fp8_ffn(Tensor::borrow(x), Tensor::borrow(gate), Tensor::borrow(gate_scale_inv), Tensor::borrow(up),
                   Tensor::borrow(up_scale_inv), Tensor::borrow(down), Tensor::borrow(down_scale_inv));
  });
}

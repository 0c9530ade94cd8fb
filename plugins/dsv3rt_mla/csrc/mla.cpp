// The operators mla_decode and mla_decode_fp8: latent attention of a few new tokens in the absorbed form.
//
// Legend: B sequences, T new tokens, H heads, C kv latent rank, R rope dims, A = C + R, P no-rope dims, Q = P + R, V value dims,
// S cache capacity. See mla_kernels.h for rows, lines, spans, chunks.
//
// One call: the new latents are normalised and written; queries are taken into the latent space (through W_uk, the upper P rows of
// each head in kv_b_proj); spans of the cache are attended to by whichever thread is free, and added up in the order of their
// positions; contexts leave the latent space (through W_uv, the lower V rows). So a token's result is the same, bit for bit, however
// many tokens, threads or sequences there are beside it.
#include <cmath>
#include <vector>

#include "dsv3rt_native.h"
#include "mla_kernels.h"

DSV3RT_LIBRARY_MAIN

namespace {

using dsv3rt::check;
using dsv3rt::scratch;
using dsv3rt::Tickets;
using dsv3rt::torch_api;

const MlaKernels& kernels() {
#if defined(__x86_64__)
  switch (dsv3rt::selected_variant) {
#if defined(DSV3RT_HAS_AMX)
    case dsv3rt::VARIANT_AMX: return dsv3rt_avx512vbmi::mla_amx_kernels;
#endif
    case dsv3rt::VARIANT_AVX512VBMI: return dsv3rt_avx512vbmi::mla_kernels;
    case dsv3rt::VARIANT_AVX512: return dsv3rt_avx512::mla_kernels;
    case dsv3rt::VARIANT_AVX2AMD:
    case dsv3rt::VARIANT_AVX2: return dsv3rt_avx2::mla_kernels;
    default: break;
  }
#endif
  return dsv3rt_portable::mla_kernels;
}

Stored stored(const Tensor& x, const char* complaint) {
  const int32_t dtype = x.dtype();
  if (dtype == torch_api.float32) return Stored::F32;
  if (dtype == torch_api.bfloat16) return Stored::BF16;
  if (dtype == torch_api.float16) return Stored::F16;
  check(dtype == torch_api.e4m3, complaint);
  return Stored::E4M3;
}

int64_t bytes_of(Stored format) { return format == Stored::F32 ? 4 : format == Stored::E4M3 ? 1 : 2; }

// Sizes and scalars of a call.
struct Call {
  int64_t batch, tokens, heads, latent, rope, nope, value, capacity;
  float eps, magnitude, scale;
  bool interleaved;

  int64_t cached() const { return latent + rope; }
  int64_t rows() const { return tokens * heads; }
};

// A part of the cache: [B, S, size], any batch and token strides.
struct Part {
  char* data;
  Stored format;
  int64_t batch_step, step;  // bytes

  Part(const Tensor& x, const Call& call, int64_t size, const char* complaint) : format(stored(x, complaint)) {
    check(x.dims() == 3 && x.size(0) == call.batch && x.size(1) == call.capacity && x.size(2) == size, complaint);
    check(size == 1 || x.strides()[2] == 1, complaint);
    data = x.data<char>();
    batch_step = x.strides()[0] * bytes_of(format);
    step = x.strides()[1] * bytes_of(format);
  }
};

// Position by position: x [R] rotated to halves, as `rotate` in dsv3rt/model/rope.py.
void rotate(const float* x, const float* cos, const float* sin, const Call& call, float factor, float* out) {
  const int64_t half = call.rope / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = call.interleaved ? x[2 * i] : x[i], second = call.interleaved ? x[2 * i + 1] : x[half + i];
    out[i] = (first * cos[i] - second * sin[i]) * factor;
    out[half + i] = (second * cos[i] + first * sin[i]) * factor;
  }
}

// Rows whose sums are added up together, while other threads add theirs to other rows.
constexpr int64_t BUNDLE = 16;
// Spans whose sums a thread keeps until those before are there, so that it need not wait for a slower one; fewer, where they would
// take more than so many floats.
constexpr int64_t MOST_KEPT = 4, KEPT_FLOATS = 1 << 18;

// The sums of spans that a thread has attended to and not yet added, the oldest first. One span's take `floats`.
struct Kept {
  struct Span {
    int64_t b, number;
    Piece piece;
  };
  const int64_t floats, room;
  Span spans[MOST_KEPT];
  int64_t begin = 0, count = 0;

  explicit Kept(int64_t floats_) : floats(floats_), room(std::clamp<int64_t>(KEPT_FLOATS / floats, 1, MOST_KEPT)) {}
  Span& oldest() { return spans[begin]; }
  int64_t place() const { return (begin + count) % room; }  // of the next one
  void drop_oldest() {
    begin = (begin + 1) % room;
    --count;
  }
};

struct Angles {};
struct Queries {};
struct Contexts {};
struct Sums {};
struct Wide {};
struct Rows {};
struct Partial {};
struct Norm {};
struct Packed {};

class Decode {
 public:
  Decode(const Call& call, const Tensor& q, const Tensor& kv, const Tensor& norm, const Tensor& positions,
         const Tensor& inv_freq, const Matrix& kv_b, std::vector<Cache> caches)
      : call_(call), k_(kernels()), rows_((call.rows() + GROUP - 1) / GROUP * GROUP),
        bundles_((rows_ + BUNDLE - 1) / BUNDLE), width_(padded(call.latent)),
        // an odd number of cache lines, so that a column of lines spreads over the sets of the cache
        step_(((width_ + padded(call.rope)) / LANES | 1) * LANES), kv_b_(kv_b), caches_(std::move(caches)),
        out_(make_result(call)) {
    q_ = q.floats("mla_decode: q must be contiguous float32 [B, T, H * (P + R)]");
    kv_ = kv.floats("mla_decode: kv must be contiguous float32 [B, T, C + R]");
    check(q.numel() == call.batch * call.rows() * (call.nope + call.rope), "mla_decode: q must be [B, T, H * (P + R)]");
    check(norm.dims() == 1 && norm.size(0) == call.latent && norm.contiguous(), "mla_decode: the norm's weight must be [C]");
    norm_ = scratch<Norm>(call.latent);
    k_.widen(norm.data<char>(), stored(norm, "mla_decode: the norm's weight has an unknown dtype"), call.latent, norm_);
    read_positions(positions);
    find_angles(inv_freq.floats("mla_decode: inv_freq must be contiguous float32 [R / 2]"));
    const int64_t rows = call.batch * rows_;
    queries_ = scratch<Queries>(rows * step_);
    for (int64_t b = 0; b < call.batch; ++b) std::fill(query(b, call.rows()), query(b, rows_), 0.0f);
    contexts_ = scratch<Contexts>(rows * width_);
    most_ = scratch<Sums>(2 * rows);
    total_ = most_ + rows;
    std::fill_n(contexts_, rows * width_, 0.0f);
    std::fill_n(most_, rows, NEVER);
    std::fill_n(total_, rows, 0.0f);
    turns_.reset(new std::atomic<int64_t>[call.batch * bundles_]);
    for (int64_t i = 0; i < call.batch * bundles_; ++i) turns_[i].store(0, std::memory_order_relaxed);
  }

  Tensor run() {
    const int64_t spans = spans_of(longest_);
    Tickets queries, attention, results;
    const int64_t weights = kv_b_.columns * call_.heads * (call_.nope + call_.value) * bytes_of(kv_b_.format);
    const int64_t reads = longest_ * call_.cached() * call_.rows() / 2;
    const int64_t threads = threads_ = dsv3rt::threads_for((weights + reads) * call_.batch);
    // a thread takes a head out that it took in, if it can: the head's rows are in its cache
    queries.reset(call_.batch * (call_.heads + 1), threads);
    attention.reset(call_.batch * spans);
    results.reset(call_.batch * call_.heads, threads);
    dsv3rt::parallel(threads, call_.tokens * call_.batch, [&](int64_t thread) {
      const auto enter = [&](int64_t i) {
        const int64_t b = i / (call_.heads + 1), head = i % (call_.heads + 1);
        if (head == call_.heads) {
          store(b);
        } else {
          take_in(b, head);
        }
      };
      queries.run(enter, thread);
      queries.wait();
      Kept kept(rows_ * (width_ + 4));
      attention.run([&](int64_t i) { attend(i / spans, i % spans, kept); });
      while (kept.count > 0) add_oldest(kept);
      results.run([&](int64_t i) { take_out(i / call_.heads, i % call_.heads); }, thread);
    });
    return std::move(out_);
  }

 private:
  static Tensor make_result(const Call& call) {
    const int64_t sizes[3] = {call.batch, call.tokens, call.heads * call.value};
    return Tensor::empty(sizes, 3, torch_api.float32);
  }
  float* query(int64_t b, int64_t row) const { return queries_ + (b * rows_ + row) * step_; }
  const float* context(int64_t b, int64_t row) const { return contexts_ + (b * rows_ + row) * width_; }

  void read_positions(const Tensor& positions) {
    check(positions.dtype() == torch_api.int64 && positions.dims() == 2 && positions.size(0) == call_.batch &&
              positions.size(1) == call_.tokens,
          "mla_decode: positions must be int64 [B, T]");
    const int64_t *data = positions.data<int64_t>(), *steps = positions.strides();
    positions_.resize(call_.batch * call_.tokens);
    for (int64_t b = 0; b < call_.batch; ++b)
      for (int64_t t = 0; t < call_.tokens; ++t) {
        const int64_t position = data[b * steps[0] + t * steps[1]];
        check(position >= 0 && position < call_.capacity, "mla_decode: a position lies outside the cache");
        positions_[b * call_.tokens + t] = position;
        longest_ = std::max(longest_, position + 1);
      }
  }

  void find_angles(const float* inv_freq) {
    const int64_t half = call_.rope / 2;
    cos_ = scratch<Angles>(call_.batch * call_.tokens * call_.rope);
    sin_ = cos_ + call_.batch * call_.tokens * half;
    for (size_t i = 0; i < positions_.size(); ++i)
      for (int64_t r = 0; r < half; ++r) {
        const float angle = static_cast<float>(positions_[i]) * inv_freq[r];
        cos_[i * half + r] = std::cos(angle) * call_.magnitude;
        sin_[i * half + r] = std::sin(angle) * call_.magnitude;
      }
  }

  // New latents and rope keys go into the cache.
  void store(int64_t b) {
    float* buffer = scratch<Rows>(call_.cached());
    for (int64_t t = 0; t < call_.tokens; ++t) {
      const int64_t i = b * call_.tokens + t, half = call_.rope / 2;
      const float* x = kv_ + i * call_.cached();
      float* key = buffer + call_.latent;
      rotate(x + call_.latent, cos_ + i * half, sin_ + i * half, call_, 1.0f, key);
      k_.store(caches_[b], positions_[i], x, norm_, call_.eps, call_.latent, key, call_.rope, buffer);
    }
  }

  // A head's queries, scaled, in the latent space, as lines.
  void take_in(int64_t b, int64_t head) {
    const int64_t width = call_.nope + call_.rope, step = call_.heads * width, half = call_.rope / 2;
    const float* q = q_ + b * call_.tokens * step + head * width;
    float* latent = scratch<Rows>(call_.tokens * call_.latent);
    k_.absorb(kv_b_, head * (call_.nope + call_.value), call_.nope, q, step, call_.tokens, latent);
    for (int64_t t = 0; t < call_.tokens; ++t) {
      const int64_t i = b * call_.tokens + t;
      float *line = query(b, t * call_.heads + head), *key = line + width_;
      for (int64_t c = 0; c < call_.latent; ++c) line[c] = latent[t * call_.latent + c] * call_.scale;
      std::fill(line + call_.latent, key, 0.0f);
      rotate(q + t * step + call_.nope, cos_ + i * half, sin_ + i * half, call_, call_.scale, key);
      std::fill(key + call_.rope, key + padded(call_.rope), 0.0f);
    }
  }

  // A sequence's queries as `attend` wants them for its cache. Each thread packs them for itself: sooner done than waited for.
  const uint8_t* packed(int64_t b) {
    if (k_.packs == nullptr || !k_.packs(caches_[b], call_.latent, call_.rope)) return nullptr;
    static thread_local uint64_t packed_call = 0;
    static thread_local int64_t packed_sequence = 0;
    float* out = scratch<Packed>(k_.packed_bytes(rows_, call_.latent, call_.rope) / 4);
    uint8_t* bytes = reinterpret_cast<uint8_t*>(out);
    if (packed_call == number_ && packed_sequence == b) return bytes;
    packed_call = number_;
    packed_sequence = b;
    k_.pack(query(b, 0), step_, rows_, call_.latent, call_.rope, bytes);
    return bytes;
  }

  // Tokens of the cache that a sequence sees.
  int64_t used(int64_t b) const {
    const int64_t* mine = positions_.data() + b * call_.tokens;
    return *std::max_element(mine, mine + call_.tokens) + 1;
  }

  void attend(int64_t b, int64_t span, Kept& kept) {
    const int64_t* mine = positions_.data() + b * call_.tokens;
    const int64_t begin = span_begin(span), used = this->used(b), rows = rows_;
    if (begin >= used) return;
    if (kept.count == kept.room) add_oldest(kept);
    Kept::Span& here = kept.spans[kept.place()];
    here = {b, span, {}};
    Piece& piece = here.piece;
    piece.cache = &caches_[b];
    piece.latent = call_.latent;
    piece.rope = call_.rope;
    piece.rows = rows;
    piece.step = step_;
    piece.wide = scratch<Wide>(CHUNK * step_);
    piece.queries = query(b, 0);
    piece.packed = packed(b);
    const int64_t scored = (rows + TILE_GROUP - 1) / TILE_GROUP * TILE_GROUP;
    piece.scores = scratch<Partial>(scored * CHUNK + kept.room * kept.floats);
    piece.context = piece.scores + scored * CHUNK + kept.place() * kept.floats;
    piece.most = piece.context + rows * width_;
    piece.total = piece.most + rows;
    piece.keep = piece.total + rows;
    int32_t* visible = reinterpret_cast<int32_t*>(piece.keep + rows);
    piece.visible = visible;
    const int64_t end = std::min(span_begin(span + 1), used);
    for (int64_t first = begin; first < end; first += CHUNK) {
      piece.first = first;
      piece.count = std::min(CHUNK, end - first);
      piece.fresh = first == begin;
      const int64_t next = first + CHUNK < end ? first + CHUNK : span_begin(span + threads_);
      piece.ahead = piece.cache->latent + next * piece.cache->latent_step;
      piece.ahead_bytes = std::clamp<int64_t>(used - next, 0, CHUNK) * piece.cache->latent_step;
      for (int64_t row = 0; row < rows; ++row)
        visible[row] = row < call_.rows() ? static_cast<int32_t>(mine[row / call_.heads] + 1 - first) : 0;
      k_.attend(piece);
    }
    ++kept.count;
    while (kept.count > 0 && turn(kept.oldest().b, 0).load(std::memory_order_acquire) == kept.oldest().number) add_oldest(kept);
  }

  std::atomic<int64_t>& turn(int64_t b, int64_t bundle) const { return turns_[b * bundles_ + bundle]; }

  void add_oldest(Kept& kept) {
    const auto& [b, span, piece] = kept.oldest();
    for (int64_t bundle = 0; bundle < bundles_; ++bundle) {
      std::atomic<int64_t>& next = turn(b, bundle);
      dsv3rt::spin_until([&] { return next.load(std::memory_order_acquire) == span; });
      k_.merge(piece, bundle * BUNDLE, std::min((bundle + 1) * BUNDLE, rows_), most_ + b * rows_, total_ + b * rows_,
               contexts_ + b * rows_ * width_);
      next.store(span + 1, std::memory_order_release);
    }
    kept.drop_oldest();
  }

  void take_out(int64_t b, int64_t head) {
    const int64_t spans = spans_of(used(b));
    for (int64_t t = 0; t < call_.tokens; ++t) {  // its rows' sums are whole when every span has been added
      const std::atomic<int64_t>& next = turn(b, (t * call_.heads + head) / BUNDLE);
      dsv3rt::spin_until([&] { return next.load(std::memory_order_acquire) == spans; });
    }
    float* values = scratch<Rows>(call_.tokens * call_.latent);
    for (int64_t t = 0; t < call_.tokens; ++t) {
      const int64_t row = t * call_.heads + head;
      const float share = 1.0f / total_[b * rows_ + row];
      const float* from = context(b, row);
      for (int64_t c = 0; c < call_.latent; ++c) values[t * call_.latent + c] = from[c] * share;
    }
    const int64_t step = call_.heads * call_.value;
    k_.project(kv_b_, head * (call_.nope + call_.value) + call_.nope, call_.value, values, call_.tokens,
               out_.data<float>() + b * call_.tokens * step + head * call_.value, step);
  }

  static uint64_t next_number() {
    static std::atomic<uint64_t> calls{0};
    return ++calls;
  }

  const uint64_t number_ = next_number();  // of this call
  const Call call_;
  const MlaKernels& k_;
  const int64_t rows_, bundles_;  // of one sequence; rows in whole groups
  const int64_t width_, step_;  // floats of a context, floats from line to line
  const Matrix kv_b_;
  const std::vector<Cache> caches_;
  Tensor out_;
  const float *q_, *kv_;
  float *norm_, *cos_, *sin_, *queries_, *contexts_, *most_, *total_;
  std::vector<int64_t> positions_;
  int64_t longest_ = 0, threads_ = 1;
  std::unique_ptr<std::atomic<int64_t>[]> turns_;  // [B][bundles]: the next span to be added
};

Matrix matrix_of(const Tensor& weight, const Tensor& scale) {
  check(weight.dims() == 2 && weight.contiguous(), "mla_decode: kv_b must be a contiguous matrix");
  Matrix m{weight.data<char>(), stored(weight, "mla_decode: kv_b has an unknown dtype"), weight.size(1), nullptr, 0};
  if (m.format == Stored::E4M3) {
    m.scales = scale.floats("mla_decode: kv_b_scale must be contiguous float32");
    m.scale_columns = (m.columns + SCALE_BLOCK - 1) / SCALE_BLOCK;
    check(scale.numel() == (weight.size(0) + SCALE_BLOCK - 1) / SCALE_BLOCK * m.scale_columns,
          "mla_decode: kv_b_scale must have one scale per 128x128 block");
  }
  return m;
}

Call call_of(const Tensor& kv, const Tensor& inv_freq, const Tensor& kv_b, const Tensor& latents, int64_t heads, int64_t nope,
             double eps, double magnitude, double scale, bool interleaved) {
  check(kv.dims() == 3 && latents.dims() == 3, "mla_decode: kv and the cache must have three dimensions");
  Call call{};
  call.batch = kv.size(0);
  call.tokens = kv.size(1);
  call.heads = heads;
  call.rope = 2 * inv_freq.numel();
  call.latent = kv.size(2) - call.rope;
  call.nope = nope;
  call.value = kv_b.size(0) / heads - nope;
  call.capacity = latents.size(1);
  call.eps = static_cast<float>(eps);
  call.magnitude = static_cast<float>(magnitude);
  call.scale = static_cast<float>(scale);
  call.interleaved = interleaved;
  check(call.latent > 0 && call.value > 0 && call.tokens > 0 && kv_b.size(1) == call.latent &&
            kv_b.size(0) == heads * (nope + call.value),
        "mla_decode: the shapes of kv, inv_freq and kv_b do not fit");
  return call;
}

Tensor mla_decode(const Tensor& q, const Tensor& kv, const Tensor& norm, const Tensor& positions, const Tensor& inv_freq,
                  const Tensor& kv_b, const Tensor& kv_b_scale, const Tensor& latents, int64_t heads, int64_t nope, double eps,
                  double magnitude, double scale, bool interleaved) {
  const Call call = call_of(kv, inv_freq, kv_b, latents, heads, nope, eps, magnitude, scale, interleaved);
  const Part part(latents, call, call.cached(), "mla_decode: the cache must be [B, S, C + R], float32 or bfloat16");
  check(part.format == Stored::F32 || part.format == Stored::BF16, "mla_decode: the cache must be float32 or bfloat16");
  std::vector<Cache> caches;
  for (int64_t b = 0; b < call.batch; ++b) {
    char* at = part.data + b * part.batch_step;
    caches.push_back({at, part.step, part.format, at + call.latent * bytes_of(part.format), part.step, part.format, nullptr, 0});
  }
  return Decode(call, q, kv, norm, positions, inv_freq, matrix_of(kv_b, kv_b_scale), std::move(caches)).run();
}

Tensor mla_decode_fp8(const Tensor& q, const Tensor& kv, const Tensor& norm, const Tensor& positions, const Tensor& inv_freq,
                      const Tensor& kv_b, const Tensor& kv_b_scale, const Tensor& latents, const Tensor& scales,
                      const Tensor& rope_keys, int64_t heads, int64_t nope, double eps, double magnitude, double scale,
                      bool interleaved) {
  const Call call = call_of(kv, inv_freq, kv_b, latents, heads, nope, eps, magnitude, scale, interleaved);
  const Part latent(latents, call, call.latent, "mla_decode_fp8: latents must be [B, S, C], float8_e4m3fn");
  const Part factor(scales, call, 1, "mla_decode_fp8: scales must be [B, S, 1], float32");
  const Part rope(rope_keys, call, call.rope, "mla_decode_fp8: rope keys must be [B, S, R], bfloat16");
  check(latent.format == Stored::E4M3 && factor.format == Stored::F32 && rope.format == Stored::BF16,
        "mla_decode_fp8: the cache must be float8_e4m3fn latents, float32 scales, bfloat16 rope keys");
  std::vector<Cache> caches;
  for (int64_t b = 0; b < call.batch; ++b)
    caches.push_back({latent.data + b * latent.batch_step, latent.step, latent.format, rope.data + b * rope.batch_step, rope.step,
                      rope.format, factor.data + b * factor.batch_step, factor.step});
  return Decode(call, q, kv, norm, positions, inv_freq, matrix_of(kv_b, kv_b_scale), std::move(caches)).run();
}

}  // namespace

DSV3RT_OPERATORS {
  DSV3RT_OP(
      "mla_decode(Tensor q, Tensor kv, Tensor norm, Tensor positions, Tensor inv_freq, Tensor kv_b, Tensor kv_b_scale, "
      "Tensor(a!) latents, int heads, int nope, float eps, float magnitude, float scale, bool interleaved) -> Tensor",
      mla_decode);
  DSV3RT_OP(
      "mla_decode_fp8(Tensor q, Tensor kv, Tensor norm, Tensor positions, Tensor inv_freq, Tensor kv_b, Tensor kv_b_scale, "
      "Tensor(a!) latents, Tensor(b!) scales, Tensor(c!) rope_keys, int heads, int nope, float eps, float magnitude, "
      "float scale, bool interleaved) -> Tensor",
      mla_decode_fp8);
}

using dsv3rt::Handle;

DSV3RT_EXPORT int32_t aoti_torch_cpu_mla_decode(Handle q, Handle kv, Handle norm, Handle positions, Handle inv_freq, Handle kv_b,
                                                Handle kv_b_scale, Handle latents, int64_t heads, int64_t nope, double eps,
                                                double magnitude, double scale, int32_t interleaved, Handle* y) {
  return dsv3rt::shim_call(y, [&] {
    return mla_decode(Tensor::borrow(q), Tensor::borrow(kv), Tensor::borrow(norm), Tensor::borrow(positions),
                      Tensor::borrow(inv_freq), Tensor::borrow(kv_b), Tensor::borrow(kv_b_scale), Tensor::borrow(latents), heads,
                      nope, eps, magnitude, scale, interleaved != 0);
  });
}

DSV3RT_EXPORT int32_t aoti_torch_cpu_mla_decode_fp8(Handle q, Handle kv, Handle norm, Handle positions, Handle inv_freq,
                                                    Handle kv_b, Handle kv_b_scale, Handle latents, Handle scales,
                                                    Handle rope_keys, int64_t heads, int64_t nope, double eps, double magnitude,
                                                    double scale, int32_t interleaved, Handle* y) {
  return dsv3rt::shim_call(y, [&] {
    return mla_decode_fp8(Tensor::borrow(q), Tensor::borrow(kv), Tensor::borrow(norm), Tensor::borrow(positions),
                          Tensor::borrow(inv_freq), Tensor::borrow(kv_b), Tensor::borrow(kv_b_scale), Tensor::borrow(latents),
                          Tensor::borrow(scales), Tensor::borrow(rope_keys), heads, nope, eps, magnitude, scale,
                          interleaved != 0);
  });
}

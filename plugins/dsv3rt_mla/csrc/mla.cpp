// The operators mla_decode and mla_decode_fp8: latent attention of a few new tokens in the absorbed form.
//
// Legend: B sequences, T new tokens, H heads, C kv latent rank, R rope dims, A = C + R, P no-rope dims, Q = P + R, V value dims,
// S cache capacity. See mla_kernels.h for rows, bundles, chunks.
//
// One call: the new latents are normalised and written; queries are taken into the latent space (through W_uk, the upper P rows of
// each head in kv_b_proj); chunks of the cache are attended to by whichever thread is free, and added up in the order of their
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
void rotate(const float* x, const float* cos, const float* sin, const Call& call, float factor, float* out, int64_t out_step) {
  const int64_t half = call.rope / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float first = call.interleaved ? x[2 * i] : x[i], second = call.interleaved ? x[2 * i + 1] : x[half + i];
    out[i * out_step] = (first * cos[i] - second * sin[i]) * factor;
    out[(half + i) * out_step] = (second * cos[i] + first * sin[i]) * factor;
  }
}

struct Angles {};
struct Queries {};
struct Contexts {};
struct Sums {};
struct Visible {};
struct Wide {};
struct Rows {};
struct Partial {};
struct Norm {};

class Decode {
 public:
  Decode(const Call& call, const Tensor& q, const Tensor& kv, const Tensor& norm, const Tensor& positions,
         const Tensor& inv_freq, const Matrix& kv_b, std::vector<Cache> caches)
      : call_(call), k_(kernels()), width_(k_.width), bundles_((call.rows() + width_ - 1) / width_), kv_b_(kv_b),
        caches_(std::move(caches)), out_(make_result(call)) {
    q_ = q.floats("mla_decode: q must be contiguous float32 [B, T, H * (P + R)]");
    kv_ = kv.floats("mla_decode: kv must be contiguous float32 [B, T, C + R]");
    check(q.numel() == call.batch * call.rows() * (call.nope + call.rope), "mla_decode: q must be [B, T, H * (P + R)]");
    check(norm.dims() == 1 && norm.size(0) == call.latent && norm.contiguous(), "mla_decode: the norm's weight must be [C]");
    norm_ = scratch<Norm>(call.latent);
    k_.widen(norm.data<char>(), stored(norm, "mla_decode: the norm's weight has an unknown dtype"), call.latent, norm_);
    read_positions(positions);
    find_angles(inv_freq.floats("mla_decode: inv_freq must be contiguous float32 [R / 2]"));
    const int64_t bundles = call.batch * bundles_;
    queries_ = scratch<Queries>(bundles * call.cached() * width_);
    contexts_ = scratch<Contexts>(bundles * call.latent * width_);
    sums_ = scratch<Sums>(bundles * 2 * width_);
    visible_ = reinterpret_cast<int32_t*>(scratch<Visible>(bundles * width_));
    std::memset(contexts_, 0, sizeof(float) * bundles * call.latent * width_);
    if (call.rows() % width_)  // lanes without a row
      for (int64_t b = 0; b < call.batch; ++b)
        std::memset(query(b, bundles_ - 1), 0, sizeof(float) * call.cached() * width_);
    for (int64_t b = 0; b < call.batch; ++b)
      for (int64_t lane = 0; lane < bundles_ * width_; ++lane) {
        const int64_t t = std::min(lane / call.heads, call.tokens - 1);
        visible_[b * bundles_ * width_ + lane] = static_cast<int32_t>(positions_[b * call.tokens + t] + 1);
      }
    for (int64_t i = 0; i < bundles; ++i) std::fill_n(sums_ + 2 * i * width_, width_, NEVER);
    for (int64_t i = 0; i < bundles; ++i) std::fill_n(sums_ + (2 * i + 1) * width_, width_, 0.0f);
    turns_.reset(new std::atomic<int64_t>[bundles]);
    for (int64_t i = 0; i < bundles; ++i) turns_[i].store(0, std::memory_order_relaxed);
  }

  Tensor run() {
    const int64_t chunks = chunks_of(longest_);
    Tickets queries, attention, results;
    const int64_t weights = kv_b_.columns * call_.heads * (call_.nope + call_.value) * bytes_of(kv_b_.format);
    const int64_t reads = longest_ * call_.cached() * 4 * bundles_;
    const int64_t threads = dsv3rt::threads_for((weights + reads) * call_.batch);
    // a thread takes a head out that it took in, if it can: the head's rows are in its cache
    queries.reset(call_.batch * (call_.heads + 1), threads);
    attention.reset(call_.batch * chunks);
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
      attention.run([&](int64_t i) { attend(i / chunks, i % chunks); });
      attention.wait();
      results.run([&](int64_t i) { take_out(i / call_.heads, i % call_.heads); }, thread);
    });
    return std::move(out_);
  }

 private:
  static Tensor make_result(const Call& call) {
    const int64_t sizes[3] = {call.batch, call.tokens, call.heads * call.value};
    return Tensor::empty(sizes, 3, torch_api.float32);
  }
  float* query(int64_t b, int64_t bundle) const { return queries_ + (b * bundles_ + bundle) * call_.cached() * width_; }
  float* context(int64_t b, int64_t bundle) const { return contexts_ + (b * bundles_ + bundle) * call_.latent * width_; }

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
      rotate(x + call_.latent, cos_ + i * half, sin_ + i * half, call_, 1.0f, key, 1);
      k_.store(caches_[b], positions_[i], x, norm_, call_.eps, call_.latent, key, call_.rope, buffer);
    }
  }

  // A head's queries, scaled, in the latent space: one lane for each token.
  void take_in(int64_t b, int64_t head) {
    const int64_t width = call_.nope + call_.rope, step = call_.heads * width, half = call_.rope / 2;
    const float* q = q_ + b * call_.tokens * step + head * width;
    float* latent = scratch<Rows>(call_.tokens * call_.latent);
    k_.absorb(kv_b_, head * (call_.nope + call_.value), call_.nope, q, step, call_.tokens, latent);
    for (int64_t t = 0; t < call_.tokens; ++t) {
      const int64_t row = t * call_.heads + head, i = b * call_.tokens + t;
      float* lane = query(b, row / width_) + row % width_;
      for (int64_t c = 0; c < call_.latent; ++c) lane[c * width_] = latent[t * call_.latent + c] * call_.scale;
      rotate(q + t * step + call_.nope, cos_ + i * half, sin_ + i * half, call_, call_.scale, lane + call_.latent * width_, width_);
    }
  }

  void attend(int64_t b, int64_t chunk) {
    const int64_t *mine = positions_.data() + b * call_.tokens, *end = mine + call_.tokens;
    const int64_t first = chunk_begin(chunk), used = *std::max_element(mine, end) + 1;
    if (first >= used) return;
    Piece piece{};
    piece.cache = &caches_[b];
    piece.first = first;
    piece.count = std::min(chunk_begin(chunk + 1), used) - first;
    piece.latent = call_.latent;
    piece.rope = call_.rope;
    // an odd number of cache lines, so that a column of the chunk spreads over the sets of the cache
    piece.wide_step = ((call_.cached() + 15) / 16 | 1) * 16;
    piece.wide = scratch<Wide>(CHUNK * piece.wide_step);
    float* partial = scratch<Partial>((CHUNK + 2 + call_.latent) * width_);
    piece.scores = partial;
    piece.most = partial + CHUNK * width_;
    piece.total = piece.most + width_;
    piece.context = piece.total + width_;
    const bool all = *std::min_element(mine, end) + 1 >= first + piece.count;
    int32_t visible[64];
    for (int64_t bundle = 0; bundle < bundles_; ++bundle) {
      const int64_t at = b * bundles_ + bundle;
      for (int64_t lane = 0; lane < width_; ++lane)
        visible[lane] = static_cast<int32_t>(visible_[at * width_ + lane] - first);
      piece.visible = all ? nullptr : visible;
      piece.widen = bundle == 0;
      piece.query = query(b, bundle);
      k_.attend(piece);
      for (int spins = 0; turns_[at].load(std::memory_order_acquire) != chunk; ++spins) {
        if (spins < 4096) {
          dsv3rt::pause_cpu();
        } else {
          sched_yield();  // whoever has the turn may be waiting for this core
        }
      }
      k_.merge(piece, sums_ + 2 * at * width_, sums_ + (2 * at + 1) * width_, context(b, bundle));
      turns_[at].store(chunk + 1, std::memory_order_release);
    }
  }

  void take_out(int64_t b, int64_t head) {
    float* rows = scratch<Rows>(call_.tokens * call_.latent);
    for (int64_t t = 0; t < call_.tokens; ++t) {
      const int64_t row = t * call_.heads + head, bundle = row / width_, lane = row % width_;
      const float share = 1.0f / sums_[(2 * (b * bundles_ + bundle) + 1) * width_ + lane];
      const float* from = context(b, bundle) + lane;
      for (int64_t c = 0; c < call_.latent; ++c) rows[t * call_.latent + c] = from[c * width_] * share;
    }
    const int64_t step = call_.heads * call_.value;
    k_.project(kv_b_, head * (call_.nope + call_.value) + call_.nope, call_.value, rows, call_.tokens,
               out_.data<float>() + b * call_.tokens * step + head * call_.value, step);
  }

  const Call call_;
  const MlaKernels& k_;
  const int64_t width_, bundles_;  // bundles of one sequence
  const Matrix kv_b_;
  const std::vector<Cache> caches_;
  Tensor out_;
  const float *q_, *kv_;
  float *norm_, *cos_, *sin_, *queries_, *contexts_, *sums_;
  int32_t* visible_;  // [B][bundles][width]: how many tokens of the sequence each row sees
  std::vector<int64_t> positions_;
  int64_t longest_ = 0;
  std::unique_ptr<std::atomic<int64_t>[]> turns_;  // [B][bundles]: the next chunk to be added
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

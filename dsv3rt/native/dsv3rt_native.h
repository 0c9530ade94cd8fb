// What a native library of dsv3rt includes: operators on torch's stable C ABI, threads, instruction sets. C++17, no torch headers.
//
// A library is one shared object built by `dsv3rt.native.build`. It finds libtorch's C functions when it is loaded (nothing is
// linked), and registers its operators in the namespace `dsv3rt`:
//
//     #include "dsv3rt_native.h"
//     static Tensor twice(const Tensor& x, double factor) { ... }
//     DSV3RT_OPERATORS {
//       DSV3RT_OP("twice(Tensor x, float factor) -> Tensor", twice);
//     }
//     DSV3RT_LIBRARY_MAIN   // in one file of the library
//     DSV3RT_EXPORT int32_t aoti_torch_cpu_twice(dsv3rt::Handle x, double factor, dsv3rt::Handle* y) {   // optional: the direct
//       return dsv3rt::shim_call(y, [&] { return twice(Tensor::borrow(x), factor); });                   // call for AOTInductor
//     }
//
// Arguments may be `const Tensor&`, int64_t, double, bool; results Tensor, std::tuple of Tensors, or void.
// Never include this header in a file that is compiled once per instruction set: use dsv3rt_simd.h there.
#pragma once
#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>

#include "dsv3rt_crew.h"
#include "dsv3rt_variants.h"

#if defined(DSV3RT_HAS_AMX)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#define DSV3RT_EXPORT extern "C" __attribute__((visibility("default")))

namespace dsv3rt {

struct TensorOpaque;
using Handle = TensorOpaque*;
using Boxed = uint64_t;
using BoxedKernel = void (*)(Boxed* stack, uint64_t inputs, uint64_t outputs);
using RangeBody = void (*)(int64_t begin, int64_t end, void* context);

// ---- libtorch -----------------------------------------------------------------------------------------------------------------

// libtorch's C functions (torch/csrc/inductor/aoti_torch/c/shim.h and torch/csrc/stable/c/shim.h); all return 0 on success.
struct Torch {
  int32_t (*get_data_ptr)(Handle, void**);
  int32_t (*get_dim)(Handle, int64_t*);
  int32_t (*get_sizes)(Handle, int64_t**);
  int32_t (*get_strides)(Handle, int64_t**);
  int32_t (*get_dtype)(Handle, int32_t*);
  int32_t (*empty_strided)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
  int32_t (*delete_tensor)(Handle);
  int32_t (*library_fragment)(const char*, const char*, uint32_t, void**);
  int32_t (*library_impl_block)(const char*, const char*, const char*, uint32_t, void**);
  int32_t (*library_def)(void*, const char*);
  int32_t (*library_impl)(void*, const char*, BoxedKernel);
  int32_t (*parallel_for)(int64_t, int64_t, int64_t, RangeBody, void*);
  int32_t (*num_threads)(uint32_t*);
  int32_t float32, bfloat16, float16, e4m3, int64, cpu;
};

inline Torch torch_api{};
inline int selected_variant = 0;  // index into VARIANTS

inline void check(bool condition, const char* message) {
  if (!condition) throw std::runtime_error(message);
}

inline void check_torch(int32_t status) { check(status == 0, "dsv3rt: a call into libtorch failed"); }

// ---- tensors ------------------------------------------------------------------------------------------------------------------

// A reference to a tensor; owning unless borrowed.
class Tensor {
 public:
  explicit Tensor(Handle handle, bool owned = true) : handle_(handle), owned_(owned) {}
  static Tensor borrow(Handle handle) { return Tensor(handle, false); }
  Tensor(Tensor&& other) noexcept : handle_(other.handle_), owned_(other.owned_) { other.owned_ = false; }
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;
  ~Tensor() {
    if (owned_) torch_api.delete_tensor(handle_);
  }

  // A contiguous uninitialised CPU tensor.
  static Tensor empty(const int64_t* sizes, int64_t dims, int32_t dtype) {
    int64_t strides[8];
    check(dims <= 8, "dsv3rt: too many dimensions");
    for (int64_t d = dims - 1, step = 1; d >= 0; --d) {
      strides[d] = step;
      step *= sizes[d] > 0 ? sizes[d] : 1;
    }
    Handle handle;
    check_torch(torch_api.empty_strided(dims, sizes, strides, dtype, torch_api.cpu, 0, &handle));
    return Tensor(handle);
  }

  Handle release() {
    owned_ = false;
    return handle_;
  }
  int64_t dims() const {
    int64_t value;
    check_torch(torch_api.get_dim(handle_, &value));
    return value;
  }
  const int64_t* sizes() const {
    int64_t* value;
    check_torch(torch_api.get_sizes(handle_, &value));
    return value;
  }
  const int64_t* strides() const {
    int64_t* value;
    check_torch(torch_api.get_strides(handle_, &value));
    return value;
  }
  int64_t size(int64_t d) const { return sizes()[d < 0 ? dims() + d : d]; }
  int64_t numel() const {
    int64_t total = 1;
    const int64_t* n = sizes();
    for (int64_t d = 0, end = dims(); d < end; ++d) total *= n[d];
    return total;
  }
  int32_t dtype() const {
    int32_t value;
    check_torch(torch_api.get_dtype(handle_, &value));
    return value;
  }
  bool contiguous() const {
    const int64_t *n = sizes(), *s = strides();
    for (int64_t d = dims() - 1, step = 1; d >= 0; --d) {
      if (n[d] == 0) return true;
      if (n[d] != 1 && s[d] != step) return false;
      step *= n[d];
    }
    return true;
  }
  template <class T>
  T* data() const {
    void* value;
    check_torch(torch_api.get_data_ptr(handle_, &value));
    return static_cast<T*>(value);
  }
  // The data of a contiguous float32 tensor.
  float* floats(const char* complaint) const {
    check(dtype() == torch_api.float32 && contiguous(), complaint);
    return data<float>();
  }

 private:
  Handle handle_;
  bool owned_;
};

// ---- operators ----------------------------------------------------------------------------------------------------------------

template <class T>
struct Unbox;
template <>
struct Unbox<Tensor> {
  static Tensor take(Boxed value) { return Tensor(reinterpret_cast<Handle>(value)); }
};
template <>
struct Unbox<int64_t> {
  static int64_t take(Boxed value) { return static_cast<int64_t>(value); }
};
template <>
struct Unbox<double> {
  static double take(Boxed value) {
    double result;
    std::memcpy(&result, &value, sizeof result);
    return result;
  }
};
template <>
struct Unbox<bool> {
  static bool take(Boxed value) {
    bool result;
    std::memcpy(&result, &value, sizeof result);
    return result;
  }
};

inline void put(Boxed* stack, Tensor result) { stack[0] = reinterpret_cast<Boxed>(result.release()); }
template <class... T, size_t... I>
void put_all(Boxed* stack, std::tuple<T...>& results, std::index_sequence<I...>) {
  (put(stack + I, std::move(std::get<I>(results))), ...);
}
template <class... T>
void put(Boxed* stack, std::tuple<T...> results) {
  put_all(stack, results, std::index_sequence_for<T...>{});
}

template <auto F, class Signature = decltype(F)>
struct Boxer;
template <auto F, class R, class... A>
struct Boxer<F, R (*)(A...)> {
  template <size_t... I>
  static void apply(Boxed* stack, std::index_sequence<I...>) {
    // braces: the arguments are taken off the stack in order, and all are owned before F may throw
    std::tuple<std::decay_t<A>...> arguments{Unbox<std::decay_t<A>>::take(stack[I])...};
    if constexpr (std::is_void_v<R>) {
      F(std::get<I>(arguments)...);
    } else {
      put(stack, F(std::get<I>(arguments)...));
    }
  }
  static void call(Boxed* stack, uint64_t, uint64_t) { apply(stack, std::index_sequence_for<A...>{}); }
};

class Registrar {
 public:
  Registrar() {
    check_torch(torch_api.library_fragment("dsv3rt", __FILE__, __LINE__, &define_));
    check_torch(torch_api.library_impl_block("dsv3rt", "CPU", __FILE__, __LINE__, &implement_));
  }
  void add(const char* schema, BoxedKernel kernel) {
    check_torch(torch_api.library_def(define_, schema));
    const std::string name(schema, std::strchr(schema, '(') - schema);
    check_torch(torch_api.library_impl(implement_, name.c_str(), kernel));
  }

 private:
  void* define_;  // both live as long as the process: an operator is never taken back
  void* implement_;
};

void register_operators(Registrar& registrar);

#define DSV3RT_OPERATORS void dsv3rt::register_operators(dsv3rt::Registrar& registrar)
#define DSV3RT_OP(schema, function) registrar.add(schema, dsv3rt::Boxer<&function>::call)

// The body of the C function `aoti_torch_cpu_NAME` that code packaged by AOTInductor calls directly.
template <class F>
int32_t shim_call(F&& function) {
  try {
    function();
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}

// `function` returns a Tensor, or a tuple of two.
template <class F>
int32_t shim_call(Handle* result, F&& function) {
  return shim_call([&] { *result = function().release(); });
}
template <class F>
int32_t shim_call(Handle* first, Handle* second, F&& function) {
  return shim_call([&] {
    auto results = function();
    *first = std::get<0>(results).release();
    *second = std::get<1>(results).release();
  });
}

// ---- threads ------------------------------------------------------------------------------------------------------------------

inline int64_t max_threads() {
  uint32_t count = 1;
  torch_api.num_threads(&count);
  return count ? count : 1;
}

// Threads worth having for a job that touches `bytes`: to meet costs about a microsecond.
inline int64_t threads_for(int64_t bytes) {
  constexpr int64_t worth = 16 << 10;
  const int64_t useful = bytes / worth;
  if (useful <= 1) return 1;
  const int64_t most = max_threads();
  return useful < most ? useful : most;
}

// A job for so many tokens is a decode step's, and everything around it is as short (see dsv3rt_crew.h).
constexpr int64_t FEW_TOKENS = 16;

// Run body(thread) on up to `threads` threads: of the crew, where a few tokens are computed; else of torch, whose own loops run
// in between and whose threads keep their cores for a while. Some threads may come late or never, or all run one after another:
// a body must never wait for another to start. Share work through `Tickets`.
template <class F>
void parallel(int64_t threads, int64_t tokens, F&& body) {
  using Body = std::remove_reference_t<F>;
  void* context = const_cast<void*>(static_cast<const void*>(std::addressof(body)));
  if (threads <= 1) {
    body(int64_t{0});
  } else if (tokens <= FEW_TOKENS) {
    const bool done = crew().run(
        threads, [](int64_t thread, void* context) { (*static_cast<Body*>(context))(thread); }, context);
    if (!done) body(int64_t{0});
  } else {
    check_torch(torch_api.parallel_for(
        0, threads, 1,
        [](int64_t begin, int64_t end, void* context) {
          for (int64_t thread = begin; thread < end; ++thread) (*static_cast<Body*>(context))(thread);
        },
        context));
  }
}

// Items 0..total-1 dealt to whichever thread is free; `wait` returns when all are done. With `shares` > 1 the items are divided
// into so many runs of neighbours, and a thread takes those of its own run first: what it reads from memory is then one stream.
// Free of deadlock however many threads come: an item that is claimed is being worked on by a thread that runs.
class alignas(64) Tickets {
 public:
  void reset(int64_t total, int64_t shares = 1) {
    total_ = total;
    shares_ = shares < MOST ? shares : MOST;
    for (int64_t s = 0; s < shares_; ++s) {
      share_[s].next.store(total * s / shares_, std::memory_order_relaxed);
      share_[s].end = total * (s + 1) / shares_;
    }
    done_.store(0, std::memory_order_relaxed);
  }
  template <class F>
  void run(F&& item, int64_t thread = 0) {
    for (int64_t s = 0; s < shares_; ++s) {
      Share& share = share_[(thread + s) % shares_];
      for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) {
        item(i);
        done_.fetch_add(1, std::memory_order_release);
      }
    }
  }
  void wait() const {
    spin_until([&] { return done_.load(std::memory_order_acquire) >= total_; });
  }

 private:
  static constexpr int64_t MOST = 32;
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  Share share_[MOST];  // those beyond shares_ are never touched
  alignas(64) std::atomic<int64_t> done_;
  int64_t total_ = 0, shares_ = 0;
};

// Memory that a thread keeps between calls. `Tag` tells apart buffers that live at the same time.
template <class Tag>
float* scratch(int64_t floats) {
  struct Buffer {
    float* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  if (buffer.size < floats) {
    std::free(buffer.data);
    buffer.size = 0;
    const int64_t rounded = (floats + 1023) / 1024 * 1024;
    buffer.data = static_cast<float*>(std::aligned_alloc(64, static_cast<size_t>(rounded) * sizeof(float)));
    if (buffer.data == nullptr) throw std::bad_alloc();
    buffer.size = rounded;
  }
  return buffer.data;
}

// ---- instruction sets ---------------------------------------------------------------------------------------------------------

// Whether the processor has tiles for bfloat16 and the system lets this process use them, which it must be asked for.
inline bool may_use_tiles() {
#if defined(DSV3RT_HAS_AMX)
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24;
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;  // ARCH_REQ_XCOMP_PERM
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & BF16) == 0 || (d & TILE) == 0) return false;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}

inline int best_variant() {
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  if (avx512 && __builtin_cpu_supports("avx512vbmi")) return may_use_tiles() ? VARIANT_AMX : VARIANT_AVX512VBMI;
  if (avx512) return VARIANT_AVX512;
  if (avx2) return __builtin_cpu_is("amd") ? VARIANT_AVX2AMD : VARIANT_AVX2;
#endif
  return VARIANT_PORTABLE;
}

}  // namespace dsv3rt

using dsv3rt::Tensor;

// Implementation of the entry points, once per library: put DSV3RT_LIBRARY_MAIN in one of its files.
#define DSV3RT_LIBRARY_MAIN                                                                                               \
  DSV3RT_EXPORT int dsv3rt_best_variant() { return dsv3rt::best_variant(); }                                              \
  DSV3RT_EXPORT int dsv3rt_select_variant(int wanted) {                                                                   \
    if (wanted < 0 || wanted > dsv3rt::best_variant()) return -1;                                                         \
    const int before = dsv3rt::selected_variant;                                                                          \
    dsv3rt::selected_variant = wanted;                                                                                    \
    return before;                                                                                                        \
  }                                                                                                                       \
  DSV3RT_EXPORT const char* dsv3rt_load(void* libtorch, int variant, bool register_them) {                                \
    return dsv3rt::load(libtorch, variant, register_them);                                                                \
  }

namespace dsv3rt {

// Look up libtorch's functions, choose kernels, register the operators. Returns nullptr, or the name of what is missing.
inline const char* load(void* libtorch, int variant, bool register_them) {
  Torch& t = torch_api;
#define DSV3RT_FIND(field, symbol)                                             \
  t.field = reinterpret_cast<decltype(t.field)>(dlsym(libtorch, symbol)); \
  if (t.field == nullptr) return symbol;
  DSV3RT_FIND(get_data_ptr, "aoti_torch_get_data_ptr")
  DSV3RT_FIND(get_dim, "aoti_torch_get_dim")
  DSV3RT_FIND(get_sizes, "aoti_torch_get_sizes")
  DSV3RT_FIND(get_strides, "aoti_torch_get_strides")
  DSV3RT_FIND(get_dtype, "aoti_torch_get_dtype")
  DSV3RT_FIND(empty_strided, "aoti_torch_empty_strided")
  DSV3RT_FIND(delete_tensor, "aoti_torch_delete_tensor_object")
  DSV3RT_FIND(library_fragment, "aoti_torch_library_init_fragment")
  DSV3RT_FIND(library_impl_block, "aoti_torch_library_init_impl")
  DSV3RT_FIND(library_def, "aoti_torch_library_def")
  DSV3RT_FIND(library_impl, "aoti_torch_library_impl")
  DSV3RT_FIND(parallel_for, "torch_parallel_for")
  DSV3RT_FIND(num_threads, "torch_get_num_threads")
#undef DSV3RT_FIND
#define DSV3RT_CONSTANT(field, symbol)                                              \
  {                                                                                 \
    auto get = reinterpret_cast<int32_t (*)()>(dlsym(libtorch, symbol));            \
    if (get == nullptr) return symbol;                                              \
    t.field = get();                                                                \
  }
  DSV3RT_CONSTANT(float32, "aoti_torch_dtype_float32")
  DSV3RT_CONSTANT(bfloat16, "aoti_torch_dtype_bfloat16")
  DSV3RT_CONSTANT(float16, "aoti_torch_dtype_float16")
  DSV3RT_CONSTANT(e4m3, "aoti_torch_dtype_float8_e4m3fn")
  DSV3RT_CONSTANT(int64, "aoti_torch_dtype_int64")
  DSV3RT_CONSTANT(cpu, "aoti_torch_device_type_cpu")
#undef DSV3RT_CONSTANT
  selected_variant = variant;
  if (register_them) {
    try {
      Registrar registrar;
      register_operators(registrar);
    } catch (const std::exception&) {
      return "operator registration";
    }
  }
  return nullptr;
}

}  // namespace dsv3rt

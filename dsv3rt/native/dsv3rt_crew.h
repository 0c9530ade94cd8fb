// Threads for work of microseconds: the crew. A decode step is some hundred products of a few microseconds each, and torch's
// threads (OpenMP's) take longer to meet than that; should another program hold the core of one, all the others wait for it.
//
// A thread of the crew joins a job if it is awake in time, and whoever has called never waits for one that did not: alone it
// does all the work itself. So the crew costs little when it is idle, and nothing stops when it is not given a core. All
// native libraries of a process share one crew.
#pragma once
#include <sched.h>

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace dsv3rt {

inline void pause_cpu() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Look until `done()`; the cores are shared with others, who may hold the one that is needed: let them have this one by and by.
template <class Done>
void spin_until(Done&& done) {
  for (int spins = 0; !done(); ++spins) {
    if (spins < 4096) {
      pause_cpu();
    } else {
      sched_yield();
    }
  }
}

// The name holds a version: libraries built from different versions of this file each have a crew of their own.
inline namespace crew_1 {

class __attribute__((visibility("default"))) Crew {
 public:
  using Body = void (*)(int64_t thread, void* context);

  // body(0) here, and body(1), body(2), ... on at most `threads` - 1 others, if they come in time. False, and nothing done, when
  // the crew is at work for someone else (another thread, or the job that this one is part of).
  bool run(int64_t threads, Body body, void* context) {
    if (busy_.exchange(true, std::memory_order_acquire)) return false;
    hire(threads - 1);
    body_ = body;
    context_ = context;
    open(static_cast<uint64_t>(threads - 1));
    struct Close {
      Crew& crew;
      ~Close() {
        crew.close();
        crew.busy_.store(false, std::memory_order_release);
      }
    } close{*this};
    body(0, context);
    return true;
  }

 private:
  // door_: places left (bits 0-15), threads inside (16-31), number of the job (32-63), so that no job is taken for another.
  static constexpr uint64_t PLACE = 1, INSIDE = 1 << 16, JOB = uint64_t{1} << 32;
  static constexpr int SPINS = 4000;  // about 0.1 ms, longer than what lies between two products

  void open(uint64_t places) {
    const uint64_t job = door_.load(std::memory_order_relaxed) / JOB + 1;
    door_.store(job * JOB | places, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst)) {
      {
        std::lock_guard<std::mutex> lock(mutex_);
        asleep_.store(false, std::memory_order_relaxed);
        ++rings_;
      }
      bell_.notify_all();
    }
  }

  void close() {
    door_.fetch_and(~(INSIDE - 1), std::memory_order_acquire);
    spin_until([&] { return door_.load(std::memory_order_acquire) % JOB / INSIDE == 0; });
  }

  static bool has_place(uint64_t door) { return door % INSIDE != 0; }

  void work() {
    for (;;) {
      uint64_t seen = door_.load(std::memory_order_acquire);
      for (int spins = 0; !has_place(seen) && spins < SPINS; ++spins) {
        pause_cpu();
        seen = door_.load(std::memory_order_acquire);
      }
      if (!has_place(seen)) {
        sleep();
        continue;
      }
      const int64_t thread = static_cast<int64_t>(seen % INSIDE);
      if (!door_.compare_exchange_strong(seen, seen - PLACE + INSIDE, std::memory_order_acq_rel)) continue;
      body_(thread, context_);
      door_.fetch_sub(INSIDE, std::memory_order_release);
    }
  }

  // Woken by the first job that finds it asleep, it is awake for the next ones rather than in time for that.
  void sleep() {
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.store(true, std::memory_order_seq_cst);
    if (has_place(door_.load(std::memory_order_seq_cst))) return;
    bell_.wait(lock, [&, heard = rings_] { return rings_ != heard; });
  }

  void hire(int64_t wanted) {
    for (; hired_ < wanted; ++hired_) std::thread([this] { work(); }).detach();
  }

  alignas(64) std::atomic<uint64_t> door_{0};
  Body body_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<bool> busy_{false};
  int64_t hired_ = 0;
  std::atomic<bool> asleep_{false};
  int64_t rings_ = 0;
  std::mutex mutex_;
  std::condition_variable bell_;
};

// One in a process, and never ended: its threads may still be looking at it when the process goes.
__attribute__((visibility("default"))) inline Crew& crew() {
  static Crew* const only = new Crew;
  return *only;
}

}  // namespace crew_1
}  // namespace dsv3rt

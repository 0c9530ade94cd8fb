// Memory that is wanted soon, asked for bit by bit while something else is computed. For `.simd.cpp` files only.
#pragma once
#include "dsv3rt_simd.h"
#include "mla_kernels.h"

namespace DSV3RT_VARIANT {

constexpr int64_t ASKING = 8;  // tokens added to contexts between asking and asking again

// What comes after a piece of the cache. A processor waits for a few lines of memory at a time only, and stands still when it is
// asked for more: so they are asked for evenly, in step with the work that is done on the piece.
class Ahead {
 public:
  // `work`: of the whole piece, in any unit.
  Ahead(const Piece& piece, int64_t work)
      : at_(piece.ahead), end_(at_ + piece.ahead_bytes), pace_((piece.ahead_bytes << FINE) / work) {}
  // Always inline: a function that does nothing else is without effect in a compiler's eyes, and calls of it are left out.
  inline __attribute__((always_inline)) void after(int64_t work) {
    for (due_ += work * pace_; due_ > 0 && at_ < end_; at_ += 64, due_ -= int64_t{64} << FINE) __builtin_prefetch(at_, 0, 2);
  }

 private:
  static constexpr int FINE = 8;  // bits of a fraction of a byte
  const char *at_, *end_;
  int64_t pace_, due_ = 0;
};

}  // namespace DSV3RT_VARIANT

// A bfloat16 matrix in 12 bits a weight: what products of up to SOME tokens read instead of the plain one, for the same result.
//
// A weight is a byte, its sign and mantissa, and a code of 4 bits. Nearly all exponents of a row lie within a window of 15: code c
// stands for the exponent floor + c, the floor being the row's own, and code 0 for the exponent 0 (zeros and subnormals). The few
// weights with another exponent are *escapes*: their codes mean nothing, and they stand in a list.
//
//     PackedHead, PackedGroup for each group of rows, the groups' blocks, escapes
//
// PACKED_ROWS rows are a group, whose blocks of BLOCK columns follow each other: a product reads memory as one stream. A block has
// PACKED_ROW bytes of each row: for every 8 W columns the codes of the first and the second half (low and high four bits of a
// byte), and then their bytes. Within 4 W columns the order is the one from which `b_interleave` makes two vectors of words (see
// few_packed.h). A list ends with an escape of a column that there is not.
#pragma once
#include <cstdint>

#include "kernels.h"

constexpr int64_t PACKED_ROWS = 4, PACKED_ROW = BLOCK + BLOCK / 2, PACKED_BLOCK = PACKED_ROWS * PACKED_ROW;
constexpr int64_t PACKED_SHARE = 256;  // with more escapes than one in so many weights a matrix is not worth packing

struct alignas(64) PackedHead {
  int32_t lanes;            // W of the kernels that may read it
  int64_t blocks, escapes;  // where they begin, in bytes from here
  int64_t count;            // escapes, the lists' ends among them
};

// How a product finds packed weights. Apart from them: memory that is read before it is written gets no huge pages.
struct PackedWord {
  int64_t state;  // their address, once they may be read, or one of the below
  int64_t self;   // the word's own address: a copy of it means nothing
};
constexpr int64_t PACKED_EMPTY = 0;   // not yet there
constexpr int64_t PACKED_WANTED = 1;  // neither, and a product would have read them
constexpr int64_t PACKED_VOID = 2;    // for good: refused, or the weights have changed

struct PackedGroup {
  uint8_t floors[PACKED_ROWS];
  uint32_t first;  // of its escapes
};

struct Escape {
  uint32_t column;
  uint16_t row, bits;  // row of the group; the weight itself
};
constexpr uint32_t NO_COLUMN = 0xffffffffu;

// Sizes of the parts; they depend on the matrix' shape alone.
struct PackedShape {
  int64_t groups, group_bytes, blocks, escapes, most, bytes;
  PackedShape(int64_t rows, int64_t columns)
      : groups((rows + PACKED_ROWS - 1) / PACKED_ROWS),
        group_bytes((columns + BLOCK - 1) / BLOCK * PACKED_BLOCK),
        blocks((static_cast<int64_t>(sizeof(PackedHead)) + groups * static_cast<int64_t>(sizeof(PackedGroup)) + 63) / 64 * 64),
        escapes(blocks + groups * group_bytes),
        most(rows * columns / PACKED_SHARE),
        bytes((escapes + (most + groups) * static_cast<int64_t>(sizeof(Escape)) + 63) / 64 * 64) {}
};

inline const PackedHead* head_of(const uint8_t* packed) { return reinterpret_cast<const PackedHead*>(packed); }

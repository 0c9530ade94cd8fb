// The instruction sets that kernels are chosen by; the numbers and names match dsv3rt/native/build.py. AVX2AMD is AVX2 on a
// processor that multiplies subnormal numbers as quickly as others; it shares the files compiled for AVX2. AMX is AVX512VBMI with
// tiles (dsv3rt_tiles.h) and shares the files of that.
#pragma once
namespace dsv3rt {
enum Variant {
  VARIANT_PORTABLE = 0,
  VARIANT_AVX2 = 1,
  VARIANT_AVX2AMD = 2,
  VARIANT_AVX512 = 3,
  VARIANT_AVX512VBMI = 4,
  VARIANT_AMX = 5
};
}
// Only the assembler must know the instructions; one as old as a compiler without this header does not.
#if defined(__x86_64__) && defined(__linux__) && (__has_include(<amxtileintrin.h>) || __has_include(<amxintrin.h>))
#define DSV3RT_HAS_AMX 1
#endif

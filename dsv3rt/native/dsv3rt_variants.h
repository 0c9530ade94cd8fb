// The instruction sets that kernels are chosen by; the numbers and names match dsv3rt/native/build.py. AVX2AMD is AVX2 on a
// processor that multiplies subnormal numbers as quickly as others; it shares the files compiled for AVX2.
#pragma once
namespace dsv3rt {
enum Variant { VARIANT_PORTABLE = 0, VARIANT_AVX2 = 1, VARIANT_AVX2AMD = 2, VARIANT_AVX512 = 3, VARIANT_AVX512VBMI = 4 };
}

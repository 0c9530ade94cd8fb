// The instruction sets a kernel file is compiled for; the numbers and names match dsv3rt/native/build.py.
#pragma once
namespace dsv3rt {
enum Variant { VARIANT_PORTABLE = 0, VARIANT_AVX2 = 1, VARIANT_AVX512 = 2, VARIANT_AVX512VBMI = 3 };
}

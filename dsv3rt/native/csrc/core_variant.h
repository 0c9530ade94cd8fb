// The table of core.simd.cpp's functions that was chosen when the library was loaded.
#pragma once
#include "core_kernels.h"
#include "dsv3rt_native.h"

inline const CoreKernels& kernels() {
#if defined(__x86_64__)
  switch (dsv3rt::selected_variant) {
    case dsv3rt::VARIANT_AMX:
    case dsv3rt::VARIANT_AVX512VBMI: return dsv3rt_avx512vbmi::core_kernels;
    case dsv3rt::VARIANT_AVX512: return dsv3rt_avx512::core_kernels;
    case dsv3rt::VARIANT_AVX2AMD:
    case dsv3rt::VARIANT_AVX2: return dsv3rt_avx2::core_kernels;
    default: break;
  }
#endif
  return dsv3rt_portable::core_kernels;
}

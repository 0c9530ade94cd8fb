#!/bin/sh
# The kernels' tests with every native library built for the address sanitizer: a read or write past a tensor ends the run.
# Takes a few minutes. Usage: tests/native/asan.sh [pytest arguments]
set -eu
cd "$(dirname "$0")/../.."
compiler="${CXX:-g++}"
cache="$(mktemp -d)"
trap 'rm -rf "$cache"' EXIT
export DSV3RT_CACHE="$cache"
export DSV3RT_CXXFLAGS="-fsanitize=address -fno-omit-frame-pointer -g1"
# torch itself is not built for it: its leaks at exit and its own memory tricks are not ours to judge
export ASAN_OPTIONS="detect_leaks=0:detect_odr_violation=0:handle_segv=0:symbolize=1"
export LD_PRELOAD="$("$compiler" -print-file-name=libasan.so) $("$compiler" -print-file-name=libstdc++.so)"
"${PYTHON:-python}" -m pytest -q -p no:cacheprovider tests/native/test_core_ops.py tests/fp8/test_kernels.py \
    tests/fp8/test_modules.py tests/fp8/test_packed_products.py tests/fp8/test_packing.py \
    tests/mla/test_mla_decode_op.py -k "not compile and not gradients" --timeout 1200 "$@"

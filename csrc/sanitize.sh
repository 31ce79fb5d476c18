#!/usr/bin/env bash
# Runs the tests of the ops on an extension built with the address and undefined-behaviour sanitizers: the CPU kernels
# with every instruction set of this machine, and the CUDA kernels emulated on the CPU. Any report fails the run.
#
#   csrc/sanitize.sh [BUILD_FOLDER] [pytest arguments]
#
# Needs GCC on Linux and x86-64, cmake, and pybind11 and pytest in PYTHON (default python3). BUILD_FOLDER is kept and
# used again; by default a temporary one.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
python=${PYTHON:-python3}
build=${1:-}
if [[ -z $build ]]; then
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
fi
shift || true

cmake -S "$root" -B "$build" -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCXRL_SANITIZE=ON -DCXRL_CUDA=EMULATE \
  -DCMAKE_CXX_COMPILER=g++ "-DPython_EXECUTABLE=$("$python" -c 'import sys; print(sys.executable)')" \
  "-Dpybind11_DIR=$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())')"
cmake --build "$build" -j "${MAX_JOBS:-$(nproc)}"

module=("$build"/_C*.so)
cd "$root"
# The runtimes must come before everything that Python loads; torch frees at exit what it likes.
runtimes=$(g++ -print-file-name=libasan.so):$(g++ -print-file-name=libubsan.so):$(g++ -print-file-name=libstdc++.so)
env LD_PRELOAD="$runtimes" ASAN_OPTIONS=detect_leaks=0:strict_string_checks=1:abort_on_error=0 \
  UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 CXRL_TEST_EXTENSION="${module[0]}" CUDA_VISIBLE_DEVICES="" \
  PYTHONPATH="$root:$root/kernels${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS="${OMP_NUM_THREADS:-2}" \
  "$python" -m pytest -q -p no:cacheprovider -m "not slow" tests/ops/fuzz_arguments.py \
  tests/ops/test_attention.py tests/ops/test_pairwise_comparison.py tests/ops/test_trajectory_log_prob.py "$@"

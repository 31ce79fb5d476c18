#!/usr/bin/env bash
# Everything that needs a GPU, in one run: builds the extension here, tests the ops on the card with every backend,
# runs the kernels under compute-sanitizer, the benchmarks and the targets, and writes one JSON.
#
#   benchmarks/gpu_gate.sh                     all steps
#   benchmarks/gpu_gate.sh build tests         some steps: build tests sanitizer benchmarks targets
#   benchmarks/gpu_gate.sh --dry-run           on a machine without a GPU: what can run on the CPU
#
# Downloads nothing. Needs torch, and nvcc, cmake and pybind11 for the build. Environment:
#   PYTHON            the interpreter (default python3)
#   CXRL_GATE_WHEELS  a folder of wheels for what Python lacks of pytest, pytest-benchmark, pytest-timeout, pybind11,
#                     cmake and ninja
#   CXRL_GATE_OUT     where results go (default .benchmarks/gpu_gate)
# Exit status: 0, 1 if a correctness step (build, tests, sanitizer) failed, 2 if there is no GPU. A missed target is
# in the JSON and does not fail.
# shellcheck disable=SC2329  # steps are called by their names
set -uo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root" || exit 1
python=${PYTHON:-python3}
out=$(mkdir -p "${CXRL_GATE_OUT:-.benchmarks/gpu_gate}" && cd "${CXRL_GATE_OUT:-.benchmarks/gpu_gate}" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
export PYTHONPATH="$root:$root/kernels:$work/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONDONTWRITEBYTECODE=1
export CUBLAS_WORKSPACE_CONFIG=:4096:8 OMP_WAIT_POLICY=PASSIVE

dry_run=0
steps=()
for argument in "$@"; do
  case $argument in
    --dry-run) dry_run=1 ;;
    build | tests | sanitizer | benchmarks | targets) steps+=("$argument") ;;
    *) printf 'error: unknown argument %s; steps: build tests sanitizer benchmarks targets\n' "$argument" >&2; exit 1 ;;
  esac
done
((${#steps[@]})) || steps=(build tests sanitizer benchmarks targets)

has() { "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

if ! has torch; then echo "error: $python has no torch" >&2; exit 1; fi
if ! "$python" -c 'import torch, sys; sys.exit(not torch.cuda.is_available())'; then
  if ((!dry_run)); then echo "no GPU: torch finds no CUDA device; --dry-run runs what can run on the CPU"; exit 2; fi
elif ((dry_run)); then
  export CUDA_VISIBLE_DEVICES=""
fi

# What Python lacks comes from the folder of wheels, into a folder that goes away with this run.
for pair in pytest:pytest pytest_benchmark:pytest-benchmark pytest_timeout:pytest-timeout pybind11:pybind11; do
  if ! has "${pair%%:*}" && [[ -n ${CXRL_GATE_WHEELS:-} ]]; then
    "$python" -m pip install --quiet --no-index --find-links "$CXRL_GATE_WHEELS" --target "$work/site" "${pair##*:}"
  fi
done
for tool in cmake ninja; do
  if ! command -v "$tool" >/dev/null && [[ -n ${CXRL_GATE_WHEELS:-} ]]; then
    "$python" -m pip install --quiet --no-index --find-links "$CXRL_GATE_WHEELS" --target "$work/site" "$tool" || true
  fi
done
export PATH="$work/site/bin:$PATH"
command -v nvcc >/dev/null || { [[ -x ${CUDA_HOME:-/usr/local/cuda}/bin/nvcc ]] && PATH="${CUDA_HOME:-/usr/local/cuda}/bin:$PATH"; }

# pytest without the repository's settings: a plugin that they name may be missing here.
cat >"$work/pytest.ini" <<'INI'
[pytest]
addopts = --import-mode=importlib
filterwarnings =
    error
    ignore:.*torch.jit.script.*is deprecated:DeprecationWarning
    ignore:.*torch.jit.script_method.*is deprecated:DeprecationWarning
    ignore:.*TensorFloat32 tensor cores:UserWarning
markers =
    gpu: needs a CUDA device
    slow: takes more than about 20 s on two cores
INI
run_pytest() { "$python" -m pytest -c "$work/pytest.ini" --rootdir "$root" -p no:cacheprovider -q "$@"; }

build() {
  local mode=ON architecture
  local options=(-DCMAKE_BUILD_TYPE=Release "-DPython_EXECUTABLE=$("$python" -c 'import sys; print(sys.executable)')")
  options+=("-Dpybind11_DIR=$("$python" -c 'import pybind11; print(pybind11.get_cmake_dir())')") || return
  if ((dry_run)); then
    mode=EMULATE
    options+=("-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$work/module")
  else
    architecture=$("$python" -c 'import torch; print("%d%d" % torch.cuda.get_device_capability())') || return
    options+=("-DCMAKE_CUDA_ARCHITECTURES=$architecture-real" "-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$root/cxrl")
  fi
  if command -v ninja >/dev/null; then options+=(-GNinja); fi
  cmake -S "$root" -B "$work/build" "-DCXRL_CUDA=$mode" "${options[@]}" &&
    cmake --build "$work/build" -j "$(nproc)" || return
  if ((!dry_run)); then
    "$python" -c 'import sys
from cxrl.ops import unavailable_reason
reasons = {b: unavailable_reason("attention", b, "cuda") for b in ("cuda", "triton")}
print(reasons)
sys.exit(any(reasons.values()))'
  fi
}

# Every test of the ops; the run counts only if it had tests of each backend.
tests() {
  local selection="not emulation and not kernel_resources and not interpreter"
  if ((dry_run)); then selection+=" and (known or deterministic)"; fi
  run_pytest tests/ops -k "$selection" --junitxml "$out/tests.xml" || return
  "$python" - "$out/tests.xml" "$dry_run" <<'CHECK'
import sys
import xml.etree.ElementTree as tree

cases = [c for c in tree.parse(sys.argv[1]).iter("testcase") if c.find("skipped") is None]
for backend in ["cuda"] if sys.argv[2] == "1" else ["cuda", "triton"]:
    count = sum(f"[{backend}" in c.get("name", "") for c in cases)
    print(f"{backend}: {count} tests ran")
    if not count:
        sys.exit(f"no test of backend {backend} ran")
CHECK
}

# A short selection: every kernel, odd sizes, rows of several tiles.
selection="(size1 or size3 or shape1 or shape4 or known or strides or channels_last or group_win_rate)"
sanitizer() {
  local tool filter chosen result status=0
  if ((dry_run)); then run_pytest tests/ops -k "[cuda and $selection" --collect-only; return; fi
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not on PATH"; return 1; }
  for tool in memcheck racecheck initcheck; do
    filter=()
    chosen="([cuda or [triton) and $selection"
    if [[ $tool != memcheck ]]; then
      # PyTorch's own kernels are not ours to judge.
      filter=(--kernel-name kernel_substring=cxrl)
      chosen="[cuda and $selection"
    fi
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" "${filter[@]}" --error-exitcode 99 \
      --log-file "$out/$tool.log" "$python" -m pytest -c "$work/pytest.ini" --rootdir "$root" -p no:cacheprovider -q \
      tests/ops -k "$chosen"
    result=$?
    printf '%s: exit status %s\n' "$tool" "$result"
    tail -3 "$out/$tool.log"
    ((result == 0)) || status=1
  done
  return "$status"
}

benchmarks() {
  local files=(benchmarks/test_attention.py benchmarks/test_pairwise_comparison.py
    benchmarks/test_trajectory_log_prob.py)
  if ((dry_run)); then run_pytest "${files[@]}" --collect-only; return; fi
  # What the comparators' compilers warn of is no failure of ours.
  run_pytest "${files[@]}" -W default --results "$out/benchmarks.json" --benchmark-json "$out/pytest_benchmark.json"
}

targets() {
  local options=(--out "$out/targets.json")
  if ((dry_run)); then options+=(--dry-run); fi
  "$python" benchmarks/gpu_targets.py "${options[@]}"
}

for step in "${steps[@]}"; do rm -f "$out/$step.log"; done
rm -f "$out"/{gate,targets,benchmarks,pytest_benchmark}.json "$out"/{memcheck,racecheck,initcheck}.log "$out/tests.xml"
failed=0
: >"$work/steps"
for step in "${steps[@]}"; do
  printf '\n== %s\n' "$step"
  began=$SECONDS
  module=("$work"/module/_C*)  # what a dry run has built: the kernels emulated on the CPU
  if [[ -e ${module[0]} ]]; then export CXRL_TEST_EXTENSION="${module[0]}"; fi
  if "$step" 2>&1 | tee "$out/$step.log"; then result=passed; else result=failed; fi
  # Without a card these are only seen to start.
  if ((dry_run)) && [[ $result == passed && $step =~ ^(sanitizer|benchmarks|targets)$ ]]; then result=not_measured; fi
  printf '%s %s %s\n' "$step" "$result" "$((SECONDS - began))" >>"$work/steps"
  if [[ $result == failed && $step =~ ^(build|tests|sanitizer)$ ]]; then failed=1; fi
done

"$python" - "$out" "$work/steps" "$dry_run" <<'SUMMARY'
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import torch

out, steps, dry_run = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3] == "1"


def read(name):
    path = out / name
    return json.loads(path.read_text()) if path.exists() else None


def said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


triton = None
if importlib.util.find_spec("triton"):
    import triton as module

    triton = module.__version__
lines = [line.split() for line in steps.read_text().splitlines()]
result = {
    "dry_run": dry_run,
    "card": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    "commit": said("git", "rev-parse", "HEAD"),
    "versions": {
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": triton,
        "nvcc": (said("nvcc", "--version") or "").partition("release ")[2].partition(",")[0] or None,
        "driver": said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
    },
    "steps": {name: {"result": outcome, "seconds": int(seconds)} for name, outcome, seconds in lines},
    "targets": read("targets.json"),
    "benchmarks": read("benchmarks.json"),
}
path = out / "gate.json"
path.write_text(json.dumps(result, indent=1) + "\n")
missed = [row for row in (result["targets"] or {}).get("rows", []) if not row["met"]]
outcomes = [f"{name} {step['result']}" for name, step in result["steps"].items()]
print(f"\n{path}: {', '.join(outcomes)}; " + ("a dry run" if dry_run else f"{len(missed)} targets missed"))
SUMMARY
exit "$failed"

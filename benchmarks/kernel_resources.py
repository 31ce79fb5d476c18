"""Registers, spills and shared memory of every GPU kernel, from the compilers; no GPU needed.

    python benchmarks/kernel_resources.py                          writes results/kernel_resources.json
    python benchmarks/kernel_resources.py --check                  compares a fresh compilation with it
    python benchmarks/kernel_resources.py --check --arch 90 --no-triton

CUDA kernels are compiled with ``nvcc -Xptxas -v`` as the build does, Triton's by ``triton_aot.py``. The
check fails when a kernel is missing, spills more than the committed table says, takes more shared memory than
a block may have, or, with the same compiler, takes more registers or shared memory than before.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).parent / "results" / "kernel_resources.json"
ARCHS = (80, 90, 100, 120)
# Shared memory that a block may ask for, by architecture (CUDA programming guide, compute capabilities).
MAX_SHARED = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024, 120: 99 * 1024}

FORMS = ("difference", "win", "bradley_terry", "direct")  # as csrc/common/arguments.h numbers them

Resources = dict[str, int]

# Prints the shared memory that launches of the attention kernels ask for, which ptxas does not see.
_SHARED_PROGRAM = """
#define CXRL_CUDA_EMULATION
#include <cstdio>
#include "attention.cuh"
using namespace cxrl;
template <typename T, int kDim> void show(const char* type) {
  const auto line = [&](const char* kernel, size_t bytes) {
    std::printf("%s<%s, %d> %zu\\n", kernel, type, kDim, bytes);
  };
  line("attention_kernel", ForwardTiling<T, kDim>::kSharedBytes);
  line("attention_query_grad_kernel", QueryGradTiling<T, kDim>::kSharedBytes);
  line("attention_key_grad_kernel", KeyGradTiling<T, kDim>::kSharedBytes);
}
template <typename T> void all(const char* type) {
  show<T, 48>(type); show<T, 64>(type); show<T, 80>(type); show<T, 160>(type);
}
int main() { all<float>("float"); all<Half>("Half"); all<BFloat>("BFloat"); }
"""


def nvcc_path() -> str | None:
    """The nvcc that the build would use, or None."""
    return os.environ.get("CUDACXX") or shutil.which("nvcc")


def short_name(signature: str) -> str:
    """``attention_kernel<Half, 64>`` of what the demangler says."""
    name = re.sub(r"\((int|bool|cxrl::Form)\)", "", signature).replace("cxrl::", "").removeprefix("void ")
    name = re.sub(r"\([^()]*\)$", "", name)  # the arguments
    form = re.fullmatch(r"pairwise_comparison_kernel<(\d)>", name)
    if form:
        return f"pairwise_comparison_kernel<{FORMS[int(form[1])]}>"
    return re.sub(r", (true|1)>$", ", vectors>", re.sub(r", (false|0)>$", ", elements>", name))


def parse_ptxas(text: str) -> dict[str, Resources]:
    """Mangled name → resources, from the output of ``ptxas -v``."""
    table: dict[str, Resources] = {}
    pattern = re.compile(
        r"Compiling entry function '(?P<name>\w+)'.*?"
        r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
        r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
        re.DOTALL,
    )
    for match in pattern.finditer(text):
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        table[match["name"]] = {
            "registers": int(match["registers"]),
            "spill_stores_bytes": int(match["stores"]),
            "spill_loads_bytes": int(match["loads"]),
            "shared_bytes": int(shared[1]) if shared else 0,
        }
    return table


def _run(command: list[str]) -> str:
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{run.stdout[-2000:]}{run.stderr[-4000:]}")
    return run.stdout + run.stderr


def _demangled(nvcc: str, names: list[str]) -> list[str]:
    tool = shutil.which("cu++filt", path=f"{Path(nvcc).resolve().parent}{os.pathsep}{os.environ['PATH']}")
    return _run([tool or "c++filt", *names]).splitlines()


def dynamic_shared() -> dict[str, int]:
    """Bytes that the launches of attention ask for, by kernel."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "shared.cpp", Path(folder) / "shared"
        source.write_text(_SHARED_PROGRAM)
        compiler = os.environ.get("CXX", "g++")
        include = f"-I{ROOT / 'csrc' / 'cuda'}"
        _run([compiler, "-std=c++17", "-w", include, str(source), "-o", str(program)])
        lines = _run([str(program)]).splitlines()
    return {name: int(size) for name, _, size in (line.rpartition(" ") for line in lines)}


def cuda_resources(archs: tuple[int, ...] = ARCHS) -> dict[str, Resources]:
    """Resources of every CUDA kernel: ``"cuda/attention_kernel<Half, 64>/sm_90"`` → registers, ….

    Raises:
        RuntimeError: There is no nvcc, or a compilation fails; the message has the compiler's words.
    """
    nvcc = nvcc_path()
    if nvcc is None:
        raise RuntimeError("no nvcc: put it on PATH or set CUDACXX")
    dynamic = dynamic_shared()

    def compile_one(job: tuple[Path, int]) -> dict[str, Resources]:
        source, arch = job
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder) / "kernels.cubin"
            options = ["-std=c++17", "-O3", f"-arch=sm_{arch}", "-Xptxas", "-v", "-cubin"]
            parsed = parse_ptxas(_run([nvcc, *options, "-o", str(output), str(source)]))
        names = [short_name(signature) for signature in _demangled(nvcc, list(parsed))]
        for name, resources in zip(names, parsed.values(), strict=True):
            resources["shared_bytes"] += dynamic.get(name, 0)
        keys = [f"cuda/{name}/sm_{arch}" for name in names]
        return dict(zip(keys, parsed.values(), strict=True))

    sources = sorted((ROOT / "csrc" / "cuda").glob("*.cu"))
    jobs = [(source, arch) for arch in archs for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return {key: value for part in pool.map(compile_one, jobs) for key, value in part.items()}


def triton_table(archs: tuple[int, ...]) -> dict[str, Resources]:
    """The same of the Triton kernels."""
    sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "kernels"), str(ROOT)]
    from triton_aot import triton_resources

    return triton_resources(archs)


def tool_versions(with_triton: bool) -> dict[str, str]:
    """What compiled the table."""
    nvcc = nvcc_path()
    release = re.search(r"release ([\d.]+), V([\d.]+)", _run([nvcc, "--version"])) if nvcc else None
    versions = {"nvcc": release[2] if release else "none"}
    if with_triton:
        import triton

        versions["triton"] = triton.__version__
    return versions


def problems(
    fresh: dict[str, Resources], table: dict[str, Any], versions: dict[str, str], archs: tuple[int, ...]
) -> list[str]:
    """One line for everything that became worse than the committed table."""
    found = []
    before: dict[str, Resources] = table["kernels"]
    backends = {key.partition("/")[0] for key in fresh}
    expected = {k for k in before if k.partition("/")[0] in backends and int(k.rpartition("_")[2]) in archs}
    found += [f"{key} is in the table but was not compiled" for key in sorted(expected - fresh.keys())]
    found += [f"{key} is not in the table: run this script" for key in sorted(fresh.keys() - before.keys())]
    for key in sorted(expected & fresh.keys()):
        now, old = fresh[key], before[key]
        if now["spill_stores_bytes"] > old["spill_stores_bytes"]:
            found.append(
                f"{key} spills {now['spill_stores_bytes']} bytes, {old['spill_stores_bytes']} before"
            )
        limit = MAX_SHARED[int(key.rpartition("_")[2])]
        if now["shared_bytes"] > limit:
            found.append(f"{key} takes {now['shared_bytes']} bytes of shared memory, a block has {limit}")
        compiler = "triton" if key.startswith("triton/") else "nvcc"
        if versions[compiler] != table["tools"].get(compiler):
            continue  # another compiler allocates otherwise
        found += [
            f"{key} takes {now[what]} {what}, {old[what]} before"
            for what in ("registers", "shared_bytes")
            if now[what] > old[what]
        ]
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check", action="store_true", help="compare with the committed table, write nothing"
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=ARCHS, default=ARCHS)
    parser.add_argument("--no-triton", action="store_true", help="the CUDA kernels only")
    options = parser.parse_args(argv)
    archs = tuple(options.arch)
    if not options.check and (archs != ARCHS or options.no_triton):
        parser.error("the table is written for everything at once; --arch and --no-triton go with --check")
    fresh = cuda_resources(archs)
    if not options.no_triton:
        fresh |= triton_table(archs)
    versions = tool_versions(not options.no_triton)
    if not options.check:
        TABLE.write_text(json.dumps({"tools": versions, "kernels": fresh}, indent=1, sort_keys=True) + "\n")
        print(f"{TABLE}: {len(fresh)} kernels")
        return 0
    found = problems(fresh, json.loads(TABLE.read_text()), versions, archs)
    print("\n".join(found) or f"{len(fresh)} kernels take no more than before")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())

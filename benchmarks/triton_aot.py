"""Compiles every Triton kernel for GPUs that are not here, and reads what it takes of them.

    python benchmarks/triton_aot.py [--arch 80 90 100 120] [--only attention]

The providers of ``cxrl_kernels`` run on tensors without data, as a caller with such a GPU would run them;
what they would launch is compiled instead, with the same specialisation (sizes divisible by 16, strides of
1). So the configurations are the real ones. Needs no GPU and no driver: ptxas comes with Triton.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from cxrl_kernels import _common, attention, pairwise_comparison, trajectory_log_prob
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from cxrl.ops import FORMS
from cxrl.ops.attention import _allocate, _allocate_backward

ARCHS = (80, 90, 100, 120)
DIMS = (40, 64, 80, 160)
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
_TYPES = {**DTYPES, torch.int64: "i64", torch.int32: "i32"}
_CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
_OPTIONS = ("num_warps", "num_stages")

Case = tuple[str, str, Callable[[], None]]
Launch = tuple[Any, dict[str, Any]]


@contextlib.contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """What would be launched, as (kernel, its arguments by name), instead of launching it."""
    launches: list[Launch] = []

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.append((self, {**dict(zip(self.arg_names, args, strict=False)), **options}))

    run, JITFunction.run = JITFunction.run, record
    try:
        yield launches
    finally:
        JITFunction.run = run


def compile_launch(kernel: Any, arguments: dict[str, Any], arch: int) -> Any:
    """Compile a recorded launch for ``sm_<arch>``, specialised as Triton's own launcher would."""
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if isinstance(value, Tensor):
            signature[parameter.name] = f"*{_TYPES[value.dtype]}"
        elif parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name] = "constexpr"
            constants[(index,)] = value
        elif isinstance(value, float):
            signature[parameter.name] = "fp32"
        else:
            signature[parameter.name] = "i32" if -(2**31) <= value < 2**31 else "i64"
        if isinstance(value, Tensor) or (signature[parameter.name] in ("i32", "i64") and value % 16 == 0):
            attributes[(index,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {name: arguments[name] for name in _OPTIONS if name in arguments}
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources_of(compiled: Any, arch: int) -> dict[str, int]:
    """Registers of a thread, bytes that it spills, and shared memory of a program."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "kernel.cubin"), Path(folder, "kernel.ptx")
        cubin.write_bytes(compiled.asm["cubin"])
        command = [str(_CUOBJDUMP), "--dump-resource-usage", str(cubin)]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        spills = 0
        if int(re.findall(r"STACK:(\d+)", usage)[-1]):  # what is spilled lies on the stack
            ptx.write_text(compiled.asm["ptx"])
            flags = [
                "-v",
                "-lineinfo",
                "--regAllocOptLevel=2",
                f"--gpu-name=sm_{arch}{'a' if arch >= 90 else ''}",
            ]
            command = [get_ptxas(arch).path, *flags, str(ptx), "-o", str(cubin)]
            log = subprocess.run(command, capture_output=True, text=True, check=True).stderr
            spills = int(re.findall(r"(\d+) bytes spill stores", log)[-1])
    return {
        "registers": int(re.findall(r"REG:(\d+)", usage)[-1]),
        "spill_stores_bytes": spills,
        "shared_bytes": compiled.metadata.shared,
    }


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention_case(dim: int, dtype: torch.dtype, cross: bool) -> Callable[[], None]:
    """Self-attention over 4096 positions; cross-attention with an ACE segment and shared keys."""

    def run() -> None:
        def heads(rows: int, number: int) -> Tensor:
            return _meta(rows, number, 8, dim, dtype=dtype).transpose(1, 2)

        q = heads(16, 4096)
        k, v = (heads(4, 77), heads(4, 77)) if cross else (heads(16, 4096), heads(16, 4096))
        extra = (_meta(8, 8, dim, dtype=dtype), _meta(8, 8, dim, dtype=dtype)) if cross else (None, None)
        index = _meta(16, dtype=torch.int64) if cross else None
        arguments = (q, k, v, *extra, index, dim**-0.5)
        out = _allocate(*arguments, False, "triton")
        attention.attention(*arguments, False, out)
        gradients = _allocate_backward(out[0], *arguments)
        attention.attention_backward(out[0], *arguments, *out, gradients)

    return run


def _trajectory_case(dtype: torch.dtype, mixed: bool, size: int) -> Callable[[], None]:
    """Latents 4 x size x size; ``mixed``: the network is channels last, the latents are not."""

    def run() -> None:
        cond = _meta(64, 4, size, size, dtype=dtype)
        if mixed:
            cond = cond.to(memory_format=torch.channels_last)
        latents, table, log_prob = _meta(64, 4, size, size), _meta(64, 3), _meta(64)
        arguments = (cond, cond, 7.5, latents, latents, table)
        trajectory_log_prob.trajectory_log_prob(*arguments, log_prob)
        trajectory_log_prob.denoise_step(*arguments, (latents, log_prob))
        trajectory_log_prob.trajectory_log_prob_backward(log_prob, *arguments, (cond, cond))

    return run


def _comparison_case(form: str, num_anchors: int, num_rewards: int) -> Callable[[], None]:
    def run() -> None:
        rewards, anchors = _meta(4096, num_rewards), _meta(64, num_anchors, num_rewards)
        prompt_of, vector = _meta(4096, dtype=torch.int64), _meta(num_rewards)
        out = (_meta(4096), _meta(num_rewards), _meta(4096, num_rewards))
        pairwise_comparison.pairwise_comparison(rewards, anchors, prompt_of, vector, form, vector, 1.0, out)
        if form == "difference":
            pairwise_comparison.pairwise_comparison_backward(out[0], vector, out[2], rewards)
            pairwise_comparison.group_win_rate(rewards, prompt_of, rewards)

    return run


def cases() -> Iterator[Case]:
    """(op, label, what runs it) of everything that is compiled."""
    for dim in DIMS:
        for dtype, name in DTYPES.items():
            for cross in (False, True):
                if dtype == torch.bfloat16 and dim != 64:
                    continue  # the code of float16 with other conversions
                label = f"D{dim}-{name}-{'cross' if cross else 'self'}"
                yield "attention", label, _attention_case(dim, dtype, cross)
    for dtype, name in DTYPES.items():
        for mixed in (False, True):
            for size in (16, 64):
                label = f"{size}px-{name}{'-mixed' if mixed else ''}"
                yield "trajectory_log_prob", label, _trajectory_case(dtype, mixed, size)
    for form in FORMS:
        for num_anchors, num_rewards in ((8, 3), (64, 8)):
            label = f"{form}-M{num_anchors}-K{num_rewards}"
            yield "pairwise_comparison", label, _comparison_case(form, num_anchors, num_rewards)


def _name(kernel: Any, arguments: dict[str, Any]) -> str:
    """``attention_forward`` of ``_attention_fwd_kernel``; what one kernel does twice is told apart."""
    name = kernel.fn.__name__.strip("_").removesuffix("_kernel").replace("_fwd", "_forward")
    name = re.sub("_bwd$", "_backward", name).replace("_bwd_", "_backward_")
    if arguments.get("STEP"):
        name = "denoise_step"
    return name


def triton_resources(archs: tuple[int, ...] = ARCHS, only: str = "") -> dict[str, dict[str, int]]:
    """Resources of every kernel, configuration and architecture.

    Args:
        archs: Compute capabilities, 90 for sm_90.
        only: Compile only what has this in its name.

    Returns:
        ``"triton/attention_forward/D64-fp16-self/sm_90"`` to ``registers`` (of a thread),
        ``spill_stores_bytes`` (of a thread) and ``shared_bytes`` (of a program).

    Raises:
        RuntimeError: The interpreter is on, so there are no kernels to compile.
    """
    if _common.INTERPRETED:
        raise RuntimeError("TRITON_INTERPRET is set; unset it to compile the kernels")
    table: dict[str, dict[str, int]] = {}
    for arch in archs:
        for op, label, run in cases():
            if only not in f"{op}/{label}/sm_{arch}":
                continue
            with _common.assume_capability(arch), recorded_launches() as launches:
                run()
            for kernel, arguments in launches:
                key = f"triton/{_name(kernel, arguments)}/{label}/sm_{arch}"
                if key in table:
                    key = key.replace(label, f"{label}-extra")
                table[key] = resources_of(compile_launch(kernel, arguments, arch), arch)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--arch", type=int, nargs="+", default=ARCHS, help="compute capabilities")
    parser.add_argument("--only", default="", help="only cases with this in op/label/sm_arch")
    options = parser.parse_args()
    for key, value in triton_resources(tuple(options.arch), options.only).items():
        print(
            f"{key:64} {value['registers']:4} registers {value['spill_stores_bytes']:5} B spilled "
            f"{value['shared_bytes']:7} B shared"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())

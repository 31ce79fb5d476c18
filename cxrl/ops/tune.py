"""Measures which backend is fastest for every op and case on this device, for ``auto``.

    python -m cxrl.ops.tune [--device cpu|cuda] [--repeats N] [--dry-run]

The table goes to ``$XDG_CACHE_HOME/cxrl`` (``~/.cache/cxrl``), one file for each device and number of
threads. A backend of cxrl is chosen over stock PyTorch only where it is faster by more than the noise.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from cxrl.errors import CxrlError, shown
from cxrl.ops import _dispatch, attention, pairwise_comparison, trajectory_log_prob
from cxrl.ops.attention import attention_case
from cxrl.ops.pairwise_comparison import FORMS

NOISE = 1.03  # what a backend must be faster by to replace a stock one
MAX_REPEATS = 100_000
STOCK = ("reference", "sdpa", "xformers")

Case = tuple[str, str, Callable[[str], Any]]


def attention_cases(device: str) -> Iterator[Case]:
    """Cross-attention with an ACE segment and self-attention, forward and backward."""
    dtypes = (torch.float32,) if device == "cpu" else (torch.float32, torch.float16, torch.bfloat16)
    for dtype in dtypes:
        for dim in (16, 32, 64, 128, 160):
            for queries, num_keys, extra in ((256, 77, 8), (256, 1024, 0), (4, 77, 8)):
                yield _attention_case(device, dtype, dim, queries, num_keys, extra)


def _attention_case(
    device: str, dtype: torch.dtype, dim: int, queries: int, num_keys: int, extra: int
) -> Case:
    def heads(batch: int, rows: int) -> Tensor:
        shape = (batch, rows, 4, dim)
        return torch.randn(shape, device=device, dtype=dtype).transpose(1, 2).requires_grad_()

    q, k, v = heads(4, queries), heads(4, num_keys), heads(4, num_keys)
    extra_k, extra_v = (
        torch.randn(4, extra, dim, device=device, dtype=dtype).requires_grad_() if extra else None
        for _ in range(2)
    )
    leaves = [t for t in (q, k, v, extra_k, extra_v) if t is not None]
    grad = torch.randn_like(q)

    def run(backend: str) -> None:
        output = attention(q, k, v, extra_k=extra_k, extra_v=extra_v, backend=backend)
        torch.autograd.grad(output, leaves, grad)

    return "attention", attention_case(q.shape, num_keys + extra, dtype), run


def trajectory_log_prob_case(device: str) -> Case:
    """A small update's rows, forward and backward: where overheads count most."""
    cond, uncond, x_t, x_prev = (torch.randn(32, 4, 16, 16, device=device) for _ in range(4))
    rows = torch.rand(32, 3, device=device) + 0.1
    grad = torch.ones(32, device=device)

    def run(backend: str) -> None:
        output = trajectory_log_prob(cond, uncond, 3.0, x_t, x_prev, rows, backend=backend)
        torch.autograd.grad(output, (cond, uncond), grad)

    cond.requires_grad_()
    uncond.requires_grad_()
    return "trajectory_log_prob", "", run


def pairwise_comparison_cases(device: str) -> Iterator[Case]:
    """Every form, forward."""
    rewards, anchors = torch.randn(1024, 3, device=device), torch.randn(64, 8, 3, device=device)
    prompt_of = torch.arange(1024, device=device) % 64
    weights, min_std = torch.ones(3, device=device), torch.full((3,), 0.1, device=device)
    for form in FORMS:

        def run(backend: str, form: str = form) -> None:
            pairwise_comparison(rewards, anchors, prompt_of, weights, form, min_std=min_std, backend=backend)

        yield "pairwise_comparison", form, run


def measure(op: str, run: Callable[[str], Any], device: str, repeats: int) -> dict[str, float]:
    """Median seconds of every backend that runs here, interleaved so that all see the same machine."""
    names = [b for b in _dispatch.backends_of(op) if _dispatch.unavailable_reason(op, b, device) is None]
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(repeats + 2):
        for name in names:
            start = time.perf_counter()
            run(name)
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat >= 2:  # warm
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def choose(medians: dict[str, float]) -> str:
    """The fastest, a stock one unless another is faster by more than the noise."""
    stock = min((name for name in medians if name in STOCK), key=medians.__getitem__)
    fastest = min(medians, key=medians.__getitem__)
    return fastest if medians[fastest] * NOISE < medians[stock] else stock


def tune(device: str, repeats: int) -> dict[str, Any]:
    """Measure everything and return the table. Prints a line for each case."""
    choices: dict[str, dict[str, str]] = {}
    measured = []
    cases = [*attention_cases(device), trajectory_log_prob_case(device), *pairwise_comparison_cases(device)]
    for op, case, run in cases:
        medians = measure(op, run, device, repeats)
        choices.setdefault(op, {})[case] = choose(medians)
        measured.append({"op": op, "case": case, "median_seconds": medians})
        figures = ", ".join(f"{name} {value * 1e6:.0f} µs" for name, value in medians.items())
        print(f"{op} {case}: {choices[op][case]} ({figures})", flush=True)
    return {
        "version": _dispatch.TABLE_VERSION,
        "device": _dispatch.device_key(device),
        "torch": torch.__version__,
        "choices": choices,
        "measured": measured,
    }


def save(table: dict[str, Any], path: Path) -> None:
    """Write the table in one step, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
        json.dump(table, file, indent=1)
    os.replace(file.name, path)


def writable_path(device: str) -> Path:
    """Where the table goes. Raises CxrlError unless it can be written: told before minutes of measuring."""
    path = _dispatch.table_path(device)
    if path is None:
        raise CxrlError("this user has no home for the table; set XDG_CACHE_HOME, or --dry-run")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise CxrlError(
            f"the table cannot be written ({error.strerror}); set XDG_CACHE_HOME, or use --dry-run"
        ) from None
    return path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise CxrlError(f"{message} (see {self.prog} --help)")


def _run(argv: list[str] | None) -> None:
    parser = _Parser("python -m cxrl.ops.tune", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what to measure (default cpu)"
    )
    parser.add_argument(
        "--repeats", default="21", help=f"timings of each case, 1 to {MAX_REPEATS} (default 21)"
    )
    parser.add_argument("--dry-run", action="store_true", help="print only, write nothing")
    options = parser.parse_args(argv)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise CxrlError("--device cuda, but torch finds no CUDA device")
    digits = options.repeats if re.fullmatch("[0-9]{1,9}", options.repeats) else "0"
    if not 1 <= int(digits) <= MAX_REPEATS:
        raise CxrlError(f"--repeats {shown(options.repeats)}; expected 1 to {MAX_REPEATS}")
    path = None if options.dry_run else writable_path(options.device)
    table = tune(options.device, int(digits))
    if path is not None:
        save(table, path)
        print(f"written to {path}")
        _dispatch.forget_choices()


def main(argv: list[str] | None = None) -> int:
    """Run the command. Returns 0; 2, with one line on stderr, for what the user can mend; 130 for Ctrl-C."""
    try:
        _run(argv)
    except (CxrlError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

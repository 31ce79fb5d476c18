"""The targets of the ops on a GPU, measured against stock PyTorch interleaved in one process.

    python benchmarks/gpu_targets.py --out targets.json
    python benchmarks/gpu_targets.py --dry-run            the same code on the CPU, tiny, to see that it runs

Every figure is forward and backward together, the median over rounds in which each callable runs in turn. A
missed target is reported, not an error: the table says what is so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.ops import FORMS, attention, pairwise_comparison, trajectory_log_prob, unavailable_reason

Step = Callable[[], object]
Row = dict[str, Any]
ROUNDS = 25


class Machine:
    """The device that is measured, and how large the problems are."""

    def __init__(self, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.device = "cpu" if dry_run else "cuda"
        self.ours = ("cpp",) if dry_run else ("cuda", "triton")
        self.dtypes = (torch.float32,) if dry_run else (torch.float16, torch.bfloat16)

    def backends(self, op: str) -> list[str]:
        """Ours that run here."""
        return [b for b in self.ours if unavailable_reason(op, b, self.device) is None]

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.dry_run else full

    def _seconds(self, step: Step, calls: int) -> float:
        if self.dry_run:
            start = time.perf_counter()
            for _ in range(calls):
                step()
            return (time.perf_counter() - start) / calls
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        begin.record()
        for _ in range(calls):
            step()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    def medians(self, steps: Mapping[str, Step], calls: int = 1) -> dict[str, float]:
        """Median seconds of a call, interleaved, after three calls to warm up."""
        for step in steps.values():
            for _ in range(3):
                step()
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(2 if self.dry_run else ROUNDS):
            for name, step in steps.items():
                times[name].append(self._seconds(step, calls))
        return {name: statistics.median(values) for name, values in times.items()}

    def launches(self, step: Step) -> int:
        """Kernels, copies and fills that a call starts; 0 on the CPU."""
        if self.dry_run:
            return 0
        from torch.profiler import ProfilerActivity, profile

        step()
        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            step()
            torch.cuda.synchronize()
        return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in profiler.events())


def row(target: str, case: str, backend: str, value: float, wanted: float, medians: dict[str, float]) -> Row:
    milliseconds = {name: round(seconds * 1e3, 5) for name, seconds in medians.items()}
    met = value >= wanted
    return {
        "target": target, "case": case, "backend": backend, "value": round(value, 3), "wanted": wanted,
        "met": met, "median_ms": milliseconds,
    }  # fmt: skip


def copy_bandwidth(machine: Machine) -> float:
    """Bytes read and written a second by the copy of a gigabyte."""
    source = torch.empty(machine.size(1 << 30, 1 << 16), dtype=torch.uint8, device=machine.device)
    target = torch.empty_like(source)
    return 2 * source.numel() / machine.medians({"copy": lambda: target.copy_(source)})["copy"]


def trajectory_targets(machine: Machine) -> Iterator[Row]:
    """At a gigabyte of traffic or more: 85 % of the copy's bandwidth, and one launch each way."""
    batch = machine.size(4096, 4)
    x_t, x_prev = (torch.randn(batch, 4, 64, 64, device=machine.device) for _ in range(2))
    rows = torch.rand(batch, 3, device=machine.device) + 0.1
    grad = torch.ones(batch, device=machine.device)
    bandwidth = copy_bandwidth(machine)
    for dtype in (torch.float32, torch.bfloat16):
        cond, uncond = (torch.randn_like(x_t).to(dtype).requires_grad_() for _ in range(2))

        def forward(backend: str, cond: Tensor = cond, uncond: Tensor = uncond) -> Tensor:
            return trajectory_log_prob(cond, uncond, 3.0, x_t, x_prev, rows, backend=backend)

        def both(backend: str, leaves: tuple[Tensor, ...] = (cond, uncond)) -> Step:
            return lambda: torch.autograd.grad(forward(backend), leaves, grad)

        size = x_t.numel()
        num_bytes = 2 * size * 2 * (4 + cond.element_size()) + 2 * size * cond.element_size()
        names = machine.backends("trajectory_log_prob")
        medians = machine.medians({name: both(name) for name in (*names, "reference")})
        case = f"{batch}x4x64x64 {str(dtype).removeprefix('torch.')}, {num_bytes / 1e9:.2f} GB"
        for name in names:
            share = num_bytes / medians[name] / bandwidth
            yield row("trajectory_log_prob: share of copy bandwidth", case, name, share, 0.85, medians)
            output = forward(name)
            there = machine.launches(lambda name=name: forward(name))
            back = machine.launches(
                lambda output=output, leaves=(cond, uncond): torch.autograd.grad(
                    output, leaves, grad, retain_graph=True
                )
            )
            for way, count in (("forward", there), ("backward", back)):
                # Stated as 1 / launches, so that more is better as in the other rows.
                value = 1.0 / max(count, 1)
                target = f"trajectory_log_prob: at most one launch, {way} ({count})"
                yield row(target, case, name, value, 1.0, {})


def pairwise_targets(machine: Machine) -> Iterator[Row]:
    """Ten times eager PyTorch."""
    n, p, m, k = machine.size(4096, 64), machine.size(256, 4), 8, 3
    rewards = torch.randn(n, k, device=machine.device).requires_grad_()
    anchors = torch.randn(p, m, k, device=machine.device)
    prompt_of = torch.randint(p, (n,), device=machine.device)
    weights, floor = torch.ones(k, device=machine.device), torch.full((k,), 0.1, device=machine.device)
    grad = torch.ones(n, device=machine.device)
    for form in FORMS:

        def both(backend: str, form: str = form) -> Step:
            def step() -> object:
                score, _ = pairwise_comparison(
                    rewards, anchors, prompt_of, weights, form, min_std=floor, backend=backend
                )
                return torch.autograd.grad(score, rewards, grad) if score.requires_grad else score

            return step

        names = machine.backends("pairwise_comparison")
        medians = machine.medians({name: both(name) for name in (*names, "reference")}, calls=10)
        for name in names:
            ratio = medians["reference"] / medians[name]
            case = f"{form} N={n} P={p} M={m} K={k}"
            yield row("pairwise_comparison: times eager", case, name, ratio, 10.0, medians)


def _heads(machine: Machine, batch: int, rows: int, dim: int, dtype: torch.dtype) -> Tensor:
    shape = (batch, rows, 8, dim)
    return torch.randn(shape, device=machine.device, dtype=dtype).transpose(1, 2).requires_grad_()


def attention_targets(machine: Machine, *, cross: bool) -> Iterator[Row]:
    """Against SDPA: self-attention as fast, or 1.2 times where it pads; cross-attention 1.5 times."""
    batch, extra = machine.size(8, 2), 8
    for dtype in machine.dtypes:
        for dim in (40, 64, 80, 160) if cross else (40, 64, 80, 128, 160):
            for queries in (machine.size(1024, 16), machine.size(4096, 32)):
                q = _heads(machine, batch, queries, dim, dtype)
                k, v = (_heads(machine, batch, 77 if cross else queries, dim, dtype) for _ in range(2))
                extras: dict[str, Tensor] = {}
                if cross:
                    for name in ("extra_k", "extra_v"):
                        value = torch.randn(8, extra, dim, device=machine.device, dtype=dtype)
                        extras[name] = value.requires_grad_()
                leaves, grad = (q, k, v, *extras.values()), torch.randn_like(q)

                def both(
                    backend: str,
                    qkv: tuple[Tensor, ...] = (q, k, v),
                    extras: dict[str, Tensor] = extras,
                    leaves: tuple[Tensor, ...] = leaves,
                    grad: Tensor = grad,
                ) -> Step:
                    def step() -> object:
                        output = attention(*qkv, **extras, backend=backend)  # type: ignore[arg-type]
                        return torch.autograd.grad(output, leaves, grad)

                    return step

                names = machine.backends("attention")
                medians = machine.medians({name: both(name) for name in (*names, "sdpa")})
                best = min(names, key=medians.__getitem__)
                wanted = 1.5 if cross else 1.0 if dim in (64, 128) else 1.2
                kind = "cross-attention 77+8" if cross else "self-attention"
                case = f"B={batch} H=8 N={queries} D={dim} {str(dtype).removeprefix('torch.')}"
                ratio = medians["sdpa"] / medians[best]
                yield row(f"{kind}: times SDPA", case, best, ratio, wanted, medians)


def measure(machine: Machine) -> dict[str, Any]:
    """Everything, printed as it comes."""
    rows = []
    for part in (
        trajectory_targets(machine),
        pairwise_targets(machine),
        attention_targets(machine, cross=True),
        attention_targets(machine, cross=False),
    ):
        for entry in part:
            rows.append(entry)
            verdict = "met " if entry["met"] else "MISSED"
            print(
                f"{verdict:6} {entry['value']:8.3f} (wanted {entry['wanted']}) {entry['target']}: "
                f"{entry['case']}, {entry['backend']}",
                flush=True,
            )
    name = "CPU dry run: no figure here counts" if machine.dry_run else torch.cuda.get_device_name()
    return {"device": name, "copy_bytes_per_second": copy_bandwidth(machine), "rows": rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, help="JSON to write")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU; figures mean nothing")
    options = parser.parse_args(argv)
    if not options.dry_run and not torch.cuda.is_available():
        print("error: no GPU; --dry-run only sees that this runs", file=sys.stderr)
        return 2
    result = measure(Machine(options.dry_run))
    if options.out:
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Comparison of callables interleaved in one process, a table at the end, and JSON.

Timings on shared cores drift, so every round calls each callable once, and only ratios of medians are
reported. The order is drawn anew for every round: whoever follows another finds the inputs in the caches. A
round during which a fixed calibration workload ran more than half slower than its median is dropped for all.
"""

from __future__ import annotations

import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from cxrl.ops.trajectory_log_prob import trajectory_log_prob_reference

_ROWS: list[dict[str, Any]] = []
MIN_SECONDS = 0.8
MAX_ROUNDS = 400

Compare = Callable[..., dict[str, float]]
FastestCompiled = Callable[..., Callable[[], object]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--results",
        default=".benchmarks/ops.json",
        help="JSON of the table; default .benchmarks/ops.json",
    )


def _calibrate() -> float:
    start = time.perf_counter()
    sum(range(4000))
    return time.perf_counter() - start


def interleave(
    functions: Mapping[str, Callable[[], object]], device: str, min_seconds: float = MIN_SECONDS
) -> dict[str, list[float]]:
    """Seconds of every callable, round by round; on a GPU until it has done."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for function in functions.values():
        for _ in range(3):
            function()
        wait()
    rounds: list[tuple[float, dict[str, float]]] = []
    order, draw = list(functions), random.Random(0)
    began = time.perf_counter()
    while len(rounds) < MAX_ROUNDS and (time.perf_counter() - began < min_seconds or len(rounds) < 5):
        calibration, times = _calibrate(), {}
        draw.shuffle(order)
        for name in order:
            function = functions[name]
            start = time.perf_counter()
            function()
            wait()
            times[name] = time.perf_counter() - start
        rounds.append((max(calibration, _calibrate()), times))
    usual = statistics.median(c for c, _ in rounds)
    kept = [times for c, times in rounds if c <= 1.5 * usual]
    return {name: [times[name] for times in kept] for name in functions}


@pytest.fixture(params=["cpu", *(["cuda"] if torch.cuda.is_available() else [])])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every device that is here; new tensors are made on it."""
    if request.param != "cpu":
        torch.set_default_device(request.param)
    yield request.param
    torch.set_default_device(None)


@pytest.fixture
def fastest_compiled(device: str) -> FastestCompiled:
    """``fastest_compiled(step, function, variants)``: ``step(function)`` with the function compiled.

    ``step`` makes the timed callable of a function. ``variants`` are arguments of ``torch.compile``: the
    fastest here is taken, since code for any shape is at times faster than code for one.
    """

    def choose(
        step: Callable[[Callable[..., Any]], Callable[[], object]],
        function: Callable[..., Any],
        variants: Sequence[Mapping[str, Any]] = ({"dynamic": False}, {"dynamic": True}),
    ) -> Callable[[], object]:
        torch.set_default_device(None)  # as in compare
        torch.compiler.reset()  # else what earlier shapes compiled decides
        steps = {str(i): step(torch.compile(function, **options)) for i, options in enumerate(variants)}
        times = interleave(steps, device, min_seconds=0.1)
        return steps[min(times, key=lambda name: statistics.median(times[name]))]

    return choose


@pytest.fixture
def compare(benchmark: BenchmarkFixture, device: str) -> Compare:
    """``compare(op, shape, {"cpp": f, "eager": g, …}, num_bytes=…, flops=…)``: the first is ours.

    Returns the median seconds of every callable; the row goes to the table and to ``extra_info``.
    """

    def run(
        op: str, shape: str, functions: Mapping[str, Callable[[], object]], *, num_bytes: int, flops: int
    ) -> dict[str, float]:
        torch.set_default_device(None)  # would send every call on a detour while it is timed
        times = interleave(functions, device)
        medians = {name: statistics.median(values) for name, values in times.items()}
        ours = next(iter(functions))
        low, _, high = statistics.quantiles(times[ours], n=4)
        row = {
            "op": op,
            "shape": shape,
            "dtype": "float32",
            "device": device,
            "backend": ours,
            "bytes": num_bytes,
            "flops": flops,
            "rounds": len(times[ours]),
            "median_us": {name: round(value * 1e6, 2) for name, value in medians.items()},
            "quartiles_us": [round(low * 1e6, 2), round(high * 1e6, 2)],
            "ratio": {n: round(v / medians[ours], 2) for n, v in medians.items() if n != ours},
        }
        _ROWS.append(row)
        benchmark.extra_info.update(row)
        benchmark.pedantic(functions[ours], rounds=10, iterations=1)
        return medians

    return run


class StockLoop:
    """The method without cxrl's ops, as loops over plain diffusers and peft write it: the comparator.

    Stock attention processor, text and ACE repeated for every sample, ``DDIMScheduler.step``, log-probability
    in eager PyTorch. Weights are the policy's own.
    """

    def __init__(self, policy: Any, sampler: Any) -> None:
        from diffusers import DDIMScheduler
        from diffusers.models.attention_processor import AttnProcessor2_0

        self.policy, self.sampler = policy, sampler
        self.unet, self._stock = policy.base.unet, AttnProcessor2_0()
        self._ours = self.unet.attn_processors
        spacing = {"timestep_spacing": sampler.config.timestep_spacing, "clip_sample": False}
        self.scheduler = DDIMScheduler.from_config(policy.base.scheduler_config, **spacing)
        self.scheduler.set_timesteps(sampler.config.num_steps)

    @property
    def weight_bytes(self) -> int:
        """What one pass through the UNet reads at least."""
        return sum(p.numel() * p.element_size() for p in self.unet.parameters())

    def flops(self, function: Callable[[], object]) -> int:
        """Of the matrix products and convolutions of a stock call."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            function()
        return counter.get_total_flops()

    def __enter__(self) -> StockLoop:
        self.unet.set_attn_processor(self._stock)
        return self

    def __exit__(self, *_: object) -> None:
        self.unet.set_attn_processor(dict(self._ours))

    def predict(self, x: torch.Tensor, t: torch.Tensor, embeds: torch.Tensor) -> torch.Tensor:
        tokens = self.policy.ace.expand(len(x), -1, -1)
        return self.unet(x, t, torch.cat([embeds, tokens], 1), return_dict=False)[0]

    @torch.no_grad()
    def rollout(self, embeds: torch.Tensor, noise: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Latents [N, T + 1, C, h, w] and the decoded images of N rows of text."""
        latents = [noise()]
        rows = self.sampler.schedule.rows
        for step, t in enumerate(self.scheduler.timesteps):
            x = latents[-1]
            output = self.predict(x, t.expand(len(x)), embeds)
            x_prev = self.scheduler.step(output, t, x, eta=1.0, variance_noise=noise()).prev_sample
            if rows[step, 2] > 0:
                trajectory_log_prob_reference(output, None, 1.0, x, x_prev, rows[step].expand(len(x), 3))
            latents.append(x_prev)
        self.policy.base.decode(latents[-1])
        return torch.stack(latents, 1)


@pytest.fixture(scope="session")
def phantom_sampler() -> Any:
    """The embedded default with its preset's adapters and chain."""
    from cxrl.models.base import load_base
    from cxrl.models.policy import Policy
    from cxrl.presets import load_preset
    from cxrl.rl.rollout import Sampler

    config = load_preset("phantom")
    policy = Policy(load_base("phantom"), config.policy)
    with torch.no_grad():  # as after some training: LoRA's B starts at zero
        for name, p in policy.trainable.items():
            if "lora_B" in name:
                p.normal_(std=0.02)
    return Sampler(policy, config.sampler)


@pytest.fixture(scope="session")
def stock_loop(phantom_sampler: Any) -> StockLoop:
    return StockLoop(phantom_sampler.policy, phantom_sampler)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not _ROWS:
        return
    terminalreporter.section("how many times slower the others are (medians, interleaved)")
    for row in _ROWS:
        ratios = "  ".join(f"{name} {value:.2f}x" for name, value in row["ratio"].items())
        ours = row["median_us"][row["backend"]]
        terminalreporter.write_line(
            f"{row['op']:34} {row['shape']:26} {row['device']} {row['backend']} {ours:9.1f} us  {ratios}"
        )
    path = Path(config.getoption("--results"))
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = {
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    path.write_text(json.dumps({"machine": machine, "rows": _ROWS}, indent=1) + "\n")
    terminalreporter.write_line(f"{path}: {len(_ROWS)} rows")

"""The findings of ``cxrl.doctor`` as text: environment, required files, cost."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Sequence

import torch

from cxrl.config import Config
from cxrl.machine import processor, versions
from cxrl.models.base import DTYPES
from cxrl.models.base_files import local_folder
from cxrl.ops import unavailable_reason
from cxrl.output.terminal import duration
from cxrl.rl.batch_sizes import fit_to_memory, machine_memory
from cxrl.rl.cost import counts, estimate, footprint, matmul_rate, size_text
from cxrl.scorers.required import RequiredFile, how_to_get
from cxrl.tables import format_table

_OPS = ("attention", "trajectory_log_prob", "pairwise_comparison")
_GIB = 2.0**30
_WIDTH = 110


def environment_text() -> str:
    """Versions, processor, GPUs, and which backends of the ops run here, with the reason where not."""
    packages = ", ".join(f"{name} {found}" if found else f"no {name}" for name, found in versions())
    cpu = f"{processor()} ({torch.backends.cpu.get_cpu_capability()})"
    rows = [("python", platform.python_version()), ("packages", packages)]
    rows += [("processor", f"{cpu}, {os.cpu_count()} logical cores, {torch.get_num_threads()} threads")]
    rows += [("memory", f"{machine_memory(torch.device('cpu')) / _GIB:.0f} GiB")]
    rows += [("extension", _extension())]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        rows.append(
            (f"GPU {number}", f"{gpu.name}, sm_{gpu.major}{gpu.minor}, {gpu.total_memory / _GIB:.0f} GiB")
        )
    if device == "cpu":
        rows.append(("GPU", "none that torch can use"))
    for backend in ("cpp", "cuda", "triton", "xformers"):
        ops = _OPS if backend != "xformers" else _OPS[:1]
        kind = "cpu" if backend == "cpp" else device
        reasons = {op: unavailable_reason(op, backend, kind) for op in ops}
        missing = sorted({reason for reason in reasons.values() if reason})
        rows.append((f"backend {backend}", "; ".join(missing) if missing else f"runs {', '.join(ops)}"))
    return _aligned("environment", rows)


def _extension() -> str:
    try:
        extension = importlib.import_module("cxrl._C")
    except ImportError as error:
        return f"cxrl._C cannot be imported: {error}"
    parts = [f"cxrl._C, CPU loops {extension.isa()}", "OpenMP" if extension.has_openmp else "no OpenMP"]
    return ", ".join([*parts, "CUDA kernels" if extension.has_cuda else "no CUDA kernels (CXRL_CUDA)"])


def files_text(config: Config, files: Sequence[RequiredFile]) -> str:
    """A line for everything that the configuration needs."""

    def state(file: RequiredFile) -> str:
        if file.is_present:
            return f"there: {file.path or file.source}"
        return f"BROKEN: {file.problem}" if file.problem else f"MISSING: {how_to_get(file)}"

    return _aligned(f"preset {config.preset} needs", [(file.option, state(file)) for file in files])


def estimate_text(config: Config, files: Sequence[RequiredFile]) -> str:
    """Images, passes through the UNet, memory and time on this machine, by :mod:`cxrl.rl.cost`."""
    base = next(file for file in files if file.option == "model.path")
    if base.problem:
        return _aligned("cost", [("all", "not known before the base at model.path can be loaded")])
    work = counts(config)
    rows = [
        ("images", f"{work.images_per_epoch:,} an epoch, {config.train.num_epochs:,} epochs"),
        ("UNet, rollout", f"{work.rollout_rows:,} rows an epoch, forward"),
        ("UNet, update", f"{work.update_rows:,} rows an epoch, forward and backward"),
        ("UNet, anchor", f"{work.anchor_rows:,} rows an epoch; the bank {work.bank_rows:,} in all"),
        ("UNet, judging", f"{work.eval_rows:,} rows in all"),
    ]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if local_folder(config.model.path) is None:
        rows.append(("memory, time", "not known before model.path is on this machine"))
        return _aligned("cost", rows)
    processes = max(1, torch.cuda.device_count())
    config, fitted = fit_to_memory(config, device)
    size = footprint(config, device)
    assert size is not None
    rate = matmul_rate(device, DTYPES[config.model.dtype])
    cost = estimate(config, size, rate, processes)
    rows += [
        (
            "a row",
            f"{size.flops / 1e9:,.1f} GFLOP forward; {size.update.row / 2**20:,.1f} MiB alive in the update, "
            f"{size.sampling.row / 2**20:,.1f} MiB in the rollout",
        ),
        (
            "memory",
            f"about {size_text(cost.bytes_weights)} of weights and optimizer, "
            f"{size_text(cost.bytes_activations)} of activations; reward models and judges come on top, "
            "and what the allocator holds back",
        ),
        *([("batch sizes", fitted)] if fitted else []),
        (
            "time",
            f"about {duration(cost.seconds_per_epoch)} an epoch, {duration(cost.seconds_total)} in all on "
            f"{processes} {'GPU' if device.type == 'cuda' else 'CPU'} ({rate / 1e9:,.0f} GFLOP/s measured on "
            "a matrix product); a guide, often off by half",
        ),
    ]
    return _aligned("cost (estimated)", rows)


def _aligned(title: str, rows: Sequence[tuple[str, str]]) -> str:
    return f"{title}\n{format_table([(f'  {name}', text) for name, text in rows], width=_WIDTH)}"

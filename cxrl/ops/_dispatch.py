"""Which backend runs an op.

An op's public function checks its arguments, asks :func:`select` for a backend and calls it. ``reference``,
``sdpa`` and ``xformers`` are plain differentiable PyTorch in the op's own file. The compiled ones live in
provider modules that hold, for the ops they can do, plain functions named ``<op>`` and ``<op>_backward``
(arguments of the schema without ``backend``, then ``out``, the tensors to write), and

    unavailable(op: str, device_type: str) -> str | None      why the op cannot run here, or None
    SUPPORTED: frozenset[str]                                 the unusual needs of an op that it can meet

A provider whose module cannot be imported is unavailable for that reason; a new backend adds only its file.
"""

from __future__ import annotations

import functools
import importlib
import json
import logging
import os
import platform
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, ParamSpec, TypeVar, cast

import torch

BACKENDS = ("auto", "reference", "sdpa", "cpp", "triton", "cuda", "xformers")
ENVIRONMENT_VARIABLE = "CXRL_BACKEND"
TABLE_VERSION = 1

_FILE_OF_OP = {"denoise_step": "trajectory_log_prob", "group_win_rate": "pairwise_comparison"}
COMPILED = {"cpp": "cxrl.ops._cpp", "cuda": "cxrl.ops._cuda", "triton": "cxrl_kernels.{file}"}
_PLAIN = {"attention": ("reference", "sdpa", "xformers")}
# What auto tries, in order, unless cxrl.ops.tune has measured this device. The last entry always works.
_AUTO = {
    "cpu": ("cpp", "reference"),
    "cuda": ("triton", "cuda", "reference"),
}
_AUTO_ATTENTION = {
    ("cpu", "few"): ("cpp", "sdpa"),  # few keys: cross-attention
    ("cpu", "little"): ("sdpa",),
    ("cpu", "many"): ("sdpa",),
    ("cuda", "few"): ("triton", "sdpa"),
    ("cuda", "little"): ("sdpa",),
    ("cuda", "many"): ("sdpa",),
}
_LOGGER = logging.getLogger("cxrl")
_REMEMBERED: list[Any] = []

P = ParamSpec("P")
R = TypeVar("R")


def remembered(function: Callable[P, R]) -> Callable[P, R]:
    """``function`` with its results kept until :func:`forget_choices`."""
    cached = functools.lru_cache(maxsize=1024)(function)
    _REMEMBERED.append(cached)
    return cast(Callable[P, R], cached)


def backends_of(op: str) -> tuple[str, ...]:
    """The backends that ``op`` has anywhere, whether or not they run here."""
    return (*_PLAIN.get(op, ("reference",)), *COMPILED)


@remembered
def provider(op: str, backend: str) -> ModuleType:
    """The module that holds a compiled backend of ``op``; ImportError with the reason where there is none."""
    return importlib.import_module(COMPILED[backend].format(file=_FILE_OF_OP.get(op, op)))


def unavailable_reason(
    op: str, backend: str, device_type: str = "cpu", needs: tuple[str, ...] = ()
) -> str | None:
    """Why ``backend`` cannot run ``op`` on ``device_type`` tensors, or None if it can.

    Args:
        op: Name of the op.
        backend: One of :data:`BACKENDS`.
        device_type: "cpu" or "cuda".
        needs: Unusual things that the arguments ask for, such as "float64".
    """
    if backend in ("auto", "reference"):
        return None
    if backend not in backends_of(op):
        return f"{op} has no such backend; it has {', '.join(backends_of(op))}"
    if backend == "sdpa":
        return None
    if backend == "xformers":
        return _xformers_reason(device_type, needs)
    try:
        module = provider(op, backend)
    except ImportError as error:
        return f"{COMPILED[backend].format(file=_FILE_OF_OP.get(op, op))} cannot be imported: {error}"
    if not hasattr(module, op):
        return f"{module.__name__} does not implement it"
    missing = [need for need in needs if need not in module.SUPPORTED]
    if missing:
        return f"it does not support {' and '.join(missing)}"
    return module.unavailable(op, device_type)


def _xformers_reason(device_type: str, needs: tuple[str, ...]) -> str | None:
    if device_type != "cuda":
        return f"it needs CUDA tensors, these are on {device_type}"
    if "float64" in needs:
        return "it does not support float64"
    try:
        importlib.import_module("xformers.ops")
    except ImportError as error:
        return f"xformers cannot be imported: {error}"
    return None


@remembered
def _environment() -> str:
    return os.environ.get(ENVIRONMENT_VARIABLE, "")


def requested_backend(op: str, backend: str | None) -> str:
    """The backend that the caller or else the environment asks for, "auto" if neither does.

    The environment variable is read at the first call; it speaks for the ops that have such a backend, the
    others stay on "auto".
    """
    if backend is not None:
        return backend
    wanted = _environment()
    if not wanted:
        return "auto"
    if wanted not in BACKENDS:
        raise ValueError(f"{ENVIRONMENT_VARIABLE}={wanted!r}; choose one of {', '.join(BACKENDS)}")
    return wanted if wanted in backends_of(op) else "auto"


@torch.compiler.assume_constant_result
def select(
    op: str, backend: str | None, device_type: str, needs: tuple[str, ...] = (), case: str = ""
) -> str:
    """The backend to use: what was asked for, or what ``auto`` picks.

    Args:
        op: Name of the op.
        backend: The ``backend=`` of the call.
        device_type: "cpu" or "cuda".
        needs: Unusual things that the arguments ask for, such as "float64".
        case: What the speed depends on (size class, dtype), as the op writes it; a key of the tuned table.

    Raises:
        ValueError: The backend that was asked for is unknown or cannot run; the message says why.
    """
    return _select(op, requested_backend(op, backend), device_type, needs, case)


def candidates(op: str, device_type: str, case: str) -> tuple[str, ...]:
    """What ``auto`` tries for a case, in order."""
    if op == "attention":
        default = _AUTO_ATTENTION.get((device_type, case.partition("/")[0]), ("sdpa",))
    else:
        default = _AUTO.get(device_type, ("reference",))
    tuned = _tuned(device_type).get(op, {}).get(case)
    return default if tuned is None else (tuned, *(d for d in default if d != tuned))


@remembered
def _select(op: str, wanted: str, device_type: str, needs: tuple[str, ...], case: str) -> str:
    if wanted not in BACKENDS:
        raise ValueError(f"{op}: unknown backend {wanted!r}; choose one of {', '.join(BACKENDS)}")
    if wanted != "auto":
        reason = unavailable_reason(op, wanted, device_type, needs)
        if reason is not None:
            raise ValueError(f"{op}: backend {wanted!r} cannot run: {reason}")
        return wanted
    chosen, reasons = "reference", []
    for chosen in candidates(op, device_type, case):
        reason = unavailable_reason(op, chosen, device_type, needs)
        if reason is None:
            break
        reasons.append(f"{chosen}: {reason}")
    if reasons:
        _announce(op, chosen, "; ".join(reasons))
    return chosen


@remembered
def _announce(op: str, chosen: str, reasons: str) -> None:
    _LOGGER.warning("%s runs on backend %r (%s)", op, chosen, reasons)


def device_key(device_type: str) -> str:
    """Name of the hardware that a tuned table belongs to."""
    if device_type == "cuda":
        name = torch.cuda.get_device_name()
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        names = [line.partition(":")[2] for line in lines if line.startswith("model name")]
        name = f"{names[0] if names else platform.machine()} {torch.get_num_threads()} threads"
    return "-".join("".join(c if c.isalnum() else " " for c in name).split())


def table_path(device_type: str) -> Path | None:
    """Where :mod:`cxrl.ops.tune` keeps its table for this device; None for a user without a home."""
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no HOME and no entry in passwd, as in containers
        return None
    return Path(cache) / "cxrl" / f"ops-{device_key(device_type)}.json"


@remembered
def _tuned(device_type: str) -> dict[str, dict[str, str]]:
    """Fastest backend by op and case on this device; empty where it was not tuned."""
    if device_type == "cuda" and not torch.cuda.is_available():
        return {}
    path = table_path(device_type)
    if path is None:
        return {}
    try:
        table = json.loads(path.read_text())
        if table["version"] == TABLE_VERSION:
            return table["choices"]
        problem = f"version {table['version']}, expected {TABLE_VERSION}"
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = repr(error)
    _LOGGER.warning("%s is ignored (%s); python -m cxrl.ops.tune writes it anew", path, problem)
    return {}


def forget_choices() -> None:
    """Look again at the environment and at what is available. For tests and :mod:`cxrl.ops.tune`."""
    for cached in _REMEMBERED:
        cached.cache_clear()

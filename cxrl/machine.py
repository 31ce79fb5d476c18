"""What a result was made with: the machine, the packages, the commit and the command."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cxrl.version import __version__

PACKAGES = (
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "torchxrayvision",
    "triton",
    "xformers",
)


def processor() -> str:
    """The CPU's name."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def versions() -> Iterator[tuple[str, str]]:
    """Name and version of the packages that decide a result; "" for one that is not installed."""
    for name in PACKAGES:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, ""


def commit() -> str:
    """The commit of a checkout that cxrl runs from, with ``-dirty`` where it was changed; "" elsewhere."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return ""
    words = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def session(memory: int) -> dict[str, Any]:
    """A process that works on a run; JSON.

    Args:
        memory: Bytes of its device.
    """
    import torch

    devices = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    program, *words = sys.orig_argv
    return {
        "started": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(program).name, *words]),
        "version": __version__,
        "commit": commit(),
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "memory_gib": round(memory / 2**30, 1),
            "devices": devices,
            "platform": platform.platform(),
        },
        "packages": {"python": platform.python_version(), **dict(versions())},
    }

"""What the Triton providers share: where they run, and the counters that let one launch reduce over programs.

With ``TRITON_INTERPRET=1``, set before the first import, Triton's interpreter runs every kernel on the CPU:
slow, for tests, and not with bfloat16 matrix products (it multiplies their raw bits).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

MIN_CAPABILITY = (8, 0)
INDEX_LIMIT = 1 << 31  # offsets inside a row or a head are 32-bit numbers

_counters: dict[tuple[torch.device, int], Tensor] = {}
_assumed_capability: int | None = None


@triton.jit
def _probe_kernel(out):
    tl.store(out, 0)


INTERPRETED = not isinstance(_probe_kernel, triton.JITFunction)


def unavailable(op: str, device_type: str) -> str | None:
    """Why the Triton backend cannot run ``op`` here, or None."""
    if INTERPRETED:
        return None
    if device_type != "cuda":
        return f"it needs CUDA tensors, these are on {device_type} (tests set TRITON_INTERPRET=1)"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device"
    capability = torch.cuda.get_device_capability()
    if capability < MIN_CAPABILITY:
        wanted, here = (".".join(map(str, c)) for c in (MIN_CAPABILITY, capability))
        return f"it needs compute capability {wanted} or newer, this GPU has {here}"
    return None


def capability_of(t: Tensor) -> int:
    """Compute capability of the device that holds ``t``, as in sm_90; the oldest where there is none."""
    if _assumed_capability is not None:
        return _assumed_capability
    if not t.is_cuda:
        return 10 * MIN_CAPABILITY[0] + MIN_CAPABILITY[1]
    major, minor = torch.cuda.get_device_capability(t.device)
    return 10 * major + minor


@contextlib.contextmanager
def assume_capability(capability: int) -> Iterator[None]:
    """Choose configurations for a device that is not here: for compilation ahead of time."""
    global _assumed_capability
    before, _assumed_capability = _assumed_capability, capability
    try:
        yield
    finally:
        _assumed_capability = before


def zeroed_counters(count: int, device: torch.device) -> Tensor:
    """At least ``count`` int64 zeros. Kernels leave zeros behind, so no call but the first fills them.

    Launches of one stream run one after the other and can share them. A CUDA graph gets its own, filled in
    the graph, because it may be replayed beside anything.
    """
    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return torch.zeros(count, dtype=torch.int64, device=device)
    key = (device, torch.cuda.current_stream(device).cuda_stream)
    counters = _counters.get(key)
    if counters is None or counters.numel() < count:
        size = triton.next_power_of_2(max(count, 4096))
        counters = _counters[key] = torch.zeros(size, dtype=torch.int64, device=device)
    return counters

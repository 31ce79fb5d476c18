"""Memory of the passes through the networks, found on tensors that have sizes and no data.

The networks run with the attention of the policy, forward and backward, under ``FakeTensorMode``, and the
bytes of the tensors that are alive are added up as they come and go. So whatever the code keeps counts, the
choice of the ops and gradient checkpointing included, and nothing else: what kernels take for themselves and
what an allocator holds back come on top.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class RowMemory:
    """Bytes alive at once, beside the weights and their gradients.

    Attributes:
        row: Of every row of a batch.
        fixed: However many rows.
    """

    row: int
    fixed: int

    def of(self, rows: int) -> int:
        """Bytes of a batch."""
        return self.fixed + rows * self.row


class _Alive(TorchDispatchMode):
    """Adds up the storages that appear inside.

    Attributes:
        peak: Most bytes at once.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        self._known.add(key)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, storage.nbytes())

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def rows_memory(device: torch.device, network: nn.Module, run: Callable[[int], Any]) -> RowMemory:
    """Of a pass, by what one row and two take.

    Args:
        device: Where it would run; the ops choose by it. Nothing is put there.
        network: On the meta device; its weights come back without data.
        run: Does the pass with a number of rows, its tensors on the default device.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    peaks = []
    with FakeTensorMode(), torch.device(device), _without_data(network, device):
        for rows in (1, 2):
            with _Alive() as alive:
                run(rows)
            peaks.append(alive.peak)
    row = peaks[1] - peaks[0]
    return RowMemory(row, max(0, peaks[0] - row))


@contextmanager
def _without_data(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the weights of a network on the meta device are fake ones on another; gradients do not stay."""
    before: list[tuple[dict[str, Any], str, Any]] = []
    for module in network.modules():
        stores: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for store in stores:
            for name, tensor in store.items():
                if tensor is None:
                    continue
                before.append((store, name, tensor))
                store[name] = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                if isinstance(tensor, nn.Parameter):
                    store[name] = nn.Parameter(store[name], requires_grad=tensor.requires_grad)
                    if tensor.requires_grad:
                        store[name].register_post_accumulate_grad_hook(_drop_gradient)
    try:
        yield
    finally:
        for store, name, tensor in before:
            store[name] = tensor


def _drop_gradient(parameter: Tensor) -> None:
    parameter.grad = None

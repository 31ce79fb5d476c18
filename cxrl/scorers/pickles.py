"""Weights that others published as pickles, read so that no pickle can run code.

A pickle names functions and classes and calls them. Here every name is looked up in a list, and what the list
gives for a class is not the class but :class:`Shell`, which keeps its state in a dict and does nothing; the
tensors are then picked out of the shells. A file that names anything else is refused, and so is one whose
SHA-256 is not the expected one, before its first byte is interpreted.

Files since torch 1.6 are zip archives and go through ``torch.load(weights_only=True)``. Older files of whole
modules, as torchxrayvision's are, hold every class a second time with its source code, which ``torch.load``
refuses; :class:`_OldFile` reads that format, whose layout is: magic number, protocol, system, object, keys of
the storages (five pickles), then every storage as its length and its values.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.scorers.choice import check_digest

_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
MODULES = (
    *(f"torchxrayvision.models.{name}" for name in ("DenseNet", "_DenseBlock", "_DenseLayer", "_Transition")),
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.batchnorm.BatchNorm2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.pooling.AvgPool2d",
    "torch.nn.modules.linear.Linear",
)
"""The classes of a DenseNet that was saved whole."""
_DTYPES = {"FloatStorage": torch.float32, "HalfStorage": torch.float16, "LongStorage": torch.int64}


class Shell:
    """Stands for a module: keeps what the file says about it."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("the state of a module is no dict")
        vars(self).update(state)


def read_pickled_state(path: Path, *, sha256: str, option: str) -> dict[str, Tensor]:
    """The tensors of a pickled state dict or of a pickled DenseNet, on the CPU.

    Args:
        path: The file.
        sha256: Its expected digest in hex.
        option: What named the file, for messages.

    Raises:
        CxrlError: The digest differs, the file is damaged, or it needs a name that is not allowed.
    """
    check_digest(path, sha256, option)
    try:
        if zipfile.is_zipfile(path):
            with torch.serialization.safe_globals([(Shell, name) for name in MODULES]):
                content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with path.open("rb") as file:
                content = _OldFile(file).read()
        return {name: tensor.detach() for name, tensor in _tensors(content).items()}
    except Exception as error:  # pickle, struct and torch raise a dozen types for damaged files
        reason = next((line for line in str(error).splitlines() if "nsupported" in line), str(error))
        raise CxrlError(
            f"{option}: {path} cannot be read without running code of the file, or is damaged "
            f"({' '.join(reason.split())[:200]}); expected the tensors of a network, nothing else"
        ) from None


def _tensors(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """The state dict of shells, or the dict itself."""
    if isinstance(content, dict):
        if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
            raise ValueError("the file holds other things than named tensors")
        return content
    if not isinstance(content, Shell):
        raise ValueError(f"the file holds a {type(content).__name__}")
    state = vars(content)
    own = {**state.get("_parameters", {}), **state.get("_buffers", {})}
    found = {f"{prefix}{name}": tensor for name, tensor in own.items() if isinstance(tensor, Tensor)}
    for name, module in state.get("_modules", {}).items():
        if module is not None:
            found |= _tensors(module, f"{prefix}{name}.")
    return found


class _OldFile:
    """A file of ``torch.save`` before torch 1.6."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._storages: dict[str, Tensor] = {}

    def read(self) -> Any:
        if self._load() != _MAGIC or self._load() != _PROTOCOL:
            raise pickle.UnpicklingError("no file of torch.save")
        if self._load().get("little_endian") is not True:
            raise pickle.UnpicklingError("not little-endian")
        content, keys = self._load(), self._load()
        for key in keys:
            storage = self._storages[key]
            count = int.from_bytes(self._file.read(8), "little")
            data = self._file.read(storage.numel() * storage.element_size())
            if count != storage.numel() or len(data) != storage.numel() * storage.element_size():
                raise pickle.UnpicklingError("truncated")
            storage.copy_(torch.frombuffer(bytearray(data), dtype=storage.dtype))
        return content

    def _load(self) -> Any:
        return _Unpickler(self._file, self._storages).load()


class _Unpickler(pickle.Unpickler):
    """Finds the allowed names only; none of them does anything but keep or view data."""

    def __init__(self, file: BinaryIO, storages: dict[str, Tensor]) -> None:
        super().__init__(file)
        self._storages = storages

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in MODULES:
            return Shell
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if full in _HARMLESS:
            return _HARMLESS[full]
        raise pickle.UnpicklingError(f"Unsupported name {full}")

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] == "module":  # a class, its file and its source code, which nobody runs
            return pid[1]
        if pid[0] != "storage":
            raise pickle.UnpicklingError(f"Unsupported reference {str(pid[0])[:40]!r}")
        _, dtype, key, _, count, view = pid
        if view is not None:
            raise pickle.UnpicklingError("Unsupported view of a storage")
        return self._storages.setdefault(key, torch.empty(count, dtype=dtype))


class _Dict(dict[str, Any]):
    """Stands for OrderedDict: a dict keeps its order."""


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _parameter(tensor: Tensor, *_: Any) -> Tensor:
    return tensor


def _set(items: Any = ()) -> frozenset[Any]:
    return frozenset(items)


_HARMLESS: dict[str, Any] = {
    "collections.OrderedDict": _Dict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "__builtin__.set": _set,
    "builtins.set": _set,
}

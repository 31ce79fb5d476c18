"""Reading what was saved: an error names the file and what is wrong with it. Safetensors and JSON only."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrl.errors import CxrlError


def laid_out_as(p: Tensor, value: Tensor) -> Tensor:
    """A copy of a value on the device and with the strides of a weight of its shape.

    A file keeps no strides (channels last), and AdamW's fused step pairs a weight and its moments by their
    place in memory, not by their index.
    """
    return torch.empty_like(p, dtype=value.dtype, requires_grad=False).copy_(value)


def check_weights(expected: Any, weights: dict[str, Tensor], source: str) -> None:
    """Raise CxrlError unless both have the same names and shapes."""
    for name in sorted(set(expected) ^ set(weights)):
        state = "misses" if name in expected else "has an unexpected"
        raise CxrlError(
            f"{source}: {state} weight {name}; it was written with another policy.* or model.path"
        )
    for name, p in expected.items():
        if weights[name].shape != p.shape:
            raise CxrlError(
                f"{source}: weight {name} is {tuple(weights[name].shape)}, expected {tuple(p.shape)}; "
                "it was written with another policy.* or model.path"
            )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file on the CPU. Raises CxrlError naming the file."""
    try:
        # Copies: tensors in a mapped file lie at odd addresses, where matrix products may give other bits.
        return {name: tensor.clone() for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CxrlError(f"cannot read {path}: {reason}; it is missing, truncated or damaged") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises CxrlError naming the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CxrlError(f"cannot read {path}: {reason}; it is missing, truncated or damaged") from error
    if not isinstance(data, dict):
        raise CxrlError(f"cannot read {path}: expected a JSON object, got {type(data).__name__}")
    return data


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; none where there is no file. A last line that a kill cut short,
    which has no newline, is left out. Raises CxrlError naming the line that is damaged.
    """
    try:
        content = path.read_bytes() if os.path.lexists(path) else b""
    except OSError as error:
        raise CxrlError(f"cannot read {path}: {error.strerror or error}") from error
    records = []
    lines = content.split(b"\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines) and line.startswith(b"{") and not line.endswith(b"}"):
                continue
            raise CxrlError(f"{path} is damaged at line {number}: it is no JSON; remove the line") from None
        if not isinstance(record, dict):
            raise CxrlError(
                f"{path} is damaged at line {number}: expected a JSON object, got "
                f"{type(record).__name__}; remove the line"
            )
        records.append(record)
    return records


def describe_file(path: Path) -> dict[str, Any]:
    """``size`` in bytes and ``sha256`` of a file, for a manifest."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


def check_files(folder: Path, described: Any) -> list[str]:
    """The names of a manifest, whose files are all there and as they were written.

    Args:
        folder: Where the files are.
        described: Name → what :func:`describe_file` said.

    Raises:
        CxrlError: The manifest is damaged, or a file is missing, truncated or changed; it is named.
    """
    if not isinstance(described, Mapping) or not all(
        Path(str(name)).name == name and isinstance(about, Mapping) and {"size", "sha256"} <= about.keys()
        for name, about in described.items()
    ):
        raise CxrlError(f"cannot read {folder}: its list of files is damaged")
    for name, expected in described.items():
        try:
            found = describe_file(folder / name)
        except FileNotFoundError:
            raise CxrlError(f"cannot read {folder / name}: it is missing") from None
        except OSError as error:
            raise CxrlError(f"cannot read {folder / name}: {error.strerror or error}") from None
        if found["size"] != expected["size"]:
            raise CxrlError(
                f"cannot read {folder / name}: {found['size']} bytes, expected {expected['size']}"
            )
        if found["sha256"] != expected["sha256"]:
            raise CxrlError(f"cannot read {folder / name}: its content has changed since it was written")
    return list(described)


def field(data: Mapping[str, Any], name: str, kind: type, source: str) -> Any:
    """``data[name]``, which must be of that type (an int counts as float). Raises CxrlError naming both."""
    value = data.get(name)
    kinds = (int, float) if kind is float else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and kind is not bool):
        raise CxrlError(f"cannot read {source}: {name} is {value!r}, expected {kind.__name__}; it is damaged")
    return value


def in_hub_cache(repo: str, file: str) -> Path | None:
    """A file of a hub id in huggingface_hub's cache; None if it is not there, or ``repo`` is no such id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, file)
    except HFValidationError:  # a path that does not exist
        return None
    return Path(found) if isinstance(found, str) else None

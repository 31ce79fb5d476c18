"""Reading what was saved: an error names the file and what is wrong with it. Safetensors and JSON only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrl.errors import CxrlError


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
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CxrlError(f"cannot read {path}: {reason}; it is missing, truncated or damaged") from error
    if not isinstance(data, dict):
        raise CxrlError(f"cannot read {path}: expected a JSON object, got {type(data).__name__}")
    return data


def in_hub_cache(repo: str, file: str) -> Path | None:
    """A file of a hub id in huggingface_hub's cache; None if it is not there, or ``repo`` is no such id."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(repo, file)
    except HFValidationError:  # a path that does not exist
        return None
    return Path(found) if isinstance(found, str) else None

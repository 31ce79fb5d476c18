"""Randomness by name: a generator is a function of (seed, purpose, indices), so no state is saved."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *index: int) -> int:
    """A 63-bit seed that differs for every purpose and index. Stable between machines and versions."""
    text = f"{seed}/{purpose}/" + "/".join(str(i) for i in index)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, purpose: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator of that purpose on that device."""
    return torch.Generator(device).manual_seed(derive_seed(seed, purpose, *index))


def seed_globals(seed: int, *index: int) -> None:
    """Seed Python's, NumPy's and torch's global generators, for rewards that use them."""
    value = derive_seed(seed, "global", *index)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 the legacy global state is what third parties use
    torch.manual_seed(value)

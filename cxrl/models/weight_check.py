"""Whether tensors are those of a network: all there, none too many, of their shapes, and finite.

The answer is in words that follow the name of a file, "has no tensor head.weight", or "" where all is well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NO_WEIGHT = re.compile(r"(^|\.)(position_ids|inv_freq|num_batches_tracked)$")
"""Counted or computed, and left out of files by some versions of the libraries."""


def state_problem(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """What is wrong with the tensors of a network.

    Args:
        expected: Name → tensor of the network, also on the meta device.
        found: Name → tensor that is to go there.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if problem := shape_problem(wanted, shapes):
        return problem
    for name, tensor in found.items():
        if name in expected and expected[name].is_floating_point() and not tensor.is_floating_point():
            return f"has a tensor {name} of {tensor.dtype}, expected floating point"
    return not_finite(found)


def not_finite(tensors: Mapping[str, Tensor]) -> str:
    """The first tensor with a value that is nan or infinite."""
    for name, tensor in tensors.items():
        if bad := what_is_bad(tensor):
            return f"has a tensor {name} that holds {bad}"
    return ""


def shape_problem(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> str:
    """What is wrong with names and shapes; :func:`state_problem` also looks at values."""
    missing = [name for name in expected if name not in found and not NO_WEIGHT.search(name)]
    extra = [name for name in found if name not in expected and not NO_WEIGHT.search(name)]
    wrong = [(n, found[n], s) for n, s in expected.items() if n in found and found[n] != s]
    return describe(missing, extra, wrong)


def describe(missing: list[str], extra: list[str], wrong: list[tuple[str, Any, Any]]) -> str:
    """Words for the first of each kind, in the order in which they matter."""

    def more(names: list[Any]) -> str:
        return f" (and {len(names) - 1} more)" if len(names) > 1 else ""

    if missing and extra:
        return f"has no tensor {missing[0]}{more(missing)}, but one named {extra[0]}{more(extra)}"
    if missing:
        return f"has no tensor {missing[0]}{more(missing)}"
    if wrong:
        name, shape, wanted = wrong[0]
        return f"has a tensor {name} of shape {tuple(shape)}, expected {tuple(wanted)}{more(wrong)}"
    if extra:
        return f"has a tensor {extra[0]}, for which the network has no place{more(extra)}"
    return ""


def what_is_bad(tensor: Tensor) -> str:
    """ "nan", "inf" or "": what a tensor holds that is no number."""
    if not tensor.is_floating_point():
        return ""
    # The sum of finite numbers is finite unless it overflows: most tensors need no second look.
    if bool(torch.isfinite(tensor.sum(dtype=torch.float32))):
        return ""
    return "nan" if bool(tensor.isnan().any()) else "inf" if bool(tensor.isinf().any()) else ""

"""Words for what is wrong with tensors, and none where all is well."""

from __future__ import annotations

import pytest
import torch

from cxrl.models.weight_check import not_finite, state_problem

GOOD = {"a.weight": torch.ones(2, 3), "a.bias": torch.ones(2), "a.num_batches_tracked": torch.tensor(3)}


def test_equal_tensors_have_no_problem() -> None:
    assert state_problem(GOOD, GOOD) == ""
    meta = {name: torch.empty_like(t, device="meta") for name, t in GOOD.items()}
    assert state_problem(meta, {name: t.half() for name, t in GOOD.items()}) == ""
    assert state_problem({}, {}) == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"a.weight": GOOD["a.weight"]}, "has no tensor a.bias"),
        ({}, "has no tensor a.weight (and 1 more)"),
        ({"b.weight": torch.ones(2, 3)}, "has no tensor a.weight (and 1 more), but one named b.weight"),
        ({**GOOD, "c": torch.ones(1)}, "has a tensor c, for which the network has no place"),
        ({**GOOD, "a.bias": torch.ones(3)}, "has a tensor a.bias of shape (3,), expected (2,)"),
        ({**GOOD, "a.bias": torch.arange(2)}, "has a tensor a.bias of torch.int64, expected floating point"),
        ({**GOOD, "a.bias": torch.tensor([0.0, torch.nan])}, "has a tensor a.bias that holds nan"),
        ({**GOOD, "a.weight": torch.full((2, 3), -torch.inf)}, "has a tensor a.weight that holds inf"),
    ],
)
def test_the_first_problem_is_told(found: dict[str, torch.Tensor], words: str) -> None:
    assert state_problem(GOOD, found) == words


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_any_place_of_any_dtype(dtype: torch.dtype) -> None:
    for place in (0, 500, 999):
        for value, word in ((torch.nan, "nan"), (torch.inf, "inf"), (-torch.inf, "inf")):
            tensor = torch.zeros(1000, dtype=dtype)
            tensor[place] = value
            assert not_finite({"x": tensor}) == f"has a tensor x that holds {word}"


def test_large_finite_values_are_no_problem() -> None:
    large = torch.full((1000,), 3e38)  # their sum is not finite
    both = torch.tensor([torch.inf, -torch.inf])  # nor is this one, and it is nan
    assert not_finite({"x": large, "y": torch.full((9,), 1e300, dtype=torch.float64)}) == ""
    assert not_finite({"x": both}) == "has a tensor x that holds inf"
    assert not_finite({"ids": torch.arange(3), "flag": torch.tensor(True), "none": torch.zeros(0)}) == ""

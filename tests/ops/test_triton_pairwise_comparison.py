"""The Triton kernels of pairwise_comparison. Collected on a GPU, and in the interpreter by test_triton.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cxrl_kernels import pairwise_comparison as provider
from torch import Tensor

from cxrl.ops import FORMS, group_win_rate, pairwise_comparison
from cxrl.ops.pairwise_comparison import pairwise_comparison_reference

# (N, P, M, K): many, few, one, none, full tiles, more anchors than a tile, M no power of two.
SIZES = [
    (100, 7, 8, 3),
    (7, 2, 5, 1),
    (1, 1, 1, 1),
    (0, 2, 3, 2),
    (9, 3, 64, 8),
    (5, 2, 300, 8),
    (33, 5, 13, 2),
]
# Means, deviations and sums of up to 300 float32 values, weights of order 1.
TOLERANCE = {"rtol": 5e-6, "atol": 5e-6}


def make(device: str, n: int, p: int, m: int, k: int) -> dict[str, Any]:
    return {
        "rewards": torch.randn(n, k, device=device),
        "anchors": torch.randn(p, m, k, device=device),
        "prompt_of": torch.randint(p, (n,), device=device),
        "weights": torch.randn(k, device=device),
        "min_std": torch.rand(k, device=device) + 0.3,
        "temperature": 0.7,
    }


def double(args: dict[str, Any]) -> dict[str, Any]:
    return {
        name: a.detach().double() if isinstance(a, Tensor) and a.is_floating_point() else a
        for name, a in args.items()
    }


def check_against_float64(args: dict[str, Any], form: str) -> None:
    expected_args = double(args)
    rewards, expected_rewards = args["rewards"].requires_grad_(), expected_args["rewards"].requires_grad_()
    score, win_rate = pairwise_comparison(**args, form=form, backend="triton")
    expected, expected_rate = pairwise_comparison_reference(**expected_args, form=form)
    torch.testing.assert_close(score.double(), expected, **TOLERANCE)
    torch.testing.assert_close(win_rate.double(), expected_rate, rtol=1e-6, atol=1e-6)
    assert score.requires_grad == (form != "win")
    if score.requires_grad:
        grad = torch.randn_like(score)
        (actual_grad,) = torch.autograd.grad(score, rewards, grad)
        (expected_grad,) = torch.autograd.grad(expected, expected_rewards, grad.double())
        torch.testing.assert_close(actual_grad.double(), expected_grad, **TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES)
def test_matches_float64(triton_device: str, form: str, size: tuple[int, ...]) -> None:
    check_against_float64(make(triton_device, *size), form)


@pytest.mark.parametrize("form", ["difference", "bradley_terry"])
def test_default_floor(triton_device: str, form: str) -> None:
    args = make(triton_device, 5, 2, 4, 3)
    args["min_std"] = None
    args["anchors"] += torch.arange(4, device=triton_device)[:, None]  # no bank without a deviation
    check_against_float64(args, form)
    tied = {**args, "anchors": torch.ones_like(args["anchors"]), "rewards": torch.full((5, 3), 2.0)}
    tied = {name: a.to(triton_device) if isinstance(a, Tensor) else a for name, a in tied.items()}
    if form == "difference":
        score, _ = pairwise_comparison(**tied, form=form, backend="triton")
        torch.testing.assert_close(score, (1e6 * args["weights"].sum()).expand(5), rtol=1e-5, atol=1.0)


@pytest.mark.parametrize("form", ["bradley_terry", "difference"])
def test_extreme_rewards_stay_finite(triton_device: str, form: str) -> None:
    args = make(triton_device, 4, 1, 9, 2)
    values = [[1e30, -1e30], [-1e30, 1e30], [0.0, 1e-30], [88.0, -88.0]]
    args["rewards"] = torch.tensor(values, device=triton_device, requires_grad=True)
    score, win_rate = pairwise_comparison(**args, form=form, backend="triton")
    (grad,) = torch.autograd.grad(score.sum(), args["rewards"])
    assert score.isfinite().all()
    assert grad.isfinite().all()
    torch.testing.assert_close(win_rate, pairwise_comparison_reference(**args, form=form)[1].detach())


def test_strides(triton_device: str) -> None:
    args = make(triton_device, 20, 3, 6, 4)
    args["rewards"] = torch.randn(4, 40, device=triton_device).t()[::2]
    args["anchors"] = torch.randn(4, 6, 3, device=triton_device).permute(2, 1, 0)
    args["prompt_of"] = torch.randint(3, (40,), device=triton_device)[::2]
    args["weights"] = torch.tensor([0.5], device=triton_device).expand(4)
    check_against_float64(args, "bradley_terry")


@pytest.mark.parametrize("form", FORMS)
def test_written_completely_and_deterministic(
    triton_device: str, form: str, poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "MAX_PROGRAMS", 2)  # several tiles to a program
    args = make(triton_device, 150, 4, 8, 3)
    runs = [pairwise_comparison(**args, form=form, backend="triton") for _ in range(2)]
    expected = pairwise_comparison_reference(**double(args), form=form)
    for one, other, e in zip(*runs, expected, strict=True):
        assert torch.equal(one, other)
        torch.testing.assert_close(one.double(), e, **TOLERANCE)


def test_unknown_prompts_give_nan(triton_device: str) -> None:
    # Looking at values would stall a device: nothing outside the bank is read, and the score says so.
    args = make(triton_device, 4, 2, 3, 2)
    args["prompt_of"] = torch.tensor([0, 2, -1, 1], device=triton_device)
    score, _ = pairwise_comparison(**args, form="difference", backend="triton")
    assert score.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("n", [0, 1, 2, 67])
@pytest.mark.parametrize("sort_from", [0, 4096])
def test_group_win_rate(
    triton_device: str, n: int, sort_from: int, poisoned: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(provider, "SORT_FROM", sort_from)
    rewards = torch.randint(0, 5, (3, n)).float().t()  # many ties
    prompt_of = torch.randint(0, 5, (n,)) * 1_000_003
    actual = group_win_rate(rewards.to(triton_device), prompt_of.to(triton_device), backend="triton").cpu()
    expected = torch.full((n, 3), 0.5)
    for i in range(n):
        others = [j for j in range(n) if j != i and prompt_of[j] == prompt_of[i]]
        if others:
            wins = (rewards[i] > rewards[others]).float() + 0.5 * (rewards[i] == rewards[others]).float()
            expected[i] = wins.mean(0)
    torch.testing.assert_close(actual, expected)

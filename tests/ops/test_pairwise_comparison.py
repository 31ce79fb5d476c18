from __future__ import annotations

import ctypes
import ctypes.util
import math
import platform
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import FORMS, group_win_rate, pairwise_comparison
from cxrl.ops.pairwise_comparison import group_win_rate_reference, pairwise_comparison_reference

# (N, P, M, K): many, few, one, none, more anchors than a vector, M no multiple of any vector.
SIZES = [(300, 7, 8, 3), (7, 2, 5, 1), (1, 1, 1, 1), (0, 2, 3, 2), (65, 3, 64, 8), (257, 5, 13, 2)]
# Means, deviations and sums of up to 64 float32 values, weights of order 1.
TOLERANCE = {"rtol": 5e-6, "atol": 5e-6}

# opcheck reads .grad of what it made itself
OPCHECK_READS_GRAD = "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"


def make(n: int, p: int, m: int, k: int) -> dict[str, Any]:
    return {
        "rewards": torch.randn(n, k),
        "anchors": torch.randn(p, m, k),
        "prompt_of": torch.randint(p, (n,)),
        "weights": torch.randn(k),
        "min_std": torch.rand(k) + 0.3,
        "temperature": 0.7,
    }


def double(args: dict[str, Any]) -> dict[str, Any]:
    return {
        name: a.double() if isinstance(a, Tensor) and a.is_floating_point() else a for name, a in args.items()
    }


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("size", "floor"), [(s, f) for s in SIZES for f in (True, False) if f or s[2] > 1])
def test_matches_float64(backend: str, form: str, size: tuple[int, ...], floor: bool) -> None:
    args = make(*size)
    if not floor:
        args["min_std"] = None
        args["anchors"] = args["anchors"] + torch.arange(size[2])[:, None]  # no bank without a deviation
    rewards = args["rewards"].requires_grad_()
    expected_args = double({**args, "rewards": rewards.detach()})
    expected_rewards = expected_args["rewards"].requires_grad_()
    score, win_rate = pairwise_comparison(**args, form=form, backend=backend)
    expected, expected_rate = pairwise_comparison_reference(**expected_args, form=form)
    torch.testing.assert_close(score.double(), expected, **TOLERANCE)
    torch.testing.assert_close(win_rate.double(), expected_rate, rtol=1e-6, atol=1e-6)
    assert not win_rate.requires_grad
    assert score.requires_grad == expected.requires_grad == (form != "win")
    if score.requires_grad:
        grad = torch.randn(size[0])
        (actual_grad,) = torch.autograd.grad(score, rewards, grad)
        (expected_grad,) = torch.autograd.grad(expected, expected_rewards, grad.double())
        torch.testing.assert_close(actual_grad.double(), expected_grad, **TOLERANCE)


def test_known_values(backend: str) -> None:
    args = {
        "rewards": torch.tensor([[3.0], [1.0]]),
        "anchors": torch.tensor([[[1.0], [3.0], [5.0]], [[1.0], [1.0], [4.0]]]),
        "prompt_of": torch.tensor([0, 1]),
        "weights": torch.tensor([2.0]),
    }
    std = math.sqrt(8 / 3)
    sigmoid = [1 / (1 + math.exp(-d / std)) for d in (2.0, 0.0, -2.0)]
    expected = {
        "difference": [0.0, 2 * (1 - 2) / math.sqrt(2)],
        "win": [2 * 0.5, 2 * 1 / 3],
        "bradley_terry": [2 * sum(sigmoid) / 3, 2 * (0.5 + 0.5 + 1 / (1 + math.exp(3 / math.sqrt(2)))) / 3],
        "direct": [6.0, 2.0],
    }
    for form, values in expected.items():
        score, win_rate = pairwise_comparison(**args, form=form, backend=backend)
        assert score.tolist() == pytest.approx(values, rel=1e-6, abs=1e-6)
        assert win_rate.tolist() == pytest.approx([(0.5 + 1 / 3) / 2])


def test_floor_of_the_deviation(backend: str) -> None:
    tied = {
        "rewards": torch.tensor([[2.0]]),
        "anchors": torch.ones(1, 4, 1),
        "prompt_of": torch.tensor([0]),
        "weights": torch.ones(1),
    }
    score, _ = pairwise_comparison(**tied, form="difference", min_std=torch.tensor([0.5]), backend=backend)
    assert score.tolist() == [2.0]
    score, _ = pairwise_comparison(**tied, form="difference", backend=backend)
    assert score.item() == pytest.approx(1e6, rel=1e-6)


@pytest.mark.parametrize("form", ["bradley_terry", "difference"])
def test_extreme_rewards_stay_finite(backend: str, form: str) -> None:
    args = make(4, 1, 9, 2)
    args["rewards"] = torch.tensor([[1e30, -1e30], [-1e30, 1e30], [0.0, 1e-30], [88.0, -88.0]])
    args["rewards"].requires_grad_()
    score, win_rate = pairwise_comparison(**args, form=form, backend=backend)
    (grad,) = torch.autograd.grad(score.sum(), args["rewards"])
    assert score.isfinite().all()
    assert grad.isfinite().all()
    assert win_rate.tolist() == pytest.approx(pairwise_comparison_reference(**args, form=form)[1].tolist())


def test_sigmoid_is_accurate_everywhere(cpp: str) -> None:
    # One anchor at 0 with unit scale: the score is sigmoid(r).
    r = torch.linspace(-30, 30, 20011)[:, None]
    score, _ = pairwise_comparison(
        r, torch.zeros(1, 1, 1), torch.zeros(len(r), dtype=torch.int64), torch.ones(1), "bradley_terry",
        min_std=torch.ones(1), backend=cpp,
    )  # fmt: skip
    expected = torch.sigmoid(r.double()).squeeze(1)
    assert ((score.double() - expected) / expected).abs().max() < 4e-7


def test_strides(backend: str) -> None:
    args = make(20, 3, 6, 4)
    args["rewards"] = torch.randn(4, 40).t()[::2]
    args["anchors"] = torch.randn(4, 6, 3).permute(2, 1, 0)
    args["prompt_of"] = torch.randint(3, (40,))[::2]
    args["weights"] = torch.tensor([0.5]).expand(4)
    score, win_rate = pairwise_comparison(**args, form="bradley_terry", backend=backend)
    expected, expected_rate = pairwise_comparison_reference(**double(args), form="bradley_terry")
    torch.testing.assert_close(score.double(), expected, **TOLERANCE)
    torch.testing.assert_close(win_rate.double(), expected_rate, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("form", FORMS)
def test_deterministic_and_written_completely(backend: str, form: str, poisoned: None) -> None:
    args = make(3001, 4, 8, 3)
    runs = []
    for threads in (1, 2, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            runs.append(pairwise_comparison(**args, form=form, backend=backend))
        finally:
            torch.set_num_threads(before)
    assert all(t.isfinite().all() for t in runs[0])
    assert all(torch.equal(a, b) for a, b in zip(runs[1], runs[2], strict=True))
    if backend == "cpp":
        assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))


def test_gradcheck_of_the_reference() -> None:
    args = double(make(4, 2, 3, 2))
    for form in ("difference", "bradley_terry", "direct"):

        def function(rewards: Tensor, anchors: Tensor, weights: Tensor, form: str = form) -> Tensor:
            changed = {**args, "rewards": rewards, "anchors": anchors, "weights": weights}
            return pairwise_comparison(**changed, form=form)[0]

        leaves = [args[name].clone().requires_grad_() for name in ("rewards", "anchors", "weights")]
        assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.filterwarnings(OPCHECK_READS_GRAD)
@pytest.mark.parametrize("form", FORMS)
def test_opcheck(cpp: str, form: str) -> None:
    args = make(5, 2, 3, 2)
    args["rewards"].requires_grad_()
    torch.library.opcheck(
        torch.ops.cxrl.pairwise_comparison.default,
        (*(args[n] for n in ("rewards", "anchors", "prompt_of", "weights")), form, args["min_std"], 0.7, cpp),
    )


def test_opcheck_of_the_others(cpp: str) -> None:
    torch.library.opcheck(
        torch.ops.cxrl.pairwise_comparison_backward.default,
        (torch.randn(5), torch.randn(2), torch.randn(5, 2), cpp),
    )
    torch.library.opcheck(
        torch.ops.cxrl.group_win_rate.default, (torch.randn(6, 2), torch.tensor([0, 1, 0, 1, 1, 2]), cpp)
    )


@pytest.mark.slow
def test_compiles_in_one_graph(cpp: str) -> None:
    args = make(9, 2, 3, 2)

    def function(rewards: Tensor) -> Tensor:
        changed = {**args, "rewards": rewards}
        return pairwise_comparison(**changed, form="bradley_terry", backend=cpp)[0].tanh()

    leaf = args["rewards"].requires_grad_()
    expected, actual = function(leaf), torch.compile(function, fullgraph=True)(leaf)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(
        *(torch.autograd.grad(score.sum(), leaf)[0] for score in (actual, expected)),
    )


@pytest.mark.parametrize("n", [0, 1, 2, 137])
def test_group_win_rate(backend: str, n: int) -> None:
    rewards = torch.randint(0, 5, (n, 3)).float()  # many ties
    prompt_of = torch.randint(0, 9, (n,)) * 1_000_003
    actual = group_win_rate(rewards, prompt_of, backend=backend)
    for i in range(n):
        others = [j for j in range(n) if j != i and prompt_of[j] == prompt_of[i]]
        for k in range(3):
            wins = sum(
                1.0 if rewards[i, k] > rewards[j, k] else 0.5 if rewards[i, k] == rewards[j, k] else 0.0
                for j in others
            )
            assert actual[i, k].item() == pytest.approx(wins / len(others) if others else 0.5, abs=1e-6)


def test_group_win_rate_of_a_large_group(cpp: str) -> None:
    rewards, prompt_of = torch.randn(2000, 2), torch.zeros(2000, dtype=torch.int64)
    torch.testing.assert_close(
        group_win_rate(rewards, prompt_of, backend=cpp), group_win_rate_reference(rewards, prompt_of)
    )


def changed(**change: Any) -> dict[str, Any]:
    return {**make(3, 2, 4, 2), "form": "win", **change}


BAD = [
    (changed(rewards=torch.zeros(3)), r"rewards must be float32 \[N, K\]"),
    (changed(rewards=torch.zeros(3, 2).half()), "rewards must be float32"),
    (changed(prompt_of=torch.zeros(2, dtype=torch.int64)), r"prompt_of must be int64 \[3\]"),
    (changed(prompt_of=torch.zeros(3, dtype=torch.int32)), r"prompt_of must be int64 \[3\], got torch.int32"),
    (changed(anchors=torch.zeros(2, 4, 3)), r"anchors must be \[P, M >= 1, 2\]"),
    (changed(anchors=torch.zeros(2, 0, 2)), "anchors must be"),
    (changed(anchors=torch.zeros(2, 4, 2).double()), "anchors is torch.float64"),
    (changed(weights=torch.zeros(3)), r"weights must be \[2\]"),
    (changed(min_std=torch.zeros(1)), r"min_std must be \[2\]"),
    (changed(weights=torch.zeros(2, device="meta")), "weights is on meta"),
    (changed(form="wins"), "unknown form 'wins'; choose one of difference, win"),
    (changed(temperature=0.0), "temperature must be positive, got 0.0"),
    (changed(temperature=math.nan), "temperature must be positive"),
    (changed(rewards=torch.tensor([[0, 0], [0, math.nan], [0, 0]])), r"rewards\[1, 1\] = nan"),
    (changed(anchors=torch.full((2, 4, 2), math.inf)), r"anchors\[0, 0, 0\] = inf"),
    (changed(prompt_of=torch.tensor([0, 2, 0])), r"prompt_of\[1\] = 2, expected 0 to 1"),
    (changed(prompt_of=torch.tensor([0, 1, -1])), r"prompt_of\[2\] = -1"),
    (changed(min_std=torch.tensor([0.1, 0.0])), "min_std.* positive"),
]


@pytest.mark.parametrize(("args", "message"), BAD)
def test_refuses(cpu_backend: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pairwise_comparison(**args, backend=cpu_backend)


def test_group_win_rate_refuses(cpu_backend: str) -> None:
    with pytest.raises(ValueError, match=r"group_win_rate: prompt_of must be int64 \[2\]"):
        group_win_rate(torch.zeros(2, 1), torch.zeros(3, dtype=torch.int64), backend=cpu_backend)
    with pytest.raises(ValueError, match=r"group_win_rate: rewards\[1, 0\] = nan"):
        group_win_rate(
            torch.tensor([[0], [math.nan]]), torch.zeros(2, dtype=torch.int64), backend=cpu_backend
        )


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_subnormal(backend: str, form: str) -> None:
    """Where a bank is no multiple of a vector, the lanes beside it once cost four times the comparison.

    A rounded subnormal raises the processor's underflow flag.
    """
    if not backend.startswith("cpp") or platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("the flag is that of this thread's vectors, by its number on x86")
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    underflow = 0x10
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for m in range(1, 34):
            for far in (0.0, -300.0):  # all anchors are above every reward
                args = make(40, 2, m, 3)
                args |= {"rewards": args["rewards"] + far, "weights": torch.ones(3)}
                libm.feclearexcept(underflow)
                pairwise_comparison(**args, form=form, backend=backend)
                assert not libm.fetestexcept(underflow), (m, far)
    finally:
        torch.set_num_threads(threads)

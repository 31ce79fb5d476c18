"""Calls every op of ``torch.ops.cxrl`` with one or two arguments changed in ways that may reach an address.

test_compiled.py runs this file in a process of its own, so that a crash is a failure like any other. A call
must end in a clean error that names an argument, or in the values that plain PyTorch has for these arguments.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from cxrl.ops import (
    FORMS,
    _dispatch,
    attention,
    denoise_step,
    group_win_rate,
    pairwise_comparison,
    trajectory_log_prob,
    unavailable_reason,
)
from cxrl.ops.attention import attention_reference, concatenate_extra
from cxrl.ops.pairwise_comparison import group_win_rate_reference, pairwise_comparison_reference
from cxrl.ops.trajectory_log_prob import denoise_step_reference, trajectory_log_prob_reference

SEED = 20240311
PAIRS = 40  # calls with two changes, for every case
ALSO_NAMES = ("backend", "model_output_cond", "model_output_uncond", "Tensor")  # of an error's culprit
CLEAN = (ValueError, RuntimeError, TypeError, NotImplementedError)
DTYPES = (torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64)
WRONG_ROWS = (-1, 10_000, 1 << 62, -(1 << 63))

# Triton's interpreter takes a tenth of a second a call: what stands before all kernels is tested with others.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
OF_KERNELS = ("empty", "expanded in 0", "every second", "negative view", "[")

Arguments = dict[str, Any]
Change = tuple[str, Callable[[Any], Any]]
Result = tuple[Tensor, ...]


# What plain PyTorch makes of the arguments, in float64. A wrong index is nan in the row that has it: what the
# kernels that do not look at values write (the C++ ones refuse it).


def _marked(index: Tensor | None, rows: int) -> tuple[Tensor | None, Tensor | None]:
    """The index with wrong rows replaced, and where they were."""
    if index is None:
        return None, None
    wrong = (index < 0) | (index >= rows)
    return index.masked_fill(wrong, 0), wrong


def _log_prob(**a: Any) -> Result:
    return (trajectory_log_prob_reference(*a.values()),)


def _log_prob_backward(grad: Tensor, **a: Any) -> Result:
    leaves = [a[name].requires_grad_() for name in ("cond", "uncond") if a[name] is not None]
    gradients = torch.autograd.grad(trajectory_log_prob_reference(*a.values()), leaves, grad)
    return (*gradients, *([torch.empty(0)] * (2 - len(leaves))))


def _step(**a: Any) -> Result:
    return denoise_step_reference(*a.values())


def _comparison(rewards: Tensor, anchors: Tensor, prompt_of: Tensor, weights: Tensor, **a: Any) -> Result:
    index, wrong = _marked(prompt_of, len(anchors))
    assert index is not None
    assert wrong is not None
    score, win_rate = pairwise_comparison_reference(rewards, anchors, index, weights, **a)
    leaf = rewards.clone().requires_grad_()
    each, _ = pairwise_comparison_reference(leaf, anchors, index, torch.ones_like(weights), **a)
    slope = torch.zeros_like(leaf)
    if each.requires_grad:
        (slope,) = torch.autograd.grad(each.sum(), leaf)
    if bool(wrong.any()):
        right = pairwise_comparison_reference(rewards[~wrong], anchors, index[~wrong], weights, **a)[1]
        win_rate = right * ((~wrong).sum() / len(wrong))
    return score.masked_fill(wrong, math.nan), win_rate, slope.masked_fill(wrong[:, None], math.nan)


def _comparison_backward(grad_score: Tensor, weights: Tensor, slope: Tensor) -> Result:
    return (grad_score[:, None] * weights * slope,)


def _group(rewards: Tensor, prompt_of: Tensor) -> Result:
    return (group_win_rate_reference(rewards, prompt_of),)


def _attention(kv_index: Tensor | None, scale: float, keep: bool, **a: Any) -> Result:
    """The result and the log of the softmax denominators, or if ``keep`` the probabilities."""
    index, wrong = _marked(kv_index, len(a["k"]))
    out = attention_reference(**a, kv_index=index, scale=scale)
    k, _ = concatenate_extra(**a, kv_index=index)
    scores = a["q"] @ k.transpose(-1, -2) * scale
    saved = scores.softmax(-1) if keep else scores.logsumexp(-1)
    if wrong is not None:
        out[wrong], saved[wrong] = math.nan, math.nan
    return out, saved


def _attention_backward(
    grad: Tensor, kv_index: Tensor | None, scale: float, out: Tensor, saved: Tensor, **a: Any
) -> Result:
    forward = _attention(**a, kv_index=kv_index, scale=scale, keep=saved.ndim == 4)
    if not all(map(_close, (out, saved[..., : forward[1].shape[-1]]), forward)):
        return ()  # results of another forward: every backend uses others of them
    index, wrong = _marked(kv_index, len(a["k"]))
    leaves = [t.requires_grad_() for t in a.values() if t is not None]
    out = attention_reference(**a, kv_index=index, scale=scale)
    gradients = torch.autograd.grad(out, leaves, grad)
    if wrong is not None and bool(wrong.any()):  # its part of the other gradients is anybody's guess
        first = gradients[0].masked_fill(wrong[:, None, None, None], math.nan)
        return (first,)
    return (*gradients, *([torch.empty(0)] * (5 - len(leaves))))


def _step_case(guided: bool, other: str) -> Arguments:
    cond, uncond, x_t, noise = torch.randn(4, 3, 2, 3, 5)
    a = {"cond": cond, "uncond": uncond if guided else None, "guidance": 2.5 if guided else 1.0, "x_t": x_t}
    return {**a, other: noise, "table_rows": torch.rand(3, 3) + 0.2}


def _comparison_case(form: str) -> Arguments:
    a = {
        "rewards": torch.randn(5, 3),
        "anchors": torch.randn(2, 4, 3),
        "prompt_of": torch.tensor([1, 0, 1, 1, 0]),
    }
    return {**a, "weights": torch.randn(3), "form": form, "min_std": torch.rand(3) + 0.3, "temperature": 0.7}


def _attention_case(kind: str, keep: bool) -> Arguments:
    b, h, n, keys, e, d = (2, 1, 2, 3, 1, 8) if INTERPRETED else (3, 2, 5, 7, 2, 8)
    rows = 2 if kind == "shared" else b
    a: Arguments = {"q": torch.randn(b, n, h, d).transpose(1, 2)}
    a |= {name: torch.randn(rows, h, keys, d) for name in ("k", "v")}
    extra = None if kind == "plain" else (h if kind == "shared" else b * h, e, d)
    a |= {name: None if extra is None else torch.randn(extra) for name in ("extra_k", "extra_v")}
    return a | {
        "kv_index": torch.tensor([1, 0, 1][:b]) if kind == "shared" else None,
        "scale": 0.4,
        "keep": keep,
    }


def _attention_backward_case(kind: str, keep: bool, backend: str) -> Arguments:
    a = _attention_case(kind, keep)
    out, saved = torch.ops.cxrl.attention(*a.values(), backend)
    del a["keep"]
    return {"grad": torch.randn(out.shape), **a, "out": out, "saved": saved}


def cases(op: str, backend: str) -> list[Arguments]:
    """Good arguments, of which others are made."""
    keeps = (False, True) if backend == "cpp" else (False,)
    kinds = [(kind, keep) for kind in ("shared", "each", "plain") for keep in keeps]
    return {
        "trajectory_log_prob": lambda: [_step_case(guided, "x_prev") for guided in (True, False)],
        "trajectory_log_prob_backward": lambda: [
            {"grad": torch.randn(3), **_step_case(guided, "x_prev")} for guided in (True, False)
        ],
        "denoise_step": lambda: [_step_case(guided, "noise") for guided in (True, False)],
        "pairwise_comparison": lambda: [_comparison_case(form) for form in FORMS],
        "pairwise_comparison_backward": lambda: [
            {"grad_score": torch.randn(5), "weights": torch.randn(3), "slope": torch.randn(5, 3)}
        ],
        "group_win_rate": lambda: [
            {"rewards": torch.randn(5, 3), "prompt_of": torch.tensor([7, 0, 7, 7, 0])}
        ],
        "attention": lambda: [_attention_case(*kind) for kind in kinds],
        "attention_backward": lambda: [_attention_backward_case(*kind, backend) for kind in kinds],
    }[op]()


EXPECTED: dict[str, Callable[..., Result]] = {
    "trajectory_log_prob": _log_prob,
    "trajectory_log_prob_backward": _log_prob_backward,
    "denoise_step": _step,
    "pairwise_comparison": _comparison,
    "pairwise_comparison_backward": _comparison_backward,
    "group_win_rate": _group,
    "attention": _attention,
    "attention_backward": _attention_backward,
}


def _ways(op: str, backend: str) -> dict[str, Callable[[Arguments], Any]]:
    """The op itself, and its public function where it has one."""
    overload = getattr(torch.ops.cxrl, op).default
    public: dict[str, Callable[..., Any]] = {
        "attention": lambda q, k, v, keep, **a: attention(q, k, v, **a, backend=backend),
        "pairwise_comparison": lambda **a: pairwise_comparison(**a, backend=backend),
        "trajectory_log_prob": lambda **a: trajectory_log_prob(*a.values(), backend=backend),
        "denoise_step": lambda **a: denoise_step(*a.values(), backend=backend),
        "group_win_rate": lambda **a: group_win_rate(*a.values(), backend=backend),
    }
    ways: dict[str, Callable[[Arguments], Any]] = {"op": lambda a: overload(*a.values(), backend)}
    if op in public and not INTERPRETED:
        ways["public"] = lambda a: public[op](**a)
    return ways


def _freed(t: Tensor) -> Tensor:
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def _every_second(t: Tensor) -> Tensor:
    return torch.stack([t, torch.full_like(t, 3)], -1)[..., 0]


def _with(t: Tensor, at: int, value: int) -> Tensor:
    t = t.clone()
    t[at] = value
    return t


def changes(t: Tensor) -> Iterator[Change]:
    """(name, change) of all that is done to a tensor."""
    for d in range(t.ndim):
        yield f"shorter in {d}", lambda t, d=d: t.narrow(d, 0, max(0, t.shape[d] - 1))
        yield f"longer in {d}", lambda t, d=d: torch.cat([t, t.narrow(d, 0, 1)], d)
        yield f"one in {d}", lambda t, d=d: t.narrow(d, 0, 1)
        yield f"empty in {d}", lambda t, d=d: t.narrow(d, 0, 0)
        yield f"expanded in {d}", lambda t, d=d: t.narrow(d, 0, 1).expand_as(t)
    yield "a dimension less", lambda t: t[0]
    yield "a dimension more", lambda t: t.unsqueeze(0)
    yield "flat", lambda t: t.flatten()
    yield "a number", lambda t: t.flatten()[0]
    yield "turned round", lambda t: t.permute(*reversed(range(t.ndim)))
    # The same values elsewhere.
    yield (
        "other strides",
        lambda t: t.permute(*reversed(range(t.ndim))).contiguous().permute(*reversed(range(t.ndim))),
    )
    yield "every second", _every_second
    yield "offset", lambda t: torch.cat([torch.zeros(1, dtype=t.dtype), t.flatten()])[1:].view(t.shape)
    yield "channels last", lambda t: t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t
    yield "negative view", lambda t: torch._neg_view(-t)
    yield "imaginary part", lambda t: torch.complex(t.float(), -t.float()).conj().imag.to(t.dtype)
    yield "zero tensor", lambda t: torch._efficientzerotensor(t.shape, dtype=t.dtype)
    yield "parameter", lambda t: torch.nn.Parameter(t) if t.is_floating_point() else t
    yield "subclass", lambda t: t.as_subclass(torch.nn.Buffer)
    # Not here.
    yield "on meta", lambda t: t.to("meta")
    yield "freed", _freed
    yield "none", lambda t: None
    yield "sparse", lambda t: t.to_sparse()
    yield "mkldnn", lambda t: t.float().to_mkldnn()
    yield "a list", lambda t: t.tolist()
    for dtype in DTYPES:
        yield f"as {dtype}", lambda t, dtype=dtype: t.to(dtype)
    if t.dtype is torch.int64:
        for row in WRONG_ROWS:
            for at in (0, -1):
                yield f"[{at}] = {row}", lambda t, at=at, row=row: _with(t, at, row)


def changes_of(value: Any) -> Iterator[Change]:
    """(name, change) of all that is done to an argument."""
    if isinstance(value, Tensor):
        yield from changes(value)
    elif value is None:
        yield "given", lambda _: torch.zeros(3)
    elif isinstance(value, str):
        for other in ("", "wins", *FORMS):
            yield f"= {other!r}", lambda _, other=other: other
    elif isinstance(value, float):
        for number in (math.nan, math.inf, -math.inf, 0.0, -1.0, 1.0):
            yield f"= {number}", lambda _, number=number: number


def _plain(value: Any) -> Any:
    """What an argument means: float64, with its own memory."""
    if not isinstance(value, Tensor):
        return value
    value = value.detach().as_subclass(Tensor).to_dense().clone()
    return value.double() if value.is_floating_point() else value


def _close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> bool:
    return actual.shape == expected.shape and torch.allclose(
        actual.double(), expected.double(), rtol=tolerance, atol=tolerance, equal_nan=True
    )


def _compare(op: str, a: Arguments, actual: Any, what: str) -> None:
    results = actual if isinstance(actual, tuple) else (actual,)
    bank = a.get("anchors", a.get("k"))
    if bank is not None and len(bank) == 0 < len(results[0]):
        assert results[0].isnan().all(), f"{what}: {results[0]} comes from nowhere"
        return
    expected = EXPECTED[op](**{name: _plain(value) for name, value in a.items()})
    half = any(isinstance(t, Tensor) and t.dtype in (torch.float16, torch.bfloat16) for t in a.values())
    for i, (result, wanted) in enumerate(zip(results, expected, strict=False)):
        if op == "attention" and a["keep"] and i == 1:
            result = result[..., : wanted.shape[3]]  # rows of probabilities have room for whole vectors
        assert _close(result, wanted, 3e-2 if half else 1e-4), f"{what}: [{i}] is {result}, expected {wanted}"


def attempt(op: str, function: Callable[[Arguments], Any], a: Arguments, what: str) -> bool:
    """Whether a call went through. Fails where the error is no clean one, or the values are others."""
    print(what, flush=True)  # the last line before a crash
    refused = ""
    try:
        results = function(a)
    except CLEAN as error:
        refused = repr(error)
    if refused:
        assert any(word in refused for word in (*a, *ALSO_NAMES)), f"{what}: {refused} names no argument"
    elif not all(t.is_meta for t in a.values() if isinstance(t, Tensor)):
        _compare(op, a, results, what)
    return not refused


BACKENDS = [b for b in _dispatch.COMPILED if unavailable_reason("attention", b, "cpu") is None]
OPS = sorted(
    s.name.removeprefix("cxrl::") for s in torch._C._jit_get_all_schemas() if s.name.startswith("cxrl::")
)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_arguments(op: str, backend: str) -> None:
    chance = random.Random(SEED)
    functions = _ways(op, backend)
    calls = passed = 0
    for number, good in enumerate(cases(op, backend)):
        possible = [(name, *change) for name, value in good.items() for change in changes_of(value)]
        pairs = (chance.sample(possible, 2) for _ in range(PAIRS))
        if INTERPRETED:
            possible, pairs = [change for change in possible if change[1].startswith(OF_KERNELS)], ()
        chosen = [[], *([change] for change in possible)]
        chosen += [pair for pair in pairs if pair[0][0] != pair[1][0]]
        for changed in chosen:
            a = good | {name: change(good[name]) for name, _, change in changed}
            for way, function in functions.items():
                if way == "public" and any(w in ("none", "a list") for _, w, _ in changed):
                    continue  # no tensor: Python's own error
                what = f"{backend} {op} {way} case {number}: {', '.join(f'{n} {w}' for n, w, _ in changed)}"
                went = attempt(op, function, a, what)
                assert went or changed, f"{what}: good arguments are refused"
                calls, passed = calls + 1, passed + went
    print(f"{backend} {op}: {calls} calls, {passed} with the right values, the rest refused")


LEAVES = {
    "trajectory_log_prob": ("cond", "uncond"),
    "pairwise_comparison": ("rewards",),
    "attention": ("q", "k", "v", "extra_k", "extra_v"),
}


def _recorded(op: str, good: Arguments, function: Callable[[Arguments], Any]) -> tuple[Tensor, list[Tensor]]:
    """The op's first result and the leaves that it is differentiable in."""
    leaves = {name: good[name].detach().clone().requires_grad_() for name in LEAVES[op]}
    result = function(good | leaves)
    return (result[0] if isinstance(result, tuple) else result), list(leaves.values())


@pytest.mark.parametrize("op", LEAVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_changed_gradients(op: str, backend: str) -> None:
    good = cases(op, backend)[0]
    wide = {name: _plain(value) for name, value in good.items()}
    for way, function in _ways(op, backend).items():
        first, _ = _recorded(op, good, function)
        grad = torch.randn(first.shape)
        for name, change in [("", lambda t: t), *changes(grad)]:
            what = f"{backend} {op} {way}: gradient {name}"
            print(what, flush=True)
            changed = change(grad)
            result, leaves = _recorded(op, good, function)
            try:
                gradients = torch.autograd.grad(result, leaves, changed)
            except CLEAN:
                assert name, f"{what}: a good gradient is refused"
                continue
            expected, wide_leaves = _recorded(op, wide, lambda a: EXPECTED[op](**a))
            wanted = torch.autograd.grad(expected, wide_leaves, _plain(changed).double())
            assert all(map(_close, gradients, wanted)), f"{what}: {gradients}, expected {wanted}"


@pytest.mark.parametrize("op", LEAVES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_leaves_that_change_before_the_backward(op: str, backend: str) -> None:
    # Under `.data =` autograd does not see it; whoever takes the addresses must.
    good = cases(op, backend)[0]
    for way, function in _ways(op, backend).items():
        for at, leaf_name in enumerate(LEAVES[op]):
            for name, change in changes(good[leaf_name]):
                print(f"{backend} {op} {way}: {leaf_name} {name} before the backward", flush=True)
                result, leaves = _recorded(op, good, function)
                with contextlib.suppress(*CLEAN):
                    leaves[at].data = change(leaves[at].detach())
                    torch.autograd.grad(result, leaves, torch.ones(result.shape))


OTHERS = [b for b in ("", "auto", "reference", "sdpa", "gpu", *_dispatch.COMPILED) if b not in BACKENDS]


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_other_backends(op: str, backend: str) -> None:
    for other in OTHERS:
        with pytest.raises(ValueError, match=f"backend {other!r}"):
            getattr(torch.ops.cxrl, op)(*cases(op, backend)[0].values(), other)

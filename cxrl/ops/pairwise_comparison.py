"""Comparison of every sample's rewards with the anchor bank of its prompt.

With r = rewards[n, k], the bank a_m = anchors[prompt_of[n], m, k], its mean ā, its population standard
deviation std and s = max(std, min_std[k]):

    difference     score[n] = Σ_k w_k (r − ā) / s
    win            score[n] = Σ_k w_k share_k          share_k = mean_m [r > a_m] + ½ [r = a_m]
    bradley_terry  score[n] = Σ_k w_k mean_m sigmoid((r − a_m) / (temperature · s))
    direct         score[n] = Σ_k w_k r                 (no comparison: the ablation)

and, whatever the form, win_rate[k] = mean over n of share_k. ``bradley_terry`` is Bradley and Terry, 1952.
Shapes: N samples, P prompts, M anchors a prompt, K rewards.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cxrl.ops import _compiled, _dispatch

FORMS = ("difference", "win", "bradley_terry", "direct")
DEFAULT_MIN_STD = 1e-6


def _share_beaten(rewards: Tensor, bank: Tensor) -> Tensor:
    own = rewards.unsqueeze(1)
    return ((own > bank).to(rewards.dtype) + 0.5 * (own == bank).to(rewards.dtype)).mean(1)


def pairwise_comparison_reference(
    rewards: Tensor,
    anchors: Tensor,
    prompt_of: Tensor,
    weights: Tensor,
    form: str,
    min_std: Tensor | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The formulas in plain PyTorch: what every backend is tested and timed against. Checks nothing."""
    bank = anchors[prompt_of]
    share = _share_beaten(rewards, bank)
    if form in ("difference", "bradley_terry"):
        std = anchors.std(1, correction=0)
        std = std.clamp_min(DEFAULT_MIN_STD) if min_std is None else torch.maximum(std, min_std)
        if form == "difference":
            value = (rewards - anchors.mean(1)[prompt_of]) / std[prompt_of]
        else:
            value = torch.sigmoid(
                (rewards.unsqueeze(1) - bank) / (temperature * std[prompt_of].unsqueeze(1))
            ).mean(1)
    else:
        value = share if form == "win" else rewards
    win_rate = share.mean(0) if len(rewards) else share.sum(0)
    return value @ weights, win_rate


def group_win_rate_reference(rewards: Tensor, prompt_of: Tensor) -> Tensor:
    """All pairs within a prompt in plain PyTorch. Checks nothing."""
    result = torch.full_like(rewards, 0.5)
    for value in prompt_of.unique():
        members = (prompt_of == value).nonzero().squeeze(1)
        if len(members) > 1:
            own = rewards[members]
            # The sample itself is among those compared with and ties: take its half away again.
            beaten = _share_beaten(own, own.unsqueeze(0)) * len(members) - 0.5
            result[members] = beaten / (len(members) - 1)
    return result


def pairwise_comparison(
    rewards: Tensor,
    anchors: Tensor,
    prompt_of: Tensor,
    weights: Tensor,
    form: str,
    *,
    min_std: Tensor | None = None,
    temperature: float = 1.0,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Score every sample against the anchor bank of its prompt.

    Args:
        rewards: float32 [N, K], finite; N may be 0.
        anchors: float32 [P, M, K], finite, M >= 1.
        prompt_of: int64 [N], the row of ``anchors`` that sample n is compared with.
        weights: float32 [K], of the rewards in the score.
        form: One of :data:`FORMS`.
        min_std: float32 [K], floor of the bank's standard deviation in each reward's own unit, > 0. None
            means 1e-6: give a real floor where a bank may tie or has a single anchor.
        temperature: Of ``bradley_terry``, in units of the bank's standard deviation, > 0.
        backend: See :data:`cxrl.ops.BACKENDS`; None means ``CXRL_BACKEND`` or ``auto``.

    Returns:
        score float32 [N], differentiable in ``rewards``, and win_rate float32 [K] in [0, 1] (0 when N is 0).

    Raises:
        ValueError: A shape, dtype, device, form or (on the CPU) value does not fit; the backend cannot run.
    """
    check_comparison(rewards, anchors, prompt_of, weights, form, min_std, temperature)
    needs: tuple[str, ...] = ("float64",) if rewards.dtype == torch.float64 else ()
    if _compiled.wants_grad(anchors, weights, min_std):
        needs += ("gradients of anchors, weights or min_std",)
    chosen = _dispatch.select("pairwise_comparison", backend, rewards.device.type, needs, form)
    if chosen != "reference":
        if form == "win":
            rewards = rewards.detach()  # a share beaten has no gradient
        args = (rewards, anchors, prompt_of, weights, form, min_std, temperature, chosen)
        score, win_rate, _ = _comparison_op(*args)
        return score, win_rate.detach()
    _check_values(rewards, anchors, prompt_of, min_std)
    return pairwise_comparison_reference(rewards, anchors, prompt_of, weights, form, min_std, temperature)


def group_win_rate(rewards: Tensor, prompt_of: Tensor, *, backend: str | None = None) -> Tensor:
    """Share of the *other* samples of its prompt that every sample beats, ties half. Not differentiable.

    Args:
        rewards: float32 [N, K], finite; N may be 0.
        prompt_of: int64 [N], any non-negative numbers; equal numbers are one group.
        backend: See :data:`cxrl.ops.BACKENDS`; None means ``CXRL_BACKEND`` or ``auto``.

    Returns:
        float32 [N, K] in [0, 1]; 0.5 for a sample that is alone in its group.

    Raises:
        ValueError: A shape, dtype, device or (on the CPU) value does not fit; the backend cannot run.
    """
    _check_rewards("group_win_rate", rewards, prompt_of)
    needs = ("float64",) if rewards.dtype == torch.float64 else ()
    with torch.no_grad():
        chosen = _dispatch.select("group_win_rate", backend, rewards.device.type, needs)
        if chosen != "reference":
            return _group_op(rewards, prompt_of, chosen)
        _check_finite("group_win_rate", "rewards", rewards)
        return group_win_rate_reference(rewards, prompt_of)


def _check_rewards(op: str, rewards: Tensor, prompt_of: Tensor) -> None:
    if rewards.ndim != 2 or rewards.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: rewards must be float32 [N, K], got {rewards.dtype} {tuple(rewards.shape)}")
    if prompt_of.dtype != torch.int64 or prompt_of.shape != rewards.shape[:1]:
        got = f"{prompt_of.dtype} {tuple(prompt_of.shape)}"
        raise ValueError(f"{op}: prompt_of must be int64 [{rewards.shape[0]}], got {got}")
    if prompt_of.device != rewards.device:
        raise ValueError(f"{op}: prompt_of is on {prompt_of.device}, rewards on {rewards.device}")


def check_comparison(
    rewards: Tensor,
    anchors: Tensor,
    prompt_of: Tensor,
    weights: Tensor,
    form: str,
    min_std: Tensor | None,
    temperature: float,
) -> None:
    """Refuse arguments whose shape, dtype, device or form does not fit, naming the one that is wrong."""
    op = "pairwise_comparison"
    _check_rewards(op, rewards, prompt_of)
    num_rewards = rewards.shape[1]
    if anchors.ndim != 3 or anchors.shape[2] != num_rewards or anchors.shape[1] < 1:
        raise ValueError(f"{op}: anchors must be [P, M >= 1, {num_rewards}], got {tuple(anchors.shape)}")
    vectors = [("weights", weights)] if min_std is None else [("weights", weights), ("min_std", min_std)]
    for name, vector in vectors:
        if vector.shape != (num_rewards,):
            raise ValueError(f"{op}: {name} must be [{num_rewards}], got {tuple(vector.shape)}")
    for name, tensor in [("anchors", anchors), *vectors]:
        if tensor.dtype != rewards.dtype:
            raise ValueError(f"{op}: {name} is {tensor.dtype}, rewards {rewards.dtype}")
        if tensor.device != rewards.device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, rewards on {rewards.device}")
    if form not in FORMS:
        raise ValueError(f"{op}: unknown form {form!r}; choose one of {', '.join(FORMS)}")
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"{op}: temperature must be positive, got {temperature}")


def _check_finite(op: str, name: str, tensor: Tensor) -> None:
    if tensor.device.type != "cpu" or torch.compiler.is_compiling():
        return
    finite = tensor.isfinite()
    if not bool(finite.all()):
        index = (~finite).nonzero()[0].tolist()
        raise ValueError(f"{op}: {name}{index} = {float(tensor[tuple(index)])}, expected finite values")


def _check_values(rewards: Tensor, anchors: Tensor, prompt_of: Tensor, min_std: Tensor | None) -> None:
    if rewards.device.type != "cpu" or torch.compiler.is_compiling():
        return
    op = "pairwise_comparison"
    _check_finite(op, "rewards", rewards)
    _check_finite(op, "anchors", anchors)
    if prompt_of.numel() and not 0 <= int(prompt_of.min()) <= int(prompt_of.max()) < len(anchors):
        bad = int(((prompt_of < 0) | (prompt_of >= len(anchors))).nonzero()[0])
        raise ValueError(f"{op}: prompt_of[{bad}] = {int(prompt_of[bad])}, expected 0 to {len(anchors) - 1}")
    if min_std is not None and not bool((min_std > 0).all()):
        raise ValueError(f"{op}: min_std must be positive, got {min_std.tolist()}")


def _allocate_comparison(
    rewards: Tensor,
    anchors: Tensor,
    prompt_of: Tensor,
    weights: Tensor,
    form: str,
    min_std: Tensor | None,
    temperature: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    num_samples, num_rewards = rewards.shape
    slope = rewards.new_empty(num_samples, num_rewards)  # d value / d reward, for the backward
    return rewards.new_empty(num_samples), rewards.new_empty(num_rewards), slope


def _allocate_comparison_backward(grad_score: Tensor, weights: Tensor, slope: Tensor, backend: str) -> Tensor:
    return slope.new_empty(slope.shape)


def _check_comparison_op(*args: Any) -> None:
    check_comparison(*args[:-1])


def _check_comparison_backward(grad_score: Tensor, weights: Tensor, slope: Tensor, backend: str) -> None:
    op = "pairwise_comparison"
    if slope.ndim != 2 or slope.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: slope must be float32 [N, K], got {slope.dtype} {tuple(slope.shape)}")
    shape, dtype, device = slope.shape, slope.dtype, slope.device
    _compiled.check_tensor(op, "grad_score", grad_score, shape[:1], dtype, device)
    _compiled.check_tensor(op, "weights", weights, shape[1:], dtype, device)


def _check_group(rewards: Tensor, prompt_of: Tensor, backend: str) -> None:
    _check_rewards("group_win_rate", rewards, prompt_of)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[3], output[2])
    ctx.backend = inputs[7]


def _backward(
    ctx: Any, run: Callable[..., Any], grad_score: Tensor, grad_win_rate: Tensor, grad_slope: Tensor
) -> tuple[Any, ...]:
    weights, slope = ctx.saved_tensors
    return run(grad_score, weights, slope, ctx.backend), None, None, None, None, None, None, None


_ARGUMENTS = (
    "Tensor rewards, Tensor anchors, Tensor prompt_of, Tensor weights, str form, Tensor? min_std, "
    "float temperature, str backend"
)
_comparison_op = _compiled.CompiledOp(
    "pairwise_comparison",
    f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
    _allocate_comparison,
    _check_comparison_op,
    setup_context=_setup_context,
    backward=_backward,
    backward_op=_compiled.CompiledOp(
        "pairwise_comparison_backward",
        "(Tensor grad_score, Tensor weights, Tensor slope, str backend) -> Tensor",
        _allocate_comparison_backward,
        _check_comparison_backward,
    ),
)
_group_op = _compiled.CompiledOp(
    "group_win_rate",
    "(Tensor rewards, Tensor prompt_of, str backend) -> Tensor",
    lambda rewards, prompt_of, backend: _compiled.empty_dense_like(rewards),
    _check_group,
)

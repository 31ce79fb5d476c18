"""Log-probability of a denoising step, and the step itself.

A DDIM step without clipping is linear in the network's output for every prediction type, so a row
``(c_x, c_e, sigma)`` of a precomputed table describes it completely:

    m      = uncond + guidance · (cond − uncond)          (m = cond without guidance)
    μ      = c_x · x_t + c_e · m
    x_prev = μ + σ · noise
    log p  = mean over C·H·W of  −½ ((x_prev − μ) / σ)² − log σ − ½ log 2π

The mean, not the sum, is the convention of Black et al., 2023 (arXiv 2305.13301): clip ranges of 1e-4 rest on
it. The log-probability is that of the *stored* (rounded) ``x_prev``, so scoring a step again gives it back.

Shapes: B rows (samples, timesteps, or both), then any C·H·W. Latents, tables and results are float32 whatever
the network's dtype; the reference also takes float64 throughout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from cxrl.ops import _compiled, _dispatch

HALF_LOG_TWO_PI = 0.5 * math.log(2.0 * math.pi)
MODEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def _mean(cond: Tensor, uncond: Tensor | None, guidance: float, x_t: Tensor, table_rows: Tensor) -> Tensor:
    prediction = cond.to(x_t.dtype)
    if uncond is not None:
        unguided = uncond.to(x_t.dtype)
        prediction = unguided + guidance * (prediction - unguided)
    shape = (-1,) + (1,) * (x_t.ndim - 1)
    return table_rows[:, 0].view(shape) * x_t + table_rows[:, 1].view(shape) * prediction


def _log_density(mean: Tensor, x_prev: Tensor, sigma: Tensor) -> Tensor:
    squared_error = (x_prev - mean).square().flatten(1).mean(1)
    return -0.5 * squared_error / sigma.square() - torch.log(sigma) - HALF_LOG_TWO_PI


def trajectory_log_prob_reference(
    model_output_cond: Tensor,
    model_output_uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    table_rows: Tensor,
) -> Tensor:
    """The formula in plain PyTorch: what every backend is tested and timed against. Checks nothing."""
    mean = _mean(model_output_cond, model_output_uncond, guidance, x_t, table_rows)
    return _log_density(mean, x_prev, table_rows[:, 2])


def denoise_step_reference(
    model_output_cond: Tensor,
    model_output_uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    noise: Tensor,
    table_rows: Tensor,
) -> tuple[Tensor, Tensor]:
    """The step in plain PyTorch. Checks nothing."""
    mean = _mean(model_output_cond, model_output_uncond, guidance, x_t, table_rows)
    sigma = table_rows[:, 2]
    stochastic = sigma > 0
    x_prev = mean + sigma.view((-1,) + (1,) * (x_t.ndim - 1)) * noise
    log_prob = _log_density(mean, x_prev, torch.where(stochastic, sigma, torch.ones_like(sigma)))
    return x_prev, torch.where(stochastic, log_prob, torch.zeros_like(log_prob))


def trajectory_log_prob(
    model_output_cond: Tensor,
    model_output_uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    table_rows: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    """Log-probability of the steps ``x_t → x_prev`` under the policy, averaged over C·H·W.

    Args:
        model_output_cond: The network's output with the prompt, [B, ...], float32, float16 or bfloat16.
        model_output_uncond: As ``model_output_cond``, without the prompt; None if guidance is 1.
        guidance: Classifier-free guidance scale, the one that sampled.
        x_t: float32 [B, ...], the latents before the step.
        x_prev: float32 [B, ...], the latents after it.
        table_rows: float32 [B, 3], ``(c_x, c_e, sigma)`` of every row's timestep, sigma > 0.
        backend: See :data:`cxrl.ops.BACKENDS`; None means ``CXRL_BACKEND`` or ``auto``.

    Returns:
        float32 [B]. Differentiable in both model outputs; the backward recomputes instead of storing.

    Raises:
        ValueError: A shape, dtype or device does not fit; sigma is not positive or the table not finite (on a
            GPU such a row gives nan instead, because looking would stall the device); the backend cannot run.
    """
    check_step(
        "trajectory_log_prob",
        model_output_cond,
        model_output_uncond,
        guidance,
        x_t,
        "x_prev",
        x_prev,
        table_rows,
    )
    args = (model_output_cond, model_output_uncond, guidance, x_t, x_prev, table_rows)
    chosen = _dispatch.select("trajectory_log_prob", backend, x_t.device.type, _needs(*args))
    if chosen != "reference":
        return _log_prob_op(*args, chosen)
    check_table("trajectory_log_prob", table_rows, allow_zero_sigma=False)
    return trajectory_log_prob_reference(*args)


def denoise_step(
    model_output_cond: Tensor,
    model_output_uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    noise: Tensor,
    table_rows: Tensor,
    *,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """One sampling step and its log-probability. Not differentiable: sampling is not trained through.

    Args:
        model_output_cond: The network's output with the prompt, [B, ...], float32, float16 or bfloat16.
        model_output_uncond: As ``model_output_cond``, without the prompt; None if guidance is 1.
        guidance: Classifier-free guidance scale.
        x_t: float32 [B, ...], the latents before the step.
        noise: float32 [B, ...], standard normal.
        table_rows: float32 [B, 3], ``(c_x, c_e, sigma)``, sigma >= 0.
        backend: See :data:`cxrl.ops.BACKENDS`; None means ``CXRL_BACKEND`` or ``auto``.

    Returns:
        ``x_prev`` float32 [B, ...] and its log-probability, float32 [B]. A row with sigma 0 is deterministic:
        ``x_prev`` is the mean and the log-probability 0, to be left out of the policy.

    Raises:
        ValueError: As :func:`trajectory_log_prob`, for a negative sigma.
    """
    check_step(
        "denoise_step", model_output_cond, model_output_uncond, guidance, x_t, "noise", noise, table_rows
    )
    args = (model_output_cond, model_output_uncond, guidance, x_t, noise, table_rows)
    with torch.no_grad():
        chosen = _dispatch.select("denoise_step", backend, x_t.device.type, _needs(*args))
        if chosen != "reference":
            return _step_op(*args, chosen)
        check_table("denoise_step", table_rows, allow_zero_sigma=True)
        return denoise_step_reference(*args)


def _needs(
    cond: Tensor, uncond: Tensor | None, guidance: float, x_t: Tensor, other: Tensor, table_rows: Tensor
) -> tuple[str, ...]:
    needs: tuple[str, ...] = ()
    if x_t.dtype is torch.float64 or cond.dtype is torch.float64:
        needs += ("float64",)
    if (x_t.requires_grad or other.requires_grad or table_rows.requires_grad) and torch.is_grad_enabled():
        needs += ("gradients of the latents or the table",)
    return needs


def _allocate_log_prob(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    rows: Tensor,
    backend: str,
) -> Tensor:
    return x_t.new_empty(x_t.shape[0])


def _allocate_log_prob_backward(
    grad: Tensor,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    rows: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    without = cond.new_empty(0) if uncond is None else _compiled.empty_dense_like(uncond)
    return _compiled.empty_dense_like(cond), without


def _allocate_step(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    noise: Tensor,
    rows: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor]:
    return _compiled.empty_dense_like(x_t), x_t.new_empty(x_t.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    cond, uncond, guidance, x_t, x_prev, rows, backend = inputs
    ctx.save_for_backward(cond, uncond, x_t, x_prev, rows)
    ctx.guidance, ctx.backend = guidance, backend


def _backward(ctx: Any, run: Callable[..., Any], grad: Tensor) -> tuple[Any, ...]:
    cond, uncond, x_t, x_prev, rows = ctx.saved_tensors
    grad_cond, grad_uncond = run(grad, cond, uncond, ctx.guidance, x_t, x_prev, rows, ctx.backend)
    return grad_cond, None if uncond is None else grad_uncond, None, None, None, None, None


def _check_log_prob(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    x_prev: Tensor,
    rows: Tensor,
    backend: str,
) -> None:
    check_step("trajectory_log_prob", cond, uncond, guidance, x_t, "x_prev", x_prev, rows)


def _check_log_prob_backward(grad: Tensor, *others: Any) -> None:
    _check_log_prob(*others)
    x_t: Tensor = others[3]
    _compiled.check_tensor("trajectory_log_prob", "grad", grad, x_t.shape[:1], x_t.dtype, x_t.device)


def _check_denoise_step(
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    noise: Tensor,
    rows: Tensor,
    backend: str,
) -> None:
    check_step("denoise_step", cond, uncond, guidance, x_t, "noise", noise, rows)


_ARGUMENTS = (
    "Tensor cond, Tensor? uncond, float guidance, Tensor x_t, Tensor {}, Tensor table_rows, str backend"
)
_log_prob_op = _compiled.CompiledOp(
    "trajectory_log_prob",
    f"({_ARGUMENTS.format('x_prev')}) -> Tensor",
    _allocate_log_prob,
    _check_log_prob,
    setup_context=_setup_context,
    backward=_backward,
    backward_op=_compiled.CompiledOp(
        "trajectory_log_prob_backward",
        f"(Tensor grad, {_ARGUMENTS.format('x_prev')}) -> (Tensor, Tensor)",
        _allocate_log_prob_backward,
        _check_log_prob_backward,
    ),
)
_step_op = _compiled.CompiledOp(
    "denoise_step",
    f"({_ARGUMENTS.format('noise')}) -> (Tensor, Tensor)",
    _allocate_step,
    _check_denoise_step,
)


def check_step(
    op: str,
    cond: Tensor,
    uncond: Tensor | None,
    guidance: float,
    x_t: Tensor,
    other_name: str,
    other: Tensor,
    table_rows: Tensor,
) -> None:
    """Refuse arguments whose shape, dtype or device does not fit, naming the one that is wrong."""
    shape, dtype, device = x_t.shape, x_t.dtype, x_t.device
    if (
        dtype is torch.float32 is table_rows.dtype is other.dtype
        and cond.shape == shape == other.shape
        and table_rows.shape == (shape[0], 3)
        and cond.device == device == other.device == table_rows.device
        and (
            (uncond.shape == shape and uncond.dtype is cond.dtype and uncond.device == device)
            if uncond is not None
            else guidance == 1.0
        )
        and cond.dtype in MODEL_DTYPES
        and len(shape) > 1
        and math.isfinite(guidance)
    ):
        return  # the usual call, in a few microseconds
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{op}: x_t must be float32 (latents stay in float32), got {dtype}")
    if x_t.ndim < 2:
        raise ValueError(f"{op}: x_t must be [B, ...] with at least two dimensions, got {tuple(shape)}")
    tensors = [("model_output_cond", cond), (other_name, other)]
    if uncond is not None:
        tensors.append(("model_output_uncond", uncond))
        if uncond.dtype != cond.dtype:
            raise ValueError(f"{op}: model_output_uncond is {uncond.dtype}, model_output_cond {cond.dtype}")
    elif guidance != 1.0:
        raise ValueError(
            f"{op}: guidance {guidance} needs model_output_uncond; without it guidance must be 1.0"
        )
    for name, tensor in tensors:
        if tensor.shape != shape:
            raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}, x_t has {tuple(shape)}")
        if tensor.device != device:
            raise ValueError(f"{op}: {name} is on {tensor.device}, x_t on {device}")
    if cond.dtype not in MODEL_DTYPES:
        raise ValueError(f"{op}: model_output_cond must be float32, float16 or bfloat16, got {cond.dtype}")
    if other.dtype != dtype or table_rows.dtype != dtype:
        raise ValueError(
            f"{op}: {other_name} and table_rows must be {dtype} like x_t, "
            f"got {other.dtype} and {table_rows.dtype}"
        )
    if table_rows.shape != (shape[0], 3):
        raise ValueError(f"{op}: table_rows must be [{shape[0]}, 3], got {tuple(table_rows.shape)}")
    if table_rows.device != device:
        raise ValueError(f"{op}: table_rows is on {table_rows.device}, x_t on {device}")
    if not math.isfinite(guidance):
        raise ValueError(f"{op}: guidance must be finite, got {guidance}")


def check_table(op: str, table_rows: Tensor, *, allow_zero_sigma: bool) -> None:
    """Refuse a table row that is not finite or whose sigma is out of range. Looks at values: CPU only."""
    if table_rows.device.type != "cpu" or torch.compiler.is_compiling():
        return
    sigma = table_rows[:, 2]
    good = table_rows.isfinite().all(1) & ((sigma >= 0) if allow_zero_sigma else (sigma > 0))
    if not bool(good.all()):
        row = int((~good).nonzero()[0])
        wanted = "sigma >= 0" if allow_zero_sigma else "sigma > 0 (leave deterministic steps out)"
        raise ValueError(
            f"{op}: table_rows[{row}] = {table_rows[row].tolist()}; "
            f"expected finite (c_x, c_e, sigma) with {wanted}"
        )

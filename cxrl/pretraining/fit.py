"""One resumable training loop for every supervised stage.

The batch of a step depends on ``(seed, step)`` alone, so a checkpoint is the weights, their moving average,
AdamW's two moments, the step and the settings: safetensors and JSON, written beside and renamed.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from cxrl.errors import CxrlError
from cxrl.storage.writing import write_tensors


@dataclass(frozen=True)
class FitOptions:
    """Optimisation of one stage.

    Attributes:
        num_steps: Optimizer steps.
        learning_rate: Peak of a linear warm-up (3 % of the steps) and a cosine decay to 2 % of the peak.
        weight_decay: AdamW's.
        ema_decay: Decay of the moving average that becomes the result; 0 keeps the last weights.
        max_grad_norm: Gradients are clipped to this norm.
        checkpoint_seconds: Time between checkpoints.
    """

    num_steps: int
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    max_grad_norm: float = 1.0
    checkpoint_seconds: float = 60.0


def learning_rate_at(step: int, options: FitOptions) -> float:
    """Warm-up then cosine; ``step`` counts from 0."""
    warmup = max(1, int(0.03 * options.num_steps))
    if step < warmup:
        return options.learning_rate * (step + 1) / warmup
    progress = (step - warmup) / max(1, options.num_steps - warmup)
    return options.learning_rate * (0.02 + 0.98 * 0.5 * (1.0 + math.cos(math.pi * progress)))


def fit(
    name: str,
    module: nn.Module,
    loss_at: Callable[[int, torch.Generator], Tensor],
    options: FitOptions,
    *,
    seed: int,
    work_dir: Path,
    data: str = "",
    tell: Callable[[str], None] = print,
) -> nn.Module:
    """Trains ``module`` in place and leaves its moving average in it.

    Args:
        name: Names the checkpoint and the progress lines.
        loss_at: ``loss_at(step, generator)`` -> scalar loss of that step's batch; all randomness from the
            generator.
        work_dir: Checkpoints are kept here and continued from here.
        data: Names what is trained on; a checkpoint of other data is not continued.

    Raises:
        CxrlError: The loss stops being finite, or the checkpoint cannot be read or belongs to another model,
            other data or other settings (more steps are fine).
    """
    named = {k: p for k, p in module.named_parameters() if p.requires_grad}
    params = list(named.values())
    average = [p.detach().clone() for p in params]
    decayed = [p for p in params if p.ndim > 1]
    plain = [p for p in params if p.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        [g for g in groups if g["params"]], lr=options.learning_rate, betas=(0.9, 0.98)
    )
    path = work_dir / f"{name}.checkpoint"
    settings = {k: v for k, v in asdict(options).items() if k not in ("num_steps", "checkpoint_seconds")}
    settings |= {"seed": seed, "data": data}
    start = _load(path, module, named, average, optimizer, settings)
    if start > options.num_steps:
        raise CxrlError(
            f"{path} has {start} steps, {options.num_steps} are asked for; delete it to start the stage again"
        )
    if start:
        tell(f"{name}: continues at step {start} of {options.num_steps}")
    module.train()
    generator = torch.Generator()
    began = last_save = last_line = time.monotonic()
    smooth = 0.0
    for step in range(start, options.num_steps):
        generator.manual_seed(seed * 1_000_003 + step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, options)
        loss = loss_at(step, generator)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise CxrlError(
                f"{name}: the loss is {value} at step {step}; lower the learning rate or look at the data"
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(params, options.max_grad_norm)
        optimizer.step()
        decay = min(options.ema_decay, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            torch._foreach_lerp_(average, list[Tensor](params), 1.0 - decay)
        weight = max(0.01, 1.0 / (step - start + 1))
        smooth += weight * (value - smooth)
        now = time.monotonic()
        if now - last_line > 20 or step + 1 == options.num_steps:
            last_line = now
            left = (now - began) / (step + 1 - start) * (options.num_steps - step - 1)
            tell(f"{name}: step {step + 1}/{options.num_steps}  loss {smooth:.4f}  {left:.0f} s left")
        if now - last_save > options.checkpoint_seconds or step + 1 == options.num_steps:
            last_save = now
            _save(path, step + 1, module, named, average, optimizer, settings)
    with torch.no_grad():
        for p, a in zip(params, average, strict=True):
            p.copy_(a)
    return module.eval()


def _save(
    path: Path,
    step: int,
    module: nn.Module,
    named: dict[str, nn.Parameter],
    average: list[Tensor],
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> None:
    tensors = {f"buffer.{k}": b for k, b in module.named_buffers()}
    for (key, p), a in zip(named.items(), average, strict=True):
        tensors |= {f"weight.{key}": p.detach(), f"average.{key}": a}
        state = optimizer.state[p]
        tensors |= {f"first.{key}": state["exp_avg"], f"second.{key}": state["exp_avg_sq"]}
    write_tensors(path, tensors, metadata={"step": json.dumps(step), "settings": json.dumps(settings)})


def _load(
    path: Path,
    module: nn.Module,
    named: dict[str, nn.Parameter],
    average: list[Tensor],
    optimizer: torch.optim.Optimizer,
    settings: dict[str, Any],
) -> int:
    if not path.exists():
        return 0
    from safetensors import SafetensorError, safe_open

    try:
        tensors = load_file(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
        step = int(json.loads(metadata["step"]))
        saved = json.loads(metadata.get("settings", "{}"))
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CxrlError(f"{path} cannot be read ({error}); delete it to start this stage again") from None
    for key in saved.keys() & settings.keys():
        if saved[key] != settings[key]:
            raise CxrlError(
                f"{path} was written with other settings ({key} {saved[key]!r}, now {settings[key]!r}); "
                "go on with the same ones, or delete it to start this stage again"
            )
    wanted = {f"{kind}.{k}" for kind in ("weight", "average", "first", "second") for k in named}
    wanted |= {f"buffer.{k}" for k, _ in module.named_buffers()}
    if wanted != set(tensors) or any(tensors[f"weight.{k}"].shape != p.shape for k, p in named.items()):
        raise CxrlError(f"{path} belongs to another model; delete it to start this stage again")
    with torch.no_grad():
        for key, buffer in module.named_buffers():
            buffer.copy_(tensors[f"buffer.{key}"])
        for (key, p), a in zip(named.items(), average, strict=True):
            p.copy_(tensors[f"weight.{key}"])
            a.copy_(tensors[f"average.{key}"])
            optimizer.state[p] = {
                "step": torch.tensor(float(step)),
                "exp_avg": tensors[f"first.{key}"].clone(),
                "exp_avg_sq": tensors[f"second.{key}"].clone(),
            }
    return step

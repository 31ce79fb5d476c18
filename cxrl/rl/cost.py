"""What a run will cost, before anything heavy starts: images, passes through the UNet, memory and time.

Counts leave out the few rows that watch the ratio and the KL. FLOPs and activations come from one pass of the
UNet's own class on the meta device, where nothing is computed or stored; seconds are those FLOPs at
``EFFICIENCY`` of the rate that this device shows on a large matrix product: a guide and no measurement.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.models.base import DTYPES
from cxrl.rl.comparison import needs_anchor
from cxrl.rl.schedule import ddim_table
from cxrl.shipped import BASE, is_shipped
from cxrl.storage.reading import in_hub_cache, read_json

EFFICIENCY = 0.4
"""Share of a large matrix product's rate that a UNet of convolutions and small products reaches, about."""
CHECKPOINTED = 0.25
"""Share of the activations that gradient checkpointing leaves, about: a block, and the inputs of all."""
_ADAM = 5
"""Float32 copies of a trained weight: itself, gradient, two moments, average."""


@dataclass(frozen=True)
class Counts:
    """Work of a run, in rows: one sample at one step through the UNet once; guidance doubles rows.

    Attributes:
        images_per_epoch: Sampled by the policy.
        rollout_rows: Forward, an epoch.
        update_rows: Forward and backward, an epoch.
        anchor_rows: Forward by the anchor: an epoch's, for one image a sample or for the KL.
        bank_rows: Forward, once: the bank of the prompts that a run draws.
        eval_rows: Forward, once: all evaluations together.
    """

    images_per_epoch: int
    rollout_rows: int
    update_rows: int
    anchor_rows: int
    bank_rows: int
    eval_rows: int


def counts(config: Config) -> Counts:
    """How often the UNet runs. Early stops and tied groups, which save some, are not foreseen.

    Raises:
        CxrlError: The scheduler's configuration is damaged, or has no such chain.
    """
    train, sampler = config.train, config.sampler
    branches = 2 if sampler.guidance_scale > 1 else 1
    images = train.prompts_per_epoch * train.samples_per_prompt
    chain = sampler.num_steps * branches
    kept = math.ceil(config.optim.timestep_fraction * _policy_steps(config))
    updated = images * kept * config.optim.num_inner_epochs * branches
    compared = needs_anchor(config)
    one_to_one = compared and config.comparison.anchor == "one_to_one"
    drawn = min(config.data.num_prompts, train.num_epochs * train.prompts_per_epoch)
    bank = 0 if not compared or one_to_one else drawn * config.comparison.bank_size * chain
    evaluations = 1 + (0 if train.eval_every == 0 else (train.num_epochs - 1) // train.eval_every)
    return Counts(
        images_per_epoch=images,
        rollout_rows=images * chain,
        update_rows=updated,
        anchor_rows=images * chain * one_to_one + (updated if config.optim.kl_weight > 0 else 0),
        bank_rows=bank,
        eval_rows=(evaluations + 1) * config.eval.num_images * chain,
    )


def _policy_steps(config: Config) -> int:
    """Steps with noise, which are trained on; all, where the base's scheduler is not on this machine."""
    sampler, folder = config.sampler, _local_folder(config.model.path)
    if folder is None:
        return sampler.num_steps
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    return ddim_table(scheduler, sampler.num_steps, sampler.eta, sampler.timestep_spacing).num_policy_steps


@dataclass(frozen=True)
class Footprint:
    """Size of a base.

    Attributes:
        weights: Parameters of UNet, autoencoder and text encoder.
        trained: Parameters that learn.
        flops: Of one row's forward pass through the UNet.
        activations: Bytes that one row keeps for its backward pass.
    """

    weights: int
    trained: int
    flops: int
    activations: int


def footprint(config: Config) -> Footprint | None:
    """Of ``model.path``, from its configuration files alone; None for a hub id that is not on this machine.

    Raises:
        CxrlError: A configuration file is damaged.
    """
    folder = _local_folder(config.model.path)
    if folder is None:
        return None
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(folder / "unet" / "config.json"))
        vae = AutoencoderKL.from_config(read_json(folder / "vae" / "config.json"))
        text = AutoModel.from_config(AutoConfig.from_pretrained(folder / "text_encoder"))
    total = sum(p.numel() for part in (unet, vae, text) for p in part.parameters())
    dtype = DTYPES[config.model.dtype]
    # The class's own .to() warns of layers that are to stay float32, where there are none.
    torch.nn.Module.to(unet, dtype)
    unet.requires_grad_(config.policy.train == "full")
    if config.policy.train == "lora":
        _add_lora(unet, config.policy.lora_rank)
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad)
    width = unet.config.cross_attention_dim
    trained += config.policy.num_ace_tokens * width
    tokens = getattr(text.config, "max_position_embeddings", 77) + config.policy.num_ace_tokens
    flops, activations = _one_row(unet, tokens, width, dtype)
    return Footprint(total, trained, flops, activations)


def _local_folder(path: str) -> Path | None:
    if is_shipped(path):
        return BASE
    if Path(path).is_dir():
        return Path(path)
    found = in_hub_cache(path, "unet/config.json")
    return None if found is None else found.parents[1]


def _add_lora(unet: Any, rank: int) -> None:
    from peft import LoraConfig

    from cxrl.models.policy import LORA_TARGETS

    with torch.device("meta"):
        unet.add_adapter(LoraConfig(r=rank, target_modules=LORA_TARGETS, init_lora_weights=False))


def _one_row(unet: Any, tokens: int, width: int, dtype: torch.dtype) -> tuple[int, int]:
    """FLOPs of a forward pass and bytes that autograd keeps of it, weights aside."""
    from torch.utils.flop_counter import FlopCounterMode

    size = unet.config.sample_size
    height, columns = (size, size) if isinstance(size, int) else size
    kept: dict[tuple[Any, ...], int] = {}
    weights = {id(p) for p in unet.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        base = tensor._base if tensor._base is not None else tensor
        if id(base) not in weights:
            # Ids are reused once a tensor is gone: hold on to it, which costs nothing on the meta device.
            kept[(id(base), base.numel())] = base.numel() * base.element_size()
            alive.append(base)
        return tensor

    alive: list[Tensor] = []
    with (
        torch.device("meta"),
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        x = torch.empty(1, unet.config.in_channels, height, columns, dtype=dtype)
        text = torch.empty(1, tokens, width, dtype=dtype, requires_grad=True)
        unet(x, torch.zeros(1, dtype=torch.int64), text)
    return counter.get_total_flops(), sum(kept.values())


def matmul_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """FLOP/s of a large matrix product here."""
    size = 4096 if device.type == "cuda" else 1024
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    a @ b
    wait()
    done, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds or done < 3:
        a @ b
        wait()
        done += 1
    return 2 * size**3 * done / elapsed


@dataclass(frozen=True)
class Estimate:
    """Of one process of a run.

    Attributes:
        bytes_weights: Networks and what the optimizer keeps.
        bytes_activations: Largest at once, of the update.
        seconds_per_epoch: Rollout and update.
        seconds_total: The whole run, with the bank and the evaluations.
    """

    bytes_weights: int
    bytes_activations: int
    seconds_per_epoch: float
    seconds_total: float


def estimate(config: Config, size: Footprint, rate: float, num_processes: int = 1) -> Estimate:
    """Memory and time from counts, sizes and a rate in FLOP/s. Reward models and judges are not in it."""
    work = counts(config)
    full = config.policy.train == "full"
    networks = size.weights * DTYPES[config.model.dtype].itemsize
    trained = size.trained * 4 * (_ADAM + (1 if full else 0))
    branches = 2 if config.sampler.guidance_scale > 1 else 1
    activations = min(config.optim.micro_batch_size * branches, work.update_rows) * size.activations
    if config.model.gradient_checkpointing:
        activations = round(activations * CHECKPOINTED)
    # The backward pass goes through frozen weights too: as much as the forward, again for weights that learn.
    passes = 3 if full else 2
    passes += config.model.gradient_checkpointing
    epoch = work.rollout_rows + work.anchor_rows + passes * work.update_rows
    once = work.bank_rows + work.eval_rows
    seconds = size.flops / (rate * EFFICIENCY * num_processes)
    return Estimate(
        networks + trained,
        activations,
        epoch * seconds,
        (config.train.num_epochs * epoch + once) * seconds,
    )

"""What a run will cost, before anything heavy starts: images, passes through the UNet, memory and time.

Counts leave out the few rows that watch the ratio and the KL. FLOPs come from one pass of the UNet's own
class on the meta device, where nothing is computed or stored, and memory from :mod:`cxrl.rl.step_memory`;
seconds are those FLOPs at ``EFFICIENCY`` of the rate that this device shows on a large matrix product: a
guide and no measurement.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.evaluation.summary import num_judged
from cxrl.models.attention import PolicyAttention
from cxrl.models.base import DECODE_BATCH, DECODE_PIXELS, DTYPES
from cxrl.models.base_files import local_folder
from cxrl.rl.comparison import needs_anchor
from cxrl.rl.schedule import ddim_table
from cxrl.rl.step_memory import RowMemory, rows_memory
from cxrl.storage.reading import read_json

EFFICIENCY = 0.4
"""Share of a large matrix product's rate that a UNet of convolutions and small products reaches, about."""
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
    judged = 1 if train.eval_every == 0 else math.ceil(train.num_epochs / train.eval_every)
    evaluated = 2 * num_judged(config, "eval") + (1 + judged) * num_judged(config, "selection")
    return Counts(
        images_per_epoch=images,
        rollout_rows=images * chain,
        update_rows=updated,
        anchor_rows=images * chain * one_to_one + (updated if config.optim.kl_weight > 0 else 0),
        bank_rows=bank,
        eval_rows=evaluated * chain,
    )


def _policy_steps(config: Config) -> int:
    """Steps with noise, which are trained on; all, where the base's scheduler is not on this machine."""
    sampler, folder = config.sampler, local_folder(config.model.path)
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
        update: Memory of a forward and backward pass through the policy, a row being one branch of a sample.
        sampling: Memory of a forward pass.
        decoding: Bytes of decoding as many images as are decoded at once.
    """

    weights: int
    trained: int
    flops: int
    update: RowMemory
    sampling: RowMemory
    decoding: int


def footprint(config: Config, device: torch.device) -> Footprint | None:
    """Of ``model.path``, from its configuration files alone; None for a hub id that is not on this machine.

    Args:
        config: ``model`` and ``policy``.
        device: Where it is to run, which decides on the ops.

    Raises:
        CxrlError: A configuration file is damaged.
    """
    folder = local_folder(config.model.path)
    if folder is None:
        return None
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import AutoConfig, AutoModel

    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(read_json(folder / "unet" / "config.json"))
        vae = AutoencoderKL.from_config(read_json(folder / "vae" / "config.json"))
        text = AutoModel.from_config(AutoConfig.from_pretrained(folder / "text_encoder"))
    total = sum(p.numel() for part in (unet, vae, text) for p in part.parameters())
    dtype, full = DTYPES[config.model.dtype], config.policy.train == "full"
    # The class's own .to() warns of layers that are to stay float32, where there are none.
    torch.nn.Module.to(unet, torch.float32 if full else dtype)
    torch.nn.Module.to(vae, dtype)
    vae.requires_grad_(False)
    unet.requires_grad_(full)
    width, extra = unet.config.cross_attention_dim, config.policy.num_ace_tokens
    tokens = getattr(text.config, "max_position_embeddings", 77)
    flops = _flops_of_a_row(unet, tokens + extra, width)
    if config.policy.train == "lora":
        _add_lora(unet, config.policy.lora_rank)
    trained = sum(p.numel() for p in unet.parameters() if p.requires_grad) + extra * width
    unet.set_attn_processor(PolicyAttention())
    if config.model.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    channels, height, columns = unet.config.in_channels, *_sides(unet)

    def predict(rows: int) -> Tensor:
        x = torch.empty(rows, channels, height, columns, dtype=dtype)
        t, embeds = torch.zeros(rows, dtype=torch.int64), torch.empty(rows, tokens, width, dtype=dtype)
        attention = {}
        if extra:
            ace = torch.empty(extra, width, requires_grad=torch.is_grad_enabled())
            attention["ace"] = ace.to(dtype)
        with torch.autocast(device.type, dtype, enabled=full and dtype != torch.float32):
            output: Tensor = unet(x, t, embeds, cross_attention_kwargs=attention, return_dict=False)[0]
        return output

    @torch.no_grad()
    def decode(images: int) -> None:
        vae.decode(torch.empty(images, channels, height, columns, dtype=dtype))

    pixels = height * columns * 4 ** (len(vae.config.block_out_channels) - 1)
    at_once = min(DECODE_BATCH, max(1, DECODE_PIXELS // pixels))
    return Footprint(
        total,
        trained,
        flops,
        update=rows_memory(device, unet, lambda rows: predict(rows).float().sum().backward()),
        sampling=rows_memory(device, unet, torch.no_grad()(predict)),
        decoding=rows_memory(device, vae, decode).of(at_once),
    )


def _add_lora(unet: Any, rank: int) -> None:
    from peft import LoraConfig

    from cxrl.models.policy import LORA_TARGETS

    with torch.device("meta"):
        unet.add_adapter(LoraConfig(r=rank, target_modules=LORA_TARGETS, init_lora_weights=False))


def _sides(unet: Any) -> tuple[int, int]:
    size = unet.config.sample_size
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))


def _flops_of_a_row(unet: Any, tokens: int, width: int) -> int:
    """FLOPs of a forward pass, with the attention of diffusers, which FlopCounterMode knows."""
    from torch.utils.flop_counter import FlopCounterMode

    dtype = next(unet.parameters()).dtype
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.empty(1, unet.config.in_channels, *_sides(unet), dtype=dtype)
        unet(x, torch.zeros(1, dtype=torch.int64), torch.empty(1, tokens, width, dtype=dtype))
    return counter.get_total_flops()


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
        bytes_activations: Most at once: of the update, of sampling or of decoding.
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
    activations = max(
        size.update.of(min(config.optim.micro_batch_size * branches, work.update_rows)),
        size.sampling.of(min(config.sampler.batch_size, work.images_per_epoch) * branches),
        size.decoding,
    )
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


def size_text(num_bytes: float) -> str:
    """Bytes as "730 MiB" or "8.9 GiB"."""
    gib = num_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1.0 else f"{num_bytes / 2**20:.0f} MiB"

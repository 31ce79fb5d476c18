"""A base of full size on the CPU: weights as those of Stable Diffusion 1.5 in shape, at random, 512 pixels.

    python benchmarks/full_size.py                         results/full_size.json
    python benchmarks/full_size.py --out FILE --threads 2

Two processes one after the other, so that each has a peak of its own: one builds the pipeline and saves it,
one loads it, samples two trajectories and takes two optimizer steps on LoRA and ACE. The folder (4.3 GB) is
deleted. Peaks are the kernel's ru_maxrss, with the pages of the weights' files that are mapped.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "full_size.json"
PROMPT = "Small left pleural effusion."
NUM_SAMPLES, NUM_STEPS = 2, 2


def peak_gib() -> float:
    """Largest resident memory of this process so far."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def build(folder: Path) -> dict[str, Any]:
    """Save a pipeline of the size of Stable Diffusion 1.5 with random weights, one part at a time."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    from cxrl.shipped import BASE

    torch.manual_seed(0)
    tokenizer = CLIPTokenizer.from_pretrained(BASE / "tokenizer", model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    blocks = {"act_fn": "silu", "layers_per_block": 2, "norm_num_groups": 32}
    parts: dict[str, Callable[[], Any]] = {
        "unet": lambda: UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, **blocks
        ),
        "vae": lambda: AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            latent_channels=4,
            sample_size=512,
            **blocks,
        ),
        "text_encoder": lambda: CLIPTextModel(
            CLIPTextConfig(
                vocab_size=49408,
                hidden_size=768,
                intermediate_size=3072,
                num_hidden_layers=12,
                num_attention_heads=12,
                projection_dim=768,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        ),
    }
    sizes = {}
    for name, make in parts.items():
        network = make()
        sizes[name] = sum(p.numel() for p in network.parameters())
        network.save_pretrained(folder / name)
        del network
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1).save_pretrained(
        folder / "scheduler"
    )
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    index |= {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    index |= {"scheduler": ["diffusers", "DDIMScheduler"], "feature_extractor": [None, None]}
    index |= {"text_encoder": ["transformers", "CLIPTextModel"]}
    index |= {"tokenizer": ["transformers", "CLIPTokenizer"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    disk = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return {"weights": sizes, "disk_gib": round(disk / 2**30, 2), "peak_gib": peak_gib()}


def train(folder: Path) -> dict[str, Any]:
    """Load the pipeline, sample, and take two optimizer steps."""
    import torch

    from cxrl.config import OptimConfig, PolicyConfig, SamplerConfig
    from cxrl.data.prompts import PromptBatch, ReportPrompt
    from cxrl.models.adapter import save_adapter
    from cxrl.models.base import load_base
    from cxrl.models.policy import Policy
    from cxrl.rl.engine import Engine
    from cxrl.rl.rollout import Sampler, batch_noise
    from cxrl.rl.seeding import generator
    from cxrl.rl.update import Updater
    from cxrl.storage.layout import LORA_FILE

    result: dict[str, Any] = {}
    started = time.perf_counter()

    def lap(name: str) -> None:
        nonlocal started
        result[f"{name}_seconds"] = round(time.perf_counter() - started, 1)
        result[f"{name}_peak_gib"] = peak_gib()
        started = time.perf_counter()

    policy = Policy(load_base(folder, gradient_checkpointing=True), PolicyConfig())
    lap("load")
    sampler = Sampler(policy, SamplerConfig(num_steps=NUM_STEPS, batch_size=1))
    config = OptimConfig(minibatches=2, micro_batch_size=1, timestep_fraction=1 / NUM_STEPS)
    updater = Updater(sampler, config, Engine(folder))
    batch = PromptBatch.repeat([ReportPrompt(0, PROMPT, ())], NUM_SAMPLES)
    noise = batch_noise(generator(0, "rollout"), policy.base.latent_shape, NUM_SAMPLES)
    rollout = sampler.rollout(batch, noise)
    lap("rollout")
    before = {name: p.clone() for name, p in policy.weights().items()}
    advantages = torch.tensor([1.0, -1.0])
    stats = updater.update(rollout, advantages, NUM_SAMPLES, epoch=0, rng=generator(0, "rows"))
    lap("update")
    save_adapter(policy, folder / "adapter")
    moved = [not torch.equal(p, before[name]) for name, p in policy.weights().items()]
    return result | {
        "image_shape": list(rollout.images.shape),
        "images_are_finite": bool(rollout.images.isfinite().all()),
        "optimizer_steps": stats.num_steps,
        "ratio_max_dev": stats.ratio_max_dev,
        "share_of_weights_moved": sum(moved) / len(moved),
        "adapter_mib": round((folder / "adapter" / LORA_FILE).stat().st_size / 2**20, 1),
        "peak_gib": peak_gib(),
    }


def measure(threads: int = 1) -> dict[str, Any]:
    """Both processes in turn. The folder is deleted, whatever happens."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    result: dict[str, Any] = {"threads": threads, "machine": platform.processor() or platform.machine()}
    with tempfile.TemporaryDirectory(prefix="cxrl-full-size-") as folder:
        for stage in ("build", "train"):
            started = time.perf_counter()
            command = [sys.executable, __file__, "--stage", stage, "--folder", folder]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            result[stage] = json.loads(done.stdout.splitlines()[-1])
            result[stage]["wall_seconds"] = round(time.perf_counter() - started, 1)
            print(stage, json.dumps(result[stage]), flush=True)
    return result


def main() -> None:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=style)
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--stage", choices=("build", "train"), help="of one process, in --folder")
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.stage:
        print(json.dumps({"build": build, "train": train}[args.stage](args.folder)))
        return
    args.out.write_text(json.dumps(measure(args.threads), indent=1) + "\n")


if __name__ == "__main__":
    main()

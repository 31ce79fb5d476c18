"""A policy for plain diffusers: a pipeline folder, ACE beside it, and a page with the call that gives cxrl's
pixels.

The UNet has LoRA merged into it, the scheduler is the DDIM of the run. What a pipeline has no place for is
said on the page: the tokens of ACE, which follow those of the prompt, η, guidance and the seed of an image.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cxrl.config import SamplerConfig
from cxrl.errors import CxrlError
from cxrl.models.pipeline import save_pipeline
from cxrl.models.policy import ACE, Policy
from cxrl.rl.engine import Engine
from cxrl.rl.reopen import open_run
from cxrl.rl.schedule import ddim_scheduler
from cxrl.rl.seeding import derive_seed
from cxrl.storage.layout import ACE_FILE
from cxrl.storage.privacy import owner_only
from cxrl.storage.writing import new_folder, write_tensors, write_text

BELOW_ONE = 0.99999994
"""The float32 before 1. At η = 1 diffusers takes the root of a number that rounding puts below zero, and the
image is black: with zero terminal SNR for many numbers of steps, 30 and 50 among them."""


def export_run(run_dir: Path, out: Path) -> None:
    """Write the policy of a run, with its averaged weights, for plain diffusers.

    Args:
        run_dir: A run of ``cxrl train``.
        out: A folder that is not there or empty; it appears whole or not at all.

    Raises:
        CxrlError: There is no run, a file of it is damaged, or the folder cannot be written.
    """
    config, policy = open_run(run_dir, Engine(run_dir))
    export_policy(policy, config.sampler, out, private=config.data.is_restricted)


def export_policy(policy: Policy, sampler: SamplerConfig, out: Path, *, private: bool = False) -> None:
    """As :func:`export_run`. Casts networks of the base to float32 in place, which ends the policy.

    Args:
        policy: Its averaged weights are written.
        sampler: How it is sampled.
        out: The folder.
        private: For its owner alone.

    Raises:
        CxrlError: The autoencoder shifts latents, or the folder cannot be written.
    """
    base = policy.base
    if getattr(base.vae.config, "shift_factor", None):
        raise CxrlError(
            f"{base.path}: its autoencoder has a shift_factor, which StableDiffusionPipeline ignores: plain "
            "diffusers cannot give these pixels; use cxrl.generate"
        )
    base.tokenizer.model_max_length = base.max_tokens
    scheduler = ddim_scheduler(base.scheduler_config, sampler.timestep_spacing)
    if sampler.timestep_spacing != "leading":  # the others do not look at it, but diffusers warns
        scheduler.register_to_config(steps_offset=1)
    with owner_only(private), new_folder(out) as folder:
        ace = policy.ema.get(ACE)
        if ace is not None:
            write_tensors(folder / ACE_FILE, {ACE: ace})
        save_pipeline(
            folder,
            vae=base.vae.cpu(),
            text_encoder=base.text_encoder.cpu(),
            tokenizer=base.tokenizer,
            unet=policy.merged_unet(),
            scheduler=scheduler,
        )
        write_text(folder / "README.md", page(sampler, scheduler, 0 if ace is None else len(ace)))


def page(sampler: SamplerConfig, scheduler: Any, num_ace_tokens: int) -> str:
    """The folder's README: what it is, and the call that gives the images of ``cxrl.generate``."""
    guided, offset = sampler.guidance_scale > 1, scheduler.config.steps_offset != 1
    lines = [
        "import torch",
        f"from diffusers import {'DDIMScheduler, ' if offset else ''}StableDiffusionPipeline",
        *(["from safetensors.torch import load_file"] if num_ace_tokens else []),
        "",
        'folder = "."  # this one',
        "pipe = StableDiffusionPipeline.from_pretrained(folder)",
        *(
            [
                "# The pipeline makes its steps_offset 1.",
                'pipe.scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler")',
            ]
            if offset
            else []
        ),
        *([f'ace = load_file(f"{{folder}}/{ACE_FILE}")["{ACE}"]'] if num_ace_tokens else []),
        "",
        "",
        "def embeds(text):",
        "    found, _ = pipe.encode_prompt(text, pipe.device, 1, False)",
        "    return torch.cat([found, ace[None].to(found)], dim=1)" if num_ace_tokens else "    return found",
        "",
        "",
        "image = pipe(",
        '    prompt_embeds=embeds("Small left pleural effusion."),',
        *(['    negative_prompt_embeds=embeds(""),'] if guided else []),
        f"    guidance_scale={sampler.guidance_scale!r},",
        f"    num_inference_steps={sampler.num_steps},",
        f"    eta={min(sampler.eta, BELOW_ONE)!r},",
        f"    generator=torch.Generator().manual_seed({derive_seed(0, 'generate')}),",
        ").images[0]",
    ]
    without = (
        f"`pipe(text)` leaves out the {num_ace_tokens} tokens of ACE, with which the policy learned.\n\n"
        if num_ace_tokens
        else ""
    )
    below = (
        f"η is {BELOW_ONE}, the float32 below 1: at 1 diffusers' rounding makes some images black.\n\n"
        if sampler.eta > BELOW_ONE
        else ""
    )
    snippet = "\n".join(lines)
    return (
        "# A policy of cxrl\n\n"
        "A diffusion model of chest radiographs, fine-tuned by reinforcement learning with comparative "
        "feedback. **Its images are synthetic and not for diagnosis**; say so wherever one is saved, since "
        "plain diffusers does not.\n\n"
        f"```python\n{snippet}\n```\n\n"
        f"{without}{below}"
        "The generator's seed is that of `cxrl generate --seed 0`; of another number, "
        '`cxrl.rl.seeding.derive_seed(number, "generate")`.\n'
    )

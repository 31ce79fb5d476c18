"""Sampling: the chain x_T → … → x_0 of many samples at once, in float32, and the images it ends in.

Steps are the outer loop and pieces of the batch the inner one, so noise is drawn for a whole step at once
and the result does not depend on ``sampler.batch_size`` (up to rounding). Everything stays on the device.

Shapes: N samples, P distinct prompts, T steps, L tokens of width D, latents [C, h, w].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cxrl.config import SamplerConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.models.policy import Policy
from cxrl.ops import denoise_step
from cxrl.rl.progress import Progress
from cxrl.rl.records import Rollout
from cxrl.rl.schedule import ddim_table
from cxrl.rl.seeding import generator

NoiseStream = Callable[[], Tensor]
"""Returns the next standard normal float32 [N, C, h, w]: first x_T, then one for every step."""

_MAX_CACHED_PROMPTS = 1024


def batch_noise(
    rng: torch.Generator, latent_shape: Sequence[int], total: int, start: int = 0, stop: int | None = None
) -> NoiseStream:
    """Noise of samples ``start:stop`` of ``total``, all drawn from one generator.

    Every process draws the noise of all and keeps its share, so their number changes nothing.
    """

    def draw() -> Tensor:
        return torch.randn(total, *latent_shape, generator=rng, device=rng.device)[start:stop]

    return draw


def image_noise(rngs: Sequence[torch.Generator], latent_shape: Sequence[int]) -> NoiseStream:
    """Noise of one sample per generator: an image depends on its own generator alone."""

    def draw() -> Tensor:
        return torch.stack([torch.randn(*latent_shape, generator=rng, device=rng.device) for rng in rngs])

    return draw


def start_from(x_start: Tensor, noise: NoiseStream) -> NoiseStream:
    """The given x_T [N, C, h, w], then the other stream's own draws for the steps."""
    first = [x_start]

    def draw() -> Tensor:
        return first.pop() if first else noise()

    return draw


class Sampler:
    """A policy with the chain it is sampled by.

    Attributes:
        policy: What predicts.
        config: Steps, η, guidance.
        schedule: Table of the chain, on the policy's device.
        guidance: Scale as the ops take it.
        negative_embeds: [L, D] of the empty prompt, or None without guidance.
        progress: Is told of every (sample, step).
    """

    def __init__(self, policy: Policy, config: SamplerConfig) -> None:
        self.policy, self.config = policy, config
        base = policy.base
        self.schedule = ddim_table(
            base.scheduler_config, config.num_steps, config.eta, config.timestep_spacing
        ).to(base.device)
        self.guidance = config.guidance_scale
        self.negative_embeds = base.encode_text([""])[0] if self.guidance > 1 else None
        self.progress = Progress()
        self._embeds: OrderedDict[str, Tensor] = OrderedDict()

    def prompt_embeds(self, prompts: Sequence[ReportPrompt]) -> Tensor:
        """[P, L, D] of distinct prompts, each encoded once and alone: its bits depend on nothing else."""
        base, result = self.policy.base, []
        new = list(dict.fromkeys(p.text for p in prompts if p.text not in self._embeds))
        if new:
            with base.in_use(base.text_encoder):
                self._embeds.update({text: base.encode_text([text])[0] for text in new})
        for prompt in prompts:
            self._embeds.move_to_end(prompt.text)
            result.append(self._embeds[prompt.text])
        while len(self._embeds) > _MAX_CACHED_PROMPTS:
            self._embeds.popitem(last=False)
        return torch.stack(result)

    def rollout(self, batch: PromptBatch, noise: NoiseStream) -> Rollout:
        """Trajectories of the policy, kept for training, and their images."""
        schedule = self.schedule
        x = noise()
        latents = torch.empty(len(batch), len(schedule) + 1, *x.shape[1:], device=x.device)
        log_probs = torch.empty(len(batch), len(schedule), device=x.device)
        latents[:, 0] = x
        embeds, prompt_of = self.prompt_embeds(batch.prompts), batch.prompt_of.to(x.device)
        for step in range(len(schedule)):
            eps = noise()
            for part in self._parts(len(batch)):
                inputs = latents[part, step], eps[part], embeds, prompt_of[part]
                x_prev, log_prob = self._step(step, *inputs, anchor=False)
                latents[part, step + 1], log_probs[part, step] = x_prev, log_prob
        images = self.policy.base.decode(latents[:, -1])
        return Rollout(batch, latents, schedule, log_probs[:, schedule.policy_steps], images)

    def images(self, batch: PromptBatch, noise: NoiseStream, *, anchor: bool = False) -> Tensor:
        """float32 [N, 1, H, W] of the policy or of the anchor; trajectories are not kept."""
        x = noise()
        embeds, prompt_of = self.prompt_embeds(batch.prompts), batch.prompt_of.to(x.device)
        for step in range(len(self.schedule)):
            eps = noise()
            x = torch.cat(
                [
                    self._step(step, x[part], eps[part], embeds, prompt_of[part], anchor=anchor)[0]
                    for part in self._parts(len(batch))
                ]
            )
        return self.policy.base.decode(x)

    def _parts(self, total: int) -> list[slice]:
        size = self.config.batch_size
        return [slice(i, i + size) for i in range(0, total, size)]

    @torch.no_grad()
    def _step(
        self, step: int, x_t: Tensor, noise: Tensor, embeds: Tensor, prompt_of: Tensor, *, anchor: bool
    ) -> tuple[Tensor, Tensor]:
        n = x_t.shape[0]
        timesteps = self.schedule.timesteps[step].expand(n)
        output = self.policy.predict(
            x_t, timesteps, embeds, self.negative_embeds, prompt_of=prompt_of, anchor=anchor
        )
        result = denoise_step(*output, self.guidance, x_t, noise, self.schedule.rows[step].expand(n, 3))
        self.progress.advance(n)
        return result


def sample_images(
    policy: Policy,
    config: SamplerConfig,
    batch: PromptBatch,
    *,
    seed: int,
    purpose: str = "generate",
    anchor: bool = False,
) -> Tensor:
    """Images of a batch, for everything but training.

    Args:
        policy: Its current weights are used; wrap in ``policy.ema_weights()`` for the averaged ones.
        config: The chain.
        batch: Prompts and the prompt of every sample.
        seed: With ``purpose``, fixes x_T and all step noise: policy and anchor start from the same latents.
        purpose: Name of the stream of random numbers.
        anchor: Sample the anchor instead.

    Returns:
        float32 [N, 1, H, W] in [0, 1].
    """
    rng = generator(seed, purpose, device=policy.device)
    noise = batch_noise(rng, policy.base.latent_shape, len(batch))
    return Sampler(policy, config).images(batch, noise, anchor=anchor)

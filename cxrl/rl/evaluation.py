"""Evaluation by judges that gave no reward, and image grids.

Anchor and policy get the same held-out prompts, the same x_T and the same step noise: their difference is
paired. The policy is judged with its averaged weights, the ones that are saved.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.evaluation.summary import (
    Evaluation,
    JudgeModels,
    Summary,
    evaluate_images,
    evaluate_policy,
    evaluation_batch,
)
from cxrl.images.png import save_grid
from cxrl.rl.engine import Engine
from cxrl.rl.rollout import Sampler, batch_noise
from cxrl.rl.seeding import generator

NOISE_PURPOSE = "evaluation"


class Evaluator:
    """Judges the policy against the anchor, whose images are drawn and judged once."""

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[ReportPrompt],
        judges: JudgeModels,
        config: Config,
        engine: Engine,
    ) -> None:
        self.sampler, self.prompts, self.judges = sampler, prompts, judges
        self.config, self.engine = config, engine
        self.batch = evaluation_batch(prompts, config.eval.num_images, config.eval.samples_per_prompt)
        self._anchor: Evaluation | None = None
        self._anchor_images: Tensor | None = None

    def draw(self, batch: PromptBatch, anchor: bool) -> Tensor:
        """Images of the anchor, or of the policy with its averaged weights, from the same latents."""
        if anchor and self._anchor_images is not None:
            return self._anchor_images
        rng = generator(self.config.seed, NOISE_PURPOSE, device=self.engine.device)
        share = self.engine.share(len(batch))
        noise = batch_noise(rng, self.sampler.policy.base.latent_shape, len(batch), share.start, share.stop)
        with self.sampler.policy.ema_weights():
            images = self.sampler.images(batch.slice(share.start, share.stop), noise, anchor=anchor)
        images = self.engine.gather(images, len(batch))
        if anchor:
            self._anchor_images = images
        return images

    @property
    def anchor(self) -> Evaluation:
        """The anchor's scores, with intervals."""
        if self._anchor is None:
            images = self.draw(self.batch, True)
            self._anchor = self._judge(images, self.config.eval.bootstrap)
        return self._anchor

    def evaluate(self) -> tuple[Evaluation, Tensor]:
        """The policy's scores without intervals, and its images."""
        images = self.draw(self.batch, False)
        return self._judge(images, 0), images

    def summary(self) -> Summary:
        """Anchor and policy with intervals."""
        e = self.config.eval
        return evaluate_policy(
            self.draw,
            self.prompts,
            self.judges,
            num_images=e.num_images,
            samples_per_prompt=e.samples_per_prompt,
            seed=self.config.seed,
            bootstrap=e.bootstrap,
            judges_name=e.judges,
            anchor=self.anchor,
        )

    def save_grid(self, path: Path, images: Tensor) -> None:
        """A PNG of one image a prompt, the anchor's row above the policy's."""
        num = min(self.config.eval.grid_prompts, len(self.batch.prompts))
        prompt_of = self.batch.prompt_of
        first = torch.tensor([int((prompt_of == p).nonzero()[0]) for p in range(num)])
        rows = {"anchor": self.draw(self.batch, True)[first], "policy": images[first]}
        save_grid(path, rows, [p.text for p in self.batch.prompts[:num]])

    def _judge(self, images: Tensor, bootstrap: int) -> Evaluation:
        return evaluate_images(images, self.batch, self.judges, seed=self.config.seed, bootstrap=bootstrap)

"""The anchor bank: the anchor is frozen, so its images are samples of a fixed distribution, drawn once.

For every prompt M anchor images are drawn, scored and thrown away; their reward vectors [M, K] are kept,
extended as new prompts appear, and saved in checkpoints. Image m of a prompt is a function of (seed,
prompt_id, m) alone, whenever it is drawn. Its step noise is its own and never the policy's: replayed noise
makes the two images move together, the difference stops telling good actions from bad, and the gradient
vanishes (docs/method.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.rl.comparison import needs_anchor
from cxrl.rl.engine import Engine
from cxrl.rl.records import RewardTable, Rollout
from cxrl.rl.rollout import NoiseStream, Sampler, batch_noise, image_noise, start_from
from cxrl.rl.seeding import generator
from cxrl.storage.checkpoint import State
from cxrl.storage.layout import BANK_FILE

Score: TypeAlias = Callable[[PromptBatch, Tensor], RewardTable]
AnchorTable: TypeAlias = tuple[Tensor | None, Tensor]
"""Rewards of anchor images float32 [P, M, K] (None when no reward is compared), and for each of the N samples
int64 [N] the row that it is compared with."""


class AnchorBank:
    """Reward vectors of anchor images, by prompt.

    Attributes:
        names: The K rewards, in the order of the columns.
        size: M, anchor images a prompt.
    """

    def __init__(self, names: Sequence[str], size: int) -> None:
        self.names, self.size = tuple(names), size
        self._rewards: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rewards)

    def missing(self, prompts: Sequence[ReportPrompt]) -> list[ReportPrompt]:
        """Those of the prompts that have no anchor images yet."""
        return [p for p in prompts if p.prompt_id not in self._rewards]

    def add(self, prompts: Sequence[ReportPrompt], rewards: Tensor) -> None:
        """Keep the rewards [P·M, K] of the images of P prompts, the M of a prompt side by side."""
        shape = (len(prompts), self.size, len(self.names))
        for prompt, values in zip(prompts, rewards.detach().reshape(shape), strict=True):
            self._rewards[prompt.prompt_id] = values.clone()

    def table(self, prompts: Sequence[ReportPrompt]) -> Tensor:
        """float32 [P, M, K] of prompts that are all in the bank."""
        return torch.stack([self._rewards[p.prompt_id] for p in prompts])

    def state(self) -> State:
        """For a checkpoint: ``prompt_ids`` int64 [Q] and ``rewards`` float32 [Q, M, K]."""
        empty = torch.empty(0, self.size, len(self.names))
        rewards = torch.stack([r.cpu() for r in self._rewards.values()]) if self._rewards else empty
        ids = torch.tensor(list(self._rewards), dtype=torch.int64)
        return State({BANK_FILE: {"prompt_ids": ids, "rewards": rewards}})

    def load_state(self, state: State, device: torch.device, source: str) -> None:
        """Replace the content.

        Raises:
            CxrlError: It was drawn with another bank size or other rewards; the message names ``source``.
        """
        tensors, source = state.tensors[BANK_FILE], f"{source}/{BANK_FILE}"
        rewards = tensors["rewards"]
        if rewards.shape[1:] != (self.size, len(self.names)):
            raise CxrlError(
                f"{source}: holds {tuple(rewards.shape[1:])} anchor rewards a prompt, expected "
                f"{(self.size, len(self.names))}; comparison.bank_size or rewards.names has changed"
            )
        ids = tensors["prompt_ids"].tolist()
        self._rewards = dict(zip(ids, rewards.to(device), strict=True))


class Anchors:
    """Draws and scores the anchor images that an epoch's samples are compared with.

    Attributes:
        bank: What has been drawn so far.
    """

    def __init__(self, sampler: Sampler, config: Config, engine: Engine) -> None:
        self.sampler, self.config, self.engine = sampler, config, engine
        self.bank = AnchorBank(config.rewards.names, config.comparison.bank_size)

    def rewards(self, rollout: Rollout, batch: PromptBatch, epoch: int, score: Score) -> AnchorTable:
        """Anchor rewards of the samples of all processes.

        Args:
            rollout: This process's share.
            batch: The N samples of all processes.
            epoch: Names the step noise of one-to-one images.
            score: Rewards [N, K] of all images of a batch, given this process's share of them.
        """
        device = self.engine.device
        prompt_of = batch.prompt_of.to(device)
        if not needs_anchor(self.config):
            return None, prompt_of
        if self.config.comparison.anchor == "one_to_one":
            table = self._one_to_one(rollout, batch, epoch, score)
            return table[:, None], torch.arange(len(batch), device=device)
        self._extend(batch.prompts, score)
        return self.bank.table(batch.prompts), prompt_of

    def work(self, batch: PromptBatch) -> int:
        """Rows of :meth:`rewards`, of this process's share: (image, step) pairs and images times rewards."""
        if not needs_anchor(self.config):
            return 0
        one_to_one = self.config.comparison.anchor == "one_to_one"
        num = len(batch) if one_to_one else self.bank.size * len(self.bank.missing(batch.prompts))
        share = self.engine.share(num)
        each = len(self.sampler.schedule) + len(self.config.rewards.names)
        return (share.stop - share.start) * each

    def _one_to_one(self, rollout: Rollout, batch: PromptBatch, epoch: int, score: Score) -> Tensor:
        """[N, K] of one image a sample, which shares x_T, a part of the state, but not the step noise."""
        share = self.engine.share(len(batch))
        rng = generator(self.config.seed, "anchor", epoch, device=self.engine.device)
        own = batch_noise(rng, rollout.latents.shape[2:], len(batch), share.start, share.stop)
        noise = start_from(rollout.latents[:, 0], own)
        return score(batch, self.sampler.images(rollout.batch, noise, anchor=True)).values

    def _extend(self, prompts: Sequence[ReportPrompt], score: Score) -> None:
        """Draw the bank of prompts that have none yet."""
        missing = self.bank.missing(prompts)
        if not missing:
            return
        new = PromptBatch.repeat(missing, self.bank.size)
        share = self.engine.share(len(new))
        noise = bank_noise(
            self.config.seed, missing, self.bank.size, self.sampler.policy.base.latent_shape,
            self.engine.device, share.start, share.stop,
        )  # fmt: skip
        images = self.sampler.images(new.slice(share.start, share.stop), noise, anchor=True)
        self.bank.add(missing, score(new, images).values)


def bank_noise(
    seed: int,
    prompts: Sequence[ReportPrompt],
    size: int,
    latent_shape: Sequence[int],
    device: torch.device,
    start: int = 0,
    stop: int | None = None,
) -> NoiseStream:
    """Noise of anchor images ``start:stop`` of the prompts' M each, every image from its own generator."""
    keys = [(p.prompt_id, m) for p in prompts for m in range(size)][start:stop]
    return image_noise([generator(seed, "anchor", *key, device=device) for key in keys], latent_shape)

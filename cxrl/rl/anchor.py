"""The anchor bank: the anchor is frozen, so its images are samples of a fixed distribution, drawn once.

For every prompt M anchor images are drawn, scored and thrown away; their reward vectors [M, K] are kept,
extended as new prompts appear, and saved in checkpoints. Image m of a prompt is a function of (seed,
prompt_id, m) alone, whenever it is drawn. Its step noise is its own and never the policy's: replayed noise
makes the two images move together, the difference stops telling good actions from bad, and the gradient
vanishes (PAPER.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.rl.rollout import NoiseStream, image_noise
from cxrl.rl.seeding import generator


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

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint: ``prompt_ids`` int64 [Q] and ``rewards`` float32 [Q, M, K]."""
        empty = torch.empty(0, self.size, len(self.names))
        rewards = torch.stack([r.cpu() for r in self._rewards.values()]) if self._rewards else empty
        return {"prompt_ids": torch.tensor(list(self._rewards), dtype=torch.int64), "rewards": rewards}

    def load_state(self, state: dict[str, Tensor], device: torch.device, source: str) -> None:
        """Replace the content.

        Raises:
            CxrlError: It was drawn with another bank size or other rewards; the message names ``source``.
        """
        rewards = state["rewards"]
        if rewards.shape[1:] != (self.size, len(self.names)):
            raise CxrlError(
                f"{source}: holds {tuple(rewards.shape[1:])} anchor rewards a prompt, expected "
                f"{(self.size, len(self.names))}; comparison.bank_size or rewards.names has changed"
            )
        ids = state["prompt_ids"].tolist()
        self._rewards = dict(zip(ids, rewards.to(device), strict=True))


def bank_batch(prompts: Sequence[ReportPrompt], size: int) -> PromptBatch:
    """The M anchor samples of every prompt, side by side."""
    return PromptBatch.repeat(prompts, size)


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

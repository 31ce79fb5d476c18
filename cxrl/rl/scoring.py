"""Rewards of the images of all processes: each scores its share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch
from cxrl.rewards.base import Reward, score_all
from cxrl.rl.engine import Engine
from cxrl.rl.progress import Progress
from cxrl.rl.records import RewardTable


class Scorer:
    """The rewards of a run.

    Attributes:
        rewards: Name → model, in the order of the table's columns.
        progress: Is told how many images a reward has scored.
    """

    def __init__(self, rewards: Mapping[str, Reward], engine: Engine) -> None:
        self.rewards, self.engine, self.progress = dict(rewards), engine, Progress()

    def __call__(self, batch: PromptBatch, images: Tensor) -> RewardTable:
        """Rewards [N, K] of all samples of a batch, of which ``images`` are this process's share."""
        names, total = tuple(self.rewards), len(batch)
        share = self.engine.share(total)
        values = torch.zeros(0, len(names), device=self.engine.device)
        if len(images):
            part = batch.slice(share.start, share.stop)
            _, values = score_all(self.rewards, images, part, self.progress.advance)
            values = values.float().to(self.engine.device)
        return RewardTable(names, self.engine.gather(values, total))

    def work(self, batch: PromptBatch) -> int:
        """Images times rewards, of this process's share."""
        share = self.engine.share(len(batch))
        return (share.stop - share.start) * len(self.rewards)

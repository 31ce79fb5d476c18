"""Evaluation by judges that gave no reward, and what is left of it in files.

There are two: of the reports that choose while a run trains, and of those of its result, which chose nothing.

Anchor and policy get the same held-out prompts, the same x_T and the same step noise: their difference is
paired. The policy is judged with its averaged weights, the ones that are saved. The reward models score the
same images: where a reward rises and its judge does not, the reward is being gamed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.conditions import MAX_IMAGES
from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.evaluation.real_films import RealFilms, real_films
from cxrl.evaluation.summary import (
    NUM_JUDGEMENTS,
    Evaluation,
    JudgeModels,
    Summary,
    describe_judges,
    evaluate_images,
    evaluation_batch,
    interval,
    num_judged,
    resamples,
)
from cxrl.images.png import save_grid
from cxrl.rl.engine import Engine
from cxrl.rl.progress import Progress
from cxrl.rl.records import RewardTable
from cxrl.rl.rollout import Sampler, batch_noise
from cxrl.rl.scoring import Scorer
from cxrl.rl.seeding import generator

NOISE_PURPOSE = {"eval": "evaluation", "selection": "selection"}
QUICK_BOOTSTRAP = 200
"""Resamples at most while a run trains: enough for the bands of a curve, at no cost beside the drawing."""


@dataclass(frozen=True)
class Judged:
    """Images of one side with what judges and rewards say of them.

    Attributes:
        evaluation: By the judges.
        images: float32 [N, 1, H, W] in [0, 1].
        batch: Their reports.
        rewards: By the reward models; None where there are none.
    """

    evaluation: Evaluation
    images: Tensor = field(repr=False)
    batch: PromptBatch
    rewards: RewardTable | None

    def reward_means(self) -> dict[str, float]:
        """Name → mean over the images."""
        if self.rewards is None:
            return {}
        return dict(zip(self.rewards.names, self.rewards.values.mean(0).tolist(), strict=True))

    def reward_intervals(self, bootstrap: int, seed: int) -> dict[str, list[float | None]]:
        """Name → 95 % interval of the mean over the images: a bootstrap over reports, as the judges'."""
        if self.rewards is None:
            return {}
        num, values = len(self.batch.prompts), self.rewards.values.double().cpu()
        of = self.batch.prompt_of.cpu()
        weights = resamples(num, bootstrap if num > 1 else 0, seed)[:, of]
        means = weights @ values / weights.sum(1, keepdim=True)
        return {name: interval(means[:, k]) for k, name in enumerate(self.rewards.names)}

    def record(self, seed: int) -> dict[str, Any]:
        """For the line of an epoch: ``eval`` and ``eval_reward``, each with its intervals, ``…_ci``."""
        scores = self.evaluation.to_dict()
        return {
            "eval": {key: scores[key] for key in self.evaluation.values},
            "eval_ci": scores["ci"],
            "eval_reward": self.reward_means(),
            "eval_reward_ci": self.reward_intervals(len(self.evaluation.replicates["posture"]), seed),
        }


class Evaluator:
    """Judges the policy between the anchor, whose images are drawn and judged once, and real films.

    Attributes:
        split: "eval", the reports of the result, or "selection", those that choose.
        batch: The held-out reports, and which of the N images is of which.
        progress: Is told how far it is.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompts: Sequence[ReportPrompt],
        judges: JudgeModels,
        config: Config,
        engine: Engine,
        *,
        split: str = "eval",
        scorer: Scorer | None = None,
        own_prompts: bool = False,
    ) -> None:
        """
        Args:
            sampler: Draws.
            prompts: Held-out reports of ``split``.
            judges: Models that gave no reward.
            config: ``eval``, ``data`` and ``seed``.
            engine: The processes.
            split: "eval" or "selection".
            scorer: The rewards, to be shown beside the judges.
            own_prompts: The reports are not those of ``config.data``, so it has no films of them.
        """
        self.sampler, self.prompts, self.judges = sampler, prompts, judges
        self.config, self.engine, self.scorer = config, engine, scorer
        self.own_prompts, self.progress, self.split = own_prompts, Progress(), split
        each = config.eval.samples_per_prompt
        num = min(num_judged(config, split), each * len(prompts) if split == "selection" else MAX_IMAGES)
        self._bootstrap = min(config.eval.bootstrap, QUICK_BOOTSTRAP if split == "selection" else MAX_IMAGES)
        self.batch = evaluation_batch(prompts, num, each)

    @cached_property
    def anchor_images(self) -> Tensor:
        """float32 [N, 1, H, W] of the anchor, drawn once."""
        return self._draw(anchor=True)

    def draw(self, *, anchor: bool) -> Tensor:
        """Images of the anchor, or of the policy with its averaged weights, from the same latents."""
        return self.anchor_images if anchor else self._draw(anchor=False)

    @cached_property
    def anchor(self) -> Judged:
        """The anchor's scores, with intervals."""
        return self._judge("anchor", self.anchor_images, self.batch)

    @cached_property
    def films(self) -> RealFilms:
        """Real films of the reports, if the source has any."""
        if self.own_prompts:
            empty = torch.zeros(0, 1, *self.sampler.policy.base.image_size)
            return RealFilms(empty, self.batch.slice(0, 0), "the reports are the caller's own")
        return real_films(self.config, self.batch, self.sampler.policy.base.image_size, self.split)

    @cached_property
    def real(self) -> Judged | None:
        """The scores of real films, or None. Where a report has one film, what needs several stays undefined,
        and the Fréchet distance is that of as many other films.
        """
        films = self.films
        if not len(films):
            return None
        return self._judge("real films", films.images.to(self.engine.device), films.batch)

    def evaluate(self) -> Judged:
        """The policy's scores, with intervals."""
        return self._judge("policy", self._draw(anchor=False), self.batch)

    def summary(self) -> tuple[Summary, Judged]:
        """Anchor, policy and real films with intervals; and the policy's images."""
        policy, real = self.evaluate(), self.real
        return Summary(
            self.anchor.evaluation,
            policy.evaluation,
            self.batch,
            policy.images,
            self.config.seed,
            describe_judges(self.judges, self.config.eval.judges) | {"real_films": self.films.told},
            None if real is None else real.evaluation,
        ), policy

    def bounds(self) -> dict[str, Any]:
        """The content of bounds.json: what every number of the policy stands between."""

        def side(judged: Judged) -> dict[str, Any]:
            record = judged.record(self.config.seed)
            rewards = {"reward": record["eval_reward"], "reward_ci": record["eval_reward_ci"]}
            return {**judged.evaluation.to_dict(), **rewards}

        return {
            "anchor": side(self.anchor),
            "real": None if self.real is None else side(self.real),
            "real_films": self.films.told,
            "num_images": len(self.batch),
            "num_reports": len(self.batch.prompts),
            "num_real": len(self.films),
            "judges": describe_judges(self.judges, self.config.eval.judges),
        }

    def save_grid(self, path: Path, images: Tensor) -> None:
        """A PNG of one image a prompt, the anchor's row above the policy's."""
        num = min(self.config.eval.grid_prompts, len(self.batch.prompts))
        first = self.first_images()[:num]
        rows = {"anchor": self.anchor_images[first], "policy": images[first]}
        save_grid(path, rows, [p.text for p in self.batch.prompts[:num]])

    def first_images(self) -> Tensor:
        """int64 [P]: the number of each report's first image."""
        prompt_of = self.batch.prompt_of
        return torch.tensor([int((prompt_of == p).nonzero()[0]) for p in range(len(self.batch.prompts))])

    def _draw(self, *, anchor: bool) -> Tensor:
        total = len(self.batch)
        rng = generator(self.config.seed, NOISE_PURPOSE[self.split], device=self.engine.device)
        share = self.engine.share(total)
        shape = self.sampler.policy.base.latent_shape
        noise = batch_noise(rng, shape, total, share.start, share.stop)
        rows = (share.stop - share.start) * len(self.sampler.schedule)
        side = "anchor" if anchor else "policy"
        with self.progress.stage(f"drawing {side}", rows), self.sampler.policy.ema_weights():
            images = self.sampler.images(self.batch.slice(share.start, share.stop), noise, anchor=anchor)
        return self.engine.gather(images, total)

    def _judge(self, side: str, images: Tensor, batch: PromptBatch) -> Judged:
        work = NUM_JUDGEMENTS * len(batch) + (self.scorer.work(batch) if self.scorer else 0)
        with self.progress.stage(f"judging {side}", work):
            rewards = None
            if self.scorer is not None:
                rewards = self.scorer(batch, images[self.engine.share(len(batch))])
            others = getattr(self.judges, "apart", None) if len(batch) != len(self.batch) else None
            evaluation = evaluate_images(
                images,
                batch,
                self.judges,
                seed=self.config.seed,
                bootstrap=self._bootstrap,
                judged=self.progress.advance,
                comparable=len(batch) == len(self.batch),
                instead=None if others is None else others[: len(self.batch)],
            )
        return Judged(evaluation, images, batch, rewards)

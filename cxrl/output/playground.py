"""Drawing by hand: one report, anchor and policy from the same noise, and what rewards and judges say of it.

Everything is loaded once, before the first image is asked for; weights of another epoch when they are.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from cxrl.config import Config, SamplerConfig
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.data.sources import load_prompts
from cxrl.errors import CxrlError
from cxrl.evaluation.judges import build_judges
from cxrl.evaluation.real_films import real_films
from cxrl.evaluation.summary import truth_probability
from cxrl.images.dicom import Series, save_dicom
from cxrl.images.png import save_png
from cxrl.metrics.alignment import alignment
from cxrl.metrics.posture import posture_score
from cxrl.rewards.base import Reward, build_rewards, score_all
from cxrl.rl.drawing import check_prompts, draw
from cxrl.rl.engine import Engine
from cxrl.rl.reopen import open_run, saved_weights, take_weights
from cxrl.scorers.choice import open_models
from cxrl.storage.privacy import owner_only

MOST_IMAGES = 4
NO_LABELS = "no labels: pick a report from the list for the diagnosis"


@dataclass(frozen=True)
class Wish:
    """What is to be drawn.

    Attributes:
        report: Its text.
        seed: Of the first image; the next has one more.
        num_images: Of each side.
        num_steps, guidance_scale: Of the sampler.
        ace: Whether the policy has its tokens.
        weights: One of :attr:`Playground.weights`.
    """

    report: str
    seed: int
    num_images: int
    num_steps: int
    guidance_scale: float
    ace: bool
    weights: str


@dataclass(frozen=True)
class Shown:
    """An image and its scores, by task; nan where there is none.

    Attributes:
        side: "anchor", "policy" or "real".
        image: float32 [1, H, W] in [0, 1].
        seed: It was drawn from; the number of a film.
    """

    side: str
    image: Tensor = field(repr=False)
    seed: int
    judged: Mapping[str, float]
    rewarded: Mapping[str, float]


class Playground:
    """A run, opened to play with.

    Attributes:
        config: Of the run.
        reports: Its held-out reports by text; none of restricted data.
        weights: Name → folder of the weights that can be drawn with, the newest first.
    """

    def __init__(self, run_dir: Path) -> None:
        """Raises CxrlError where the run, its models or its data cannot be opened."""
        self.config, self.policy = open_run(run_dir, Engine(run_dir))
        config, base = self.config, self.policy.base
        self.weights = saved_weights(run_dir)
        self._loaded = next(iter(self.weights))
        names, device = config.rewards.names, self.policy.device
        self.rewards: dict[str, Reward] = build_rewards(
            names, config.rewards.path, device, open_models(config, "rewards")
        )
        judged = (
            Config.from_dict({"eval": {"reference": "none"}}, config) if config.eval.diagnosis else config
        )
        self.judges = build_judges(judged, base.image_size, device)
        self.restricted = config.data.is_restricted
        prompts = () if self.restricted else load_prompts(config, base, "eval").prompts
        self.reports = {prompt.text: prompt for prompt in prompts}

    def default(self) -> Wish:
        """As the run itself draws."""
        s = self.config.sampler
        report = next(iter(self.reports), "Small left pleural effusion.")
        return Wish(report, 0, 1, s.num_steps, s.guidance_scale, True, next(iter(self.weights)))

    def note(self, wish: Wish) -> str:
        """Where a wish is drawn otherwise than the run was trained; "" where it is not."""
        s = self.config.sampler
        other = [
            f"{name} {found:g} (trained with {own:g})"
            for name, found, own in (
                ("steps", wish.num_steps, s.num_steps),
                ("guidance", wish.guidance_scale, s.guidance_scale),
            )
            if found != own
        ]
        if not wish.ace and self.config.policy.num_ace_tokens:
            other.append("without ACE")
        return f"Not as it was trained: {', '.join(other)}." if other else ""

    @torch.no_grad()
    def draw(self, wish: Wish) -> list[Shown]:
        """Anchor, policy and, of a listed report of the phantom, real films; ``num_images`` of each.

        Raises:
            CxrlError: The report is empty or too long, or a number is out of its range.
        """
        sampler, seeds = self._sampler(wish), range(wish.seed, wish.seed + wish.num_images)
        check_prompts(self.policy, [wish.report])
        self._load(wish.weights)
        batch = PromptBatch.repeat([self._prompt(wish.report)], wish.num_images)
        shown = []
        for side in ("anchor", "policy"):
            off = side == "policy" and not wish.ace
            with self.policy.without_ace() if off else nullcontext():
                drawn = draw(self.policy, sampler, [wish.report], seeds=seeds, anchor=side == "anchor")
                images = torch.stack(list(drawn))
            shown += self._scored(side, images, seeds, batch)
        if wish.report in self.reports and self.config.data.source == "phantom":
            films = real_films(self.config, batch, self.policy.base.image_size)
            if len(films):
                shown += self._scored("real", films.images.to(self.policy.device), range(len(films)), batch)
        return shown

    def save(self, shown: Sequence[Shown], wish: Wish, folder: Path, *, dicom: bool = False) -> list[Path]:
        """Files of the drawn images, each of which says that it is synthetic.

        Raises:
            CxrlError: A file cannot be written, or pydicom is not there.
        """
        prompt, paths = "" if self.restricted else wish.report, []
        about = {"Weights": wish.weights, **({"Note": note} if (note := self.note(wish)) else {})}
        series = Series() if dicom else None
        with owner_only(self.restricted):
            for number, one in enumerate(shown, 1):
                path = folder / f"{one.side}-{one.seed:06d}{'.dcm' if dicom else '.png'}"
                if series is None:
                    save_png(
                        path, one.image, seed=one.seed, prompt=prompt, extra={**about, "Source": one.side}
                    )
                else:
                    options = {"number": number, "seed": one.seed}
                    save_dicom(path, one.image, series, **options, source=one.side, prompt=prompt)
                paths.append(path)
        return paths

    def _sampler(self, wish: Wish) -> SamplerConfig:
        if not 1 <= wish.num_images <= MOST_IMAGES:
            raise CxrlError(f"{wish.num_images} images: expected 1 to {MOST_IMAGES}")
        return dataclasses.replace(
            self.config.sampler, num_steps=wish.num_steps, guidance_scale=wish.guidance_scale
        )

    def _prompt(self, report: str) -> ReportPrompt:
        return self.reports.get(report) or ReportPrompt(0, report, ())

    def _load(self, name: str) -> None:
        if name not in self.weights:
            raise CxrlError(f"there are no weights {name!r}; expected one of {', '.join(self.weights)}")
        if name != self._loaded:
            self._loaded = ""
            take_weights(self.policy, self.weights[name])
            self._loaded = name

    def _scored(self, side: str, images: Tensor, seeds: Sequence[int], batch: PromptBatch) -> list[Shown]:
        labels = batch.labels_of(self.judges.findings)
        texts = self.judges.text_embeds([batch.prompts[0].text])[batch.prompt_of]
        judged = {
            "posture": posture_score(self.judges.posture(images).cpu()),
            "diagnosis": truth_probability(self.judges.classify(images).cpu(), labels),
            "consistency": alignment(self.judges.image_embeds(images).cpu(), texts.cpu()),
        }
        known = {n: r for n, r in self.rewards.items() if batch.prompts[0].labels or not _needs_labels(r)}
        names, values = score_all(known, images, batch) if known else ((), torch.zeros(len(batch), 0))
        columns = dict(zip(names, values.cpu().unbind(1), strict=True))
        return [
            Shown(
                side,
                image.cpu(),
                seed,
                {task: float(scores[n]) for task, scores in judged.items()},
                {name: float(columns[name][n]) if name in columns else math.nan for name in self.rewards},
            )
            for n, (image, seed) in enumerate(zip(images, seeds, strict=True))
        ]


def _needs_labels(reward: Reward) -> bool:
    return bool(getattr(reward, "findings", ()))

"""What a reward can gain on a base at all, before anything is trained.

Of every report N images are drawn. A reward picks the best of n of them, and a judge that gave no reward
scores what was picked. So does chance, and so does the judge itself, which is as much as picking can reach.
Where the reward's pick is no better than chance, the reward is worth nothing on this base; where the judge's
own pick stays far below real films, what is missing is hardly ever drawn by this base.

    images [P, N] → rewards [P, N, K], judges [P, N] → weights of the best of n (:mod:`cxrl.metrics.best_of`)
    → judged numbers of the pick, with 95 % intervals: a bootstrap over reports

The reports are those that choose (:func:`cxrl.data.sources.load_prompts`, "selection"), never the result's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cxrl.conditions import MAX_IMAGES
from cxrl.config import Config
from cxrl.data.sources import load_prompts
from cxrl.errors import CxrlError
from cxrl.evaluation.judges import build_judges, open_judges
from cxrl.evaluation.parting import JUDGE_OF
from cxrl.evaluation.summary import ImageScores, describe_judges, interval, resamples
from cxrl.metrics.best_of import best_of_weights, rank_correlation
from cxrl.metrics.classification import weighted_auroc
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rewards.base import build_rewards, check_labels, own_rewards
from cxrl.rl.batch_sizes import fill_batch_sizes
from cxrl.rl.comparison import compare, reward_units
from cxrl.rl.engine import Engine
from cxrl.rl.evaluation import Evaluator, Judged
from cxrl.rl.progress import Progress
from cxrl.rl.records import RewardTable
from cxrl.rl.reopen import open_run
from cxrl.rl.rollout import Sampler
from cxrl.rl.scoring import Scorer
from cxrl.rl.seeding import derive_seed
from cxrl.scorers.choice import open_models

CHANCE, TOGETHER = "chance", "all rewards"
JUDGED = ("posture", "auroc", "consistency")
"""What can be said of one picked image a report; distances and diversity cannot."""


@dataclass(frozen=True)
class Drawn:
    """N images of each of P reports, scored.

    Attributes:
        rewards: Name → float64 [P, N].
        judges: Task → float64 [P, N], an image's own: posture, probability given to the truth (0 for
            all images of a report without known labels, from which it picks blindly), consistency.
        together: float64 [P, N], what a run would make of all rewards (``comparison``, ``rewards.weights``).
        probability: float32 [P · N, F] of the findings.
        labels: float32 [P · N, F].
    """

    rewards: Mapping[str, Tensor]
    judges: Mapping[str, Tensor]
    together: Tensor
    probability: Tensor
    labels: Tensor


def sizes(num_samples: int) -> list[int]:
    """1, 2, 4, … and the number of samples."""
    powers = [2**k for k in range(num_samples.bit_length()) if 2**k < num_samples]
    return [*powers, num_samples]


def headroom(evaluator: Evaluator, *, anchor: bool, num_samples: int) -> dict[str, Any]:
    """What picking reaches on the images of the anchor, or of the policy.

    Args:
        evaluator: Of ``num_samples`` images of each report, with rewards.
        anchor: Whose images.
        num_samples: N.

    Returns:
        JSON: ``best``, rule → judged number → a row a size (``n``, ``value``, ``ci``, and ``gap``, None where
        real films are not above chance); ``real``, the ceiling, or None; ``agreement``, reward → ``rho``
        within a report and ``pays``, the share of the judge's own gain that the reward's pick has, each with
        ``ci``; ``effects``, reward → judged number → ``gain`` over chance and ``ci``; ``verdicts``, in words.

    Raises:
        CxrlError: There is one report, or a judge's score is not finite.
    """
    judged = evaluator.anchor if anchor else evaluator.evaluate()
    config, num = evaluator.config, len(evaluator.batch.prompts)
    if num < 2:
        raise CxrlError(f"headroom: {num} report, expected at least two (see --reports)")
    drawn = _drawn(judged, num, num_samples, config, evaluator.judges.findings)
    real = evaluator.real
    ceiling = {key: None if real is None else real.evaluation.to_dict()[key] for key in JUDGED}
    rules = _rules(drawn)
    table = _Table(drawn, config.seed, config.eval.bootstrap)
    best = {
        name: {key: table.rows(key, scores, sizes(num_samples), ceiling[key]) for key in JUDGED}
        for name, scores in rules.items()
    }
    agreement = {
        name: table.agreement(name, scores, num_samples)
        for name, scores in drawn.rewards.items()
        if name in JUDGE_OF
    }
    effects = {name: table.effects(scores, num_samples) for name, scores in drawn.rewards.items()}
    result = {"of": "anchor" if anchor else "policy", "num_samples": num_samples, "num_reports": num}
    return {
        **result,
        "best": best,
        "real": ceiling,
        "real_films": evaluator.films.told,
        "agreement": agreement,
        "effects": effects,
        "verdicts": [
            *verdicts(best, ceiling, agreement, num_samples),
            *unjudged_verdicts(effects, num_samples),
        ],
    }


def _drawn(judged: Judged, num: int, each: int, config: Config, findings: Sequence[str]) -> Drawn:
    scores, table, prompt_of = judged.evaluation.images, judged.rewards, judged.batch.prompt_of
    assert isinstance(scores, ImageScores)
    assert table is not None
    shape = (num, each)
    return Drawn(
        {name: table.values[:, k].double().cpu().view(shape) for k, name in enumerate(table.names)},
        _judges(scores, shape),
        _together(table, prompt_of, shape, config),
        scores.probability,
        judged.batch.labels_of(findings),
    )


def _judges(scores: ImageScores, shape: tuple[int, int]) -> dict[str, Tensor]:
    found = {task: getattr(scores, task).double().view(shape) for task in JUDGE_OF}
    unlabelled = found["diagnosis"].isnan().all(1, keepdim=True)
    found["diagnosis"] = torch.where(unlabelled, 0.0, found["diagnosis"])
    for task, of_image in found.items():
        if not bool(of_image.isfinite().all()):
            report = int((~of_image.isfinite()).any(1).nonzero()[0])
            raise CxrlError(f"headroom: the judge of {task} has no finite score for report {report}")
    return found


def _together(table: RewardTable, prompt_of: Tensor, shape: tuple[int, int], config: Config) -> Tensor:
    """The score of a run's comparison, with a report's own images as its bank."""
    bank = table.values.view(*shape, -1)
    units = reward_units(table, prompt_of.to(table.values.device))
    anchor_of = prompt_of.to(table.values.device)
    done = compare(table, bank, anchor_of, config.rewards.weights, units, config.comparison)
    return done.score.double().cpu().view(shape)


def _rules(drawn: Drawn) -> dict[str, Tensor]:
    """Rule of picking → scores [P, N]."""
    judges = {f"judge of {task}": s for task, s in drawn.judges.items()}
    chance = torch.zeros_like(drawn.together)
    return {CHANCE: chance, **drawn.rewards, TOGETHER: drawn.together, **judges}


class _Table:
    """Judged numbers of picks, with resamples of the reports that are the same for all of them."""

    def __init__(self, drawn: Drawn, seed: int, bootstrap: int) -> None:
        self.drawn, num = drawn, len(drawn.together)
        every = torch.ones(1, num, dtype=torch.float64)
        self.counts = torch.cat([every, resamples(num, bootstrap, seed)])

    def values(self, key: str, weights: Tensor) -> Tensor:
        """float64 [1 + B] of a judged number under weights [P, N]; the first is of all reports."""
        if key == "auroc":
            images = (self.counts[:, :, None] * weights).flatten(1)
            return weighted_auroc(self.drawn.probability, self.drawn.labels, images).nanmean(1)
        of_report = (weights * self.drawn.judges[key]).sum(1)
        return self.counts @ of_report / self.counts.sum(1)

    def rows(
        self, key: str, scores: Tensor, picks: Sequence[int], ceiling: float | None
    ) -> list[dict[str, Any]]:
        """A row a size."""
        start = float(self.values(key, best_of_weights(torch.zeros_like(scores), 1))[0])
        rows = []
        for n in picks:
            found = self.values(key, best_of_weights(scores, n))
            value = float(found[0])
            way = None if ceiling is None else ceiling - start
            gap = (value - start) / way if way is not None and way > 0 and value == value else None
            rows.append(
                {"n": n, "value": value if value == value else None, "ci": interval(found[1:]), "gap": gap}
            )
        return rows

    def effects(self, scores: Tensor, n: int) -> dict[str, dict[str, Any]]:
        """Judged number → gain of the pick over chance, paired, with its interval."""
        found = {}
        for key in JUDGED:
            gain = self.values(key, best_of_weights(scores, n)) - self.values(
                key, best_of_weights(torch.zeros_like(scores), n)
            )
            found[key] = {"gain": _known(gain[0]), "ci": interval(gain[1:])}
        return found

    def agreement(self, reward: str, scores: Tensor, n: int) -> dict[str, Any]:
        """Of a reward with the judge of the same task."""
        judge, key = self.drawn.judges[reward], JUDGE_OF[reward]
        rho = rank_correlation(scores, judge)
        known = ~rho.isnan()
        counts = self.counts[:, known]
        of_all = counts @ rho[known] / counts.sum(1)
        chance, picked, own = (
            self.values(key, best_of_weights(s, n)) for s in (torch.zeros_like(scores), scores, judge)
        )
        gain, most = picked - chance, own - chance
        share = torch.where(most > 0, gain / most, torch.nan)
        return {
            "judge": key,
            "rho": _known(of_all[0]),
            "rho_ci": interval(of_all[1:]),
            "gain": _known(gain[0]),
            "gain_ci": interval(gain[1:]),
            "pays": _known(share[0]),
            "pays_ci": interval(share[1:]),
        }


def _known(value: Tensor) -> float | None:
    return float(value) if bool(value.isfinite()) else None


def verdicts(
    best: Mapping[str, Mapping[str, Sequence[Mapping[str, Any]]]],
    real: Mapping[str, float | None],
    agreement: Mapping[str, Mapping[str, Any]],
    num_samples: int,
) -> list[str]:
    """A sentence a reward that has a judge."""
    lines = []
    for reward, told in agreement.items():
        key, gain, (low, high) = told["judge"], told["gain"], told["gain_ci"]
        if gain is None:
            lines.append(f"{reward}: {key} is undefined on these reports, so nothing can be said of it")
            continue
        if told["rho"] is None:
            lines.append(f"{reward}: the same for all images of a report, so it picks nothing")
            continue
        picked, own = best[reward][key][-1]["value"], best[f"judge of {reward}"][key][-1]
        words = f"{reward}: best of {num_samples} by the reward reaches {key} {picked:.3f}"
        words += f", by the judge itself {own['value']:.3f}"
        if real[key] is not None:
            words += f", real films have {real[key]:.3f}"
            if own["gap"] is not None:
                way = f"reaches {own['gap']:.0%} of the way" if own["gap"] <= 1 else "passes them"
                words += f": picking {way}"
            else:
                words += ": the base is there without picking"
        agrees = f"reward and judge agree with rho {told['rho']:.2f} within a report"
        if high is not None and high < 0:
            worth = "its pick is worse than chance: it does harm here"
        elif low is None or low <= 0:
            worth = "its pick is no better than chance: worth nothing here"
        else:
            worth = f"its pick has {told['pays']:.0%} of what the judge's own would gain"
        lines.append(f"{words}; {agrees}; {worth}")
    return lines


def unjudged_verdicts(effects: Mapping[str, Mapping[str, Any]], num_samples: int) -> list[str]:
    """A sentence a reward that has no judge: what its pick does to every judged number."""
    lines = []
    for reward, of_key in effects.items():
        if reward in JUDGE_OF:
            continue
        told = [
            f"{key} {found['gain']:+.3f}"
            + ("" if found["ci"][0] is None else f" [{found['ci'][0]:+.3f}, {found['ci'][1]:+.3f}]")
            for key, found in of_key.items()
            if found["gain"] is not None
        ]
        lines.append(
            f"{reward}: has no judge of its own; best of {num_samples} by it, against chance: "
            + ", ".join(told)
        )
    return lines


def measure(
    config: Config | None,
    run_dir: Path | None = None,
    *,
    num_samples: int,
    num_reports: int,
    progress: Progress | None = None,
) -> tuple[dict[str, Any], bool]:
    """The headroom of a configuration's base, or of a run's anchor and policy.

    Args:
        config: Of the base; None for a run, which has its own.
        run_dir: A run of ``cxrl train``.
        num_samples: Images of a report, N.
        num_reports: Reports, as many as there are at most.
        progress: Is told how far it is.

    Returns:
        JSON, ``sides`` one or two; and whether it is of data that may not be passed on.

    Raises:
        CxrlError: Whatever a user can cause.
    """
    engine = Engine(run_dir or Path())
    if run_dir is None:
        assert config is not None
        config, _ = fill_batch_sizes(config, engine.device)
        m = config.model
        base = load_base(
            m.path, dtype=m.dtype, device=engine.device, allow_pickle=m.allow_pickle, offload=m.offload
        )
        policy = Policy(base, config.policy, seed=derive_seed(config.seed, "policy"))
    else:
        config, policy = open_run(run_dir, engine)
    total = num_samples * num_reports
    if total > MAX_IMAGES:
        raise CxrlError(
            f"--samples: {num_samples} of {num_reports} reports are {total} images, expected at most "
            f"{MAX_IMAGES}"
        )
    judging = {"num_images": total, "samples_per_prompt": num_samples}
    config = Config.from_dict({"data": {"selection_num_prompts": num_reports}, "eval": judging}, config)
    prompts = load_prompts(config, policy.base, "selection").prompts
    names = config.rewards.names
    opened = open_models(config, "rewards", without=own_rewards(names))
    rewards = build_rewards(names, config.rewards.path, engine.device, opened)
    check_labels(rewards, prompts)
    judges = build_judges(config, policy.base.image_size, engine.device, open_judges(config))
    sampler, scorer = Sampler(policy, config.sampler), Scorer(rewards, engine)
    evaluator = Evaluator(sampler, prompts, judges, config, engine, split="selection", scorer=scorer)
    sampler.progress = scorer.progress = evaluator.progress = progress or Progress()
    sides = [headroom(evaluator, anchor=True, num_samples=num_samples)]
    if run_dir is not None:
        sides.append(headroom(evaluator, anchor=False, num_samples=num_samples))
    told = {"judges": describe_judges(judges, config.eval.judges), "seed": config.seed}
    return {**told, "preset": config.preset, "sides": sides}, config.data.is_restricted

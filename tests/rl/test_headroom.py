"""Headroom on the tiny pipeline, with rewards and judges that are functions of the image."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import cxrl.rl.headroom as module
from cxrl.config import Config
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.evaluation.summary import ImageScores
from cxrl.models.base import load_base
from cxrl.models.policy import Policy
from cxrl.rl.engine import Engine
from cxrl.rl.evaluation import Evaluator
from cxrl.rl.headroom import headroom, sizes
from cxrl.rl.rollout import Sampler
from cxrl.rl.scoring import Scorer

Make = Callable[..., Config]
NUM, EACH = 6, 4


class Constant:
    """Says the same of every image."""

    name = "diagnosis"

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        return torch.full((len(images),), 0.5)


class JudgeItself:
    """What the fake judge says of posture."""

    name = "posture"

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        return -0.1 * math.sqrt(5) * images.mean((1, 2, 3))


@pytest.fixture
def evaluator(
    make_config: Make, fakes: dict[str, Any], tiny_pipeline: Any, tmp_path: Path
) -> Callable[..., Evaluator]:
    def make(rewards: dict[str, Any] | None = None, num: int = NUM, **sections: Any) -> Evaluator:
        words = ("no", "heart", "lung", "left", "size", "normal")
        prompts = [ReportPrompt(i, words[i], (float(i % 2), float(i // 2 % 2))) for i in range(num)]
        judged = {"num_images": num * EACH, "samples_per_prompt": EACH, "bootstrap": 200}
        config = make_config(data={"selection_num_prompts": num}, eval=judged, **sections)
        policy = Policy(load_base(tiny_pipeline), config.policy, seed=0)
        engine = Engine(tmp_path)
        scorer = Scorer(fakes["rewards"] if rewards is None else rewards, engine)
        sampler = Sampler(policy, config.sampler)
        judges = fakes["judges"]
        return Evaluator(
            sampler, prompts, judges, config, engine, split="selection", scorer=scorer, own_prompts=True
        )

    return make


def test_sizes_double() -> None:
    assert [sizes(n) for n in (2, 3, 8, 12)] == [[1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]


def test_a_reward_is_as_good_as_its_pick(evaluator: Callable[..., Evaluator]) -> None:
    made = evaluator({"posture": JudgeItself(), "diagnosis": Constant()})
    found = headroom(made, anchor=True, num_samples=EACH)
    json.dumps(found, allow_nan=False)
    assert (found["of"], found["num_samples"], found["num_reports"]) == ("anchor", EACH, NUM)
    best = found["best"]
    images, scores = made.anchor.evaluation.images, made.anchor.evaluation.values
    assert images is not None
    per_report = images.posture.double().view(NUM, EACH)
    for rule in ("posture", "judge of posture"):
        values = [row["value"] for row in best[rule]["posture"]]
        assert values[0] == pytest.approx(scores["posture"])
        assert values == sorted(values)
        assert values[-1] == pytest.approx(float(per_report.amax(1).mean()))
    assert found["agreement"]["posture"]["rho"] == pytest.approx(1.0)
    assert found["agreement"]["posture"]["pays"] == pytest.approx(1.0)
    for key in ("posture", "auroc", "consistency"):
        chance, constant = ([row["value"] for row in best[rule][key]] for rule in ("chance", "diagnosis"))
        assert constant == pytest.approx(chance), "what never varies picks blindly"
        assert chance == pytest.approx([scores[key]] * len(chance))
    assert found["agreement"]["diagnosis"]["rho"] is None
    assert any("diagnosis: the same for all images of a report" in line for line in found["verdicts"])
    assert any("posture: best of 4 by the reward reaches posture" in line for line in found["verdicts"])


def test_intervals_are_around_the_values_and_paired_gains_narrower(
    evaluator: Callable[..., Evaluator],
) -> None:
    made = evaluator({"posture": JudgeItself(), "diagnosis": Constant()})
    found = headroom(made, anchor=True, num_samples=EACH)
    for rows in found["best"]["posture"].values():
        for row in rows:
            assert row["ci"][0] <= row["value"] <= row["ci"][1]
            assert row["gap"] is None, "the caller's own reports have no films"
    told = found["agreement"]["posture"]
    low, high = told["gain_ci"]
    assert 0 < low <= told["gain"] <= high


def test_it_is_the_same_again_and_of_the_policy_where_asked(evaluator: Callable[..., Evaluator]) -> None:
    once, again = (headroom(evaluator(), anchor=True, num_samples=EACH) for _ in range(2))
    assert once == again
    in_pieces = headroom(evaluator(sampler={"batch_size": 5}), anchor=True, num_samples=EACH)
    assert in_pieces["best"]["posture"]["posture"][-1]["value"] == pytest.approx(
        once["best"]["posture"]["posture"][-1]["value"], rel=1e-4
    )
    policy = headroom(evaluator(), anchor=False, num_samples=EACH)
    assert policy["of"] == "policy"
    assert policy["best"]["chance"] != once["best"]["chance"], "ACE is there from the start"


class Opposite(JudgeItself):
    """The worst by the judge."""

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        return -super().score(images, batch)


class Mine(JudgeItself):
    """A user's own, which no judge stands against."""

    name = "mine"


def test_a_reward_without_a_judge_and_one_that_does_harm(evaluator: Callable[..., Evaluator]) -> None:
    made = evaluator({"posture": Opposite(), "mine": Mine()})
    found = headroom(made, anchor=True, num_samples=EACH)
    assert list(found["agreement"]) == ["posture"]
    assert found["agreement"]["posture"]["rho"] == pytest.approx(-1.0)
    harm, mine = found["verdicts"]
    assert "worse than chance: it does harm here" in harm
    assert mine.startswith("mine: has no judge of its own; best of 4 by it, against chance: posture +")
    gains = {name: of_key["posture"]["gain"] for name, of_key in found["effects"].items()}
    rows = {rule: found["best"][rule]["posture"][-1]["value"] for rule in ("chance", "posture", "mine")}
    assert gains["mine"] == pytest.approx(rows["mine"] - rows["chance"])
    assert gains["mine"] > 0
    assert gains["posture"] == pytest.approx(rows["posture"] - rows["chance"])
    assert gains["posture"] < 0


def scored(diagnosis: Tensor) -> ImageScores:
    one = torch.zeros(diagnosis.numel())
    return ImageScores(one, diagnosis.flatten(), one, one[:, None], one[:, None])


def test_a_report_without_labels_is_picked_from_blindly() -> None:
    judged = torch.tensor([[0.2, 0.7], [math.nan, math.nan]])
    assert module._judges(scored(judged), (2, 2))["diagnosis"].tolist() == [
        pytest.approx([0.2, 0.7]),
        [0.0, 0.0],
    ]
    judged[1, 0] = 0.5
    with pytest.raises(CxrlError, match="judge of diagnosis has no finite score for report 1"):
        module._judges(scored(judged), (2, 2))


def drawn(posture: Tensor) -> module.Drawn:
    num = posture.numel()
    labels = torch.arange(len(posture)).remainder(2).repeat_interleave(posture.shape[1])[:, None].float()
    return module.Drawn({}, {"posture": posture}, posture, torch.zeros(num, 1), labels)


@pytest.mark.parametrize(("ceiling", "gap"), [(4.0, 0.5), (1.0, None), (2.0, None), (None, None)])
def test_no_share_of_a_way_that_is_not_there(ceiling: float | None, gap: float | None) -> None:
    posture = torch.tensor([[1.0, 3.0], [1.0, 3.0]], dtype=torch.float64)
    row = module._Table(drawn(posture), 0, 10).rows("posture", posture, [2], ceiling)[0]
    assert (row["value"], row["gap"]) == (3.0, gap)


def told(gain: float | None, ci: list[float | None], rho: float | None = 0.0) -> dict[str, Any]:
    return {"judge": "auroc", "gain": gain, "gain_ci": ci, "rho": rho, "pays": 0.5}


def test_verdicts_in_words() -> None:
    row = {"value": 0.9, "gap": None}
    best = {rule: {"auroc": [row]} for rule in ("diagnosis", "judge of diagnosis")}

    def say(real: float | None, agreement: dict[str, Any]) -> str:
        return module.verdicts(best, {"auroc": real}, {"diagnosis": agreement}, 4)[0]

    assert "undefined on these reports" in say(None, told(None, [None, None], None))
    assert "picks nothing" in say(None, told(0.0, [0.0, 0.0], None))
    assert "the base is there without picking" in say(0.8, told(0.1, [0.05, 0.2]))
    assert "worth nothing here" in say(None, told(0.0, [-0.1, 0.1]))
    assert "it does harm here" in say(None, told(-0.1, [-0.2, -0.05]))
    assert "has 50% of what the judge's own would gain" in say(None, told(0.1, [0.05, 0.2]))


def test_what_cannot_be_asked_for(evaluator: Callable[..., Evaluator], make_config: Make) -> None:
    with pytest.raises(CxrlError, match="headroom: 1 report, expected at least two"):
        headroom(evaluator(num=1), anchor=True, num_samples=EACH)
    with pytest.raises(CxrlError, match=r"--samples: 1000 of 1000 reports are 1000000 images"):
        module.measure(make_config(), num_samples=1000, num_reports=1000)

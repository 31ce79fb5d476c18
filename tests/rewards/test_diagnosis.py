from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrl.data.phantom.films import Films
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS, PHANTOM_FINDINGS
from cxrl.metrics.classification import macro_auroc
from cxrl.rewards.base import Reward, check_labels
from cxrl.rewards.diagnosis import DiagnosisReward, label_agreement
from cxrl.scorers.phantom_network import Scorer, ScorerConfig, save_scorer

NAN = math.nan


@pytest.mark.parametrize(
    ("probability", "labels", "expected"),
    [
        ([1.0, 0.0, 0.0], [1.0, 0.0, 0.0], 1.0),
        ([0.0, 1.0, 1.0], [1.0, 0.0, 0.0], 0.0),
        ([0.8, 0.3, 0.1], [1.0, 0.0, 0.0], 0.5 * (0.8 + (0.7 + 0.9) / 2)),
        ([0.8, 0.6, 0.1], [1.0, 1.0, 0.0], 0.5 * (0.7 + 0.9)),
        ([0.8, 0.3, 0.1], [1.0, NAN, 0.0], 0.5 * (0.8 + 0.9)),
        ([0.8, 0.3, 0.1], [1.0, NAN, NAN], 0.8),
        ([0.8, 0.3, 0.1], [NAN, 0.0, NAN], 0.7),
        ([0.8, 0.3, 0.1], [NAN, NAN, NAN], 0.5),
    ],
)
def test_agreement_is_the_mean_of_presence_and_absence(
    probability: list[float], labels: list[float], expected: float
) -> None:
    # A second row shows that rows do not mix.
    found = label_agreement(torch.tensor([probability, [0.5] * 3]), torch.tensor([labels, [1.0, 0.0, 0.0]]))
    assert found.tolist() == pytest.approx([expected, 0.5])


def test_showing_everything_does_not_pay() -> None:
    labels = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    assert float(label_agreement(torch.ones(1, 7), labels)) == float(
        label_agreement(torch.zeros(1, 7), labels)
    )


def test_it_tells_the_right_report_from_another(
    films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    own = rewards["diagnosis"].score(films.pixels(), batch)
    other = rewards["diagnosis"].score(films.pixels().roll(1, 0), batch)
    assert 0.0 <= float(own.min()) <= float(own.max()) <= 1.0
    assert float(own.mean()) > 0.9
    differs = (films.labels != films.labels.roll(1, 0)).any(1)
    assert float((own > other)[differs].float().mean()) > 0.9


def test_every_finding_is_seen(films: Films, rewards: dict[str, Reward]) -> None:
    logits, _ = rewards["diagnosis"].model(films.pixels())  # type: ignore[attr-defined]
    macro, each = macro_auroc(logits, films.labels)
    assert macro > 0.97
    assert float(each.min()) > 0.9


def test_what_is_no_film_never_scores_well(
    not_a_film: Tensor, films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    real = rewards["diagnosis"].score(films.pixels(), batch)
    bad = rewards["diagnosis"].score(not_a_film, batch)
    assert float(bad.max()) < float(real.quantile(0.05))
    assert float(bad.mean()) < 0.1


def in_chexpert_order(batch: PromptBatch) -> PromptBatch:
    """The same prompts with CheXpert's 14 labels: the seven of the phantom by name, the others unknown."""
    prompts = []
    for p in batch.prompts:
        known = dict(zip(PHANTOM_FINDINGS, p.labels, strict=True))
        labels = tuple(known.get(name, NAN) for name in CHEXPERT_FINDINGS)
        prompts.append(ReportPrompt(p.prompt_id, p.text, labels, CHEXPERT_FINDINGS))
    return PromptBatch(tuple(prompts), batch.prompt_of)


def test_labels_of_another_data_set_are_matched_by_name(
    films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    score = rewards["diagnosis"].score(films.pixels(), batch)
    assert torch.equal(rewards["diagnosis"].score(films.pixels(), in_chexpert_order(batch)), score)


def test_a_blank_label_is_no_negative(films: Films, batch: PromptBatch, rewards: dict[str, Reward]) -> None:
    positives = tuple(
        ReportPrompt(p.prompt_id, p.text, tuple(v if v == 1 else NAN for v in p.labels), PHANTOM_FINDINGS)
        for p in batch.prompts
    )
    blank = PromptBatch(positives, batch.prompt_of)
    logits, validity = rewards["diagnosis"].model(films.pixels())  # type: ignore[attr-defined]
    shown = (logits.sigmoid() * (batch.labels == 1)).sum(1) / (batch.labels == 1).sum(1)
    found = rewards["diagnosis"].score(films.pixels(), blank)
    assert torch.allclose(found, shown * validity.sigmoid(), atol=1e-6)


def test_a_reward_without_any_known_label_is_refused(batch: PromptBatch, rewards: dict[str, Reward]) -> None:
    check_labels(rewards, in_chexpert_order(batch).prompts)
    unknown = [ReportPrompt(0, "x", (1.0,), ("Scoliosis",)), ReportPrompt(1, "y", ())]
    with pytest.raises(
        CxrlError, match=r"diagnosis needs labels of No Finding, .*none of 2 reports has a known"
    ):
        check_labels(rewards, unknown)


def test_a_classifier_names_its_findings(tmp_path: Path) -> None:
    def reward(num: int, findings: tuple[str, ...]) -> DiagnosisReward:
        config = ScorerConfig("diagnosis", "resnet", 4, 32, num, (), findings)
        save_scorer(Scorer(config), tmp_path / "diagnosis.safetensors")
        return DiagnosisReward(tmp_path, torch.device("cpu"))

    assert reward(2, ("Edema", "Fracture")).findings == ("Edema", "Fracture")
    assert reward(7, ()).findings == PHANTOM_FINDINGS
    with pytest.raises(CxrlError, match="has 2 outputs and does not name them"):
        reward(2, ())
    with pytest.raises(ValueError, match="3 outputs for 1 findings"):
        reward(3, ("Edema",))

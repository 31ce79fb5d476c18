from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from cxrl.data.phantom import Films
from cxrl.data.prompts import PromptBatch
from cxrl.metrics.classification import macro_auroc
from cxrl.rewards.base import Reward
from cxrl.rewards.diagnosis import label_agreement

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

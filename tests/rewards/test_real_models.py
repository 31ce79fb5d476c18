"""The three rewards with models for real films: built from a configuration, and no film never scores well."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrl.config import Config
from cxrl.data.phantom.films import Films
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.rewards.base import Reward, build_rewards, check_labels
from cxrl.rewards.diagnosis import label_agreement
from cxrl.scorers.choice import file_sha256, open_models
from cxrl.scorers.image_text import ImageTextModel
from cxrl.scorers.validity import film_validity
from cxrl.scorers.xrv_densenet import XrvClassifier

NUM = 4
NAN = math.nan
PROMPTS = (
    ReportPrompt(0, "no acute effusion .", (1.0, NAN, NAN), ("No Finding", "Pleural Effusion", "Edema")),
    ReportPrompt(1, "left pleural effusion .", (NAN, 1.0, 0.0), ("No Finding", "Pleural Effusion", "Edema")),
)
BATCH = PromptBatch(PROMPTS, torch.tensor([0, 0, 1, 1]))


@pytest.fixture(scope="module")
def config(densenet: Path, make_image_text: Callable[..., Path]) -> Config:
    return Config.from_dict(
        {
            "rewards": {
                "names": "diagnosis,consistency",
                "weights": "1,1",
                "diagnosis": f"densenet121-res224-mimic_ch:{densenet}",
                "consistency": str(make_image_text("siglip")),
                "sha256": f"diagnosis={file_sha256(densenet)}",
            }
        }
    )


@pytest.fixture(scope="module")
def built(config: Config) -> dict[str, Reward]:
    return build_rewards(config.rewards.names, "phantom", "cpu", open_models(config, "rewards"))


@pytest.fixture
def real(films: Films) -> Tensor:
    """Four phantoms that the guard takes for films."""
    images = films.pixels()
    return images[film_validity(images) == 1.0][:NUM]


def test_the_configuration_chooses_the_models(built: dict[str, Reward]) -> None:
    assert isinstance(built["diagnosis"].model, XrvClassifier)  # type: ignore[attr-defined]
    assert isinstance(built["consistency"].model, ImageTextModel)  # type: ignore[attr-defined]


def test_diagnosis_is_the_agreement_over_the_known_labels(built: dict[str, Reward], real: Tensor) -> None:
    model = built["diagnosis"].model  # type: ignore[attr-defined]
    probability, _ = model.diagnose(real)
    labels = BATCH.labels_of(model.findings)
    # No Finding: every output is denied; else what the report does not mention is masked.
    assert torch.equal(labels[0], torch.zeros(11))
    assert int(labels[2].isnan().sum()) == 9
    found = built["diagnosis"].score(real, BATCH)
    torch.testing.assert_close(found, label_agreement(probability, labels))
    e, p = model.findings.index("Edema"), model.findings.index("Pleural Effusion")
    expected = (probability[2, p] + 1.0 - probability[2, e]) / 2.0
    assert float(found[2]) == pytest.approx(float(expected), abs=1e-6)
    check_labels({"diagnosis": built["diagnosis"]}, PROMPTS[:1])


def test_consistency_is_a_cosine(built: dict[str, Reward], real: Tensor) -> None:
    model = built["consistency"].model  # type: ignore[attr-defined]
    embeds, _ = model.embed_images(real)
    expected = torch.nn.functional.cosine_similarity(embeds, model.text_embeds(BATCH.texts))
    torch.testing.assert_close(built["consistency"].score(real, BATCH), expected)


def test_what_is_no_film_never_scores_well(built: dict[str, Reward], not_a_film: Tensor) -> None:
    validity = film_validity(not_a_film)
    assert float((validity < 0.5).float().mean()) > 0.9
    images = not_a_film[validity < 0.5][:NUM]
    assert float(built["diagnosis"].score(images, BATCH).max()) < 0.5
    model = built["consistency"].model  # type: ignore[attr-defined]
    cosine = torch.nn.functional.cosine_similarity(
        model.embed_images(images)[0], model.text_embeds(BATCH.texts)
    )
    found = built["consistency"].score(images, BATCH)
    assert bool((found < cosine - 0.5).all())

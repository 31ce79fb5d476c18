from __future__ import annotations

import pytest
import torch
from torch import Tensor

from cxrl.data.phantom.films import Films, corpus
from cxrl.data.phantom.reports import Finding
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.rewards.base import Reward


def score(reward: Reward, images: Tensor, texts: tuple[str, ...]) -> Tensor:
    """[N]: every image with its text."""
    prompts = tuple(ReportPrompt(i, text, ()) for i, text in enumerate(texts))
    return reward.score(images, PromptBatch(prompts, torch.arange(len(texts))))


def test_a_film_agrees_best_with_its_own_report(
    films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    own = rewards["consistency"].score(films.pixels(), batch)
    other = rewards["consistency"].score(films.pixels().roll(1, 0), batch)
    assert float(own.abs().max()) <= 1.0
    contents = zip(films.contents, (films.contents[-1], *films.contents[:-1]), strict=True)
    different = torch.tensor([mine != theirs for mine, theirs in contents])
    assert float((own > other)[different].float().mean()) > 0.9


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (
            (Finding("Pleural Effusion", side="right", size="large"), "Large right pleural effusion."),
            "Large left pleural effusion.",
        ),
        (
            (Finding("Consolidation", side="left", zone="upper"), "Left upper zone consolidation."),
            "Left lower zone consolidation.",
        ),
        ((Finding("Cardiomegaly", size="severe"), "Severe cardiomegaly."), "Normal chest radiograph."),
    ],
    ids=["side", "zone", "presence"],
)
def test_side_zone_and_presence_count(
    right: tuple[Finding, str], wrong: str, rewards: dict[str, Reward]
) -> None:
    finding, text = right
    images = corpus(12, seed=8103, findings=[(finding,)] * 12).pixels()
    better = score(rewards["consistency"], images, (text,) * 12)
    worse = score(rewards["consistency"], images, (wrong,) * 12)
    assert float((better > worse).float().mean()) > 0.9


def test_the_order_of_the_prompts_does_not_matter(
    films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    once = rewards["consistency"].score(films.pixels()[:4], batch.slice(0, 4))
    twice = PromptBatch(batch.prompts[3::-1], torch.tensor([3, 2, 1, 0]))
    assert torch.allclose(rewards["consistency"].score(films.pixels()[:4], twice), once, atol=1e-5)


def test_unknown_words_and_an_empty_report_are_finite(films: Films, rewards: dict[str, Reward]) -> None:
    values = score(
        rewards["consistency"], films.pixels()[:3], ("", "zebra crossing", "No zebra. Large effusion")
    )
    assert bool(values.isfinite().all())


def test_what_is_no_film_never_scores_well(
    not_a_film: Tensor, films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    real = rewards["consistency"].score(films.pixels(), batch)
    bad = rewards["consistency"].score(not_a_film, batch)
    assert float(bad.max()) < float(real.quantile(0.05))
    assert float(bad.mean()) < 0.0


def test_an_image_that_is_no_film_loses_that_much(
    films: Films, batch: PromptBatch, rewards: dict[str, Reward], monkeypatch: pytest.MonkeyPatch
) -> None:
    reward = rewards["consistency"]
    embeds, _ = reward.model.embed_images(films.pixels())  # type: ignore[attr-defined]
    texts = reward.model.text_embeds(batch.texts)  # type: ignore[attr-defined]
    for validity in (0.0, 0.25, 1.0):
        said = (embeds, torch.full((len(embeds),), validity))
        monkeypatch.setattr(reward.model, "embed_images", lambda images, said=said: said)  # type: ignore[attr-defined]
        found = reward.score(films.pixels(), batch)
        torch.testing.assert_close(found, (embeds * texts).sum(1) - 1.0 + validity, rtol=0, atol=1e-5)

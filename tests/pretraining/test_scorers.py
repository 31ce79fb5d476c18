from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cxrl.data.phantom.films import Films, corpus
from cxrl.pretraining.scorers import fit_scorer, jitter, non_films, vocabulary_of
from cxrl.scorers.phantom_network import load_scorer, save_scorer


@pytest.fixture(scope="module")
def films() -> Films:
    return corpus(24, seed=8201, size=32)


@pytest.mark.parametrize("role", ["rewards", "judges"])
@pytest.mark.parametrize("task", ["posture", "diagnosis", "consistency"])
def test_every_scorer_trains_and_is_stored(task: str, role: str, films: Films, tmp_path: Path) -> None:
    lines: list[str] = []
    scorer = fit_scorer(task, role, films, num_steps=2, seed=3, work_dir=tmp_path, tell=lines.append)
    assert lines
    assert lines[-1].startswith(f"{role}-{task}: step 2/2")
    assert scorer.config.num_outputs == {"posture": 5, "diagnosis": 7, "consistency": 48}[task]
    save_scorer(scorer, tmp_path / "s.safetensors")
    loaded = load_scorer(tmp_path / "s.safetensors")
    assert loaded.config == scorer.config
    with torch.no_grad():
        assert bool(loaded(films.pixels())[0].isfinite().all())


def test_rewards_and_judges_are_different_networks(films: Films, tmp_path: Path) -> None:
    networks = [
        fit_scorer("posture", role, films, num_steps=0, seed=3, work_dir=tmp_path)
        for role in ("rewards", "judges")
    ]
    assert networks[0].config.trunk != networks[1].config.trunk


def test_non_films_differ_from_every_film(films: Films) -> None:
    images = films.pixels()
    bad = non_films(images, torch.Generator().manual_seed(0))
    assert bad.shape == images.shape
    assert 0.0 <= float(bad.min()) <= float(bad.max()) <= 1.0
    distance = torch.cdist(bad.flatten(1), images.flatten(1)) / images[0].numel() ** 0.5
    assert float(distance.min()) > 0.1
    assert torch.equal(bad, non_films(images, torch.Generator().manual_seed(0)))


def test_jitter_stays_close_and_in_range(films: Films) -> None:
    images = films.pixels()
    moved = jitter(images, torch.Generator().manual_seed(0))
    assert 0.0 <= float(moved.min()) <= float(moved.max()) <= 1.0
    off = (moved - images).square().mean((1, 2, 3)).sqrt()
    assert float(off.mean()) > 0.01
    assert float(off.max()) < 0.2


def test_vocabulary_holds_every_word_once() -> None:
    assert vocabulary_of(("Large effusion.", "No effusion; edema")) == (
        ".",
        ";",
        "edema",
        "effusion",
        "large",
        "no",
    )

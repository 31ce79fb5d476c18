"""Copies of training films among generated ones, against held-out films."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from cxrl.data.phantom.films import corpus
from cxrl.errors import CxrlError
from cxrl.evaluate import main
from cxrl.image_sets.judge import Panel, judge_sets
from cxrl.image_sets.memorised import wilson
from cxrl.image_sets.sets import open_set
from cxrl.images.png import to_uint8

COPIES = 3
ENOUGH = 40
"""Held-out films, instead of the hundred that a threshold needs."""


def folder_of(path: Path, number: int, seed: int) -> Path:
    path.mkdir()
    for i, image in enumerate(corpus(number, seed=seed).pixels()):
        Image.fromarray(to_uint8(image)).save(path / f"{i:03}.png")
    return path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """30 generated films of which the first three are training films 5, 6 and 7: as it is, flipped, noisy."""
    monkeypatch.setattr("cxrl.image_sets.memorised.FEWEST_HELD_OUT", ENOUGH)
    sizes = {"generated": (30, 3), "real": (ENOUGH + 4, 4), "train": (40, 5)}
    made = {name: folder_of(tmp_path / name, *of) for name, of in sizes.items()}
    first, flipped, noisy = (np.array(Image.open(made["train"] / f"{n:03}.png")) for n in (5, 6, 7))
    noise = np.random.default_rng(0).normal(0, 12, noisy.shape)
    shown = (first, flipped[:, ::-1], (noisy + noise).clip(0, 255).astype(np.uint8))
    for n, pixels in enumerate(shown):
        Image.fromarray(np.ascontiguousarray(pixels)).save(made["generated"] / f"{n:03}.png")
    return made


def judged(folders: dict[str, Path], panel: Panel, **more: Any) -> dict[str, Any]:
    sets = {name: open_set(folders[name], f"--{name}") for name in ("generated", "real", "train")}
    cache = folders["generated"].parent / "scan"
    return judge_sets(**sets, panel=panel, cache=cache, image_size=64, seed=0, bootstrap=0, **more)


def test_copies_are_named_with_the_films_they_are_of(folders: dict[str, Path], panel: Panel) -> None:
    told = judged(folders, panel)["memorisation"]
    assert (told["num_generated"], told["num_training"], told["num_held_out"]) == (30, 40, 44)
    pairs = {Path(p["generated"]).stem: Path(p["training"]).stem for p in told["closest"][:COPIES]}
    assert pairs == {"000": "005", "001": "006", "002": "007"}
    assert all(pair["reidentified"] for pair in told["closest"][:COPIES])
    matches = [pair["match"] for pair in told["closest"]]
    assert matches == sorted(matches, reverse=True)
    assert COPIES / 30 <= told["reidentified"] <= 5 / 30
    low, high = told["reidentified_ci"]
    assert low < told["reidentified"] < high
    assert told["match"]["generated"]["nearest_1_percent"] > told["threshold"]
    assert told["distance"]["pixels"]["generated"]["nearest_1_percent"] < 0.05, "the copy's own features"


def test_a_generator_that_gives_training_films_is_nearer_than_held_out_films(
    folders: dict[str, Path], panel: Panel
) -> None:
    honest = judged(folders, panel)["memorisation"]
    folders["generated"] = folders["train"]
    told = judged(folders, panel)["memorisation"]
    assert told["reidentified"] == 1.0
    assert told["match"]["nearer"] == 1.0
    assert told["distance"]["pixels"]["nearer"] == 1.0
    assert 0.35 < honest["match"]["nearer"] < 0.65


def test_real_films_that_were_trained_on_are_no_baseline(folders: dict[str, Path], panel: Panel) -> None:
    for n in range(15):
        shutil.copy(folders["train"] / f"{n:03}.png", folders["real"] / f"t{n:03}.png")
    scores = judged(folders, panel)
    told = scores["memorisation"]
    assert (told["num_held_out"], told["num_real_in_training"]) == (44, 15)
    assert told["threshold"] < 0.9999
    assert "15 pictures are in --real and --train, pixel for pixel" in scores["warnings"]
    folders["real"] = folders["train"]
    with pytest.raises(
        CxrlError, match=r"--train: 40 of 40 films of --real are in .*held-out films are needed"
    ):
        judged(folders, panel)


def test_few_held_out_films_give_no_threshold(folders: dict[str, Path], panel: Panel) -> None:
    for n in range(ENOUGH - 1, ENOUGH + 4):
        (folders["real"] / f"{n:03}.png").unlink()
    told = judged(folders, panel)["memorisation"]
    assert told["reidentified"] is told["threshold"] is None
    assert told["undefined"] == f"{ENOUGH - 1} held-out films, {ENOUGH} are needed"
    assert told["match"]["held_out"]["median"] > 0.5


def test_many_films_are_drawn(
    folders: dict[str, Path], panel: Panel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cxrl.image_sets.memorised.MOST", 20)
    told = judged(folders, panel)["memorisation"]
    assert (told["num_generated"], told["num_held_out"], told["num_training"]) == (20, 20, 40)


def test_without_training_films_nothing_is_said(tables: tuple[Path, Path], panel: Panel) -> None:
    sets = open_set(tables[0], "--generated"), open_set(tables[1], "--real")
    scores = judge_sets(*sets, panel, cache=tables[0].parent / "scan", image_size=64, seed=0, bootstrap=0)
    assert scores["memorisation"] is None
    assert set(scores["sets"]) == {"generated", "real"}


def test_the_command_shows_the_pairs_to_their_owner_alone(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores"
    options = [word for name, path in folders.items() for word in (f"--{name}", str(path))]
    assert main([*options, "--bootstrap", "0", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "Re-identified against 40 training films" in text
    assert "pairs.png" in text
    page = (out / "scores.md").read_text()
    assert "## Memorisation" in page
    assert str(folders["train"] / "005.png") in page
    with Image.open(out / "pairs.png") as picture:
        assert "Synthetic" in picture.info
    assert {p.name: p.stat().st_mode & 0o077 for p in out.iterdir() if p.is_file()} == dict.fromkeys(
        ("scores.json", "scores.md", "scores.csv", "pairs.png"), 0
    )
    assert json.loads((out / "scores.json").read_text())["sets"]["train"]["num_images"] == 40


def test_an_unreadable_training_film_is_told(folders: dict[str, Path], panel: Panel) -> None:
    (folders["train"] / "000.png").write_bytes(b"no picture")
    scores = judged(folders, panel)
    assert scores["memorisation"]["num_training"] == 39
    assert any(text.startswith("--train: 1 left out") for text in scores["warnings"])


def test_the_interval_knows_how_few_films_are_held_out(folders: dict[str, Path], panel: Panel) -> None:
    """The bounds hold 1 % where no film is a copy, though the threshold of few films is a guess."""
    for n in range(COPIES):
        (folders["generated"] / f"{n:03}.png").unlink()
    told = judged(folders, panel)["memorisation"]
    low, high = told["reidentified_ci"]
    assert low <= 0.01 <= high
    assert low <= told["reidentified"] <= high
    assert high > 0.02, "27 films cannot tell 0 from 2 %"


@pytest.mark.parametrize(("count", "number"), [(0, 60), (3, 60), (60, 60)])
def test_the_interval_of_a_share(count: int, number: int) -> None:
    expected = binomtest(count, number).proportion_ci(method="wilson")
    assert wilson(count / number, number) == pytest.approx((expected.low, expected.high), abs=1e-12)

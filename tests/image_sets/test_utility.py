"""Classifiers that learn from generated films, tested on real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cxrl.data.phantom.films import corpus
from cxrl.errors import CxrlError
from cxrl.evaluate import main
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.image_sets import utility as module
from cxrl.image_sets.judge import Panel, judge_sets
from cxrl.image_sets.sets import open_set
from cxrl.images.png import to_uint8

LEARNT = ("Cardiomegaly", "Edema")
NUM_STEPS = 90


def write_table(
    folder: Path, number: int, seed: int, *, shuffled: bool = False, masked: float = 0.0, names: Any = LEARNT
) -> Path:
    """Phantoms with two labels that a network learns at once; ``masked``, the share of labels left blank."""
    folder.mkdir(parents=True)
    films = corpus(number, seed=seed)
    rng = np.random.default_rng(seed)
    order = rng.permutation(number) if shuffled else np.arange(number)
    lines = ["image," + ",".join(names)]
    for i, image in enumerate(films.pixels()):
        Image.fromarray(to_uint8(image)).save(folder / f"{i:03}.png")
        cells = [str(int(films.labels[order[i], PHANTOM_FINDINGS.index(name)])) for name in names]
        lines.append(f"{i:03}.png," + ",".join("" if rng.random() < masked else cell for cell in cells))
    (folder / "films.csv").write_text("\n".join(lines) + "\n")
    return folder / "films.csv"


@pytest.fixture
def two_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NUM_SEEDS", 2)
    monkeypatch.setattr(module, "BATCH_SIZE", 16)


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    """Sets in which there are enough labels if two of a kind are."""
    sizes = {"generated": (60, 1), "real": (40, 2), "train": (60, 3)}
    return {name: write_table(tmp_path / name, *of) for name, of in sizes.items()}


@pytest.fixture
def few(two_seeds: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels of a kind that are enough."""
    monkeypatch.setattr(module, "FEWEST", 2)


def judged(tmp_path: Path, panel: Panel, tables: dict[str, Path], **more: Any) -> dict[str, Any]:
    sets = {name: open_set(path, f"--{name}") for name, path in tables.items()}
    ask = {"cache": tmp_path / "scan", "image_size": 64, "seed": 0, "bootstrap": 20}
    return judge_sets(**sets, panel=panel, **(ask | {"utility_steps": NUM_STEPS} | more))


@pytest.mark.slow
def test_films_with_right_labels_teach_and_with_wrong_ones_do_not(
    tmp_path: Path, panel: Panel, two_seeds: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = {
        "generated": write_table(tmp_path / "generated", 240, 1),
        "real": write_table(tmp_path / "real", 160, 2),
        "train": write_table(tmp_path / "train", 240, 3, masked=0.3),
    }
    told = judged(tmp_path, panel, tables)["utility"]
    arms = {arm["arm"]: arm for arm in told["arms"]}
    assert tuple(arms) == module.ARMS
    assert (told["num_train"], told["num_generated"], told["num_test"]) == (240, 240, 160)
    assert min(arm["auroc"] for arm in arms.values()) > 0.9
    assert arms["real"]["minus_real"] == 0.0
    for arm in arms.values():
        low, high = arm["ci"]
        assert low <= arm["auroc"] <= high
        assert set(arm["auroc_per_finding"]) == set(LEARNT)
    numbers = [of["num_train"] for of in told["findings"]]
    assert numbers == sorted(numbers), "the rarest first"

    monkeypatch.setattr(module, "ARMS", ("real", "generated"))
    wrong = tables | {"generated": write_table(tmp_path / "wrong", 240, 1, shuffled=True)}
    shuffled = {arm["arm"]: arm for arm in judged(tmp_path, panel, wrong)["utility"]["arms"]}
    assert shuffled["generated"]["auroc"] < arms["generated"]["auroc"] - 0.15
    assert shuffled["generated"]["minus_real_ci"][1] < -0.1
    assert shuffled["real"]["auroc"] == pytest.approx(arms["real"]["auroc"], abs=1e-6)


def test_masked_labels_teach_nothing() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 3.0]], requires_grad=True)
    labels = torch.tensor([[1.0, torch.nan], [torch.nan, 0.0]])
    loss = module.masked_loss(logits, labels)
    known = torch.nn.functional.softplus(torch.tensor([-2.0, 3.0])).mean()
    torch.testing.assert_close(loss, known)
    (grad,) = torch.autograd.grad(loss, logits)
    assert (grad != 0).tolist() == [[True, False], [False, True]]
    assert float(module.masked_loss(logits, torch.full((2, 2), torch.nan)).detach()) == 0.0


def test_films_without_labels_are_counted_and_learnt_from_by_none(
    tmp_path: Path, panel: Panel, tables: dict[str, Path], few: None
) -> None:
    before = judged(tmp_path, panel, tables, utility_steps=4)["utility"]
    text = tables["train"].read_text().splitlines()
    extra = [f"{line.split(',')[0]},," for line in text[1:21]]  # the same films again, their labels blank
    tables["train"].write_text("\n".join([*text, *extra]) + "\n")
    after = judged(tmp_path, panel, tables, utility_steps=4)["utility"]
    assert after["num_train"] == before["num_train"] + 20
    assert [of["num_train"] for of in after["findings"]] == [of["num_train"] for of in before["findings"]]
    assert all(np.isfinite(arm["auroc"]) for arm in after["arms"])


def test_a_classifier_that_is_done_is_not_trained_again(
    tmp_path: Path, panel: Panel, tables: dict[str, Path], few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    first = judged(tmp_path, panel, tables, utility_steps=3, trained=steps.append)["utility"]
    assert sum(steps) == 6 * len(module.ARMS)
    monkeypatch.setattr(module, "fit", None)  # it would be called
    again = judged(tmp_path, panel, tables, utility_steps=3, trained=steps.append)["utility"]
    assert again == first
    assert sum(steps) == 12 * len(module.ARMS)
    (damaged,) = (tmp_path / "scan").rglob("2-0.safetensors")
    damaged.write_bytes(b"no tensors")
    with pytest.raises(TypeError):
        judged(tmp_path, panel, tables, utility_steps=3)
    monkeypatch.undo()
    monkeypatch.setattr(module, "NUM_SEEDS", 2)
    monkeypatch.setattr(module, "BATCH_SIZE", 16)
    monkeypatch.setattr(module, "FEWEST", 2)
    assert judged(tmp_path, panel, tables, utility_steps=3)["utility"] == first
    assert not list((tmp_path / "scan").rglob("*.checkpoint"))


def test_what_cannot_be_learnt_is_named(tmp_path: Path, panel: Panel) -> None:
    tables = {
        "generated": write_table(tmp_path / "generated", 100, 1),
        "real": write_table(tmp_path / "real", 20, 2, names=("Edema",)),
        "train": write_table(tmp_path / "train", 100, 3),
    }
    with pytest.raises(
        CxrlError, match=r"no finding can be .*Cardiomegaly: no column in --real; Edema: \d films .* --real"
    ):
        judged(tmp_path, panel, tables)
    plain = tmp_path / "plain"
    plain.mkdir()
    for name in ("000.png", "001.png"):
        (plain / name).write_bytes((tmp_path / "train" / name).read_bytes())
    with pytest.raises(CxrlError, match=r"--utility: --train .* has no column of a finding"):
        judged(tmp_path, panel, tables | {"train": plain})


def test_the_command(
    tmp_path: Path, tables: dict[str, Path], few: None, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [word for name, path in tables.items() for word in (f"--{name}", str(path))]
    out = tmp_path / "scores"
    assert main([*options, "--utility", "3", "--bootstrap", "5", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert "generated, then real" in text
    assert max(map(len, text.splitlines())) < 200
    page = (out / "scores.md").read_text()
    assert "## Utility" in page
    assert "| generated, then real |" in page
    told = json.loads((out / "scores.json").read_text())["utility"]
    assert told["num_steps"] == 3


def test_training_films_are_needed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = write_table(tmp_path / "generated", 4, 1)
    asked = ["--generated", str(table), "--real", str(table), "--utility", "--out", str(tmp_path / "scores")]
    assert main(asked) == 2
    assert "--utility: --train is missing" in capsys.readouterr().err


def test_films_are_never_mirrored() -> None:
    """A bright left edge stays on the left, whatever is drawn."""
    films = torch.zeros(64, 1, 64, 64)
    films[..., :12] = 1.0
    moved = module._augmented(films, torch.Generator().manual_seed(0))
    assert bool((moved[..., :32].mean((1, 2, 3)) > moved[..., 32:].mean((1, 2, 3))).all())
    assert not torch.equal(moved[0], moved[1])


def test_labels_are_looked_at_before_anything_is_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = write_table(tmp_path / "generated", 4, 1)
    asked = ["--generated", str(table), "--real", str(table), "--train", str(table.parent), "--utility"]
    assert main([*asked, "--out", str(tmp_path / "scores")]) == 2
    assert "--utility: --train" in capsys.readouterr().err
    assert not (tmp_path / "scores" / "scan").exists()

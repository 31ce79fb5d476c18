"""Films without a run, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from cxrl.data.phantom.films import corpus
from cxrl.evaluate import main as evaluate
from cxrl.images.png import to_uint8
from cxrl.scorers.choice import file_sha256


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders a and b, with a table for a."""
    root = tmp_path_factory.mktemp("films")
    for name, seed in (("a", 1), ("b", 2)):
        (root / name).mkdir()
        for i, image in enumerate(corpus(12, seed=seed).pixels()):
            Image.fromarray(to_uint8(image)).save(root / name / f"{i:02}.png")
    lines = [f"{i:02}.png,{i % 2},{'FM'[i % 2]}" for i in range(12)]
    (root / "a" / "films.csv").write_text("\n".join(["image,Edema,sex", *lines]) + "\n")
    return root


def test_folders_are_judged(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "scores"
    argv = [
        "--generated",
        str(films / "a"),
        "--real",
        str(films / "b"),
        "--out",
        str(out),
        "--bootstrap",
        "3",
    ]
    assert evaluate(argv) == 0
    told = capsys.readouterr().out
    assert "12 generated films against 12 real films" in told
    scores = json.loads((out / "scores.json").read_text())
    assert scores["generated"]["undefined"]["auroc"] == "the set has no column of labels"
    assert scores["bootstrap"] == 3
    assert {p.name for p in out.iterdir()} == {"scores.json", "scores.md", "scores.csv", "scan"}
    assert all(p.stat().st_mode & 0o077 == 0 for p in out.rglob("*"))


def test_features_of_another_model_stand_beside_the_judges(
    films: Path, tmp_path: Path, densenet: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digest = file_sha256(densenet)
    argv = ["--generated", str(films / "a"), "--real", str(films / "b"), "--bootstrap", "3"]
    argv += ["--out", str(tmp_path / "scores"), "--features", f"judge,densenet={densenet}"]
    assert evaluate([*argv, "--sha256", f"densenet={digest}"]) == 0
    assert "torchxrayvision DenseNet-121 densenet.pt, 1024 wide, 224 px" in capsys.readouterr().out
    scores = json.loads((tmp_path / "scores" / "scores.json").read_text())
    assert scores["feature_models"]["densenet"]["digest"] == digest
    assert scores["generated"]["other_features"]["densenet"]["values"]["fid"] > 0


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ("--out o", "expected --run DIR, or --generated"),
        ("--run r --generated a --real b --out o", "--run and --generated do not go together"),
        ("--num-images 4 --generated a --real b --out o", "--num-images and --generated do not go together"),
        ("--run r --seed 0 --out o", "--run and --seed do not go together"),
        ("--generated a --out o", "--real is missing"),
        ("--real b --out o", "--generated is missing"),
        ("--generated a --real nowhere --out o", "--real: cannot read nowhere"),
        ("--generated a --real b --per finding --out o", "--generated a has no column of a finding"),
        ("--generated a/films.csv --real b --per finding --out o", "--real b has no column of a finding"),
        ("--generated a --real b --subgroups sex --out o", "a is a folder"),
        ("--generated a/films.csv --real a/films.csv --subgroups age --out o", "has no column age"),
        ("--generated a --real b --judges nowhere --out o", "nowhere"),
        ("--generated a --real b --diagnosis nothing --out o", "eval.diagnosis"),
        ("--generated a --real b --subgroups sex,sex --out o", "list of different names"),
        ("--generated a --real b --out a/00.png", "a/00.png"),
        ("--generated a --real b --image-size 4 --out o", "at least 16"),
        ("--generated a --real b --features raddino=a --out o", "'raddino' is no feature model"),
        ("--generated a --real b --features rad-dino=a --out o", "a: there is no config.json; expected a"),
        ("--generated a --real b --features inception=b/00.png --out o", "b/00.png is a pickle and not one"),
        (
            "--generated a --real b --features densenet=nowhere --out o",
            "nowhere is no file, expected the wei",
        ),
        ("--run r --features judge --out o", "--run and --features do not go together"),
    ],
)
def test_bad_input_is_one_line(
    films: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], argv: str, words: str
) -> None:
    monkeypatch.chdir(films)
    assert evaluate(argv.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert words in error
    assert not (films / "o").exists()

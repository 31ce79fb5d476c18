"""A run on a table of films with the models for real films: random weights in the real file formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cxrl.data.phantom.films import corpus
from cxrl.evaluate import main as evaluate
from cxrl.images.png import to_uint8
from cxrl.scorers.choice import file_sha256
from cxrl.train import main as train

pytestmark = pytest.mark.slow

CHEX, MIMIC = "densenet121-res224-chex", "densenet121-res224-mimic_ch"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Films with short reports and CheXpert's labels, 8 to train and 6 held out."""
    films = corpus(14, seed=21)
    words = ("no acute effusion", "left pleural effusion", "heart size is normal", "heart enlarged", "lung")
    lines = ["image,text,split,Pleural Effusion,Cardiomegaly,No Finding"]
    for i, image in enumerate(films.pixels()):
        Image.fromarray(to_uint8(image)).save(tmp_path / f"{i}.png")
        labels = ("0,,1", "1,,0", ",0,1", ",1,0", ",,")[i % 5]
        lines.append(f"{i}.png,{words[i % 5]} {'abcdefghijklmn'[i]},{'train' if i < 8 else 'test'},{labels}")
    (tmp_path / "films.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "films.csv"


def test_two_epochs_with_models_for_real_films(
    tiny_pipeline: Path,
    table: Path,
    write_densenet: Callable[..., Path],
    make_image_text: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    reward, judge = write_densenet(1), write_densenet(2)
    options = {
        "model.path": tiny_pipeline,
        "data.source": "table",
        "data.root": table,
        "data.cache": tmp_path / "cache",
        "data.num-prompts": 8,
        "data.eval-num-prompts": 4,
        "rewards.names": "diagnosis,consistency",
        "rewards.weights": "1,1",
        "rewards.diagnosis": f"{MIMIC}:{reward}",
        "rewards.consistency": make_image_text("clip"),
        "rewards.sha256": f"diagnosis={file_sha256(reward)}",
        "eval.diagnosis": f"{CHEX}:{judge}",
        "eval.consistency": make_image_text("siglip", 1),
        "eval.sha256": f"diagnosis={file_sha256(judge)}",
        "train.samples-per-prompt": 2,
        "train.eval-every": 0,
        "comparison.bank-size": 1,
        "eval.num-images": 4,
        "eval.grid-prompts": 1,
        "run.trackers": "none",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run = tmp_path / "run"
    assert train(["--preset", "smoke", "--run-dir", str(run), *words]) == 0, capsys.readouterr().err
    said = capsys.readouterr()
    assert "warning: eval.posture: models of the phantom" in said.out
    summary = json.loads((run / "summary.json").read_text())
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        # The guard refuses what a random pipeline draws: the score of no film.
        assert line["reward"]["diagnosis"] < 0.1
        assert line["reward"]["consistency"] < 0.2
    judges = summary["judges"]
    assert judges["reference"] == "6 real films of split test of table"
    assert judges["diagnosis"] == f"{CHEX}:{judge}"
    assert judges["feature_dim"] == 1024
    assert summary["policy"]["fid"] > 0
    assert list((tmp_path / "features").glob("*.safetensors"))
    assert evaluate(["--run", str(run), "--out", str(tmp_path / "again.json")]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["policy"] == summary["policy"]

    same = [
        "--preset",
        "smoke",
        "--run-dir",
        str(tmp_path / "second"),
        *words,
        "--eval.diagnosis",
        f"{CHEX}:{reward}",
    ]
    capsys.readouterr()
    assert train(same) == 2
    assert "a judge must be another model than those that reward" in capsys.readouterr().err

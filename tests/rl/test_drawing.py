"""Reports to images: many at once, each by its report and seed alone, listed as they are written."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cxrl.config import MAX_SEED, DataConfig
from cxrl.errors import CxrlError
from cxrl.generate import main
from cxrl.image_sets.sets import open_set
from cxrl.images.png import SYNTHETIC
from cxrl.rl.drawing import Drawing, draw_images, save_images
from cxrl.rl.trainer import Trainer

REPORTS = ("left effusion", "heart enlarged", "no acute")


@pytest.fixture
def run(make_config: Any, fakes: dict[str, Any], tmp_path: Path) -> Path:
    Trainer(make_config(train={"num_epochs": 1}), tmp_path / "run", **fakes).run()
    return tmp_path / "run"


def test_a_file_of_reports(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = tmp_path / "reports.txt"
    prompts.write_text("\n\n".join(REPORTS) + "\n")
    words = ["--run", str(run), "--prompts", str(prompts), "--num-images", "5", "--seed", "7", "--grid"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    names = [f"policy-{r:04d}-{s:06d}.png" for r in (1, 2, 3) for s in range(7, 12)]
    assert told.out.splitlines() == [str(tmp_path / "out" / name) for name in (*names, "policy-grid.png")]
    assert told.err.startswith("next: cxrl generate --run ")
    with (tmp_path / "out" / "policy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == names
    assert [row["text"] for row in rows[::5]] == list(REPORTS)
    assert {(row["source"], row["prompt_id"]) for row in rows} == {("policy", str(n)) for n in (1, 2, 3)}
    with Image.open(tmp_path / "out" / "policy-grid.png") as grid:
        assert grid.text["Synthetic"] == SYNTHETIC  # type: ignore[attr-defined]
        assert grid.width > 3 * 192
        assert grid.height > 5 * 192
    assert main([*words, "--out", str(tmp_path / "out"), "--anchor"]) == 0, "what the hint says"
    assert (tmp_path / "out" / "anchor.csv").is_file()
    assert (tmp_path / "out" / "anchor-grid.png").is_file()


def test_the_list_is_what_evaluate_reads(run: Path, tmp_path: Path) -> None:
    """What the table says of a report beside its text comes along: labels, and columns of subgroups."""
    table, out = tmp_path / "reports.csv", tmp_path / "out"
    lines = [f"{report},{n % 2},,{'FM'[n % 2]}" for n, report in enumerate(REPORTS)]
    table.write_text("\n".join(["text,Edema,Pneumonia,sex", *lines]) + "\n")
    words = ["--run", str(run), "--prompts", str(table), "--num-images", "2", "--out", str(out)]
    assert main(words) == 0
    found = open_set(out / "policy.csv", "--generated", ["sex"])
    assert found.texts == tuple(report for report in REPORTS for _ in range(2))
    assert found.prompts == tuple(str(n) for n in (1, 2, 3) for _ in range(2))
    assert found.labels["Edema"] == (0.0, 0.0, 1.0, 1.0, 0.0, 0.0)
    assert all(math.isnan(value) for value in found.labels["Pneumonia"])
    assert found.groups["sex"] == ("F", "F", "M", "M", "F", "F")
    assert set(found.unread) == {"source", "seed"}


def test_no_image_of_another_report_is_lost(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--run", str(run), "--num-images", "2", "--out", str(out)]
    assert main([*words, "--prompt", "left effusion"]) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    capsys.readouterr()
    for more, name in (
        (["--prompt", "no acute"], "policy-000000.png"),
        (["--prompt", "no acute", "--seed", "1"], "policy-000001.png"),
    ):
        assert main([*words, *more]) == 2
        told = capsys.readouterr()
        assert told.out == "", "before anything is drawn"
        assert f"{out} holds {name}" in told.err
        assert "another folder" in told.err
    assert main([*words, "--prompt", "no acute", "--seed", "2", "--grid"]) == 0
    assert main([*words, "--prompt", "left effusion", "--seed", "4", "--grid"]) == 2
    assert "policy-grid.png" in capsys.readouterr().err
    assert {name: (out / name).read_bytes() for name in before} == before
    prompts = tmp_path / "reports.txt"
    prompts.write_text("heart enlarged\n")
    assert main([*words, "--prompts", str(prompts)]) == 0
    assert main([*words, "--prompts", str(prompts), "--seed", "9"]) == 2
    assert "policy.csv" in capsys.readouterr().err


def test_images_go_into_no_run_and_seeds_not_beyond_the_largest(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(run.rglob("*"))
    words = ["--run", str(run), "--prompt", "no acute"]
    for name in ("", "samples", "adapter/new", "logs"):
        assert main([*words, "--out", str(run / name)]) == 2
        assert "--out: " in capsys.readouterr().err
    most = str(MAX_SEED)
    assert main([*words, "--out", str(tmp_path / "x"), "--seed", most]) == 2
    assert f"goes beyond the largest, {most}" in capsys.readouterr().err
    assert set(run.rglob("*")) == before
    assert main([*words, "--out", str(run / "images"), "--seed", most, "--num-images", "1"]) == 0


def test_an_image_depends_on_its_report_and_seed_alone(run: Path) -> None:
    many = {
        (d.number, d.seed): d.image
        for d in draw_images(run, REPORTS, seeds=(3, 4), anchor=False, numbered=True)
    }
    (alone,) = draw_images(run, REPORTS[1:2], seeds=(4,), anchor=False)
    assert (alone.number, alone.name) == (0, "policy-000004")
    torch.testing.assert_close(alone.image, many[2, 4], atol=1e-5, rtol=0)
    assert not torch.equal(many[1, 4], many[2, 4])
    assert len({tuple(image.flatten().tolist()) for image in many.values()}) == 6


def test_images_are_on_the_disk_before_the_next_is_drawn(tmp_path: Path) -> None:
    def drawings() -> Iterator[Drawing]:
        for number in (1, 2, 3):
            yield Drawing(torch.rand(1, 8, 8), 0, number, "a report", "policy", restricted=False)
            seen.append(
                (len(list(tmp_path.glob("*.png"))), (tmp_path / "policy.csv").read_text().count("\n"))
            )

    seen: list[tuple[int, int]] = []
    written = save_images(tmp_path, drawings())
    next(written)
    next(written)
    assert seen == [(1, 2)], "streamed: nothing waits for the last"
    list(written)
    assert seen[-1] == (3, 4)


def test_of_restricted_reports_the_findings_alone_are_listed(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DataConfig, "is_restricted", True)
    about = [{"Edema": "1", "subject_id": "10000032"}]
    (drawing,) = draw_images(run, REPORTS[:1], seeds=(0,), anchor=False, numbered=True, columns=about)
    assert drawing.columns == {"Edema": "1"}
    list(save_images(tmp_path / "out", [drawing]))
    assert (tmp_path / "out" / "policy.csv").read_text().splitlines()[
        0
    ] == "image,source,seed,prompt_id,text,Edema"


def test_restricted_reports_are_in_no_file(tmp_path: Path) -> None:
    drawings = [Drawing(torch.rand(1, 8, 8), 0, n, "secret words", "policy", restricted=True) for n in (1, 2)]
    for path in (*save_images(tmp_path / "out", drawings, grid=True), tmp_path / "out" / "policy.csv"):
        assert b"secret" not in path.read_bytes()
        assert path.stat().st_mode & 0o077 == 0


def test_what_is_wrong_with_reports_is_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "t.csv"
    table.write_text("id,text\n1,left effusion\n2,\n")
    out = tmp_path / "out"
    base = ["--run", str(run), "--out", str(out)]
    for words, message in (
        ([], "give either --prompt TEXT or --prompts FILE"),
        (["--prompt", "a", "--prompts", str(table)], "give either --prompt TEXT or --prompts FILE"),
        (["--prompts", str(table)], "has no report"),
        (["--prompts", str(tmp_path / "none.csv")], "--prompts: cannot read"),
    ):
        assert main([*base, *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    with pytest.raises(CxrlError, match=r"prompt 2 has \d+ tokens, the text encoder reads 16"):
        list(draw_images(run, ["no acute", "heart " * 40], seeds=(0,), anchor=False))
    assert not out.exists()

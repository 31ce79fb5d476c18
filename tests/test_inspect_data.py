"""``python -m cxrl.inspect_data`` from its command line to the sheet."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrl import inspect_data as inspect


@pytest.fixture(scope="module")
def tree(mimic: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    tree = mimic.write_mimic_tree(tmp_path_factory.mktemp("mimic") / "tree", formats=("jpg", "dicom"))
    tree.image(2).write_bytes(tree.image(2).read_bytes()[:100])
    return tree


def run(tree: Any, *argv: object) -> int:
    options = ["--data.source", "mimic_cxr", "--data.root", str(tree.root), "--data.cache", "none"]
    return inspect.main([*options, *map(str, argv)])


def line(output: str, start: str) -> str:
    (found,) = [line for line in output.splitlines() if line.startswith(start)]
    return " ".join(found.split())


def test_counts(tree: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tree, "--data.check-images", "decode") == 0
    output = capsys.readouterr().out
    assert output.startswith("mimic_cxr: 9 films, 9 studies, 9 patients")
    assert line(output, "train") == "train 7 7 7 7"
    assert line(output, "validate") == "validate 1 1 1 1"
    assert line(output, "PA") == "PA 9"
    assert line(output, "Fracture") == "Fracture 0 / 7 / 0 0 / 1 / 0 0 / 1 / 0"
    assert line(output, "Pneumonia") == "Pneumonia 0 / 0 / 7 0 / 0 / 1 0 / 0 / 1"
    assert line(output, "view LATERAL").startswith("view LATERAL is not in data.views 10 ")
    assert line(output, "image corrupt") == f"image corrupt or truncated 1 {tree.films[2]}"


@pytest.mark.parametrize("image_format", ["jpg", "dicom"])
def test_a_contact_sheet(
    tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], image_format: str
) -> None:
    out = tmp_path / "new" / "sheet.png"
    assert run(tree, "--out", out, "--num-films", 10, "--data.image-format", image_format) == 0
    output = capsys.readouterr().out
    assert ("cannot be read: image corrupt or truncated 1" in output) == (image_format == "jpg")
    sheet = Image.open(out)
    assert sheet.text == {}, "real films do not say that they are synthetic"
    pixels = np.asarray(sheet)
    assert pixels.shape[1] == inspect.COLUMNS * (inspect.CELL + inspect.MARGIN) + inspect.MARGIN
    assert pixels[28 : 28 + inspect.CELL, inspect.MARGIN : inspect.MARGIN + inspect.CELL].std() > 20
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [p.name for p in out.parent.iterdir()] == ["sheet.png"]


def test_reports_too_long_for_a_tokenizer(
    tree: Any, tiny_pipeline: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tree, "--model.path", tiny_pipeline) == 2
    assert "are longer than the 16 tokens that the text encoder reads" in capsys.readouterr().err
    assert run(tree, "--model.path", "phantom") == 0
    output = capsys.readouterr().out
    assert line(output[output.index("usable reports") :], "train").startswith("train 8")


def test_texts_in_two_splits_and_labels_that_the_prompt_does_not_say_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"Film {n}.,train,," for n in range(5)]
    rows += ["No edema.,train,,0", "NO EDEMA,validate,,", "Edema.,validate,,1", "no edema,test,,"]
    rows += ["Mild edema. Unchanged effusion.,test,1,1"]
    (tmp_path / "p.csv").write_text("\n".join(["text,split,Pleural Effusion,Edema", *rows]))
    argv = ["--data.source", "prompts", "--data.root", str(tmp_path / "p.csv"), "--data.cache", "none"]
    assert inspect.main([*argv, "--model.path", "phantom"]) == 0
    counts, usable = capsys.readouterr().out.split("usable reports")
    assert [line(counts, name) for name in ("train", "validate", "test")] == [
        "train 5 5 5 5",
        "validate 2 2 2 1",
        "test 2 2 2 2",
    ]
    assert line(counts, "text also held out").startswith("text also held out, not trained on 1 ")
    assert line(counts, "text in two splits").startswith("text in two splits, now a prompt in one 1 ")
    assert line(counts, "text also in test").startswith("text also in test: no prompt, the film stays 1 ")
    assert line(counts, "label present, masked") == (
        "label present, masked: the report says it, the prompt does not 1 line 11 Pleural Effusion"
    )
    assert line(counts, "Edema") == "Edema 0 / 0 / 5 1 / 1 / 0 1 / 1 / 0"
    assert [line(usable, name).split()[1] for name in ("train", "validate", "test")] == ["5", "1", "2"]


def test_the_cache_is_used_and_rebuilt(tree: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--data.source", "mimic_cxr", "--data.root", str(tree.root), "--data.cache", str(tmp_path)]
    argv += ["--data.check-images", "exist"]
    assert inspect.main(argv) == 0
    assert "mimic_cxr: 10 films" in capsys.readouterr().out
    (cached,) = tmp_path.iterdir()
    written = cached.stat().st_ino
    assert inspect.main(argv) == 0
    assert cached.stat().st_ino == written
    tree.image(5).rename(tree.image(5).with_suffix(".old"))
    assert inspect.main(argv) == 0
    assert "mimic_cxr: 9 films" in capsys.readouterr().out, "a moved film is noticed"
    tree.image(5).with_suffix(".old").rename(tree.image(5))
    written = cached.stat().st_ino
    assert inspect.main([*argv, "--rebuild"]) == 0
    assert cached.stat().st_ino != written
    assert "mimic_cxr: 10 films" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "which data? openi is offline"),
        (["--data.source", "phantom"], "phantom has no files"),
        (["--data.source", "mimic"], "did you mean mimic_cxr?"),
        (["--data.source", "mimic_cxr"], "data.root is empty, but data.source mimic_cxr needs it"),
        (
            ["--data.source", "table", "--data.root", "/nowhere/t.csv"],
            "data.root: cannot read /nowhere/t.csv",
        ),
        (
            ["--data.source", "mimic_cxr", "--data.root", "/nowhere"],
            "expected one mimic-cxr-2.*-metadata.csv.gz",
        ),
        (["--num-films", "0"], "'0' is not a whole number of at least 1"),
        (["--data.rot", "x"], "did you mean --data.root?"),
    ],
)
def test_bad_options_are_one_line(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main(argv) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_a_sheet_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "p.txt").write_text("Clear.\n")
    argv = ["--data.source", "prompts", "--data.root", str(tmp_path / "p.txt"), "--data.cache", "none"]
    assert inspect.main([*argv, "--out", str(tmp_path / "s.png")]) == 2
    assert "--out: data.source prompts has no images here" in capsys.readouterr().err
    (tmp_path / "t.csv").write_text("image,text\na.png,Clear.\n")
    argv = ["--data.source", "table", "--data.root", str(tmp_path / "t.csv"), "--data.cache", "none"]
    assert inspect.main([*argv, "--out", str(tmp_path / "s.png")]) == 2
    assert "--out: no film can be read: image missing 1 (a.png)" in capsys.readouterr().err


def test_a_film_of_unusable_numbers_is_named(
    mimic: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A slope of nan made every pixel nan: the film was kept, and the sheet failed without a name."""
    import pydicom

    tree = mimic.write_mimic_tree(tmp_path / "tree", formats=("dicom",))
    path = tree.image(4, ".dcm")
    data = pydicom.dcmread(path)
    tag = pydicom.datadict.tag_for_keyword("RescaleSlope")
    data[tag] = pydicom.DataElement(tag, "DS", "nan", validation_mode=pydicom.config.IGNORE)
    data.save_as(path)
    options = ("--data.image-format", "dicom", "--num-films", 10)
    assert run(tree, "--out", tmp_path / "sheet.png", *options) == 0
    reason = "image with an unusable rescaling, window or table 1"
    assert f"not on the sheet, cannot be read: {reason} ({tree.films[4]})" in capsys.readouterr().out
    assert run(tree, "--data.check-images", "decode", *options[:2]) == 0
    assert line(capsys.readouterr().out, "image with") == f"{reason} {tree.films[4]}"

"""Fine-tuning on a table: a tiny one from the command line, and every way a table can be bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from cxrl import pretrain
from cxrl.errors import CxrlError
from cxrl.pretraining.finetune import read_image, read_table


def write_images(folder: Path) -> None:
    """Three grey images of different sizes and modes."""
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in (("a.png", (20, 20)), ("b.jpg", (32, 18)), ("c.png", (10, 40, 3))):
        Image.fromarray(rng.integers(0, 255, shape, dtype=np.uint8)).save(folder / "images" / name)


def write_table(folder: Path, text: str) -> Path:
    path = folder / "pairs.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def table(tmp_path: Path) -> Path:
    write_images(tmp_path)
    rows = "image,text\nimages/a.png,no acute\nimages/b.jpg,heart normal\nimages/c.png,left effusion\n"
    return write_table(tmp_path, rows)


def tune(base: Path, table: Path, out: Path, *more: str) -> int:
    argv = ["--base", str(base), "--table", str(table), "--out", str(out), "--steps", "2"]
    return pretrain.main([*argv, "--batch-size", "2", "--learning-rate", "1e-3", *more])


def test_the_unet_learns_and_the_rest_stays(
    tiny_pipeline: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "tuned"
    assert tune(tiny_pipeline, table, out) == 0
    assert "fine-tuned for 2 steps on 3 images" in capsys.readouterr().out
    for part in ("unet", "vae", "text_encoder"):
        name = next((out / part).glob("*.safetensors")).name
        before, after = load_file(tiny_pipeline / part / name), load_file(out / part / name)
        assert before.keys() == after.keys()
        same = all(torch.equal(before[k], after[k]) for k in before)
        assert same == (part != "unet"), part
    pipe = StableDiffusionPipeline.from_pretrained(out)
    pipe.set_progress_bar_config(disable=True)
    images = pipe("no acute", num_inference_steps=2, output_type="np").images
    assert np.isfinite(images).all()


def test_a_finished_one_is_not_trained_again_and_another_table_is_not_mixed_in(
    tiny_pipeline: Path, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune(tiny_pipeline, table, tmp_path / "tuned") == 0
    assert tune(tiny_pipeline, table, tmp_path / "tuned") == 0
    assert "base: continues at step 2 of 2" in capsys.readouterr().out
    table.write_text(table.read_text().replace("left effusion", "lung"))
    assert tune(tiny_pipeline, table, tmp_path / "tuned") == 2
    assert "base.checkpoint was written with other settings (data " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column image, text; found none"),
        ("image,caption\na.png,x\n", "has no column text; found image, caption"),
        ("image,text\n", "has no rows"),
        ("image,text\nimages/a.png,no acute\nimages/b.jpg,  \n", "line 3 has no text"),
        ("image,text\nimages/a.png\n", "line 2 has no text"),
        ("image,text\n,no acute\n", "line 2 has no image"),
        ("image,text\nimages/a.png,no acute\nimages/gone.png,x\n", "gone.png cannot be read as an image"),
        ("image,text\npairs.csv,no acute\n", "pairs.csv cannot be read as an image"),
        (
            "image,text\nimages/a.png," + "heart " * 40 + "\n",
            "a text has 42 tokens, the text encoder reads 16",
        ),
    ],
)
def test_a_bad_table_is_one_line(
    text: str, words: str, tiny_pipeline: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_images(tmp_path)
    assert tune(tiny_pipeline, write_table(tmp_path, text), tmp_path / "tuned") == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert not (tmp_path / "tuned").exists()


def test_a_table_that_is_missing_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(CxrlError, match=r"gone\.csv is not a file"):
        read_table(tmp_path / "gone.csv")
    (tmp_path / "x.csv").write_bytes(b"image,text\n\xff\xfe,\xff\n")
    with pytest.raises(CxrlError, match=r"x\.csv is not a CSV in UTF-8"):
        read_table(tmp_path / "x.csv")


def test_the_table_of_a_spreadsheet(tmp_path: Path) -> None:
    rows = '\ufeffid,text,image\r\n1,"No edema, no effusion.",a.png\r\n'
    assert read_table(write_table(tmp_path, rows)) == [(tmp_path / "a.png", "No edema, no effusion.")]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "give either --preset"),
        (["--preset", "smoke", "--table", "x.csv"], "give either --preset"),
        (["--table", "x.csv"], "--table needs --base"),
        (["--preset", "smok"], "did you mean smoke?"),
        (["--table", "x.csv", "--base", "y", "--steps", "0"], "'0' is not a whole number of at least 1"),
    ],
)
def test_bad_options(argv: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain.main([*argv, "--out", str(tmp_path / "out")]) == 2
    assert words in capsys.readouterr().err


def test_images_are_cropped_to_the_centre_and_keep_their_levels(tmp_path: Path) -> None:
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    image = read_image(tmp_path / "wide.png", 8, 8, 3)
    assert tuple(image.shape) == (3, 8, 8)
    assert bool((image == 1.0).all())
    Image.fromarray(255 - pixels).save(tmp_path / "wide.png")
    assert bool((read_image(tmp_path / "wide.png", 8, 8, 1) == -1.0).all())


def test_sixteen_bits_keep_their_levels(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    image = read_image(tmp_path / "deep.png", 8, 8, 1)[0]
    assert torch.allclose(image, torch.from_numpy(levels.astype(np.float32)) / 32767.5 - 1.0, atol=1e-6)


def test_a_truncated_image_is_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)).save(
        tmp_path / "a.png"
    )
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(CxrlError, match=r"a\.png cannot be read as an image .*mend or remove its row"):
        read_image(tmp_path / "a.png", 8, 8, 1)

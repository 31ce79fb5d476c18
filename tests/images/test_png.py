import numpy as np
import pytest
import torch
from PIL import Image

from cxrl import __version__
from cxrl.errors import CxrlError
from cxrl.images.png import (
    CAPTION_LINES,
    CELL,
    LABEL,
    MARGIN,
    SYNTHETIC,
    save_grid,
    save_png,
    to_uint8,
    wrap_caption,
)


def test_levels_are_rounded():
    image = torch.tensor([[[0.0, 1.0, 0.5, 0.4 / 255, 0.6 / 255]]])
    assert to_uint8(image).tolist() == [[0, 255, 128, 0, 1]]


@pytest.mark.parametrize("bad", [1.0001, -0.0001, float("nan")])
def test_values_outside_the_range_are_refused(bad):
    with pytest.raises(ValueError, match=r"outside \[0, 1\] or nan"):
        to_uint8(torch.full((1, 2, 2), bad))


def test_shape_is_checked():
    with pytest.raises(ValueError, match=r"\[1, H, W\], got shape \(3, 2, 2\)"):
        to_uint8(torch.zeros(3, 2, 2))


def test_a_png_says_that_it_is_synthetic_and_keeps_every_pixel(tmp_path):
    image = torch.rand(1, 7, 5, generator=torch.Generator().manual_seed(0))
    save_png(tmp_path / "a.png", image, prompt="Small effusion – left.", seed=7, extra={"Source": "anchor"})
    with Image.open(tmp_path / "a.png") as png:
        assert png.mode == "L"
        assert png.text["Synthetic"] == SYNTHETIC
        assert png.text["Software"] == f"cxrl {__version__}"
        assert (png.text["Prompt"], png.text["Seed"], png.text["Source"]) == (
            "Small effusion – left.",
            "7",
            "anchor",
        )
        assert np.array_equal(np.asarray(png), to_uint8(image))
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_file_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "a.png").mkdir()
    with pytest.raises(CxrlError, match=r"cannot write .*a\.png"):
        save_png(tmp_path / "a.png", torch.zeros(1, 2, 2), prompt="", seed=0)
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


def test_a_grid_puts_the_anchor_above_the_policy(tmp_path):
    rows = {"anchor": torch.full((3, 1, 64, 64), 0.2), "policy": torch.full((3, 1, 64, 64), 0.7)}
    save_grid(tmp_path / "g.png", rows, ["No acute finding.", "Large left effusion.", "word " * 200])
    with Image.open(tmp_path / "g.png") as png:
        assert png.text["Synthetic"] == SYNTHETIC
        pixels = np.asarray(png)
    header = int(np.argmax((pixels[:, LABEL + CELL // 2] == 51) & (pixels[:, LABEL + 1] == 51)))
    for p in range(3):
        left = LABEL + p * (CELL + MARGIN)
        assert (pixels[header : header + CELL, left : left + CELL] == 51).all()
        below = header + CELL + MARGIN
        assert (pixels[below : below + CELL, left : left + CELL] == 178).all()
        assert (pixels[below + CELL + MARGIN :, left : left + CELL] < 128).any(), "no caption"
    assert (pixels[:header] < 128).any(), "no banner"
    assert (pixels[:, -MARGIN:] == 255).all(), "a caption runs out of the picture"


def test_captions_are_cut_with_dots():
    from PIL import ImageFont

    font = ImageFont.load_default(13)
    lines = wrap_caption("word " * 200, font, CELL)
    assert len(lines) == CAPTION_LINES
    assert lines[-1].endswith("...")
    assert all(font.getlength(line) <= CELL for line in wrap_caption("x" * 400, font, CELL) + lines)
    assert wrap_caption("Two words", font, CELL) == ["Two words"]
    assert wrap_caption("38 °C – “fever” α", font, CELL) == ['38 °C - "fever" ?']


def test_a_grid_needs_one_image_per_caption(tmp_path):
    with pytest.raises(ValueError, match="3 captions, anchor 2"):
        save_grid(tmp_path / "g.png", {"anchor": torch.zeros(2, 1, 8, 8)}, ["a", "b", "c"])

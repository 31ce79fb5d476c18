"""Reading films: ranges, 16 bits, DICOM, resizing; and that nothing unreadable becomes a black image."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile

from cxrl.data.phantom.films import corpus
from cxrl.errors import CxrlError
from cxrl.images.read import UnreadableImage, read_image, resize

RAMP = np.linspace(0.0, 1.0, 48, dtype=np.float32).reshape(6, 8)


def film(size: int = 64) -> np.ndarray:
    return corpus(1, seed=3, size=size).images[0, 0].numpy()


@pytest.mark.parametrize(
    ("mode", "name"),
    [("L", "a.png"), ("RGB", "a.png"), ("RGBA", "a.png"), ("P", "a.png"), ("LA", "a.png"), ("L", "a.tif")],
)
def test_eight_bits_of_every_mode(tmp_path: Path, mode: str, name: str) -> None:
    stored = np.round(RAMP * 255).astype(np.uint8)
    Image.fromarray(stored).convert(mode).save(tmp_path / name)
    image = read_image(tmp_path / name)
    assert image.dtype == torch.float32
    assert tuple(image.shape) == (1, 6, 8)
    # An RGB grey is a weighted sum of three equal values, rounded by Pillow.
    assert torch.allclose(image[0], torch.from_numpy(stored) / 255, atol=1 / 255 if mode != "L" else 0)


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_sixteen_bits_are_not_cut_to_eight(tmp_path: Path, name: str) -> None:
    stored = np.round(RAMP * 65535).astype(np.uint16)
    Image.fromarray(stored).save(tmp_path / name)
    assert torch.allclose(read_image(tmp_path / name)[0], torch.from_numpy(stored.astype(np.float32)) / 65535)


def test_floats_must_be_in_the_range(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.tif")
    assert torch.equal(read_image(tmp_path / "a.tif")[0], torch.from_numpy(RAMP))
    Image.fromarray(RAMP * 300).save(tmp_path / "a.tif")
    with pytest.raises(UnreadableImage, match="outside the range") as error:
        read_image(tmp_path / "a.tif")
    assert error.value.reason == "image of another kind"


@pytest.mark.parametrize("name", ["a.jpg", "a.png"])
@pytest.mark.parametrize("keep", [0, 20, 0.3, 0.7])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, keep: float) -> None:
    Image.fromarray(film()).save(tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(keep * len(data)) if keep < 1 else int(keep)])
    for size in (None, 16):
        with pytest.raises(UnreadableImage, match=rf"{name} cannot be read as an image \(") as error:
            read_image(tmp_path / name, size)
        assert error.value.reason == "image corrupt or truncated"
        assert "\n" not in str(error.value)


def test_missing_blank_and_foreign_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage) as error:
        read_image(tmp_path / "none.jpg")
    assert error.value.reason == "image missing"
    for value in (0, 77, 255):
        Image.new("L", (8, 8), value).save(tmp_path / "a.png")
        with pytest.raises(UnreadableImage) as error:
            read_image(tmp_path / "a.png")
        assert error.value.reason == "image blank"
    (tmp_path / "a.jpg").write_text("<html>404</html>")
    with pytest.raises(UnreadableImage) as error:
        read_image(tmp_path / "a.jpg")
    assert error.value.reason == "image corrupt or truncated"
    first, second = (Image.fromarray(film()).rotate(r) for r in (0, 90))
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    with pytest.raises(UnreadableImage, match="2 frames"):
        read_image(tmp_path / "a.tif")


def test_pillow_is_not_allowed_to_fill_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(film()).save(tmp_path / "a.jpg")
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(CxrlError, match="LOAD_TRUNCATED_IMAGES"):
        read_image(tmp_path / "a.jpg")


def test_resizing_averages_over_the_area() -> None:
    checks = torch.arange(64).reshape(1, 8, 8).remainder(2).float()
    # The filter is a triangle cut at the border, so its mean of a checkerboard is not exactly a half.
    assert torch.allclose(resize(checks, (2, 2)), torch.full((1, 2, 2), 0.5), atol=0.05)
    assert torch.equal(resize(checks, (8, 8)), checks)
    flat = torch.full((1, 37, 53), 0.25)
    assert torch.allclose(resize(flat, (16, 16)), torch.full((1, 16, 16), 0.25), atol=1e-6)
    image = torch.rand(1, 33, 21, generator=torch.Generator().manual_seed(0))
    for size in ((16, 16), (64, 64), (5, 90)):
        out = resize(image, size)
        assert tuple(out.shape) == (1, *size)
        assert float(out.min()) >= float(image.min()) - 1e-6, "no overshoot"
        assert float(out.max()) <= float(image.max()) + 1e-6


def test_the_centre_is_cut_or_the_whole_is_kept() -> None:
    image = torch.zeros(1, 8, 24)
    image[..., 8:16] = 1.0
    assert bool((resize(image, (8, 8)) == 1.0).all())
    whole = resize(image, (24, 24), crop=False)
    assert torch.equal(whole[:, 8:16], image)
    assert float(whole[:, :8].max()) == float(whole[:, 16:].max()) == 0.0
    assert torch.equal(resize(image.transpose(1, 2), (24, 24), crop=False), whole.transpose(1, 2))


def test_a_jpg_decoded_small_is_the_jpg_made_small(tmp_path: Path) -> None:
    Image.fromarray(film(512)).save(tmp_path / "a.jpg", quality=95)
    small = read_image(tmp_path / "a.jpg", 64)
    expected = resize(read_image(tmp_path / "a.jpg"), (64, 64))
    # libjpeg averages 2, 4 or 8 pixels in the frequency domain, then the same resizing: a level or two apart.
    assert float((small - expected).abs().max()) < 6 / 255
    assert float((small - expected).abs().mean()) < 1 / 255


@pytest.mark.parametrize("inverted", [False, True])
def test_a_dicom_is_what_was_stored(tmp_path: Path, mimic: Any, inverted: bool) -> None:
    mimic.write_dicom(tmp_path / "a.dcm", RAMP, inverted=inverted)
    # 12 bits: half a level is 1.2e-4.
    assert torch.allclose(read_image(tmp_path / "a.dcm")[0], torch.from_numpy(RAMP), atol=2e-4)


def test_the_window_of_a_dicom_is_applied(tmp_path: Path, mimic: Any) -> None:
    window = {"WindowCenter": 2048, "WindowWidth": 1024, "VOILUTFunction": "LINEAR_EXACT"}
    mimic.write_dicom(tmp_path / "a.dcm", RAMP, **window)
    expected = ((torch.from_numpy(RAMP) * 4095 - 1536) / 1024).clamp(0, 1)
    assert torch.allclose(read_image(tmp_path / "a.dcm")[0], expected, atol=1e-3)


def test_padding_is_black_and_does_not_set_the_range(tmp_path: Path, mimic: Any) -> None:
    pixels = np.full((6, 10), 0.0, dtype=np.float32)
    pixels[:, 1:9] = 0.5 + RAMP / 4
    mimic.write_dicom(tmp_path / "a.dcm", pixels, PixelPaddingValue=0)
    image = read_image(tmp_path / "a.dcm")[0]
    assert torch.allclose(image[:, 1:9], torch.from_numpy(RAMP), atol=2e-3)
    assert float(image[:, [0, 9]].max()) == 0.0


def test_dicoms_that_cannot_be_used_are_named(tmp_path: Path, mimic: Any) -> None:
    path = tmp_path / "a.dcm"
    mimic.write_dicom(path, RAMP)
    data = path.read_bytes()
    for content, reason in (
        (data[:-20], "image corrupt"),
        (data[:60], "image corrupt"),
        (b"", "image corrupt"),
    ):
        path.write_bytes(content)
        with pytest.raises(UnreadableImage) as error:
            read_image(path)
        assert error.value.reason.startswith(reason)
    mimic.write_dicom(path, np.zeros((6, 8), dtype=np.float32))
    with pytest.raises(UnreadableImage) as error:
        read_image(path)
    assert error.value.reason == "image blank"
    mimic.write_dicom(path, RAMP, PhotometricInterpretation="YBR_FULL")
    with pytest.raises(UnreadableImage):
        read_image(path)


def test_without_pydicom_there_is_one_clear_error(
    tmp_path: Path, mimic: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mimic.write_dicom(tmp_path / "a.dcm", RAMP)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(CxrlError, match=r"pip install 'cxrl\[dicom\]'") as error:
        read_image(tmp_path / "a.dcm")
    assert not isinstance(error.value, UnreadableImage)

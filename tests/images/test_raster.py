"""One picture through every format, depth, byte order, polarity and orientation: it is always the picture."""

from __future__ import annotations

import io
import itertools
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cxrl.images.raster import FORMATS
from cxrl.images.read import read_image
from cxrl.images.unreadable import UnreadableImage

HALF_LEVEL = {bits: 0.5 / (2**bits - 1) + 1e-7 for bits in (1, 2, 4, 8, 12, 16)}


def found(path: Path, data: bytes, size: int | tuple[int, int] | None = None) -> np.ndarray:
    path.write_bytes(data)
    return read_image(path, size)[0].numpy()


def reason(path: Path, data: bytes) -> UnreadableImage:
    path.write_bytes(data)
    with pytest.raises(UnreadableImage) as error:
        read_image(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return error.value


def test_pillow_knows_the_formats() -> None:
    Image.init()
    assert set(FORMATS) <= set(Image.OPEN)


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("colour", "bits"),
    [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8), (6, 8)],
)
def test_every_png(tmp_path: Path, files: Any, colour: int, bits: int, interlaced: bool) -> None:
    picture = files.picture()
    image = found(tmp_path / "a.png", files.png(picture, bits, colour, interlaced=interlaced))
    np.testing.assert_allclose(image, picture, rtol=0, atol=HALF_LEVEL[bits])


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_sixteen_bits_of_several_samples_keep_eight(tmp_path: Path, files: Any, colour: int) -> None:
    # Pillow cuts them to 8 bits, and truncates: a whole level.
    picture = files.picture()
    image = found(tmp_path / "a.png", files.png(picture, 16, colour))
    np.testing.assert_allclose(image, picture, rtol=0, atol=1 / 255)


TIFFS = [
    *itertools.product((1, 2, 4, 8, 16), "<>", (False, True), (False,)),
    *itertools.product((12,), "<", (False, True), (False,)),
    *itertools.product((32,), "<>", (False, True), (True,)),
]


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize(("bits", "order", "white_is_zero", "floats"), TIFFS)
def test_every_tiff(
    tmp_path: Path,
    files: Any,
    bits: int,
    order: str,
    white_is_zero: bool,
    floats: bool,
    deflated: bool,
    big: bool,
) -> None:
    picture = files.picture()
    options = {"white_is_zero": white_is_zero, "floats": floats, "deflated": deflated, "big": big}
    data = files.tiff(picture, bits, order=order, **options)
    if order == ">" and (big or (deflated and bits == 32)):  # Pillow misreads these
        assert reason(tmp_path / "a.tif", data).reason == "image format not supported"
        return
    image = found(tmp_path / "a.tif", data)
    np.testing.assert_allclose(image, picture, rtol=0, atol=1e-7 if floats else HALF_LEVEL[bits])
    assert float(image[0, 0]) == 0.0
    assert float(image[-1, -1]) == 1.0


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_tiffs(tmp_path: Path, files: Any, bits: int, order: str) -> None:
    image = found(tmp_path / "a.tif", files.tiff(files.picture(), bits, order=order, colour=True))
    np.testing.assert_allclose(image, files.picture(), rtol=0, atol=1 / 255)


OTHERS = [
    *(("JPEG", mode, {"quality": 100, "subsampling": 0}, 3 / 255) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "L", {"quality": 100, "progressive": True}, 3 / 255),
    ("WEBP", "RGB", {"lossless": True}, 1 / 255),
    *(("BMP", mode, {}, 1 / 255) for mode in ("L", "RGB", "P")),
    *(("GIF", mode, {}, 1 / 255) for mode in ("L", "P")),
    *(("PPM", mode, {}, 1 / 255) for mode in ("L", "RGB")),
    *(("JPEG2000", mode, {"irreversible": False}, 1 / 255) for mode in ("L", "RGB", "LA")),
]
"""JPEG rounds its coefficients: a level or two at quality 100."""


@pytest.mark.parametrize(("kind", "mode", "options", "tolerance"), OTHERS)
def test_every_other_format(
    tmp_path: Path, files: Any, kind: str, mode: str, options: dict[str, Any], tolerance: float
) -> None:
    image = found(tmp_path / "a.jpg", files.by_pillow(files.picture(), kind, mode, **options))
    np.testing.assert_allclose(image, files.picture(), rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["JPEG2000", "PPM"])
def test_sixteen_bits_of_other_formats(tmp_path: Path, files: Any, kind: str) -> None:
    stored, file = files.levels(files.picture(), 16).astype(np.uint16), io.BytesIO()
    if kind == "PPM":
        file.write(b"P5 %d %d 65535\n" % (files.WIDTH, files.HEIGHT) + stored.astype(">u2").tobytes())
    else:
        Image.fromarray(stored).save(file, kind, irreversible=False)
    image = found(tmp_path / "a.png", file.getvalue())
    np.testing.assert_allclose(image, files.picture(), rtol=0, atol=HALF_LEVEL[16])


def turned(files: Any, kind: str, orientation: int) -> bytes:
    lying = np.ascontiguousarray(files.TURNED[orientation](files.picture()))
    if kind.startswith("TIFF"):
        bits, order, white = {"": (8, "<", False), " 16": (16, "<", False), " 16 BE": (16, ">", True)}[
            kind.removeprefix("TIFF").removesuffix(" deflated")
        ]
        deflated = kind.endswith("deflated")
        return files.tiff(
            lying, bits, order=order, white_is_zero=white, deflated=deflated, orientation=orientation
        )
    if kind.startswith("PNG"):
        chunk = (b"eXIf", files.exif(orientation).removeprefix(b"Exif\0\0"))
        return files.png(lying, 16 if kind.endswith("16") else 8, chunks=[chunk])
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}[kind]
    mode = "L" if kind == "JPEG" else "RGB"
    return files.by_pillow(lying, kind, mode, exif=files.exif(orientation), **options)


@pytest.mark.parametrize(
    "kind",
    [
        "JPEG",
        "PNG",
        "PNG 16",
        "WEBP",
        "TIFF",
        "TIFF 16",
        "TIFF 16 BE",
        "TIFF deflated",
        "TIFF 16 BE deflated",
    ],
)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_upright(tmp_path: Path, files: Any, kind: str, orientation: int) -> None:
    data, picture = turned(files, kind, orientation), files.picture()
    image = found(tmp_path / "a.jpg", data)
    np.testing.assert_allclose(image, picture, rtol=0, atol=3 / 255)
    # A JPG may be decoded smaller than it is: also then the sides are those of the film as it is seen.
    small = found(tmp_path / "a.jpg", data, (files.HEIGHT // 4, files.WIDTH // 4))
    expected = found(tmp_path / "b.png", files.png(picture, 16), (files.HEIGHT // 4, files.WIDTH // 4))
    np.testing.assert_allclose(small, expected, rtol=0, atol=5 / 255)


def test_orientation_6_is_the_one_that_pillow_means(tmp_path: Path, files: Any) -> None:
    """The table of the tests and that of the code could be wrong alike."""
    for orientation in range(1, 9):
        data = turned(files, "JPEG", orientation)
        with Image.open(io.BytesIO(data)) as image:
            from PIL import ImageOps

            upright = np.asarray(ImageOps.exif_transpose(image), dtype=np.float32) / 255
        np.testing.assert_array_equal(found(tmp_path / "a.jpg", data), upright)


def test_a_damaged_exif_block_does_not_damage_the_picture(tmp_path: Path, files: Any) -> None:
    whole = files.by_pillow(files.picture(), "JPEG", quality=100, exif=files.exif(6))
    place = whole.index(b"Exif\0\0") + 6
    image = found(tmp_path / "a.jpg", whole[:place] + b"XXXX" + whole[place + 4 :])
    np.testing.assert_allclose(image, files.picture(), rtol=0, atol=3 / 255)


@pytest.mark.parametrize("kind", ["alpha 4", "alpha 6", "key 0", "key 0 of 16", "key 2", "palette"])
def test_what_is_transparent_is_black(tmp_path: Path, files: Any, kind: str) -> None:
    picture, border = 0.25 + 0.5 * files.picture(), np.zeros((files.HEIGHT, files.WIDTH), dtype=bool)
    border[:3], border[:, -3:] = True, True
    stored = np.where(border, 1.0, picture)
    if kind.startswith("alpha"):
        data = files.png(stored, 8, int(kind[-1]), alpha=1.0 - border)
    elif kind == "palette":
        data = files.png(stored, 8, 3, chunks=[(b"tRNS", b"\xff" * 255 + b"\0")])
        data = data if data.index(b"PLTE") < data.index(b"tRNS") else b""
    else:
        bits = 16 if kind.endswith("16") else 8
        colour = 2 if kind == "key 2" else 0
        key = struct.pack(">H", 2**bits - 1) * (3 if colour else 1)
        data = files.png(stored, bits, colour, chunks=[(b"tRNS", key)])
    image = found(tmp_path / "a.png", data)
    np.testing.assert_allclose(image, np.where(border, 0.0, picture), rtol=0, atol=HALF_LEVEL[8])


def test_half_transparent_is_half_as_bright(tmp_path: Path, files: Any) -> None:
    half = np.full((files.HEIGHT, files.WIDTH), 0.5)
    image = found(tmp_path / "a.png", files.png(files.picture(), 8, 4, alpha=half))
    np.testing.assert_allclose(image, files.picture() * 128 / 255, rtol=0, atol=HALF_LEVEL[8])


def test_gamma_and_resolution_are_left_alone(tmp_path: Path, files: Any) -> None:
    chunks = [(b"gAMA", struct.pack(">I", 100000)), (b"pHYs", struct.pack(">IIB", 100, 300, 1))]
    image = found(tmp_path / "a.png", files.png(files.picture(), 16, chunks=chunks))
    np.testing.assert_allclose(image, files.picture(), rtol=0, atol=HALF_LEVEL[16])


@pytest.mark.parametrize("kind", ["TIFF", "PNG", "GIF", "WEBP"])
def test_several_frames_are_refused(tmp_path: Path, files: Any, kind: str) -> None:
    first, second = (Image.fromarray((values * 255).astype(np.uint8)) for values in (files.picture(),) * 2)
    file = io.BytesIO()
    second.putpixel((0, 0), 200)  # equal frames are joined
    first.save(file, kind, save_all=True, append_images=[second])
    error = reason(tmp_path / "a.png", file.getvalue())
    assert error.reason == "image of another kind"
    assert "2 frames" in str(error)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"bits": 64, "floats": True}, "TIFF of 64 bits, photometric 1, sample format 3"),
        ({"bits": 12, "order": ">"}, "TIFF of 12 bits"),
        ({"bits": 8, "tags": {339: 2}}, "signed integers"),
        ({"bits": 16, "tags": {339: 2}}, "signed integers"),
        ({"bits": 32, "tags": {339: 2}, "white_is_zero": True}, "signed integers"),
        ({"bits": 32, "white_is_zero": True}, "white is zero and 32-bit integers"),
        ({"bits": 8, "tags": {262: None}}, "a TIFF without photometric interpretation"),
        ({"bits": 8, "colour": True, "tags": {262: 8}}, "colours as LAB"),
    ],
)
def test_tiffs_that_could_mean_anything_are_refused(
    tmp_path: Path, files: Any, options: dict[str, Any], told: str
) -> None:
    error = reason(tmp_path / "a.tif", files.tiff(files.picture(), **options))
    assert told in str(error)
    assert error.reason in ("image of another kind", "image format not supported")


def test_integers_of_32_bits_are_those_of_16_in_larger_cells(tmp_path: Path, files: Any) -> None:
    data = files.tiff(files.picture() * 65535 / (2**32 - 1), 32)
    np.testing.assert_allclose(found(tmp_path / "a.tif", data), files.picture(), rtol=0, atol=1e-5)
    assert "outside the range" in str(reason(tmp_path / "a.tif", files.tiff(files.picture(), 32)))


def test_formats_without_a_decoder_are_no_damage(tmp_path: Path, files: Any) -> None:
    jpg = files.by_pillow(files.picture(), "JPEG")
    place = jpg.index(b"\xff\xc0")
    for data, name in (
        (jpg.replace(b"\xff\xc0", b"\xff\xc3"), "lossless or hierarchical JPEG"),
        (jpg.replace(b"\xff\xc0", b"\xff\xf7"), "JPEG-LS"),
        (jpg[: place + 4] + b"\x0c" + jpg[place + 5 :], "JPEG of 12 bits"),
        (b"\xff\x0a" + jpg, "JPEG XL"),
        (b"\0\0\0\x1cftypheic" + jpg, "HEIC"),
        (b"%PDF-1.4" + jpg, "PDF"),
    ):
        error = reason(tmp_path / "a.jpg", data)
        assert error.reason == "image format not supported", name
        assert f"{name}" in str(error)
        assert "convert it to PNG" in str(error)
    # What is only cut off stays what it was.
    assert reason(tmp_path / "a.jpg", jpg[:-100]).reason == "image corrupt or truncated"
    assert reason(tmp_path / "a.tif", files.tiff(files.picture(), 16)[:-50]).reason != "image of another kind"


def test_no_program_is_started_for_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import subprocess

    monkeypatch.setattr(subprocess, "check_call", lambda *_, **__: pytest.fail("ghostscript"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert reason(tmp_path / "a.jpg", script).reason == "image corrupt or truncated"


def test_what_would_fill_the_memory_is_not_decoded(tmp_path: Path, files: Any) -> None:
    png = files.png(files.picture())
    for width, height in ((9000, 9000), (2**31 - 1, 2**31 - 1), (100_000, 1000)):
        head = struct.pack(">II", width, height)
        data = png[:16] + head + png[24:]
        crc = struct.pack(">I", __import__("zlib").crc32(data[12:29]))
        error = reason(tmp_path / "a.png", data[:29] + crc + data[33:])
        assert error.reason == "image too large", (width, height)
    huge = files.tiff(files.picture(), tags={256: 60_000, 257: 60_000})
    assert reason(tmp_path / "a.tif", huge).reason == "image too large"

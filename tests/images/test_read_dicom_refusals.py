"""DICOM files that are no film, or that nothing here can read: refused, each by its own reason."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import pydicom
import pytest

from cxrl.data.films import read_films
from cxrl.data.index import FilmRecord, Tally
from cxrl.images.read import read_image
from cxrl.images.unreadable import MAX_PIXELS, UnreadableImage

UNUSABLE_NUMBERS = "image with an unusable rescaling, window or table"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.dcm"


def refused(path: Path, data: bytes, reason: str) -> str:
    path.write_bytes(data)
    with pytest.raises(UnreadableImage) as error:
        read_image(path)
    assert error.value.reason == reason
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


UNUSABLE = [
    *itertools.product(
        ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"),
        ("nan", "inf", "-inf", "1e38", "-1e38", "1e300"),
    ),
    ("RescaleSlope", "0"),
    ("RescaleSlope", ["1", "2"]),
]


def with_numbers(data: bytes, **tags: Any) -> bytes:
    """A file with decimal strings that pydicom would not write."""
    file, out = pydicom.dcmread(io.BytesIO(data)), io.BytesIO()
    for name, value in tags.items():
        tag = pydicom.datadict.tag_for_keyword(name)
        file[name] = pydicom.DataElement(tag, "DS", value, validation_mode=pydicom.config.IGNORE)
    file.save_as(out)
    return out.getvalue()


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_numbers_that_no_film_can_mean(path: Path, files: Any, name: str, value: Any) -> None:
    tags: dict[str, Any] = {"RescaleSlope": 1, "RescaleIntercept": 0}
    tags |= {"WindowCenter": 2048, "WindowWidth": 4096, name: value}
    data = with_numbers(files.dicom(files.picture()), **tags)
    if (name, value) in (("WindowWidth", "-inf"), ("WindowWidth", "-1e38")):
        path.write_bytes(data)
        read_image(path)  # a width that is not above 0 is no window, whatever it is
        return
    assert f"{name} " in refused(path, data, UNUSABLE_NUMBERS)


def test_such_a_film_is_counted_and_named(tmp_path: Path, files: Any) -> None:
    good = files.dicom(files.picture())
    files.write(tmp_path / "bad.dcm", with_numbers(good, RescaleSlope="nan", RescaleIntercept="0"))
    files.write(tmp_path / "good.dcm", good)
    films = [FilmRecord(i, n, n, "train", "PA", n, "x", ()) for i, n in enumerate(("bad.dcm", "good.dcm"))]
    tally = Tally()
    images, kept = read_films(films, tmp_path, 16, tally=tally)
    assert [film.image for film in kept] == ["good.dcm"]
    assert bool(images.isfinite().all())
    ((reason, count),) = tally.counts().items()
    assert reason == UNUSABLE_NUMBERS
    assert count.first == ("bad.dcm",)


def test_a_window_that_shows_nothing_says_so(path: Path, files: Any) -> None:
    told = refused(path, files.dicom(files.picture(), WindowCenter=-9000, WindowWidth=10), "image blank")
    assert "the same value after its window" in told
    assert "padding" in refused(
        path, files.dicom(files.picture(), PixelPaddingValue=0, PixelPaddingRangeLimit=4095), "image blank"
    )


@pytest.mark.parametrize(
    ("syntax", "packages"),
    [
        ("JPEGLossless", "pylibjpeg pylibjpeg-libjpeg"),
        ("JPEGLosslessSV1", "pylibjpeg pylibjpeg-libjpeg"),
        ("JPEGExtended12Bit", "pylibjpeg pylibjpeg-libjpeg"),
        ("JPEGLSLossless", "pylibjpeg pylibjpeg-libjpeg"),
        ("JPEGLSNearLossless", "pylibjpeg pylibjpeg-libjpeg"),
        ("HTJ2KLossless", "pylibjpeg pylibjpeg-openjpeg"),
    ],
)
def test_a_codec_that_is_not_installed(tmp_path: Path, files: Any, syntax: str, packages: str) -> None:
    if "pylibjpeg" in pydicom.pixels.get_decoder(getattr(pydicom.uid, syntax)).available_plugins:
        pytest.skip("installed here")
    path = files.write(tmp_path / "coded.dcm", files.dicom(files.picture(), syntax=syntax))
    reason = f"image needs a codec: pip install {packages}"
    assert reason in refused(path, path.read_bytes(), reason)
    files.write(tmp_path / "bad.dcm", path.read_bytes()[:300])
    tally = Tally()
    names = ("coded.dcm", "bad.dcm")
    films = [FilmRecord(i, n, n, "train", "PA", n, "x", ()) for i, n in enumerate(names)]
    read_films(films, tmp_path, 16, tally=tally)
    counts = {reason: count.first for reason, count in tally.counts().items()}
    assert counts == {reason: ("coded.dcm",), "image corrupt or truncated": ("bad.dcm",)}


def test_no_still_picture(path: Path, files: Any) -> None:
    for syntax in ("MPEG2MPML", "HEVCMP51"):
        refused(path, files.dicom(files.picture(), syntax=syntax), "image of another kind")
    assert "2 frames" in refused(
        path, files.dicom(files.picture(), NumberOfFrames=2), "image of another kind"
    )
    for photometric in ("", "HSV", "MONOCHROME3"):
        data = files.dicom(files.picture(), PhotometricInterpretation=photometric)
        refused(path, data, "image of another kind")


def test_sizes_that_the_data_cannot_fill(path: Path, files: Any) -> None:
    for rows, columns in ((24, 37), (25, 36), (60_000, 1000)):
        refused(path, files.dicom(files.picture(), Rows=rows, Columns=columns), "image corrupt or truncated")
    for syntax in ("ExplicitVRLittleEndian", "RLELossless", "JPEG2000Lossless"):
        data = files.dicom(files.picture(), syntax=syntax)
        place = data.index(b"\x28\x00\x10\x00US\x02\x00") + 8
        data = data[:place] + struct.pack("<H", 65_535) + data[place + 2 :]
        place = data.index(b"\x28\x00\x11\x00US\x02\x00") + 8
        data = data[:place] + struct.pack("<H", 65_535) + data[place + 2 :]
        assert f"{MAX_PIXELS:,}" in refused(path, data, "image too large")


def test_a_deflated_file_does_not_fill_the_memory(
    path: Path, files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = files.dicom(files.picture(), syntax="DeflatedExplicitVRLittleEndian")
    start = 144 + int.from_bytes(data[140:144], "little")
    assert len(zlib.decompress(data[start:], -zlib.MAX_WBITS)) > 1000
    monkeypatch.setattr("cxrl.images.read_dicom._MAX_UNPACKED", 1000)
    refused(path, data, "image too large")


def test_what_is_no_film_at_all(path: Path, files: Any) -> None:
    data = files.dicom(files.picture())
    for content in (b"", b"\0" * 500, b"DICM" * 100, data[:200], data[:-20], b"<html>404</html>" * 50):
        refused(path, content, "image corrupt or truncated")

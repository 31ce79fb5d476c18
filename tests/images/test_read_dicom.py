"""One picture through every depth, sign, polarity, window and padding of DICOM: always the picture."""

from __future__ import annotations

import io
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset

from cxrl.images.read import read_image
from cxrl.images.read_dicom import HOT
from cxrl.images.unreadable import UnreadableImage

BITS = (8, 10, 12, 14, 16)
NATIVE = ("ImplicitVRLittleEndian", "ExplicitVRLittleEndian", "ExplicitVRBigEndian")
SYNTAXES = (*NATIVE, "DeflatedExplicitVRLittleEndian", "RLELossless")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.dcm"


def found(path: Path, data: bytes, notes: list[str] | None = None) -> np.ndarray:
    path.write_bytes(data)
    return read_image(path, note=None if notes is None else notes.append)[0].numpy()


def refused(path: Path, data: bytes, reason: str) -> str:
    path.write_bytes(data)
    with pytest.raises(UnreadableImage) as error:
        read_image(path)
    assert error.value.reason == reason
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


def check(path: Path, files: Any, window: str = "none", padding: str = "none", **options: Any) -> None:
    data = files.dicom(files.picture(), window=window, padding=padding, **options)
    expected = files.seen(files.picture(), padding)
    atol = files.tolerance(options.get("bits", 12), window, padding)
    np.testing.assert_allclose(found(path, data), expected, rtol=0, atol=atol, err_msg=f"{window} {options}")
    if padding != "none":
        image = read_image(path)[0].numpy()
        assert float(image[: files.BORDER].max()) == float(image[:, : files.BORDER].max()) == 0.0


@pytest.mark.parametrize("padding", ["none", "value", "range", "backwards"])
def test_every_polarity_and_window(path: Path, files: Any, padding: str) -> None:
    for polarity, window in itertools.product(files.POLARITIES, files.WINDOWS):
        check(path, files, window, padding, polarity=polarity)


def pairs(files: Any) -> Iterator[dict[str, Any]]:
    """Combinations in which every two values of two options meet."""
    options = {
        "bits": BITS,
        "signed": (False, True),
        "polarity": tuple(files.POLARITIES),
        "rescaling": tuple(files.RESCALINGS),
        "window": files.WINDOWS,
        "padding": files.PADDINGS,
        "syntax": SYNTAXES,
    }
    every = [dict(zip(options, values, strict=True)) for values in itertools.product(*options.values())]
    random.Random(0).shuffle(every)
    met: set[tuple[Any, ...]] = set()
    for combination in every:
        if files.is_possible(*(combination[k] for k in ("bits", "signed", "rescaling", "window"))):
            new = {*itertools.combinations(combination.items(), 2)} - met
            met |= new
            if new:
                yield combination


def test_every_two_options_together(path: Path, files: Any) -> None:
    combinations = list(pairs(files))
    assert len(combinations) > 60
    for combination in combinations:
        check(path, files, **combination)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize(("bits", "high_bit"), [(12, 15), (12, 13), (10, 11), (8, 15)])
def test_the_high_bit_may_be_anywhere(path: Path, files: Any, bits: int, high_bit: int, signed: bool) -> None:
    check(path, files, bits=bits, high_bit=high_bit, signed=signed)


@pytest.mark.parametrize("syntax", ["ExplicitVRLittleEndian", "ExplicitVRBigEndian", "RLELossless"])
@pytest.mark.parametrize("high_bit", [11, 13])
def test_what_lies_in_free_bits_is_not_of_the_film(
    path: Path, files: Any, high_bit: int, syntax: str
) -> None:
    order = ">" if syntax == "ExplicitVRBigEndian" else "<"
    cells = files.levels(files.picture(), 12) << (high_bit - 11)
    noise = np.random.default_rng(0).integers(0, 2**16, cells.shape)
    cells = cells | (noise & ~(4095 << (high_bit - 11)))
    pixels = cells.astype(f"{order}u2").tobytes()
    check(path, files, high_bit=high_bit, syntax=syntax, PixelData=pixels)


def test_a_high_bit_that_cannot_be_is_taken_for_the_last_one(path: Path, files: Any) -> None:
    check(path, files, HighBit=3)
    check(path, files, HighBit=20)


def test_eight_bits_in_bytes(path: Path, files: Any) -> None:
    for signed, padding in itertools.product((False, True), files.PADDINGS):
        check(path, files, bits=8, allocated=8, signed=signed, padding=padding)


def test_floats(path: Path, files: Any) -> None:
    data = pydicom.dcmread(io.BytesIO(files.dicom(files.picture())))
    del data.PixelData
    stored = files.picture().astype("<f4")
    stored[:2] = -5.0
    data.FloatPixelData, data.BitsAllocated, data.FloatPixelPaddingValue = stored.tobytes(), 32, -5.0
    for name in ("BitsStored", "HighBit", "PixelRepresentation"):
        delattr(data, name)
    data.save_as(path)
    image = read_image(path)[0].numpy()
    expected = (stored - stored[2:].min()) / (stored[2:].max() - stored[2:].min())
    np.testing.assert_allclose(image[2:], expected[2:], rtol=0, atol=1e-6)
    assert float(image[:2].max()) == 0.0


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_that_lost_its_sign(path: Path, files: Any, photometric: str) -> None:
    """-2048 in 16 bits is 63488 where the element is written as unsigned."""
    data = files.dicom(files.picture(), signed=True, padding="value", polarity=photometric)
    file = pydicom.dcmread(io.BytesIO(data))
    assert file.PixelPaddingValue == -2048
    file["PixelPaddingValue"] = pydicom.DataElement(0x00280120, "US", 63488)
    file.save_as(path)
    image = read_image(path)[0].numpy()
    expected = files.seen(files.picture(), "value")
    np.testing.assert_allclose(image, expected, rtol=0, atol=files.tolerance(12, "none", "value"))


def test_padding_may_use_the_bits_that_are_free(path: Path, files: Any) -> None:
    cells = files.levels(files.picture(), 12)
    cells[:2] = 0x8000
    pixels = cells.astype("<u2").tobytes()
    image = found(path, files.dicom(files.picture(), PixelData=pixels, PixelPaddingValue=0x8000))
    assert float(image[:2].max()) == 0.0
    kept = files.picture()[2:]
    expected = (kept - kept.min()) / (kept.max() - kept.min())
    np.testing.assert_allclose(image[2:], expected, rtol=0, atol=1 / 4095 + 1e-6)


@pytest.mark.parametrize("has_preamble", [False, True])
@pytest.mark.parametrize("syntax", NATIVE)
@pytest.mark.parametrize("has_meta", [False, True])
def test_files_without_preamble_or_meta_information(
    path: Path, files: Any, syntax: str, has_meta: bool, has_preamble: bool
) -> None:
    check(path, files, syntax=syntax, has_meta=has_meta, has_preamble=has_preamble)


def test_a_dicom_is_known_by_its_content_too(tmp_path: Path, files: Any) -> None:
    check(tmp_path / "IM0001", files)


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth"])
def test_empty_numbers_are_none(path: Path, files: Any, name: str) -> None:
    check(path, files, **{name: None})
    check(path, files, **{name: ""})


def test_a_slope_without_an_intercept_counts(path: Path, files: Any) -> None:
    check(path, files, polarity="MONOCHROME1", PhotometricInterpretation="MONOCHROME2", RescaleSlope=-1)


def test_a_width_of_one_is_a_threshold(path: Path, files: Any) -> None:
    image = found(path, files.dicom(files.picture(), WindowCenter=2048.5, WindowWidth=1))
    seen = files.levels(files.picture(), 12)
    away = abs(seen - 2048) > 1
    np.testing.assert_array_equal(image[away], (seen > 2048)[away])


@pytest.mark.parametrize("window", ["none", "sigmoid"])
def test_a_modality_table(path: Path, files: Any, window: str) -> None:
    item = Dataset()
    item.LUTDescriptor, item.ModalityLUTType = [4096, 0, 16], "US"
    item.LUTData = (np.arange(4096, dtype="<u2")[::-1]).tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    turned = {"polarity": "MONOCHROME1", "PhotometricInterpretation": "MONOCHROME2"}
    check(path, files, window, ModalityLUTSequence=[item], **turned)
    for entries in (b"", b"\0" * 100):
        item.LUTData = entries
        data = files.dicom(files.picture(), ModalityLUTSequence=[item])
        refused(path, data, "image with an unusable rescaling, window or table")


def test_a_table_of_bytes_two_in_a_word(path: Path, files: Any) -> None:
    """Entries of up to 8 bits may be packed; odd numbers of them end in a byte that is none."""
    num = 255
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [num, 0, 8], bytes(range(num)) + b"\0"
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    image = found(path, files.dicom(files.picture(), bits=8, VOILUTSequence=[item]))
    np.testing.assert_allclose(image, (files.picture() * 255 / 254).clip(0, 1), rtol=0, atol=1.5 / 255)


def hot(files: Any, num: int, value: int, *, dead: bool = False, **options: Any) -> tuple[bytes, np.ndarray]:
    """A film of 12 of 16 bits with ``num`` pixels that are hot, and where they are."""
    picture = files.picture(48, 64)
    cells = 9000 + files.levels(picture, 12)
    places = np.zeros(cells.size, dtype=bool)
    places[np.random.default_rng(1).choice(cells.size, num, replace=False)] = True
    places = places.reshape(cells.shape)
    cells[places] = 0 if dead else value
    pixels = cells.astype("<u2").tobytes()
    return files.dicom(picture, bits=16, PixelData=pixels, **options), places


@pytest.mark.parametrize(("value", "dead"), [(60_000, False), (65_535, False), (0, True)])
@pytest.mark.parametrize("polarity", ["MONOCHROME2", "MONOCHROME1"])
def test_hot_and_dead_pixels_do_not_set_the_range(
    path: Path, files: Any, value: int, dead: bool, polarity: str
) -> None:
    data, places = hot(files, 16, value, dead=dead, polarity=polarity)
    file = pydicom.dcmread(io.BytesIO(data))
    if dead:  # far enough below: 9000 is no further than three widths
        cells = file.pixel_array + np.where(places, 0, 20_000).astype("<u2")
        file.PixelData = cells.tobytes()
    file.save_as(path)
    notes: list[str] = []
    image = read_image(path, note=notes.append)[0].numpy()
    is_inverted = polarity == "MONOCHROME1"
    expected = 1.0 - files.picture(48, 64) if is_inverted else files.picture(48, 64)
    np.testing.assert_allclose(image[~places], expected[~places], rtol=0, atol=2 / 4095)
    assert set(image[places].tolist()) == {float(dead == is_inverted)}
    assert notes == [HOT]


def test_a_window_says_itself_what_is_hot(path: Path, files: Any) -> None:
    data, places = hot(files, 16, 60_000, WindowCenter=9000 + 2048, WindowWidth=4096)
    notes: list[str] = []
    image = found(path, data, notes)
    np.testing.assert_allclose(image[~places], files.picture(48, 64)[~places], rtol=0, atol=2 / 4095)
    assert notes == []


def test_a_bright_marker_counts(path: Path, files: Any) -> None:
    """Letters of lead are brighter than the film, and its own; so are 17 of 114 real films."""
    picture = files.picture(48, 64) * 0.4
    picture[2:6, 2:6] = 1.0
    notes: list[str] = []
    image = found(path, files.dicom(picture), notes)
    np.testing.assert_allclose(image, picture, rtol=0, atol=0.5 / 4095 + 1e-6)
    assert notes == []


def test_a_blank_film_with_hot_pixels_is_blank(path: Path, files: Any) -> None:
    cells = np.full((48, 64), 700, dtype="<u2")
    cells[::12, ::16] = 60_000
    data = files.dicom(files.picture(48, 64), bits=16, PixelData=cells.tobytes())
    assert "all but a few pixels" in refused(path, data, "image blank")


def test_hot_films_are_noted_by_the_index(tmp_path: Path, files: Any) -> None:
    from cxrl.config import Config
    from cxrl.data.sources import load_index

    files.write(tmp_path / "hot.dcm", hot(files, 16, 60_000)[0])
    files.write(tmp_path / "good.dcm", files.dicom(files.picture()))
    (tmp_path / "t.csv").write_text("image,text\nhot.dcm,No effusion.\ngood.dcm,Small effusion.\n")
    data = {"source": "table", "root": str(tmp_path / "t.csv"), "cache": "none", "check_images": "decode"}
    index = load_index(Config.from_dict({"data": data}).data)
    assert len(index.films) == 2
    assert index.noted[HOT].first == ("hot.dcm",)


@pytest.mark.parametrize(("kind", "bits"), [("JPEG2000", 8), ("JPEG2000", 16), ("JPEG", 8)])
def test_codecs_that_pillow_has(path: Path, files: Any, kind: str, bits: int) -> None:
    file = io.BytesIO()
    stored = files.levels(files.picture(), bits).astype(f"u{bits // 8}")
    Image.fromarray(stored).save(file, kind, **({"quality": 100} if kind == "JPEG" else {"no_jp2": True}))
    syntax = "JPEG2000Lossless" if kind == "JPEG2000" else "JPEGBaseline8Bit"
    data = files.dicom(files.picture(), bits=bits, allocated=bits, syntax=syntax, PixelData=file.getvalue())
    np.testing.assert_allclose(found(path, data), files.picture(), rtol=0, atol=3 / 255)


@pytest.mark.parametrize("planar", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_grey_in_colour(path: Path, files: Any, photometric: str, planar: int) -> None:
    grey = files.levels(0.1 + 0.8 * files.picture(), 8).astype(np.uint8)
    channels = (
        [grey] * 3 if photometric == "RGB" else [grey, np.full_like(grey, 128), np.full_like(grey, 128)]
    )
    pixels = np.stack(channels, 0 if planar else 2).tobytes()
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": planar, "PhotometricInterpretation": photometric}
    data = files.dicom(files.picture(), bits=8, allocated=8, PixelData=pixels, **tags)
    np.testing.assert_allclose(found(path, data), 0.1 + 0.8 * files.picture(), rtol=0, atol=1 / 255)


def test_a_palette(path: Path, files: Any) -> None:
    tags: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for name in ("Red", "Green", "Blue"):
        tags[f"{name}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        tags[f"{name}PaletteColorLookupTableData"] = (np.arange(256, dtype="<u2")[::-1] * 257).tobytes()
    data = files.dicom(1.0 - files.picture(), bits=8, allocated=8, **tags)
    np.testing.assert_allclose(found(path, data), files.picture(), rtol=0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    ("tags", "size"),
    [
        ({"PixelAspectRatio": [2, 1]}, (48, 36)),
        ({"PixelSpacing": [0.1, 0.2]}, (24, 72)),
        ({"ImagerPixelSpacing": [0.3, 0.2]}, (36, 36)),
        ({"PixelSpacing": [0.1430, 0.1431]}, (24, 36)),
        ({"PixelSpacing": [0, 0]}, (24, 36)),
        ({"PixelAspectRatio": [1, 1], "PixelSpacing": [0.1, 0.2]}, (24, 36)),
    ],
)
def test_pixels_become_square(path: Path, files: Any, tags: dict[str, Any], size: tuple[int, int]) -> None:
    image = found(path, files.dicom(files.picture(), **tags))
    assert image.shape == size
    y, x = ((np.arange(n) + 0.5) / n for n in size)
    rows, columns = (files.HEIGHT * y - 0.5).clip(0, 23) / 23, (files.WIDTH * x - 0.5).clip(0, 35) / 35
    expected = 0.7 * columns + 0.3 * rows[:, None] ** 2  # a parabola between its points: 0.3 / 4 / 23²
    np.testing.assert_allclose(image, expected, rtol=0, atol=0.3 / 4 / 23**2 + 0.5 / 4095 + 1e-6)

"""Damaged pictures: whatever is in a file, reading it gives a film or the error that names it; nothing else.

Every seed file is cut, overwritten, and given the numbers that break readers, in the order of a fixed seed.
"""

from __future__ import annotations

import random
import re
import resource
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl.images.read import read_image
from cxrl.images.unreadable import UnreadableImage

NUM_FILES = 800
MOST_SECONDS = 10.0
MOST_MEMORY = 2**30
"""Bytes that the peak may rise by: a film of the largest size that is decoded, four times over."""
HARD = [
    n.to_bytes(size, order) for n in (0, 1, 2**15, 2**16 - 1) for size, order in ((2, "little"), (2, "big"))
]
HARD += [n.to_bytes(4, order) for n in (2**31 - 1, 2**32 - 1) for order in ("little", "big")]
HARD += [b"nan ", b"inf ", b"1e38", b"\xff" * 8, b"\0" * 64]


def seeds(files: Any) -> dict[str, bytes]:
    """Small, of every decoder and with much metadata."""
    picture = files.picture(12, 18)
    jpg = files.by_pillow(picture, "JPEG", exif=files.exif(6))
    chunk = (b"eXIf", files.exif(6).removeprefix(b"Exif\0\0"))
    dicoms = [
        files.dicom(
            picture, window="several", padding="range", polarity="MONOCHROME1 INVERSE", rescaling="slope"
        ),
        files.dicom(
            picture, window="lut12", signed=True, rescaling="offset", syntax="ImplicitVRLittleEndian"
        ),
        files.dicom(picture, bits=16, high_bit=15, syntax="RLELossless", rescaling="falling"),
        files.dicom(picture, syntax="DeflatedExplicitVRLittleEndian", window="sigmoid"),
        files.dicom(picture, bits=8, allocated=8, syntax="JPEGBaseline8Bit", PixelData=jpg),
        files.dicom(picture, syntax="ExplicitVRBigEndian", padding="value", has_preamble=False),
        files.dicom(picture, has_meta=False, ImagerPixelSpacing=[0.1, 0.2]),
    ]
    tiffs = [
        files.tiff(picture, 16, order=">", white_is_zero=True, orientation=6),
        files.tiff(picture, 12, deflated=True),
        files.tiff(picture, 32, floats=True, white_is_zero=True),
        files.tiff(picture, 8, big=True, colour=True),
    ]
    pngs = [
        files.png(picture, 16, chunks=[chunk]),
        files.png(picture, 8, 3, interlaced=True, chunks=[(b"tRNS", b"\0" * 7)]),
        files.png(picture, 8, 6, alpha=picture),
    ]
    jpgs = [jpg, files.by_pillow(picture, "JPEG", "CMYK", progressive=True)]
    groups = {"dcm": dicoms, "tif": tiffs, "png": pngs, "jpg": jpgs}
    return {f"{i}.{kind}": data for kind, group in groups.items() for i, data in enumerate(group)}


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to three faults."""
    out = bytearray(data)
    numbers = [m.start() + 8 for m in re.finditer(rb"\(\x00", data)]  # of DICOM's group 0028
    for _ in range(rng.randint(1, 3)):
        # Two thirds of the faults hit the first 400 bytes or the last 200, where most of the rest is.
        at = rng.choice([rng.randrange(len(out)), rng.randrange(min(400, len(out))), -rng.randint(1, 200)])
        at, kind = (
            at % len(out),
            rng.choice(("bit", "byte", "hard", "hard", "number", "gone", "twice", "cut")),
        )
        if kind == "number" and numbers:
            at = min(rng.choice(numbers), len(out) - 1)
        value = rng.choice(HARD)
        if kind == "bit":
            out[at] ^= 1 << rng.randrange(8)
        elif kind == "byte":
            out[at] = rng.randrange(256)
        elif kind in ("hard", "number"):
            out[at : at + len(value)] = value
        elif kind == "gone":
            del out[at : at + rng.randint(1, 40)]
        elif kind == "twice":
            out[at:at] = out[at : at + rng.randint(1, 40)]
        else:
            del out[max(1, at) :]
        if not out:
            return b""
    return bytes(out)


def outcome(path: Path, size: int | tuple[int, int] | None) -> torch.Tensor | UnreadableImage:
    """The film or the error; any other exception passes."""
    with warnings.catch_warnings():
        # As a user meets them: a warning of a library is no error there, and must not stand for one.
        warnings.simplefilter("ignore")
        try:
            return read_image(path, size)
        except UnreadableImage as error:
            return error


def test_damaged_pictures_are_films_or_errors(tmp_path: Path, files: Any) -> None:
    rng, found = random.Random(20), Counter[str]()
    originals = list(seeds(files).items())
    for name, data in originals:
        read_image(files.write(tmp_path / name, data))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    for k in range(NUM_FILES):
        name, data = originals[k % len(originals)]
        path = files.write(tmp_path / name, damaged(data, rng))
        try:
            result = outcome(path, rng.choice([None, 7, (9, 16)]))
        except Exception as error:
            pytest.fail(f"file {k}, {name}: {error!r}")
        if isinstance(result, UnreadableImage):
            assert str(path) in str(result), f"file {k}"
            assert "\n" not in str(result), f"file {k}"
            found[result.reason] += 1
            continue
        assert result.dtype == torch.float32, f"file {k}"
        assert bool(((result >= 0) & (result <= 1)).all()), f"file {k}: values outside [0, 1] or nan"
        found["film"] += 1
    assert time.process_time() - began < MOST_SECONDS
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024 < MOST_MEMORY
    # The faults are neither all deadly nor all harmless.
    assert NUM_FILES / 5 < found["image corrupt or truncated"] < 4 * NUM_FILES / 5, found
    assert found["film"] > NUM_FILES / 10, found
    assert len(found) >= 5, found

"""JPG, PNG, TIFF and other pictures of Pillow to grey values, bright where dense, upright.

What a file says about its pixels is obeyed as an image viewer obeys it:

- white-is-zero (TIFF) is turned round at every bit depth; Pillow does it up to 8 bits only;
- orientation (EXIF in JPG, PNG and WebP; TIFF's own tag) is applied;
- colour becomes luma; what is transparent becomes black, as the border of a film;
- values are scaled by the range of their type: 1, 2, 4, 8, 12 or 16 bits, floats by [0, 1].

Colour profiles and gamma (iCCP, gAMA) and the resolution (pHYs, JFIF) are not: the numbers in the file are
taken as grey values on square pixels.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from cxrl.errors import CxrlError
from cxrl.images.unreadable import (
    CORRUPT,
    OTHER_KIND,
    TOO_LARGE,
    UNSUPPORTED,
    UnreadableImage,
    check_size,
    first_line,
)

FORMATS = ("PNG", "JPEG", "TIFF", "JPEG2000", "WEBP", "BMP", "GIF", "PPM")
"""What Pillow may take a file for; some of its other formats start programs (EPS)."""
_DRAFT = 2
"""A JPG is decoded at no less than this many times the size asked for; the rest is antialiased resizing."""
_INTEGERS = ("I;16", "I;16L", "I;16B", "I;16N", "I")
_UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a),
}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = (
    256,
    257,
    258,
    259,
    262,
    277,
    339,
)
_SIGNED = 2
_Tags = dict[int, tuple[int, int, str]]
_NO_DECODER = (
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\x00\x00\x00\x0cJXL ", 0, "JPEG XL"),
    (b"ftyp", 4, "HEIC or AVIF"),
    (b"%PDF", 0, "PDF"),
    (b"MM\x00\x2b", 0, "big-endian BigTIFF"),
)
"""Files that people take for pictures, by what they begin with."""


def read_raster(path: Path, data: bytes, size: tuple[int, int] | None) -> np.ndarray:
    """float32 [H, W] in [0, 1].

    Args:
        path: For messages.
        data: The file.
        size: (height, width) that will do; a JPG may be decoded smaller than it is.

    Raises:
        UnreadableImage: As :func:`cxrl.images.read.read_image`.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise CxrlError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so truncated films read as grey; unset it"
        )
    for start, place, name in _NO_DECODER:
        if data[place : place + len(start)] == start:
            raise UnreadableImage(path, UNSUPPORTED, f"{name}; convert it to PNG")
    tags = _tiff_tags(data)
    data, is_inverted = _black_is_zero(path, data, tags)
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if (frames := getattr(image, "n_frames", 1)) > 1:
                raise UnreadableImage(path, OTHER_KIND, f"{frames} frames")
            check_size(path, image.height, image.width)
            orientation = _orientation(image) if image.format in ("JPEG", "MPO") else 1
            if size is not None:
                height, width = size if orientation < 5 else size[::-1]
                image.draft("L", (_DRAFT * width, _DRAFT * height))
            image.load()
            if image.format not in ("JPEG", "MPO", "TIFF"):  # Pillow turns a TIFF itself
                orientation = _orientation(image)
            pixels = _grey(path, image, 4095.0 if _value(tags, _BITS) == 12 else 65535.0)
    except UnreadableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UnreadableImage(path, TOO_LARGE, first_line(error)) from None
    except Exception as error:  # Pillow's plugins raise a dozen types for damaged files
        if isinstance(error, UnidentifiedImageError) or data[:2] == b"\xff\xd8":
            name = _unsupported(data, tags)
            if name:
                raise UnreadableImage(path, UNSUPPORTED, f"{name}; convert it to PNG") from None
        told = "no picture" if isinstance(error, UnidentifiedImageError) else first_line(error)
        raise UnreadableImage(path, CORRUPT, told) from None
    if not bool(((pixels >= 0.0) & (pixels <= 1.0)).all()):
        raise UnreadableImage(path, OTHER_KIND, "values outside the range of 16 bits or of [0, 1]")
    if is_inverted:
        pixels = 1.0 - pixels
    return np.ascontiguousarray(_UPRIGHT.get(orientation, lambda a: a)(pixels))


def _grey(path: Path, image: Image.Image, scale: float) -> np.ndarray:
    """float32 [H, W], in [0, 1] if the file is what it should be."""
    if image.mode in _INTEGERS:
        values = np.asarray(image)
        pixels = values.astype(np.float32) / np.float32(scale)
        transparent = image.info.get("transparency")
        if isinstance(transparent, int):
            pixels[values == transparent] = 0.0
        return pixels
    if image.mode == "F":
        return np.array(image, dtype=np.float32)
    if image.mode in ("LAB", "HSV"):
        raise UnreadableImage(path, OTHER_KIND, f"colours as {image.mode}")
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"), dtype=np.float32) / 255.0
    image = image.convert("RGBA")
    alpha = np.asarray(image.getchannel("A"), dtype=np.float32) / 255.0
    return np.asarray(image.convert("L"), dtype=np.float32) / 255.0 * alpha


def _orientation(image: Image.Image) -> int:
    """1 to 8; 1, as it lies, where there is none or it cannot be read."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged block of metadata does not damage the picture
        return 1
    return value if isinstance(value, int) and value in _UPRIGHT else 1


def _tiff_tags(data: bytes) -> _Tags:
    """Tag → (its number, where that lies in the file, struct's format of it) in the first directory.

    Only tags of one 16- or 32-bit number; nothing for another format than TIFF.
    """
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None:
        return {}
    tags: _Tags = {}
    try:
        (version,) = struct.unpack_from(f"{order}H", data, 2)
        if version not in (42, 43):
            return {}
        wide = version == 43
        (start,) = struct.unpack_from(f"{order}{'Q' if wide else 'I'}", data, 8 if wide else 4)
        (count,) = struct.unpack_from(f"{order}{'Q' if wide else 'H'}", data, start)
        entry, step = (f"{order}HHQ", 20) if wide else (f"{order}HHI", 12)
        first = start + (8 if wide else 2)
        for at in range(first, min(first + step * count, len(data)), step):
            tag, kind, length = struct.unpack_from(entry, data, at)
            if length == 1 and kind in (3, 4):
                place, number = at + struct.calcsize(entry), order + ("H" if kind == 3 else "I")
                tags[tag] = (struct.unpack_from(number, data, place)[0], place, number)
    except (struct.error, OverflowError):
        return {}
    return tags


def _value(tags: _Tags, tag: int, default: int = 1) -> int:
    return tags[tag][0] if tag in tags else default


def _black_is_zero(path: Path, data: bytes, tags: _Tags) -> tuple[bytes, bool]:
    """The file with white-is-zero changed to black-is-zero where Pillow would misread it, and whether it was.

    Above 8 bits Pillow ignores it, or knows no such format at all.
    """
    if not tags or _value(tags, _SAMPLES) != 1:
        return data, False
    if _PHOTOMETRIC not in tags:
        raise UnreadableImage(path, OTHER_KIND, "a TIFF without photometric interpretation")
    bits, signed = _value(tags, _BITS), _value(tags, _SAMPLE_FORMAT) == _SIGNED
    white_is_zero = _value(tags, _PHOTOMETRIC) == 0
    if bits == 32 and data[:2] == b"MM" and _value(tags, _COMPRESSION) != 1:  # Pillow swaps their bytes
        raise UnreadableImage(path, UNSUPPORTED, "compressed big-endian TIFF of 32 bits; convert it to PNG")
    if signed and (bits <= 16 or white_is_zero):
        raise UnreadableImage(path, OTHER_KIND, "signed integers")
    if not white_is_zero or bits <= 8:
        return data, False
    if bits == 32 and _value(tags, _SAMPLE_FORMAT) == 1:
        raise UnreadableImage(path, OTHER_KIND, "white is zero and 32-bit integers")
    _, place, number = tags[_PHOTOMETRIC]
    return data[:place] + struct.pack(number, 1) + data[place + struct.calcsize(number) :], True


def _unsupported(data: bytes, tags: _Tags) -> str:
    """What Pillow has no decoder for, by its name; "" if it may just be damaged."""
    if data[:2] == b"\xff\xd8":
        return _jpeg_process(data)
    if tags and not {_WIDTH, _HEIGHT, _PHOTOMETRIC} - set(tags):
        parts = (_value(tags, _BITS), _value(tags, _PHOTOMETRIC), _value(tags, _SAMPLE_FORMAT))
        return "TIFF of {} bits, photometric {}, sample format {}".format(*parts)
    return ""


def _jpeg_process(data: bytes) -> str:
    """The JPEG process that libjpeg does not know; "" if it does."""
    at = 2
    while at + 4 < len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xF7:
            return "JPEG-LS"
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # tables, reserved, conditioning
            if data[at + 4] not in (0, 8):
                return f"JPEG of {data[at + 4]} bits"
            return "" if marker in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) else "lossless or hierarchical JPEG"
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return ""

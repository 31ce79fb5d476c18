"""One picture, written in every way that a file can hold it: small encoders for PNG, TIFF and DICOM.

Pillow writes few of the bit depths, orders and tags that exist, so the bytes are made here. Every function
takes grey values float [H, W] in [0, 1], black 0, as they are to be seen.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEIGHT, WIDTH = 24, 36
TURNED = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.T,
    6: lambda a: np.rot90(a),
    7: lambda a: a[::-1, ::-1].T,
    8: lambda a: np.rot90(a, -1),
}
"""EXIF's orientation → how a picture lies in a file that bears it."""


def picture(height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A ramp from 0 to 1 that no flip, turn or inversion leaves as it is: brighter to the right and below."""
    y, x = np.mgrid[0:height, 0:width]
    return 0.7 * x / (width - 1) + 0.3 * (y / (height - 1)) ** 2


def levels(values: np.ndarray, bits: int) -> np.ndarray:
    """The nearest of 2^bits levels, int64."""
    return np.round(values * (2**bits - 1)).astype(np.int64)


def packed(rows: np.ndarray, bits: int, order: str = ">") -> list[bytes]:
    """The rows of integers [H, N], each in whole bytes, high bits first below 8 bits and at 12."""
    if bits in (8, 16, 32):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in rows]
    shifts = np.arange(bits - 1, -1, -1)
    return [np.packbits(((row[:, None] >> shifts) & 1).astype(np.uint8)).tobytes() for row in rows]


# PNG: colour type 0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA


def png(
    values: np.ndarray,
    bits: int = 8,
    colour: int = 0,
    *,
    alpha: np.ndarray | None = None,
    interlaced: bool = False,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG; ``chunks`` go before the data. ``alpha`` [H, W] for colour types 4 and 6, opaque without."""
    grey = levels(values, bits)
    opaque = levels(np.ones_like(values) if alpha is None else alpha, bits)
    samples = {0: [grey], 2: [grey] * 3, 3: [grey], 4: [grey, opaque], 6: [grey, grey, grey, opaque]}[colour]
    pixels = np.stack(samples, 2)
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    data = b""
    for top, left, down, right in adam7 if interlaced else [(0, 0, 1, 1)]:
        part = pixels[top::down, left::right]
        rows = packed(part.reshape(len(part), -1), bits) if part.size else []
        data += b"".join(b"\0" + row for row in rows)
    height, width = values.shape
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, int(interlaced))
    if colour == 3:
        step = 255 // (2**bits - 1)
        chunks = [(b"PLTE", bytes(c for k in range(2**bits) for c in [step * k] * 3)), *chunks]
    parts = [(b"IHDR", head), *chunks, (b"IDAT", zlib.compress(data)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in parts
    )


def exif(orientation: int) -> bytes:
    """An EXIF block, without the marker of JPEG."""
    block = Image.Exif()
    block[274] = orientation
    return block.tobytes()


def by_pillow(values: np.ndarray, kind: str, mode: str = "L", **options: Any) -> bytes:
    """8 bits, written by Pillow."""
    file = io.BytesIO()
    Image.fromarray(levels(values, 8).astype(np.uint8)).convert(mode).save(file, kind, **options)
    return file.getvalue()


# TIFF


def tiff(
    values: np.ndarray,
    bits: int = 8,
    *,
    order: str = "<",
    white_is_zero: bool = False,
    floats: bool = False,
    orientation: int | None = None,
    deflated: bool = False,
    big: bool = False,
    colour: bool = False,
    tags: dict[int, int] | None = None,
) -> bytes:
    """A TIFF of one strip. ``tags`` go over the others; None leaves one out."""
    values = 1.0 - values if white_is_zero else values
    height, width = values.shape
    if floats:
        strip = values.astype(f"{order}f{bits // 8}").tobytes()
    else:
        grey = levels(values, bits)
        strip = b"".join(packed(np.repeat(grey, 3, 1) if colour else grey, bits, order))
    strip = zlib.compress(strip) if deflated else strip
    entries: dict[int, Any] = {
        256: width,
        257: height,
        258: bits,
        259: 8 if deflated else 1,
        262: 2 if colour else 0 if white_is_zero else 1,
        273: 16,
        277: 3 if colour else 1,
        278: height,
        279: len(strip),
        339: 3 if floats else None,
        274: orientation,
    }
    entries |= tags or {}
    found = sorted((tag, value) for tag, value in entries.items() if value is not None)
    at = 16 + len(strip)
    entry, count = (f"{order}HHQQ", "Q") if big else (f"{order}HHII", "H")
    directory = struct.pack(order + count, len(found))
    for tag, value in found:  # LONG throughout, which every reader takes; an inline SHORT lies at its start
        directory += struct.pack(entry, tag, 4, 1, value << 32 if big and order == ">" else value)
    mark = b"II" if order == "<" else b"MM"
    if big:
        head = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, at)
    else:
        head = (mark + struct.pack(f"{order}HI", 42, at)).ljust(16, b"\0")
    return head + strip + directory + struct.pack(order + ("Q" if big else "I"), 0)


# DICOM

POLARITIES = {
    "MONOCHROME2": ("MONOCHROME2", None, False),
    "MONOCHROME1": ("MONOCHROME1", None, True),
    "MONOCHROME2 IDENTITY": ("MONOCHROME2", "IDENTITY", False),
    "MONOCHROME2 INVERSE": ("MONOCHROME2", "INVERSE", True),
    "MONOCHROME1 INVERSE": ("MONOCHROME1", "INVERSE", True),
    "MONOCHROME1 IDENTITY": ("MONOCHROME1", "IDENTITY", False),
}
"""Name → photometric interpretation, presentation LUT shape, whether the lowest value is white."""
RESCALINGS = {"none": None, "empty": ("", ""), "offset": (1, -1024), "slope": (0.25, 7), "falling": (-2, 100)}
WINDOWS = (
    "none",
    "full",
    "narrow",
    "exact",
    "sigmoid",
    "several",
    "width 0",
    "lut7",
    "lut8",
    "lut12",
    "lut16",
)
PADDINGS = ("none", "value", "range", "backwards")
BORDER = 2
"""Rows and columns of padding, at the top and on the left."""


def is_possible(bits: int, signed: bool, rescaling: str, window: str) -> bool:
    """A table takes whole numbers, of 16 bits."""
    fits = rescaling in ("none", "empty") or (rescaling == "offset" and not (signed and bits == 16))
    return fits or not window.startswith("lut")


def seen(values: np.ndarray, padding: str) -> np.ndarray:
    """What is to be read: the picture, with its border black where it is padding."""
    values = values.copy()
    if padding != "none":
        values[:BORDER] = values[:, :BORDER] = 0.0
        inside = values[BORDER:, BORDER:]
        values[BORDER:, BORDER:] = (inside - inside.min()) / (inside.max() - inside.min())
    return values


def tolerance(bits: int, window: str, padding: str) -> float:
    """Half a level of what the file holds, in units of the range that the film uses of it, and float32."""
    is_part = window in ("narrow", "exact", "several")
    half = 0.5 / ((0.75 if padding != "none" else 1.0) * (0.5 if is_part else 1.0) * (2**bits - 1))
    if window == "sigmoid":  # where it is steepest it is 1.64 times as steep as a line between its ends
        half *= 1.64
    elif window.startswith("lut"):  # a parabola, twice as steep at its top, rounded to levels of its own
        half = 2 * half + 0.5 / (2 ** int(window[3:]) - 1)
    if is_part or padding != "none":  # the ends, which are stretched to 0 and 1, fall on no level
        half *= 2
    return half + 1e-6


def _window(
    kind: str, p: np.ndarray, low: float, high: float, order: str
) -> tuple[np.ndarray, dict[str, Any]]:
    """Output p [H, W] in [0, 1] → the share of the range [low, high] that gives it, and the attributes."""
    span, middle = high - low, (low + high) / 2
    if kind == "none":
        return p, {}
    if kind == "full":
        return p, {"WindowCenter": middle + 0.5, "WindowWidth": span + 1}
    if kind == "width 0":
        return p, {"WindowCenter": [middle, middle + 0.5], "WindowWidth": [0, span + 1]}
    if kind == "narrow":
        return 0.25 + p / 2, {"WindowCenter": middle + 0.5, "WindowWidth": span / 2 + 1}
    if kind == "exact":
        exact = {"WindowCenter": middle, "WindowWidth": span / 2, "VOILUTFunction": "LINEAR_EXACT"}
        return 0.25 + p / 2, exact
    if kind == "several":
        two = {"WindowCenter": [middle + 0.5, 7], "WindowWidth": [span / 2 + 1, 3]}
        return 0.25 + p / 2, {**two, "WindowCenterWidthExplanation": ["NORMAL", "BONE"]}
    if kind == "sigmoid":
        p = 0.05 + 0.9 * p
        logit, largest = np.log(p / (1 - p)), np.log(0.95 / 0.05)
        wide = {"WindowCenter": middle, "WindowWidth": 2 * span / largest, "VOILUTFunction": "SIGMOID"}
        return 0.5 + logit / (2 * largest), wide
    from pydicom.dataset import Dataset

    depth, num, item = int(kind[3:]), round(span) + 1, Dataset()
    item.LUTDescriptor = [num % 2**16, round(low) % 2**16, depth]
    item.LUTData = levels(np.linspace(0, 1, num) ** 2, depth).astype(f"{order}u2").tobytes()
    item["LUTDescriptor"].VR, item["LUTData"].VR = "US", "OW"
    return np.sqrt(p), {"VOILUTSequence": [item]}


def dicom(
    values: np.ndarray,
    *,
    bits: int = 12,
    allocated: int = 16,
    high_bit: int | None = None,
    signed: bool = False,
    polarity: str = "MONOCHROME2",
    rescaling: str = "none",
    window: str = "none",
    padding: str = "none",
    syntax: str = "ExplicitVRLittleEndian",
    has_preamble: bool = True,
    has_meta: bool = True,
    **tags: Any,
) -> bytes:
    """A digital radiograph. ``tags`` go over everything else."""
    import pydicom
    from pydicom.dataset import Dataset, FileMetaDataset

    order = ">" if syntax == "ExplicitVRBigEndian" else "<"
    photometric, shape, is_inverted = POLARITIES[polarity]
    top, offset = 2**bits - 1, 2 ** (bits - 1) if signed else 0
    low, high = (0.125 * top // 1, 0.875 * top // 1) if padding != "none" else (0, top)
    slope, intercept = RESCALINGS[rescaling] or (1, 0)
    slope, intercept = slope or 1, intercept or 0
    ends = sorted(slope * (level - offset) + intercept for level in (low, high))
    p = seen(values, padding)
    p = 1.0 - p if is_inverted else p
    share, attributes = _window(window, p, *ends, order)
    cells = np.round(low + (high - low) * (1 - share if slope < 0 else share)).astype(np.int64)
    if padding != "none":
        first, last = {"value": (0, 0), "range": (0, top // 16), "backwards": (top, top - top // 16)}[padding]
        border = np.ones(values.shape, dtype=bool)
        border[BORDER:, BORDER:] = False
        cells[border] = np.resize([first, last, (first + last) // 2], border.sum())
        attributes["PixelPaddingValue"] = first - offset
        if padding != "value":
            attributes["PixelPaddingRangeLimit"] = last - offset
    cells -= offset
    high_bit = bits - 1 if high_bit is None else high_bit
    cells = (cells % 2**bits) << (high_bit + 1 - bits)
    if signed and high_bit == bits - 1:  # the sign goes on in the bits that are free
        cells |= np.where(cells >> (bits - 1) & 1, 2**allocated - 2**bits, 0)
    uids, data = pydicom.uid, Dataset()
    data.SOPClassUID = uids.DigitalXRayImageStorageForPresentation
    data.SOPInstanceUID = "2.25.1"
    data.PhotometricInterpretation, data.SamplesPerPixel = photometric, 1
    data.PixelRepresentation = int(signed)
    data.Rows, data.Columns = values.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = allocated, bits, high_bit
    if shape is not None:
        attributes["PresentationLUTShape"] = shape
    if RESCALINGS[rescaling] is not None:
        attributes["RescaleSlope"], attributes["RescaleIntercept"] = RESCALINGS[rescaling]
    raw = cells.astype(f"{order}u{allocated // 8}").tobytes()
    attributes = {"PixelData": raw + b"\0" * (len(raw) % 2), **attributes, **tags}
    for name, value in attributes.items():
        setattr(data, name, value)
    data["PixelData"].VR = "OW"
    file, meta = io.BytesIO(), FileMetaDataset()
    meta.TransferSyntaxUID = getattr(uids, syntax)
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = data.SOPClassUID, data.SOPInstanceUID
    if not has_meta:
        pydicom.dcmwrite(file, data, implicit_vr=syntax.startswith("Implicit"), little_endian=order == "<")
        return file.getvalue()
    data.file_meta = meta
    if syntax == "RLELossless":
        meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
        data.BitsStored, data.HighBit = allocated, allocated - 1  # whole cells, whatever is free in them
        data.compress(uids.RLELossless, generate_instance_uid=False)
        data.BitsStored, data.HighBit = bits, high_bit
    elif meta.TransferSyntaxUID.is_encapsulated:
        data.PixelData = pydicom.encaps.encapsulate([data.PixelData])
        data["PixelData"].VR = "OB"
    pydicom.dcmwrite(file, data, enforce_file_format=True)
    return file.getvalue()[0 if has_preamble else 132 :]


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path

"""DICOM to grey values, bright where dense: the grayscale pipeline of PS3.3 and PS3.4 N.2. Needs pydicom.

    stored → modality table or rescaling → VOI table or window → polarity → the film's own range

Every attribute on the way that changes what a pixel means is obeyed, or the film is refused and named:

- stored: bits and high bit, sign, padding value and padding range, pixel aspect;
- rescaling: empty is none; a slope of 0, nan, infinity and numbers beyond ±2³² are refused;
- window: the first whose width is above 0, by its function; none is no window;
- polarity: PresentationLUTShape where it is there, else MONOCHROME1 or 2. The standard lets them differ
  nowhere; where they do, the shape says what the output is;
- range: black and white are the extremes of what is shown. Without a window, values further from the middle
  96 % than three times its width do not count (``HOT``): a few hot pixels must not turn a film black. Markers
  do count: on 114 real films the brightest lies 2.3 widths away at most.

A Secondary Capture without rescaling is a finished picture, and a colour image has no grayscale pipeline:
both by their type's range. Padding is black whatever the polarity. Overlays, shutters and PatientOrientation
are not applied.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from cxrl.errors import CxrlError
from cxrl.images.unreadable import (
    BLANK,
    CORRUPT,
    MAX_PIXELS,
    OTHER_KIND,
    TOO_LARGE,
    UNUSABLE_NUMBERS,
    UnreadableImage,
    check_size,
    first_line,
    needs_codec,
)

MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
HOT = "hot or dead pixels left out of its range"
"""What is noted of a film."""
LARGEST_NUMBER = 2.0**32
TAIL = 0.02
"""Share of the pixels at either end that may be hot or dead."""
REACH = 3.0
"""They are where they lie this many widths of the rest away from it."""
_SAMPLED = 2**18
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MAX_UNPACKED = 8 * MAX_PIXELS
_SQUARE = 0.01
"""How far the sides of a pixel may differ and still count as equal."""


def import_pydicom() -> Any:
    """pydicom. Raises CxrlError where it is not installed."""
    try:
        import pydicom
    except ImportError:
        raise CxrlError("DICOM needs pydicom: pip install 'cxrl[dicom]'") from None
    return pydicom


def is_dicom(data: bytes) -> bool:
    """Whether a file says that it is one; those without preamble do not."""
    return data[128:132] == b"DICM"


def read_dicom(path: Path, data: bytes, note: Callable[[str], None] | None = None) -> np.ndarray:
    """float32 [H, W] in [0, 1].

    Args:
        path: For messages.
        data: The file.
        note: Told ``HOT`` where that is so.

    Raises:
        UnreadableImage: As :func:`cxrl.images.read.read_image`.
        CxrlError: pydicom is not installed.
    """
    dataset = _parse(path, data)
    try:
        stored, is_padding = _stored(path, dataset)
        if stored.shape not in ((dataset.Rows, dataset.Columns), (dataset.Rows, dataset.Columns, 3)):
            raise ValueError(f"{dataset.Rows} × {dataset.Columns} pixels, decoded {stored.shape}")
        aspect = _aspect(dataset)
        if _photometric(dataset) not in MONOCHROME:
            pixels = _luma(stored, dataset)
        else:
            pixels = _grey(path, stored, ~is_padding, dataset, note)
    except UnreadableImage:
        raise
    except _Unusable as error:
        raise UnreadableImage(path, UNUSABLE_NUMBERS, str(error)) from None
    except Exception as error:  # pydicom and its decoders raise a dozen types for damaged files
        raise UnreadableImage(path, CORRUPT, first_line(error)) from None
    pixels = np.where(is_padding, 0.0, pixels).astype(np.float32)
    return pixels if abs(aspect - 1.0) <= _SQUARE else _on_square_pixels(path, pixels, aspect)


class _Unusable(ValueError):
    """A number that no film can mean."""


def _parse(path: Path, data: bytes) -> Any:
    """The data set, with a transfer syntax, of what is one grey or colour image of bearable size."""
    pydicom = import_pydicom()
    try:
        if is_dicom(data):
            _check_deflated(path, data)
        dataset = pydicom.dcmread(io.BytesIO(data), force=True)
        if not any(name in dataset for name in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
            raise UnreadableImage(path, CORRUPT, "no pixel data")
        if "TransferSyntaxUID" not in dataset.file_meta:
            dataset.file_meta.TransferSyntaxUID = {
                (True, True): pydicom.uid.ImplicitVRLittleEndian,
                (False, True): pydicom.uid.ExplicitVRLittleEndian,
                (False, False): pydicom.uid.ExplicitVRBigEndian,
            }[dataset.original_encoding]
        frames, photometric = int(dataset.get("NumberOfFrames") or 1), _photometric(dataset)
        rows, columns, samples = (int(dataset[k].value) for k in ("Rows", "Columns", "SamplesPerPixel"))
    except UnreadableImage:
        raise
    except Exception as error:  # the same
        raise UnreadableImage(path, CORRUPT, first_line(error)) from None
    if frames > 1:
        raise UnreadableImage(path, OTHER_KIND, f"{frames} frames")
    grey = samples == 1 and photometric in (*MONOCHROME, "PALETTE COLOR")
    if not grey and not (samples == 3 and photometric in COLOUR):
        detail = f"{photometric or 'no photometric interpretation'}, {samples} samples a pixel"
        raise UnreadableImage(path, OTHER_KIND, detail)
    check_size(path, rows, columns)
    _check_codec(path, dataset)
    return dataset


def _check_deflated(path: Path, data: bytes) -> None:
    """Refuse a deflated file that would fill the memory: it is unpacked before anything of it is known."""
    if _DEFLATED in data[132:1024]:
        start = 144 + int.from_bytes(data[140:144], "little")  # behind the meta information, by its length
        unpacked = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data[start:], _MAX_UNPACKED + 1)
        if len(unpacked) > _MAX_UNPACKED:
            raise UnreadableImage(path, TOO_LARGE, f"more than {_MAX_UNPACKED:,} bytes unpacked")


def _check_codec(path: Path, dataset: Any) -> None:
    """Refuse, by its own reason, what no installed package decodes."""
    pydicom = import_pydicom()
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        decoder = pydicom.pixels.get_decoder(syntax)
    except NotImplementedError:
        raise UnreadableImage(path, OTHER_KIND, f"transfer syntax {syntax.name}") from None
    # Pillow, which is always there, decodes 8 bits of this one.
    too_deep = (
        syntax == pydicom.uid.JPEGExtended12Bit
        and dataset.get("BitsStored") != 8
        and "pylibjpeg" not in decoder.available_plugins
    )
    if not decoder.is_available or too_deep:
        is_2000 = syntax in pydicom.uid.JPEG2000TransferSyntaxes
        packages = f"pylibjpeg pylibjpeg-{'openjpeg' if is_2000 else 'libjpeg'}"
        raise UnreadableImage(path, needs_codec(packages), syntax.name)


def _photometric(dataset: Any) -> str:
    return str(dataset.get("PhotometricInterpretation") or "")


def _stored(path: Path, dataset: Any) -> tuple[np.ndarray, np.ndarray]:
    """Stored values [H, W] or [H, W, 3], and where they are padding [H, W]."""
    syntax, rle = dataset.file_meta.TransferSyntaxUID, import_pydicom().uid.RLELossless
    if "PixelData" not in dataset or (syntax.is_encapsulated and syntax != rle):
        values = dataset.pixel_array
        return values, _is_padding(values, dataset)
    # pydicom takes the last bit for the high one: it gets whole cells, and the bits are cut out here.
    allocated, bits = int(dataset.BitsAllocated), int(dataset.BitsStored)
    high = dataset.get("HighBit")
    if not isinstance(high, int) or not bits - 1 <= high < allocated:
        high = bits - 1
    dataset.BitsStored = allocated
    cells = dataset.pixel_array
    dataset.BitsStored = bits
    if bits == allocated or cells.dtype.itemsize * 8 != allocated:
        return cells, _is_padding(cells, dataset)
    values = (cells << (allocated - 1 - high)) >> (allocated - bits)
    is_padding = _is_padding(values, dataset)
    if high == bits - 1:
        is_padding |= _is_padding(cells, dataset)  # a value for padding may use the bits that are free
    return values, is_padding


def _is_padding(values: np.ndarray, dataset: Any) -> np.ndarray:
    """Where values lie between the padding value and its range limit, both included (PS3.3 C.7.5.1.1.2)."""
    prefix = {
        "PixelData": "Pixel",
        "FloatPixelData": "FloatPixel",
        "DoubleFloatPixelData": "DoubleFloatPixel",
    }
    name = next(prefix[data] for data in prefix if data in dataset)
    first = _number(dataset, f"{name}PaddingValue")
    if first is None or values.ndim == 3:
        return np.zeros(values.shape[:2], dtype=bool)
    last = _number(dataset, f"{name}PaddingRangeLimit")
    bounds = [first, first if last is None else last]
    if values.dtype.kind == "i":  # written without its sign
        half = 2.0 ** (8 * values.dtype.itemsize - 1)
        bounds = [bound - 2 * half if bound >= half else bound for bound in bounds]
    return np.asarray((values >= min(bounds)) & (values <= max(bounds)))


def _number(dataset: Any, name: str) -> float | None:
    """A number of a data set; None where it is absent or empty."""
    numbers = _numbers(dataset, name)
    if len(numbers) > 1:
        raise _Unusable(f"{name} has {len(numbers)} values, expected one")
    return _usable(numbers[0], name) if numbers else None


def _numbers(dataset: Any, name: str) -> list[float]:
    """The numbers of an element, unchecked; [] where it is absent or empty."""
    try:
        value = dataset.get(name)
        if value is None or (isinstance(value, str | bytes) and not value.strip()):
            return []
        return [float(v) for v in (value if isinstance(value, list | tuple) or _is_multi(value) else [value])]
    except (TypeError, ValueError) as error:
        raise _Unusable(f"{name} is no number: {first_line(error)}") from None


def _is_multi(value: Any) -> bool:
    return isinstance(value, import_pydicom().multival.MultiValue)


def _usable(value: float, name: str) -> float:
    if not math.isfinite(value) or abs(value) > LARGEST_NUMBER:
        raise _Unusable(f"{name} is {value:g}, expected a number within ±2³²")
    return value


def _luma(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """[H, W, 3] of red, green and blue, or [H, W] of a palette, to [H, W] in [0, 1]."""
    bits = int(dataset.BitsStored)
    if stored.ndim == 2:
        stored = import_pydicom().pixels.apply_color_lut(stored, dataset)
        bits = 8 * stored.dtype.itemsize
    return stored.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / (2.0**bits - 1.0)


def _grey(
    path: Path, stored: np.ndarray, shown: np.ndarray, dataset: Any, note: Callable[[str], None] | None
) -> np.ndarray:
    """[H, W] of stored values to float64 [H, W] in [0, 1]; padding may be anything."""
    if not shown.any():
        raise UnreadableImage(path, BLANK, "every pixel is padding")
    modality, is_rescaled = _modality(stored, dataset)
    values, is_windowed = _voi(modality, dataset)
    low, high = float(values[shown].min()), float(values[shown].max())
    if low >= high:
        raise UnreadableImage(path, BLANK, _why_blank(stored[shown], modality[shown]))
    if not is_rescaled and _is_finished_picture(dataset):
        low, high = 0.0, 1.0 if is_windowed else 2.0 ** int(dataset.BitsStored) - 1.0
    elif not is_windowed:
        low, high = _range_without_hot_pixels(path, values[shown], note)
    pixels = ((values - low) / (high - low)).clip(0.0, 1.0)
    return 1.0 - pixels if _is_inverted(dataset) else pixels


def _why_blank(stored: np.ndarray, modality: np.ndarray) -> str:
    if stored.min() == stored.max():
        return "every pixel has the same value"
    what = "rescaling" if modality.min() == modality.max() else "window"
    return f"every pixel has the same value after its {what}"


def _is_inverted(dataset: Any) -> bool:
    """Whether the lowest value is white."""
    shape = str(dataset.get("PresentationLUTShape") or "")
    return shape == "INVERSE" if shape in ("IDENTITY", "INVERSE") else _photometric(dataset) == "MONOCHROME1"


def _modality(stored: np.ndarray, dataset: Any) -> tuple[np.ndarray, bool]:
    """Values after the modality table or the rescaling, float64, and whether there was one."""
    table = _table(dataset, "ModalityLUTSequence")
    if table is not None:
        return _look_up(stored, *table), True
    slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    if slope == 0.0:
        raise _Unusable("RescaleSlope is 0, expected another number")
    values = stored.astype(np.float64)
    if slope is None and intercept is None:
        return values, False
    return values * (1.0 if slope is None else slope) + (intercept or 0.0), True


def _voi(values: np.ndarray, dataset: Any) -> tuple[np.ndarray, bool]:
    """Values after the VOI table or the first window of use, and whether there was one (PS3.3 C.11.2)."""
    table = _table(dataset, "VOILUTSequence")
    if table is not None:
        return _look_up(values, *table), True
    centers, widths = _numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")
    for center, width in zip(centers, widths, strict=False):
        if not width <= 0.0:
            _usable(center, "WindowCenter"), _usable(width, "WindowWidth")
            return _windowed(values, center, width, str(dataset.get("VOILUTFunction") or "LINEAR")), True
    return values, False


def _windowed(values: np.ndarray, center: float, width: float, function: str) -> np.ndarray:
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp((-4.0 * (values - center) / width).clip(-700.0, 700.0))))
    if function == "LINEAR" and width > 1.0:  # the standard's, for integers
        return ((values - (center - 0.5)) / (width - 1.0) + 0.5).clip(0.0, 1.0)
    return ((values - center) / width + 0.5).clip(0.0, 1.0)


def _table(dataset: Any, name: str) -> tuple[int, np.ndarray] | None:
    """(first value that it maps, the entries) of the first table of a sequence; None without one.

    Entries of any depth are read: the range of what is shown sets black and white.
    """
    sequence = dataset.get(name)
    if not sequence:
        return None
    item = sequence[0]
    descriptor, data = _numbers(item, "LUTDescriptor"), item.get("LUTData")
    if len(descriptor) != 3 or not data:
        raise _Unusable(f"{name} has no table")
    num, first = int(descriptor[0]) or 2**16, int(descriptor[1])
    order = "<" if dataset.original_encoding[1] else ">"
    if not isinstance(data, bytes):
        data = np.atleast_1d(np.asarray(data, dtype=np.int64)).astype(f"{order}u2").tobytes()
    entries = np.frombuffer(data[: len(data) // 2 * 2], f"{order}u2" if len(data) >= 2 * num else "u1")
    if not 0 < num <= len(entries):
        raise _Unusable(f"{name} has {len(entries)} entries, its descriptor says {num}")
    return first, entries[:num].astype(np.float64)


def _look_up(values: np.ndarray, first: int, entries: np.ndarray) -> np.ndarray:
    if first >= 2**15 and values.min() < 0:  # written without its sign
        first -= 2**16
    return np.asarray(entries[np.rint(values - first).clip(0, len(entries) - 1).astype(np.int64)])


def _range_without_hot_pixels(
    path: Path, values: np.ndarray, note: Callable[[str], None] | None
) -> tuple[float, float]:
    """Lowest and highest of the values [n] that are neither hot nor dead."""
    bottom, top = np.quantile(values[:: max(1, len(values) // _SAMPLED)], (TAIL, 1.0 - TAIL))
    if bottom == top:
        raise UnreadableImage(path, BLANK, "all but a few pixels have the same value")
    reach = REACH * (top - bottom)
    inside = values[(values >= bottom - reach) & (values <= top + reach)]
    if note is not None and len(inside) < len(values):
        note(HOT)
    return float(inside.min()), float(inside.max())


def _is_finished_picture(dataset: Any) -> bool:
    """Whether the stored range, not the values that occur, is what black and white mean."""
    return (
        dataset.get("SOPClassUID") == import_pydicom().uid.SecondaryCaptureImageStorage
        and not dataset.get("VOILUTSequence")
        and "PixelData" in dataset
        and int(dataset.PixelRepresentation) == 0
    )


def _aspect(dataset: Any) -> float:
    """Height of a pixel over its width; 1 where nothing of use is said."""
    for name in ("PixelAspectRatio", "PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        sides = _numbers(dataset, name)
        if len(sides) == 2 and all(0.0 < side <= LARGEST_NUMBER for side in sides):
            return sides[0] / sides[1]
    return 1.0


def _on_square_pixels(path: Path, pixels: np.ndarray, aspect: float) -> np.ndarray:
    """The longer side of the pixels kept, so that nothing is thrown away."""
    height, width = pixels.shape
    size = (round(height * aspect), width) if aspect > 1.0 else (height, round(width / aspect))
    check_size(path, *size)
    image = torch.from_numpy(pixels)[None, None]
    return F.interpolate(image, size, mode="bilinear", align_corners=False)[0, 0].numpy()

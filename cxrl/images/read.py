"""Reading films: JPG, PNG, TIFF and DICOM to float32 [1, H, W] in [0, 1], bright where dense, upright.

:mod:`cxrl.images.raster` and :mod:`cxrl.images.read_dicom` say what of a file's metadata is obeyed. A film
that cannot be read raises :class:`UnreadableImage` with the reason; nothing is replaced by a black image.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrl.images import unreadable as reasons
from cxrl.images.raster import read_raster
from cxrl.images.read_dicom import is_dicom, read_dicom
from cxrl.images.unreadable import UnreadableImage

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *DICOM_SUFFIXES)
"""Of the files that count as films where a folder is given."""


def read_image(
    path: Path,
    size: int | tuple[int, int] | None = None,
    *,
    crop: bool = True,
    note: Callable[[str], None] | None = None,
) -> Tensor:
    """One film.

    Args:
        path: One of :data:`cxrl.images.raster.FORMATS`, or DICOM (by suffix or content).
        size: Pixels (height, width), or of a side; None keeps the film's own.
        crop: Cut the centre to the aspect ratio of ``size``; else the whole film, with black borders.
        note: Told what was left out of a film that was read, see :data:`cxrl.images.read_dicom.HOT`.

    Returns:
        float32 [1, H, W] in [0, 1]. Pictures are scaled by their type's range; a DICOM, after its lookup
        tables and window, by its own lowest and highest value.

    Raises:
        UnreadableImage: It is missing, truncated, constant, too large, no single image, or its metadata or
            codec cannot be used.
        CxrlError: A DICOM, and pydicom is not installed.
    """
    target = (size, size) if isinstance(size, int) else size
    data = _read(path)
    if path.suffix.lower() in DICOM_SUFFIXES or is_dicom(data):
        pixels = read_dicom(path, data, note)
    else:
        pixels = read_raster(path, data, target)
    low, high = (float(bound) for bound in (pixels.min(), pixels.max())) if pixels.size else (0.0, 0.0)
    if low == high:
        raise UnreadableImage(path, reasons.BLANK, "every pixel has the same value")
    if not 0.0 <= low < high <= 1.0:  # the last word, whatever the way here: nan is not within either
        raise UnreadableImage(path, reasons.OTHER_KIND, "values outside [0, 1]")
    image = torch.from_numpy(pixels)[None]
    return image if target is None else resize(image, target, crop=crop)


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():
            raise UnreadableImage(path, reasons.MISSING)
        if path.stat().st_size > reasons.MAX_BYTES:
            raise UnreadableImage(path, reasons.TOO_LARGE, f"more than {reasons.MAX_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise UnreadableImage(path, reasons.CLOSED, error.strerror or str(error)) from None


def resize(image: Tensor, size: tuple[int, int], *, crop: bool = True) -> Tensor:
    """[1, h, w] to [1, H, W], antialiased (bilinear over the area of a target pixel, so no overshoot).

    Args:
        image: float32 [1, h, w].
        size: (H, W).
        crop: As in :func:`read_image`.
    """
    (h, w), (height, width) = image.shape[-2:], size
    if crop:
        scale = min(h / height, w / width)
        inner_h, inner_w = (max(1, round(n * scale)) for n in size)
        top, left = (h - inner_h) // 2, (w - inner_w) // 2
        image, inner = image[:, top : top + inner_h, left : left + inner_w], size
    else:
        scale = min(height / h, width / w)
        inner = (max(1, round(h * scale)), max(1, round(w * scale)))
    if tuple(image.shape[-2:]) != inner:
        image = F.interpolate(image[None], inner, mode="bilinear", antialias=True, align_corners=False)[0]
    rest_h, rest_w = height - inner[0], width - inner[1]
    borders = (rest_w // 2, rest_w - rest_w // 2, rest_h // 2, rest_h - rest_h // 2)
    return F.pad(image, borders).clamp(0.0, 1.0).contiguous()

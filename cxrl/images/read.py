"""Reading films: JPG, PNG, TIFF and DICOM to float32 [1, H, W] in [0, 1], bright where dense.

A film that cannot be read raises :class:`UnreadableImage` with the reason; nothing is replaced by a black
image. DICOM needs pydicom (the extra ``dicom``).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageFile
from torch import Tensor

from cxrl.errors import CxrlError

DICOM_SUFFIXES = (".dcm", ".dicom")
SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", *DICOM_SUFFIXES)
"""Of the files that count as films where a folder is given."""
_DRAFT = 2
"""A JPG is decoded at no less than this many times the size asked for; the rest is antialiased resizing."""
_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N", "I")


class UnreadableImage(CxrlError):
    """A film that cannot be used.

    Attributes:
        reason: "image missing", "image corrupt or truncated", "image blank" or "image of another kind": what
            films are counted by.
    """

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        super().__init__(f"{path} cannot be read as an image ({detail or reason})")
        self.reason = reason


def read_image(path: Path, size: int | tuple[int, int] | None = None, *, crop: bool = True) -> Tensor:
    """One film.

    Args:
        path: JPG, PNG, TIFF or another format of Pillow, or DICOM (by suffix).
        size: Pixels (height, width), or of a side; None keeps the film's own.
        crop: Cut the centre to the aspect ratio of ``size``; else the whole film, with black borders.

    Returns:
        float32 [1, H, W] in [0, 1]. 8-bit and 16-bit files are scaled by their type's range; a DICOM, after
        its lookup tables and window, by its own minimum and maximum, and inverted if it is MONOCHROME1. A
        Secondary Capture without rescaling is a finished picture: by its type's range.

    Raises:
        UnreadableImage: It is missing, truncated, constant, or no single grey image.
        CxrlError: A DICOM, and pydicom is not installed.
    """
    target = (size, size) if isinstance(size, int) else size
    if not path.is_file():
        raise UnreadableImage(path, "image missing")
    pixels = _read_dicom(path) if path.suffix.lower() in DICOM_SUFFIXES else _read_picture(path, target)
    if not pixels.size or float(pixels.min()) == float(pixels.max()):
        raise UnreadableImage(path, "image blank", "every pixel has the same value")
    image = torch.from_numpy(pixels)[None]
    return image if target is None else resize(image, target, crop=crop)


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


def _read_picture(path: Path, size: tuple[int, int] | None) -> np.ndarray:
    """float32 [H, W] in [0, 1]."""
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise CxrlError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so truncated films read as grey; unset it"
        )
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise UnreadableImage(path, "image of another kind", f"{image.n_frames} frames")
            if size is not None:
                image.draft("L", (_DRAFT * size[1], _DRAFT * size[0]))
            image.load()
            if image.mode in _16_BIT:
                pixels = np.asarray(image).astype(np.float32) / 65535.0
            elif image.mode == "F":
                pixels = np.array(image, dtype=np.float32)
            else:
                pixels = np.asarray(image.convert("L"), dtype=np.float32) / 255.0
    except UnreadableImage:
        raise
    except Exception as error:  # Pillow's plugins raise a dozen types for damaged files
        raise UnreadableImage(path, "image corrupt or truncated", _reason(error)) from None
    if not bool(((pixels >= 0.0) & (pixels <= 1.0)).all()):
        raise UnreadableImage(
            path, "image of another kind", "values outside the range of 16 bits or of [0, 1]"
        )
    return pixels


def import_pydicom() -> Any:
    """pydicom. Raises CxrlError where it is not installed."""
    try:
        import pydicom
    except ImportError:
        raise CxrlError("DICOM needs pydicom: pip install 'cxrl[dicom]'") from None
    return pydicom


def _read_dicom(path: Path) -> np.ndarray:
    """float32 [H, W] in [0, 1]: modality table, then VOI table or window, inversion, the film's own range."""
    pydicom = import_pydicom()
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    try:
        data = pydicom.dcmread(path)
        stored = data.pixel_array
        photometric = str(data.get("PhotometricInterpretation", ""))
        padding = data.get("PixelPaddingValue")
        pixels = apply_voi_lut(apply_modality_lut(stored, data), data).astype(np.float32)
    except Exception as error:  # pydicom and its decoders raise as many
        raise UnreadableImage(path, "image corrupt or truncated", _reason(error)) from None
    if stored.ndim != 2 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        detail = f"{photometric or 'no photometric interpretation'}, shape {stored.shape}"
        raise UnreadableImage(path, "image of another kind", detail)
    shown = np.ones(stored.shape, dtype=bool) if padding is None else stored != padding
    if not shown.any():
        raise UnreadableImage(path, "image blank", "every pixel is padding")
    low, high = float(pixels[shown].min()), float(pixels[shown].max())
    if low < high and _is_finished_picture(data):
        low, high = 0.0, 2.0 ** int(data.BitsStored) - 1.0
    pixels = ((pixels - low) / max(high - low, 1e-9)).clip(0.0, 1.0)
    if photometric == "MONOCHROME1":
        pixels = 1.0 - pixels
    return np.asarray(np.where(shown, pixels, 0.0), dtype=np.float32)


def _is_finished_picture(data: Any) -> bool:
    """Whether the stored range, not the values that occur, is what black and white mean."""
    rescaled = any(name in data for name in ("RescaleSlope", "ModalityLUTSequence", "VOILUTSequence"))
    return (
        data.get("SOPClassUID") == import_pydicom().uid.SecondaryCaptureImageStorage
        and not rescaled
        and int(data.PixelRepresentation) == 0
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__

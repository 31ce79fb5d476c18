"""The one error of a film that cannot be used, and the limits of what is decoded at all."""

from __future__ import annotations

from pathlib import Path

from cxrl.errors import CxrlError

MAX_PIXELS = 2**26
"""8192 × 8192: four times a film of today's detectors; nothing larger is decoded."""
MAX_BYTES = 2**30
"""Of a file."""


class UnreadableImage(CxrlError):
    """A film that cannot be used.

    Attributes:
        reason: What films are counted by: one of the constants below, or :func:`needs_codec`.
    """

    def __init__(self, path: Path, reason: str, detail: str = "") -> None:
        super().__init__(f"{path} cannot be read as an image ({_told(reason, detail)})")
        self.reason = reason


MISSING = "image missing"
CLOSED = "image cannot be opened"
CORRUPT = "image corrupt or truncated"
BLANK = "image blank"
OTHER_KIND = "image of another kind"
UNSUPPORTED = "image format not supported"
TOO_LARGE = "image too large"
UNUSABLE_NUMBERS = "image with an unusable rescaling, window or table"


def needs_codec(packages: str) -> str:
    """The reason of a film whose codec is not installed, with what to install."""
    return f"image needs a codec: pip install {packages}"


def first_line(error: Exception) -> str:
    """What a library says, in one line of bounded length."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def check_size(path: Path, height: int, width: int) -> None:
    """Refuse what would take gigabytes to decode. Raises UnreadableImage."""
    if height * width > MAX_PIXELS:
        detail = f"{height} × {width} pixels, expected at most {MAX_PIXELS:,}"
        raise UnreadableImage(path, TOO_LARGE, detail)


def _told(reason: str, detail: str) -> str:
    """The detail, after the reason where that says what to do."""
    if not detail:
        return reason
    return f"{detail}; {reason}" if "pip install" in reason else detail

"""Something that a configuration needs and that does not ship, and the one error for what is not there."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cxrl.errors import CxrlError
from cxrl.scorers.xrv_release import XRV_URL


@dataclass(frozen=True)
class RequiredFile:
    """Something that a configuration needs.

    Attributes:
        option: Which setting asks for it, for example "rewards.diagnosis".
        name: What it is, in words.
        path: The file or folder; None for a hub id.
        is_present: Whether it is there (a hub id: in huggingface_hub's cache) and can be used.
        size: Bytes, None where unknown.
        sha256: Hex digest it must have; "" where none is known or needed.
        source: URL or hub id to get it from; "" where it is the user's own.
        note: Licence and credential.
        problem: Why what is there cannot be used; "" where it can, or where nothing is.
    """

    option: str
    name: str
    path: Path | None
    is_present: bool
    size: int | None = None
    sha256: str = ""
    source: str = ""
    note: str = ""
    problem: str = ""


class MissingFile(CxrlError):
    """A file that a configuration needs is not there.

    Attributes:
        required: Which.
    """

    def __init__(self, required: RequiredFile) -> None:
        self.required = required
        super().__init__(
            f"{required.option}: missing {how_to_get(required)}; cxrl downloads no weights by itself"
        )


def how_to_get(required: RequiredFile) -> str:
    """What it is, its size and digest, where it is to be had and where to put it."""
    parts = (
        f"{required.size:,} bytes" if required.size else "",
        f"SHA-256 {required.sha256}" if required.sha256 else "",
    )
    known = ", ".join(filter(None, parts))
    if not known and required.source.startswith(XRV_URL):
        section, _, task = required.option.partition(".")
        known = f"no SHA-256 is known: pin yours with --{section}.sha256 {task}=HEX"
    get = f"; get it from {required.source}" if required.source else ""
    place = f" and put it into {required.path.parent}" if required.source and required.path else ""
    where = str(required.path or required.source)
    return (
        f"{required.name}{f': {where}' if where else ''}"
        f"{f' ({known})' if known else ''}{get if required.path else ''}{place}"
        f"{f' ({required.note})' if required.note else ''}"
    )

"""Compressed files of data sets: unpacked in memory, never to the disk, and never without a limit.

What a damaged archive raises is any of a dozen types of zipfile, tarfile, gzip, zlib, lzma and struct, so all
are caught where such a library is called, and nowhere else.
"""

from __future__ import annotations

import gzip
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from cxrl.errors import CxrlError

REPORT_BYTES = 1 << 20
"""The largest report; real ones have a few thousand."""
TABLE_BYTES = 1 << 30
"""The largest table or archive of reports, unpacked; MIMIC-CXR-JPG's largest table has a tenth."""
_PIECE = 1 << 20  # all at once, gzip would make room for the limit whatever the file holds

_LAYOUTS = ("", "mimic-cxr-reports/")
_REPORT = re.compile(r"files/p\d\d/p\d+/s\d+\.txt")


def gunzip(path: Path, knob: str, remedy: str = "") -> io.BytesIO:
    """The content of a ``.gz`` file, or of a file that is not one.

    Args:
        path: The file.
        knob: The option that named it, for messages.
        remedy: What to do about a damaged one, for messages.

    Raises:
        CxrlError: It cannot be read, is damaged, or has more than ``TABLE_BYTES``.
    """
    data = io.BytesIO()
    try:
        if path.suffix not in (".gz", ".tgz"):
            return io.BytesIO(path.read_bytes())
        with gzip.open(path) as file:
            while data.tell() <= TABLE_BYTES and (piece := file.read(_PIECE)):
                data.write(piece)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise CxrlError(f"{knob}: {path} cannot be read ({reason}){remedy}") from None
    if data.tell() > TABLE_BYTES:
        raise CxrlError(f"{knob}: {path} unpacks to more than {TABLE_BYTES >> 20} MiB{remedy}")
    data.seek(0)
    return data


def tar_members(path: Path, suffix: str, knob: str, remedy: str = "") -> Iterator[tuple[str, bytes | None]]:
    """Name and content of every regular file of a ``.tgz`` that ends in ``suffix``; None for one too large.

    Raises:
        CxrlError: As :func:`gunzip`.
    """
    content = gunzip(path, knob, remedy)
    try:
        with tarfile.open(fileobj=content, mode="r:") as archive:
            for member in archive:
                if not (member.isreg() and member.name.endswith(suffix)):
                    continue
                file = archive.extractfile(member) if member.size <= REPORT_BYTES else None
                yield member.name, None if file is None else file.read()
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise CxrlError(f"{knob}: {path} cannot be read ({error}){remedy}") from None


def zip_reports(path: Path, knob: str) -> tuple[Callable[[str], bytes | None], Callable[[], None]]:
    """What reads ``p10/p10000032/s50414267.txt`` of ``mimic-cxr-reports.zip``, and what closes it.

    The files lie under ``files/`` or ``mimic-cxr-reports/files/``. A report that is not there, too large or
    damaged is None.

    Raises:
        CxrlError: It is no zip file, or holds no report in either place.
    """
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:
        raise CxrlError(f"{knob}: {path} cannot be read: {' '.join(str(error).split())}") from None
    members = {info.filename: info for info in archive.infolist()}
    found = [
        layout
        for layout in _LAYOUTS
        if any(name.startswith(layout) and _REPORT.fullmatch(name, len(layout)) for name in members)
    ]
    if not found:
        archive.close()
        first = next(iter(members), "nothing")
        raise CxrlError(
            f"{knob}: {path} has no files/p10/p…/s….txt, nor the same in mimic-cxr-reports/; "
            f"found {first[:80]}"
        )

    def read(name: str) -> bytes | None:
        info = next((members[n] for n in (f"{layout}files/{name}" for layout in found) if n in members), None)
        if info is None or info.file_size > REPORT_BYTES:
            return None
        try:
            with archive.open(info) as file:
                return file.read(REPORT_BYTES)  # with a limit: the size that the directory gives may be a lie
        except Exception:
            return None

    return read, archive.close

"""The index of a data set: one record a film, what was dropped and why, and the cache on disk.

An index is built once. Its cache is a JSON-lines file: a header, one line a film, and one a file that was
looked at while it was built, with size and modification time. It is named by a digest of the options and of
the tables, and built again when any of those files has changed, gone or come. It is written atomically and
holds report texts, so only its owner may read it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from cxrl.data.cells import read_label
from cxrl.storage.writing import replacing

FORMAT = 2
SPLITS = ("train", "validate", "test")
HELD_OUT_SHARE = 0.1
NUM_NAMED = 3
_THREADS = 8  # reading many small files waits for the disk or the network, not for the processor
_AT_ONCE = 1000  # handing one file at a time to a thread costs more than asking for its size
Stamp = tuple[str, int, int]
"""A file, its size and its modification time in ns; -1 and 0 where there is none."""
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class FilmRecord:
    """One film, or one report where there are no films.

    Attributes:
        study: Number of its study: MIMIC-CXR's study_id, Open-I's report number, else the line in the file.
        film: dicom_id, imageid or file name.
        patient: Whom it shows; a patient is in one split only.
        split: "train", "validate" or "test".
        view: In capitals as the data set says, for example "PA"; "" where it does not say.
        image: File relative to the root of the index; "" where there is none.
        text: The prompt: the part of the report that describes the film; "" where it gives none, because its
            text is also in test.
        labels: One value per finding of the index: 1 present, 0 absent, nan unknown.
    """

    study: int
    film: str
    patient: str
    split: str
    view: str
    image: str
    text: str
    labels: tuple[float, ...]


@dataclass(frozen=True)
class Count:
    """How often something happened, and the first few it happened to."""

    number: int
    first: tuple[str, ...]


class Tally:
    """Counts by reason, with the first few names of each."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._first: dict[str, list[str]] = {}

    def add(self, reason: str, name: object) -> None:
        self._numbers[reason] = self._numbers.get(reason, 0) + 1
        first = self._first.setdefault(reason, [])
        if len(first) < NUM_NAMED:
            first.append(str(name))

    def counts(self) -> dict[str, Count]:
        """Most frequent first."""
        order = sorted(self._numbers, key=lambda reason: (-self._numbers[reason], reason))
        return {reason: Count(self._numbers[reason], tuple(self._first[reason])) for reason in order}


def together(*several: Mapping[str, Count]) -> dict[str, Count]:
    """Counts of several tallies as one, most frequent first."""
    numbers: dict[str, Count] = {}
    for counts in several:
        for reason, count in counts.items():
            before = numbers.get(reason, Count(0, ()))
            numbers[reason] = Count(before.number + count.number, (*before.first, *count.first)[:NUM_NAMED])
    return dict(sorted(numbers.items(), key=lambda item: (-item[1].number, item[0])))


@dataclass(frozen=True)
class Index:
    """A data set.

    Attributes:
        source: ``data.source``.
        root: Folder that the images are relative to.
        findings: Names of the F labels.
        films: The records that are left.
        dropped: Reason → films that are not in ``films``.
        noted: What → studies or films that are kept but were changed, or lack something.
        read: Files besides the tables that were looked at, as they were then.
    """

    source: str
    root: Path
    findings: tuple[str, ...]
    films: tuple[FilmRecord, ...]
    dropped: Mapping[str, Count] = field(default_factory=dict)
    noted: Mapping[str, Count] = field(default_factory=dict)
    read: tuple[Stamp, ...] = ()

    def split(self, name: str) -> list[FilmRecord]:
        """The films of "train", "validate" or "test"."""
        return [film for film in self.films if film.split == name]


def describe(counts: Mapping[str, Count], limit: int | None = None) -> str:
    """``reason 12 (first, …), …`` in one line."""
    parts = []
    for reason, count in list(counts.items())[:limit]:
        more = ", …" if count.number > len(count.first) else ""
        parts.append(f"{reason} {count.number} ({', '.join(count.first)}{more})")
    return "; ".join(parts) or "nothing"


def label_value(text: str, *, uncertain: str, tally: Tally, name: str) -> float:
    """A label as written in a table: 1 present, 0 absent, -1 uncertain, blank not mentioned; or in words.

    Args:
        text: The cell.
        uncertain: What -1 becomes: "mask" (nan) or "positive" (1).
        tally: Gets values that are none of these; they become nan.
        name: Of the study.

    Returns:
        1, 0 or nan. A blank is nan: not mentioned is not absent.
    """
    value = read_label(text)
    if value == -1.0:
        return 1.0 if uncertain == "positive" else math.nan
    if value is not None:
        return value
    tally.add(f"unknown label value {text.strip()[:20]!r}, masked", name)
    return math.nan


def assign_splits(patients: Iterable[str]) -> dict[str, str]:
    """Patient → split, for data without an official one: a tenth each held out for validate and test.

    The order of a digest of the name decides, so it does not depend on the order of the file.
    """
    order = sorted(set(patients), key=lambda name: hashlib.sha256(name.encode()).digest())
    held_out = max(1, round(len(order) * HELD_OUT_SHARE))
    return {
        name: "test" if i < held_out else "validate" if i < 2 * held_out else "train"
        for i, name in enumerate(order)
    }


def drop_patients_in_two_splits(films: Sequence[FilmRecord], tally: Tally) -> list[FilmRecord]:
    """Without the films of patients that the data set has in more than one split."""
    splits: dict[str, set[str]] = {}
    for film in films:
        splits.setdefault(film.patient, set()).add(film.split)
    kept = []
    for film in films:
        if len(splits[film.patient]) > 1:
            tally.add("patient in two splits", f"{film.patient}: {film.film}")
        else:
            kept.append(film)
    return kept


def in_threads(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """``function`` of every item, in order."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, items))


def cached_index(
    key: Mapping[str, Any], build: Callable[[], Index], folder: Path | None, *, rebuild: bool = False
) -> Index:
    """The index of ``key``: from ``folder`` if it is there, else built and written there.

    Args:
        key: JSON-able; everything the index depends on.
        build: Makes it.
        folder: Of the cache; None builds every time.
        rebuild: Build although it is there.
    """
    if folder is None:
        return build()
    digest = hashlib.sha256(json.dumps({"format": FORMAT, **key}, sort_keys=True).encode()).hexdigest()
    path = folder / f"{key['source']}-{digest[:16]}.jsonl"
    if not rebuild and os.path.isfile(path):  # False also where the folder may not be looked into
        try:
            index = _read(path, digest)
        except (ValueError, KeyError, TypeError, OSError) as error:
            warnings.warn(f"{path} cannot be read ({error}); building the index again", stacklevel=2)
        else:
            if _is_as_read(index.read):
                return index
    index = build()
    _write(path, digest, index)
    return index


def stamp(path: str | Path) -> Stamp:
    """The file as it is now."""
    name = os.fspath(path)
    try:
        found = os.stat(name)
    except OSError:
        return name, -1, 0
    return name, found.st_size, found.st_mtime_ns


def _is_as_read(read: Sequence[Stamp]) -> bool:
    parts = [read[start : start + _AT_ONCE] for start in range(0, len(read), _AT_ONCE)]
    return all(in_threads(lambda part: all(stamp(old[0]) == old for old in part), parts))


def file_key(paths: Iterable[Path]) -> list[list[Any]]:
    """[path, size, modification time] of every file or folder."""
    return [[str(p), s.st_size, s.st_mtime_ns] for p, s in ((p, p.stat()) for p in paths)]


def _write(path: Path, digest: str, index: Index) -> None:
    header = {
        "digest": digest,
        "source": index.source,
        "root": str(index.root),
        "findings": index.findings,
        "num_films": len(index.films),
        "num_read": len(index.read),
        **{
            name: {reason: [c.number, c.first] for reason, c in counts.items()}
            for name, counts in (("dropped", index.dropped), ("noted", index.noted))
        },
    }
    hint = "choose another --data.cache, or none"
    with replacing(path, private=True, hint=hint) as partial, partial.open("w", encoding="utf-8") as file:
        file.write(json.dumps(header) + "\n")
        for f in index.films:
            labels = [None if math.isnan(v) else v for v in f.labels]
            row = [f.study, f.film, f.patient, f.split, f.view, f.image, f.text, labels]
            file.write(json.dumps(row) + "\n")
        file.writelines(json.dumps(row) + "\n" for row in index.read)


def _read(path: Path, digest: str) -> Index:
    with path.open(encoding="utf-8") as file:
        header = json.loads(next(file, ""))
        if header["digest"] != digest:
            raise ValueError("it belongs to other files or options")
        rows: list[list[Any]] = [json.loads(line) for line in file]
    num_films, num_lines = header["num_films"], header["num_films"] + header["num_read"]
    if len(rows) != num_lines:
        raise ValueError(f"{len(rows)} of {num_lines} lines")
    films = []
    for row in rows[:num_films]:
        row[-1] = tuple(math.nan if v is None else float(v) for v in row[-1])
        films.append(FilmRecord(*row))
    read = tuple((str(name), int(size), int(time)) for name, size, time in rows[num_films:])
    dropped, noted = (
        {reason: Count(number, tuple(first)) for reason, (number, first) in header[name].items()}
        for name in ("dropped", "noted")
    )
    return Index(
        header["source"], Path(header["root"]), tuple(header["findings"]), tuple(films), dropped, noted, read
    )

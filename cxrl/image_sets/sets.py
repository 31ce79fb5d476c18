"""A set of films that is judged: a folder, or a table that names them, with what it says of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cxrl.data.cells import LABELS_EXPECTED, fold, read_label
from cxrl.data.rows import Table, listed, nearest_column, read_table
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS
from cxrl.images.read import SUFFIXES

TEXTS = ("text", "report", "prompt")
"""Columns that hold a film's text; a table has one of them at most."""
PROMPT_ID = "prompt_id"
PICTURES = frozenset((*SUFFIXES, ".jp2", ".webp", ".bmp", ".gif", ".pgm", ".ppm"))


@dataclass(frozen=True)
class ImageSet:
    """Films to be judged, in a fixed order.

    Attributes:
        name: The folder or table, as it was given.
        paths: Of N films, whether they can be read or not.
        texts: Of every film; "" where there is none.
        prompts: What films of one prompt share: its id, else its text; "" where there is neither.
        labels: Finding → N values, 1, 0 or nan (unknown or uncertain); empty without label columns.
        groups: Column of a subgroup → N values.
        unread: Columns of the table that say nothing here.
    """

    name: str
    paths: tuple[Path, ...]
    texts: tuple[str, ...]
    prompts: tuple[str, ...]
    labels: dict[str, tuple[float, ...]] = field(default_factory=dict)
    groups: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.paths)


def open_set(path: Path, option: str, subgroups: Sequence[str] = ()) -> ImageSet:
    """The films of a folder (recursively, sorted) or of a table with the column ``image``.

    Args:
        path: A folder, or .csv, .tsv, .jsonl, .parquet.
        option: What named it, for messages.
        subgroups: Columns that must be there.

    Raises:
        CxrlError: It has fewer than two films, cannot be read, lacks a column, or a cell is no label.
    """
    found = _folder(path, option, subgroups) if path.is_dir() else _table(path, option, subgroups)
    if len(found) < 2:
        raise CxrlError(f"{option}: {path} names {len(found)} films, expected at least two")
    return found


def _folder(path: Path, option: str, subgroups: Sequence[str]) -> ImageSet:
    if subgroups:
        raise CxrlError(f"{option}: {path} is a folder, which has no column {subgroups[0]}; give a table")
    films = tuple(sorted(p for p in path.rglob("*") if p.suffix.lower() in PICTURES and p.is_file()))
    blank = ("",) * len(films)
    return ImageSet(str(path), films, blank, blank)


def _table(path: Path, option: str, subgroups: Sequence[str]) -> ImageSet:
    table = read_table(path, ("image",), option)
    text = [name for name in table.columns if fold(name) in TEXTS]
    if len(text) > 1:
        raise CxrlError(f"{table.where} has several columns of text: {', '.join(text)}; keep one")
    for name in subgroups:
        if name not in table.columns:
            raise CxrlError(f"--subgroups: {path} has no column {name}; found {listed(table.columns)}")
    findings = _finding_columns(table)
    prompt_id = [name for name in table.columns if fold(name) == fold(PROMPT_ID)]
    table.check([*text, *subgroups, *findings.values(), *prompt_id])
    paths, texts, prompts = [], [], []
    labels: dict[str, list[float]] = {name: [] for name in findings}
    groups: dict[str, list[str]] = {name: [] for name in subgroups}
    for line, row in table.rows:
        if not row["image"].strip():
            raise CxrlError(f"{table.where} {table.unit} {line}: the column image is blank")
        paths.append(path.parent / row["image"].strip())
        texts.append(" ".join(row[text[0]].split()) if text else "")
        prompts.append((row[prompt_id[0]].strip() if prompt_id else "") or texts[-1])
        for finding, column in findings.items():
            value = read_label(row[column])
            if value is None:
                raise CxrlError(
                    f"{table.where} {table.unit} {line}, column {column}: {row[column][:20]!r} is no label, "
                    f"expected {LABELS_EXPECTED}"
                )
            labels[finding].append(math.nan if value == -1.0 else value)
        for name, values in groups.items():
            values.append(row[name].strip())
    read = {"image", *text, *prompt_id, *findings.values(), *subgroups}
    return ImageSet(
        name=str(path),
        paths=tuple(paths),
        texts=tuple(texts),
        prompts=tuple(prompts),
        labels={name: tuple(values) for name, values in labels.items()},
        groups={name: tuple(values) for name, values in groups.items()},
        unread=tuple(name for name in table.columns if name not in read),
    )


def _finding_columns(table: Table) -> dict[str, str]:
    """Finding → its column. Raises CxrlError where two are one finding's, or one is nearly one's."""
    known = {fold(name): name for name in CHEXPERT_FINDINGS}
    found: dict[str, str] = {}
    for column in table.columns:
        finding = known.get(fold(column))
        if finding in found:
            raise CxrlError(f"{table.where} has two columns for {finding}; keep one")
        if finding:
            found[finding] = column
        elif near := nearest_column(column, CHEXPERT_FINDINGS):
            raise CxrlError(f"{table.where} has a column {column!r}; did you mean {near}? Rename it")
    return found

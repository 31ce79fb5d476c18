"""Tables and lists of the user's own: CSV, Parquet, or a text file with one report a line.

Columns: ``text`` is needed; ``image`` (relative to the table), ``id``, ``study``, ``patient``, ``split``
(train, validate or test), ``view`` and one a finding are read where they exist. Rows of one ``study`` are
films of one report.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from cxrl.config import DataConfig
from cxrl.data.agreement import agreeing
from cxrl.data.equal_texts import same_text
from cxrl.data.index import (
    SPLITS,
    FilmRecord,
    Index,
    Tally,
    assign_splits,
    drop_patients_in_two_splits,
    label_value,
)
from cxrl.data.sections import clean
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS

Row = tuple[int, dict[str, str]]
"""Line (CSV) or row (Parquet) counted from 1, and column → cell."""


def read_rows(path: Path, required: Sequence[str], knob: str) -> list[Row]:
    """The rows of a CSV (UTF-8, commas) or Parquet file.

    Args:
        path: ``*.parquet`` or anything else, which is read as CSV.
        required: Columns that must exist.
        knob: The option that named the file, for messages.

    Raises:
        CxrlError: The file or a column is missing, it has no rows or cannot be read; for Parquet, pyarrow is
            not installed.
    """
    if not path.is_file():
        raise CxrlError(f"{knob}: {path} is not a file")
    columns, rows = _parquet(path, knob) if path.suffix == ".parquet" else _csv(path, knob)
    missing = [name for name in required if name not in columns]
    if missing:
        found = ", ".join(columns) or "none"
        raise CxrlError(f"{knob}: {path} has no column {', '.join(missing)}; found {found}")
    if not rows:
        raise CxrlError(f"{knob}: {path} has no rows")
    return rows


def _csv(path: Path, knob: str) -> tuple[list[str], list[Row]]:
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # spreadsheets write a byte order mark
            reader = csv.DictReader(file, restval="")
            columns = list(reader.fieldnames or [])
            if len(set(columns)) != len(columns):
                raise CxrlError(f"{knob}: {path} has a column twice: {', '.join(columns)}")
            return columns, [(reader.line_num, {c: row[c] or "" for c in columns}) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise CxrlError(f"{knob}: {path} is not a CSV in UTF-8: {error}") from None


def _parquet(path: Path, knob: str) -> tuple[list[str], list[Row]]:
    import pandas

    try:
        frame = pandas.read_parquet(path)
    except ImportError:
        raise CxrlError(
            f"{knob}: reading {path} needs pyarrow: pip install pyarrow, or save it as CSV"
        ) from None
    except Exception as error:  # pyarrow raises its own types, OSError and ValueError
        reason = " ".join(str(error).split())[:160]
        raise CxrlError(f"{knob}: {path} is not a Parquet file: {reason}") from None
    columns = [str(c) for c in frame.columns]
    cells = frame.astype(object).where(frame.notna(), "").astype(str).to_numpy().tolist()
    return columns, [(i + 1, dict(zip(columns, row, strict=True))) for i, row in enumerate(cells)]


def build_table(config: DataConfig) -> Index:
    """The index of ``data.root``, a table whose rows have an image and a text.

    Raises:
        CxrlError: The table cannot be read or lacks a column.
    """
    return _index(config, read_rows(Path(config.root), ("image", "text"), "data.root"))


def build_prompts(config: DataConfig) -> Index:
    """The index of ``data.root`` without images: a table with the column ``text``, or one report a line."""
    path = Path(config.root)
    if path.suffix in (".csv", ".parquet"):
        rows = [(n, {**row, "image": ""}) for n, row in read_rows(path, ("text",), "data.root")]
        return _index(config, rows)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CxrlError(
            f"data.root: cannot read {path}: {reason}; expected UTF-8, one report a line"
        ) from None
    return _index(config, [(n, {"text": line}) for n, line in enumerate(lines, 1) if line.strip()])


def _index(config: DataConfig, rows: Sequence[Row]) -> Index:
    path = Path(config.root)
    columns = rows[0][1].keys() if rows else ()
    lost = [name for name in config.label_columns if name not in columns]
    if lost:
        raise CxrlError(
            f"data.label_columns: {path} has no column {', '.join(lost)}; found {', '.join(columns)}"
        )
    findings = config.label_columns or tuple(name for name in CHEXPERT_FINDINGS if name in columns)
    dropped, noted = Tally(), Tally()
    films = list(_films(config, rows, findings, dropped, noted))
    if "split" in columns:
        films = drop_patients_in_two_splits(films, dropped)
    else:
        splits = assign_splits(film.patient for film in films)
        films = [replace(film, split=splits[film.patient]) for film in films]
    return Index(config.source, path.parent, findings, tuple(films), dropped.counts(), noted.counts())


def _films(
    config: DataConfig, rows: Sequence[Row], findings: Sequence[str], dropped: Tally, noted: Tally
) -> Iterator[FilmRecord]:
    views = {view.upper() for view in config.views}
    studies: dict[str, int] = {}
    seen: set[str] = set()
    for line, row in rows:
        cell = {name: value.strip() for name, value in row.items()}
        name = cell.get("id") or cell.get("image") or f"line {line}"
        view, text = cell.get("view", "").upper(), " ".join(cell["text"].split())
        split = cell.get("split", "").lower()
        if name in seen:
            dropped.add("duplicated id", f"{name} (line {line})")
            continue
        seen.add(name)
        if "view" in cell and view not in views:
            dropped.add(f"view {view or 'blank'} is not in data.views", name)
            continue
        if "split" in cell and split not in SPLITS:
            dropped.add(f"unknown split {split[:20]!r}", name)
            continue
        if config.source == "table" and not cell["image"]:
            dropped.add("no image named", name)
            continue
        handling = {"placeholders": config.placeholders, "comparisons": config.comparisons}
        whole, (text, problem) = text, clean(text, **handling, tally=noted, name=name)
        if problem:
            dropped.add(problem, name)
            continue
        labels = tuple(
            label_value(cell[f], uncertain=config.uncertain_labels, tally=noted, name=name) for f in findings
        )
        labels = agreeing(findings, labels, text, whole, own=True, tally=noted, name=name)
        if findings and all(math.isnan(value) for value in labels):
            noted.add("no known label", name)
        study = studies.setdefault(cell.get("study") or f"line {line}", line)
        # Without a patient, equal texts go to one split; where splits are given, they are seen to later.
        patient = cell.get("patient") or cell.get("study") or (name if "split" in cell else same_text(text))
        yield FilmRecord(study, name, patient, split, view, cell.get("image", ""), text, labels)

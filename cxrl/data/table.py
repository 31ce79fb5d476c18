"""Tables and lists of the user's own: CSV, TSV, JSON lines, Parquet, or a text file with one report a line.

Columns: ``text`` is needed; ``image`` (relative to the table), ``id``, ``study``, ``patient``, ``split``
(train, validate or test), ``view`` and one a finding are read where they exist, whatever their case. Rows of
one ``study`` are films of one report.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cxrl.config import DataConfig
from cxrl.data.agreement import agreeing
from cxrl.data.cells import LABELS_EXPECTED, SPLITS_EXPECTED, fold, read_label, read_split
from cxrl.data.equal_texts import same_text
from cxrl.data.index import FilmRecord, Index, Tally, assign_splits, drop_patients_in_two_splits, label_value
from cxrl.data.rows import ROLES, Table, listed, nearest_column, read_table
from cxrl.data.sections import clean, without_headings
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS


def build_table(config: DataConfig) -> Index:
    """The index of ``data.root``, a table whose rows have an image and a text.

    Raises:
        CxrlError: The table cannot be read, lacks a column, or a cell is no label or no split.
    """
    return _index(config, read_table(Path(config.root), ("image", "text"), "data.root"))


def build_prompts(config: DataConfig) -> Index:
    """The index of ``data.root`` without images: a table with the column ``text``, or one report a line."""
    table = read_table(Path(config.root), ("text",), "data.root", lists=True)
    columns = tuple(name for name in table.columns if name != "image")
    return _index(config, replace(table, columns=columns))


def _index(config: DataConfig, table: Table) -> Index:
    labels = _label_columns(config, table)
    dropped, noted = Tally(), Tally()
    for name in table.columns:
        if name not in ROLES and name not in labels.values():
            noted.add("column is not read", name)
    films = list(_films(config, table, labels, dropped, noted))
    if "split" in table.columns:
        films = drop_patients_in_two_splits(films, dropped)
    else:
        splits = assign_splits(film.patient for film in films)
        films = [replace(film, split=splits[film.patient]) for film in films]
    root = Path(config.root).parent
    return Index(config.source, root, tuple(labels), tuple(films), dropped.counts(), noted.counts())


def _label_columns(config: DataConfig, table: Table) -> dict[str, str]:
    """Finding → its column.

    Raises:
        CxrlError: ``data.label_columns`` names what does not exist; a column is nearly named like one that is
            read, a finding's (where ``data.label_columns`` is empty) or one with a meaning; or two columns
            are one finding's.
    """
    known = {fold(name): name for name in CHEXPERT_FINDINGS}
    by_fold: dict[str, list[str]] = {}
    for column in table.columns:
        by_fold.setdefault(fold(column), []).append(column)
    found: dict[str, str] = {}
    for name in config.label_columns or [name for key, name in known.items() if key in by_fold]:
        columns = by_fold.get(fold(name), [])
        if config.label_columns and name in columns:  # the user says which
            columns = [name]
        finding = known.get(fold(name), name)
        if not columns or finding in found:
            problem = f"names {name} twice" if columns else f"{config.root} has no column {name}"
            raise CxrlError(f"data.label_columns: {problem}; found {listed(table.columns)}")
        if len(columns) > 1:
            twice = ", ".join(map(repr, columns))
            raise CxrlError(f"{table.where} has several columns for {name}: {twice}; keep one")
        found[finding] = columns[0]
    read = [name for name in ROLES[2:] if name not in table.columns]
    read += [] if config.label_columns else CHEXPERT_FINDINGS
    for column in table.columns:
        near = nearest_column(column, read)
        if near and column not in ROLES and column not in found.values():
            raise CxrlError(
                f"{table.where} has a column {column!r}, which is not read; did you mean {near}? Rename it"
                + ("" if config.label_columns else ", or name the columns with labels in data.label_columns")
            )
    table.check(list(found.values()))
    return found


def _films(
    config: DataConfig, table: Table, columns: Mapping[str, str], dropped: Tally, noted: Tally
) -> Iterator[FilmRecord]:
    views = {view.upper() for view in config.views}
    handling = {"placeholders": config.placeholders, "comparisons": config.comparisons}
    studies: dict[str, int] = {}
    seen: set[str] = set()
    for line, row in table.rows:
        cell = {name: row[name].strip() for name in table.columns}
        name = cell.get("id") or cell.get("image") or f"{table.unit} {line}"
        _check_cells(table, line, cell, columns)
        view, split = cell.get("view", "").upper(), read_split(cell.get("split", "")) or ""
        if name in seen:
            dropped.add("duplicated id", f"{name} ({table.unit} {line})")
            continue
        seen.add(name)
        if "view" in cell and view not in views:
            dropped.add(f"view {view or 'blank'} is not in data.views", name)
            continue
        if "split" in cell and not split:
            dropped.add("split blank", name)
            continue
        if config.source == "table" and not cell["image"]:
            dropped.add("no image named", name)
            continue
        whole = " ".join(cell["text"].split())
        text = without_headings(cell["text"])
        if text != whole:
            noted.add("one section of the text is used", name)
        text, problem = clean(text, **handling, tally=noted, name=name)
        if problem:
            dropped.add(problem, name)
            continue
        labels = tuple(
            label_value(cell[column], uncertain=config.uncertain_labels, tally=noted, name=name)
            for column in columns.values()
        )
        labels = agreeing(tuple(columns), labels, text, whole, own=True, tally=noted, name=name)
        if columns and all(math.isnan(value) for value in labels):
            noted.add("no known label", name)
        study = studies.setdefault(cell.get("study") or f"{table.unit} {line}", line)
        patient = cell.get("patient") or cell.get("study") or (name if "split" in cell else same_text(text))
        yield FilmRecord(study, name, patient, split, view, cell.get("image", ""), text, labels)


def _check_cells(table: Table, line: int, cell: Mapping[str, str], columns: Mapping[str, str]) -> None:
    """Raises CxrlError for a label or a split that is none, also in a row that is dropped for its view."""
    wrong = [(c, LABELS_EXPECTED, "label") for c in columns.values() if read_label(cell[c]) is None]
    if cell.get("split") and read_split(cell["split"]) is None:
        wrong.append(("split", SPLITS_EXPECTED, "split"))
    for column, expected, kind in wrong[:1]:
        raise CxrlError(
            f"{table.where} {table.unit} {line}, column {column}: {cell[column][:20]!r} is no {kind}, "
            f"expected {expected}"
        )

"""Rows of the user's own files: CSV, TSV, JSON lines, Parquet, and lists with one text a line.

A file is read whole or refused with the line: a row with a cell too many has lost a comma's quotes, and its
text would be cut where the comma stands.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path
from typing import Any

from cxrl.data.cells import fold
from cxrl.errors import CxrlError

Row = tuple[int, dict[str, str]]
"""Line (row, for Parquet) where it ends, counted from 1, and column → cell."""

ROLES = ("text", "image", "id", "study", "patient", "split", "view")
"""Columns that have a meaning, in any case; ``subject_id`` and the like stand for one that is not there."""
_ALIASES = {"patientid": "patient", "subjectid": "patient", "studyid": "study", "viewposition": "view"}
_LIKENESS = 0.82
_NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
_BREAK = re.compile("[ \t]*[\v\f\x1c-\x1f\x85\u2028\u2029]+[ \t]*")
"""What breaks a line for some programs and not for others: one space within the column ``text``."""
_LINE_END = re.compile(r"\r\n|\n|\r")
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16", b"\x1f\x8b": "gzip", b"PK\x03\x04": "a zip"}


@dataclass(frozen=True)
class Table:
    """A file's rows.

    Attributes:
        where: The option and the file, for messages.
        columns: Names, each once; those of ``ROLES`` as they are written there.
        rows: The cells of every row, "" where there is none.
        unit: What a row's number counts: "line" or "row".
        unreadable: Column → what it holds that is no text, number or truth value; its cells are "".
    """

    where: str
    columns: tuple[str, ...]
    rows: list[Row]
    unit: str = "line"
    unreadable: dict[str, str] = field(default_factory=dict)

    def check(self, columns: Sequence[str]) -> None:
        """Raises CxrlError where one of these columns holds what cannot be read."""
        for name in columns:
            if name in self.unreadable:
                raise CxrlError(
                    f"{self.where}: column {name} {self.unreadable[name]}, expected text or numbers"
                )


def read_table(path: Path, required: Sequence[str], knob: str, *, lists: bool = False) -> Table:
    """The rows of a ``.csv`` (commas), ``.tsv``, ``.jsonl`` (an object a line) or ``.parquet`` file.

    All but Parquet are UTF-8, with lines that end with ``\\n``, ``\\r\\n`` or ``\\r`` and with nothing else.
    Suffixes are taken in any case.

    Args:
        path: The file.
        required: Columns that must exist, of ``ROLES``.
        knob: The option that named the file, for messages.
        lists: Read ``.txt`` too: one text a line, the column ``text``; blank lines are left out.

    Raises:
        CxrlError: The file or a column is missing, a row has another number of cells than the header, a
            column occurs twice, it has no rows or cannot be read; for Parquet, pyarrow is not installed.
    """
    if not path.is_file():
        raise CxrlError(f"{knob}: cannot read {path}: {path.name or path} is not a file")
    readers = {".txt": _lines, **_READERS} if lists else _READERS
    reader = readers.get(path.suffix.lower())
    if reader is None:
        *names, last = readers
        suffix = f"the suffix {path.suffix}" if path.suffix else "no suffix"
        raise CxrlError(f"{knob}: {path} has {suffix}, expected {', '.join(names)} or {last}")
    table = _with_roles(reader(path, f"{knob}: {path}"))
    missing = [name for name in required if name not in table.columns]
    if missing:
        raise CxrlError(f"{table.where} has no column {', '.join(missing)}; found {listed(table.columns)}")
    if not table.rows:
        raise CxrlError(f"{table.where} has no rows")
    table.check([name for name in ROLES if name in table.columns])
    if "text" not in table.columns:
        return table
    return replace(table, rows=[(n, row | {"text": _BREAK.sub(" ", row["text"])}) for n, row in table.rows])


def read_rows(path: Path, required: Sequence[str], knob: str) -> list[Row]:
    """The rows of :func:`read_table` alone."""
    return read_table(path, required, knob).rows


def listed(columns: Sequence[str]) -> str:
    """Names for a message, cut: where the header is missing they are a report's text."""
    return ", ".join(" ".join(name.split())[:30] for name in columns[:20]) or "none"


def nearest_column(name: str, known: Sequence[str]) -> str:
    """The known name that a column's is nearly, "" where there is none. Slips spare the first letter."""
    folded = {fold(k): k for k in known if fold(k)[:1] == fold(name)[:1]}
    near = difflib.get_close_matches(fold(name), folded, 1, cutoff=_LIKENESS)
    return folded[near[0]] if near else ""


def _with_roles(table: Table) -> Table:
    """The table with its columns named as in ``ROLES``. Raises CxrlError where two columns are one."""
    named: dict[str, str] = {}
    folded = [fold(column) for column in table.columns]
    for column, key in zip(table.columns, folded, strict=True):
        role = _ALIASES.get(key, "")
        name = key if key in ROLES else role if role and role not in folded else " ".join(column.split())
        if name in named:
            raise CxrlError(
                f"{table.where} has two columns for {name}: {named[name]!r} and {column!r}; keep one"
            )
        named[name] = column
    if tuple(named) == table.columns:
        return table
    rows = [(n, {name: row[column] for name, column in named.items()}) for n, row in table.rows]
    unreadable = {name: table.unreadable[c] for name, c in named.items() if c in table.unreadable}
    return replace(table, columns=tuple(named), rows=rows, unreadable=unreadable)


def _content(path: Path, where: str) -> str:
    """The text of a UTF-8 file, without the byte order mark that spreadsheets write."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _cannot_read(where, str(error.strerror)) from None
    for mark, kind in _MARKS.items():
        if data.startswith(mark):
            raise _cannot_read(where, f"it is {kind}, expected UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before, byte = error.object[: error.start], error.object[error.start]
        line, kind = len(_LINE_END.split(before.decode("utf-8"))), path.suffix[1:].upper()
        raise CxrlError(f"{where} is not a {kind} in UTF-8: byte 0x{byte:02x} in line {line}") from None
    if "\0" in text:
        line = len(_LINE_END.split(text[: text.index("\0")]))
        raise CxrlError(f"{where} line {line} holds a NUL, which no text has; is the file damaged?")
    return text


def _cannot_read(where: str, why: str) -> CxrlError:
    knob, _, path = where.partition(": ")
    return CxrlError(f"{knob}: cannot read {path}: {why}")


def _lines(path: Path, where: str) -> Table:
    lines = [(n, line) for n, line in enumerate(_LINE_END.split(_content(path, where)), 1) if line.strip()]
    if not lines:
        raise CxrlError(f"{where} has no text, so no film is left; expected one report a line")
    number, first = lines[0]
    names = [fold(name.strip(" \"'")) for name in re.split(r"[,;\t|]", first)]
    if "text" in names and all(len(name) < 30 for name in names):
        raise CxrlError(f"{where} line {number} is the header of a table; name the file .csv or .tsv")
    return Table(where, ("text",), [(n, {"text": line}) for n, line in lines])


def _separated(separator: str) -> Callable[[Path, str], Table]:
    def read(path: Path, where: str) -> Table:
        rows = _records(_content(path, where), separator, where)
        _, _, header = next(rows, (0, 0, []))
        columns = [" ".join(name.split()) for name in header]
        named = [name for name in columns if name]
        if len(set(named)) != len(named):
            raise CxrlError(f"{where} has a column twice: {listed(columns)}")
        found: list[Row] = []
        for line, end, cells in rows:
            if len(cells) != len(columns):
                counts = f"{len(cells)} cells for {len(columns)} columns ({listed(columns)})"
                if len(cells) < len(columns):
                    raise CxrlError(f"{where} line {line} has no {listed(columns[len(cells) :])}: {counts}")
                raise CxrlError(f"{where} line {line} has {counts}; a text with a separator needs quotes")
            # A column without a name is what pandas calls its index.
            found.append((end, {name: cell for name, cell in zip(columns, cells, strict=True) if name}))
        return Table(where, tuple(named), found)

    return read


def _records(text: str, separator: str, where: str) -> Iterator[tuple[int, int, list[str]]]:
    """(line where it begins, line where it ends, cells) of every record whose line is not blank."""
    lines = io.StringIO(text, newline="").readlines()  # which end with \n, \r\n or \r
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise CxrlError(
                f"{where} line {line}: {error}; is a quote left open? One within quotes is written twice"
            ) from None
        if cells is None:
            return
        written = "".join(lines[line - 1 : reader.line_num])
        # A comma lost before a quote: `a.png"Effusion, no oedema."` is two cells, and a text is cut.
        if separator == "," and any(
            '"' in c and f'"{c.replace(chr(34), chr(34) * 2)}"' not in written for c in cells
        ):
            raise CxrlError(f"{where} line {line} has a quote in a cell without quotes around it")
        if written.strip() or len(cells) > 1:
            yield line, reader.line_num, cells


def _jsonl(path: Path, where: str) -> Table:
    objects: list[tuple[int, dict[str, Any]]] = []
    for number, line in enumerate(_LINE_END.split(_content(path, where)), 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, object_pairs_hook=_without_repeats)
        except (ValueError, RecursionError) as error:
            raise CxrlError(f"{where} line {number} is not JSON: {str(error)[:100]}") from None
        if not isinstance(value, dict):
            raise CxrlError(f'{where} line {number} is no JSON object, expected {{"text": …}}')
        objects.append((number, value))
    columns = tuple(dict.fromkeys(name for _, value in objects for name in value))
    rows: list[Row] = []
    unreadable: dict[str, str] = {}
    for number, value in objects:
        cells = {name: _cell(value.get(name)) for name in columns}
        for name, cell in cells.items():
            if cell is None:
                unreadable.setdefault(name, f"holds {_kind(value[name])} in line {number}")
        rows.append((number, {name: cell or "" for name, cell in cells.items()}))
    return Table(where, columns, rows, unreadable=unreadable)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)[:30]!r} is given twice")
    return found


def _parquet(path: Path, where: str) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        knob, _, name = where.partition(": ")
        raise CxrlError(
            f"{knob}: reading {name} needs pyarrow: pip install pyarrow, or save it as CSV"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            table = file.read()
    except Exception as error:  # pyarrow raises its own types, OSError and ValueError
        reason = " ".join(str(error).split())[:160]
        raise CxrlError(f"{where} is not a Parquet file: {reason}") from None
    columns = tuple(table.column_names)
    if len(set(columns)) != len(columns):
        raise CxrlError(f"{where} has a column twice: {listed(columns)}")
    cells: dict[str, list[str]] = {}
    unreadable: dict[str, str] = {}
    for name, column in zip(columns, table.columns, strict=True):
        cells[name] = [""] * table.num_rows
        try:
            values = column.to_pylist()
        except Exception as error:  # bytes that are no UTF-8, dates out of range
            unreadable[name] = f"({column.type}) cannot be read: {str(error)[:80]}"
            continue
        read = [_cell(value) for value in values]
        if None in read:
            row = read.index(None)
            unreadable[name] = f"({column.type}) holds {_kind(values[row])} in row {row + 1}"
        else:
            cells[name] = [cell or "" for cell in read]
    rows = [(n + 1, {name: cells[name][n] for name in columns}) for n in range(table.num_rows)]
    return Table(where, columns, rows, "row", unreadable)


def _cell(value: Any) -> str | None:
    """A value as text, "" for a missing one; None for what is no text, number or truth value."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, (str, bool, int, float, Decimal)):
        return None
    text = str(value)
    return None if _NO_TEXT.search(text) else text


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return "a NUL or half a character"
    name = type(value).__name__
    return {"dict": "an object", "list": "a list", "bytes": "bytes"}.get(name, f"a {name}")


_READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": _separated(","),
    ".tsv": _separated("\t"),
    ".jsonl": _jsonl,
    ".parquet": _parquet,
}

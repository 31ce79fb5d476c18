"""Tables at random, then spoilt: reports as they were written, or an error with the file and the line."""

from __future__ import annotations

import importlib.util
import io
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from cxrl.config import DataConfig
from cxrl.data.index import Index
from cxrl.data.sources import load_index
from cxrl.errors import CxrlError

TEXTS = (
    "Small left effusion, no pneumothorax.",
    "Clear lungs.",
    'A "tree-in-bud" pattern; no effusion.',
    "Large heart.\u2028Edema,\x0cmild.\x85No fracture.",
    "5 mm granuloma vs. nodule, approx. at rib No. 5.",
    "Épanchement à gauche, pas d'œdème.",
)
KINDS = ("csv", "tsv", "jsonl", "txt", *(["parquet"] if importlib.util.find_spec("pyarrow") else []))
SPLITS = ("train", "Train", " test ", "val", "dev", "validate")
NASTY = (
    ",",
    "\t",
    '"',
    "\n",
    "\r",
    "\0",
    "'",
    "{",
    "}",
    "[",
    ":",
    "\\",
    "\ufeff",
    "\u2028",
    "\x85",
    "ß",
    ";",
    "-1",
    " ",
)
NUM_EACH = 60
Rows = list[dict[str, str]]


def rows(rng: random.Random, kind: str) -> Rows:
    texts = [f"{rng.choice(TEXTS)} Rib {n}." for n in range(rng.randint(1, 6))]
    if kind == "txt":
        return [{"text": text} for text in texts]
    return [
        {
            "image": f"{n}.png",
            "text": text,
            "split": rng.choice(SPLITS),
            "Pleural_Effusion": rng.choice(("0", "1", "1.0", "-1", "", "True", "false", "nan")),
        }
        for n, text in enumerate(texts)
    ]


def written(table: Rows, kind: str, quote: Callable[[str], bool] = lambda cell: True) -> bytes:
    """The bytes of a table; ``quote`` says which cells get quotes."""
    if kind == "txt":
        return "".join(f"{row['text']}\n" for row in table).encode()
    if kind == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()
    if kind == "parquet":
        import pyarrow
        from pyarrow.parquet import write_table

        buffer = io.BytesIO()
        write_table(pyarrow.Table.from_pylist(table), buffer)
        return buffer.getvalue()
    separator = "," if kind == "csv" else "\t"
    lines = [list(table[0]), *(list(row.values()) for row in table)]
    cells = [['"' + c.replace('"', '""') + '"' if quote(c) else c for c in line] for line in lines]
    return "".join(separator.join(line) + "\n" for line in cells).encode()


def letters(text: str) -> str:
    return re.sub(r"\W", "", text)


def read(path: Path, data: bytes, kind: str) -> Index | CxrlError:
    path.write_bytes(data)
    source = "prompts" if kind == "txt" else "table"
    try:
        return load_index(DataConfig(source=source, root=str(path), cache="none"))
    except CxrlError as error:
        return error


@pytest.mark.parametrize("kind", KINDS)
def test_tables_read_as_they_were_written(tmp_path: Path, kind: str) -> None:
    rng = random.Random(0)
    for _ in range(NUM_EACH):
        table = rows(rng, kind)
        found = read(tmp_path / f"t.{rng.choice((kind, kind.upper()))}", written(table, kind), kind)
        assert isinstance(found, Index), found
        assert [film.text for film in found.films] == [" ".join(row["text"].split()) for row in table]
        if kind != "txt":
            assert found.findings == ("Pleural Effusion",)
            assert [f.film for f in found.films] == [row["image"] for row in table]


@pytest.mark.parametrize("kind", ["csv", "tsv"])
def test_a_lost_or_spare_separator_or_quote_never_cuts_a_report(tmp_path: Path, kind: str) -> None:
    """Separators and quotes that are lost or too many: a text comes out whole, or the line is named."""
    rng = random.Random(1)
    separator = b"," if kind == "csv" else b"\t"
    refused = 0
    for _ in range(2 * NUM_EACH):
        table = rows(rng, kind)
        whole = {letters(row["text"]) for row in table}
        data = written(
            table, kind, lambda cell: '"' in cell or separator.decode() in cell or rng.random() < 0.3
        )
        places = [m.start() for m in re.finditer(b'["%s]' % separator, data)]
        place = rng.choice(places)
        match rng.randrange(3):
            case 0:
                data = data[:place] + data[place + 1 :]
            case 1:
                data = data[:place] + separator + data[place:]
            case 2:
                data = data[:place] + b'"' + data[place:]
        found = read(tmp_path / f"t.{kind}", data, kind)
        if isinstance(found, Index):
            assert {letters(film.text) for film in found.films} <= whole, data
        else:
            refused += 1
            line = re.search(rf"t\.{kind} (line (\d+)|has no column|has a column|has several)", str(found))
            assert line, (data, str(found))
            assert int(line[2] or 1) <= len(table) + 1
    assert refused > NUM_EACH, "most of these cannot be read"


@pytest.mark.parametrize("kind", KINDS)
def test_spoilt_files_are_read_or_named(tmp_path: Path, kind: str) -> None:
    rng = random.Random(2)
    refused = 0
    for _ in range(NUM_EACH):
        data = bytearray(written(rows(rng, kind), kind, lambda cell: rng.random() < 0.5))
        for _ in range(rng.randint(1, 4)):
            place = rng.randrange(len(data) or 1)
            match rng.randrange(5):
                case 0:
                    data[place:place] = rng.choice(NASTY).encode()
                case 1:
                    del data[place : place + rng.randint(1, 20)]
                case 2:
                    data[place : place + 1] = bytes([rng.randrange(256)])
                case 3:
                    data[place:place] = data[place : place + rng.randint(1, 60)]
                case 4:
                    del data[len(data) - rng.randint(0, len(data) // 3) :]
        found = read(tmp_path / f"t.{kind}", bytes(data), kind)
        if isinstance(found, Index):
            assert all(film.text == " ".join(film.text.split()) and film.text for film in found.films)
            continue
        refused += 1
        assert "\n" not in str(found)
        assert f"t.{kind}" in str(found) or "no film is left" in str(found)
    assert kind == "txt" or refused > NUM_EACH // 4

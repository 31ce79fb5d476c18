"""Rows of files: however they are written they read alike, and what is bad is an error with the line."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from cxrl.data.rows import read_rows, read_table
from cxrl.errors import CxrlError

ROWS = [
    {"image": "a.png", "text": 'Clear, "normal" lungs.', "Edema": "0"},
    {"image": "b.png", "text": "Edema.\u2028Large\x0cheart\x85seen.", "Edema": ""},
    {"image": "c/c.png", "text": "  Épanchement.\n Second line.", "Edema": "1"},
]


def separated(rows: list[dict[str, str]], separator: str, end: str = "\n") -> str:
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    quoted = ([f'"{cell.replace(chr(34), chr(34) * 2)}"' for cell in line] for line in lines)
    return "".join(separator.join(cells) + end for cells in quoted)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("name", ["t.csv", "T.CSV", "t.Tsv", "t.jsonl", "t.JSONL"])
def test_every_kind_reads_alike(tmp_path: Path, name: str, end: str, mark: str) -> None:
    kind = name.lower().split(".")[1]
    if kind == "jsonl":
        content = end.join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    else:
        content = separated(ROWS, "," if kind == "csv" else "\t", end)
    (tmp_path / name).write_bytes((mark + content).encode())
    table = read_table(tmp_path / name, ("image", "text"), "--table")
    assert table.columns == ("image", "text", "Edema")
    one_space = ROWS[1] | {"text": "Edema. Large heart seen."}
    assert [row for _, row in table.rows] == [ROWS[0], one_space, ROWS[2]]
    assert [line for line, _ in table.rows] == ([1, 2, 3] if kind == "jsonl" else [2, 3, 5])


def test_rows_are_numbered_by_the_line_where_they_end(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('\ntext,id\n\n"a\nb",1\n   \nc,2\n,\n')
    assert read_rows(tmp_path / "t.csv", ("text",), "x") == [
        (5, {"text": "a\nb", "id": "1"}),
        (7, {"text": "c", "id": "2"}),
        (8, {"text": "", "id": ""}),
    ]


def test_a_list_has_one_text_a_line(tmp_path: Path) -> None:
    (tmp_path / "t.TXT").write_bytes("\ufeffa\u2028b\r\n\r\nc\x0cd\x0b\r e\x85f \n\x1c\ng".encode())
    table = read_table(tmp_path / "t.TXT", ("text",), "x", lists=True)
    assert [(n, row["text"]) for n, row in table.rows] == [
        (1, "a b"),
        (3, "c d "),
        (4, " e f "),
        (6, "g"),
    ]
    with pytest.raises(CxrlError, match=r"has the suffix \.TXT, expected \.csv, \.tsv, \.jsonl or \.parquet"):
        read_table(tmp_path / "t.TXT", ("text",), "x")


@pytest.mark.parametrize("header", ["text", "TEXT", '"text"', "image,text", "id\ttext", "Text;Edema"])
def test_a_header_is_no_text(tmp_path: Path, header: str) -> None:
    (tmp_path / "t.txt").write_text(f"\n{header}\nEdema.\n")
    with pytest.raises(CxrlError, match=r"t\.txt line 2 is the header of a table"):
        read_table(tmp_path / "t.txt", ("text",), "x", lists=True)


@pytest.mark.parametrize("name", ["t", "t.csv.gz", "t.json", "t.xlsx", "t.csv~", "t.pq", "t.md"])
def test_other_kinds_are_refused_by_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("text\nEdema.\n")
    suffix = re.escape(Path(name).suffix) or "no suffix"
    with pytest.raises(CxrlError, match=rf"{suffix}, expected \.txt, \.csv, \.tsv, \.jsonl or \.parquet"):
        read_table(tmp_path / name, ("text",), "x", lists=True)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("t.csv", "image,text\na,b\nc,d, e\n", "line 3 has 3 cells for 2 columns (image, text)"),
        ("t.csv", "image,text\na,b\n\nc\n", "line 4 has no text: 1 cells for 2 columns"),
        ("t.tsv", "image\ttext\na\tb\tc\n", "line 2 has 3 cells for 2 columns"),
        ("t.tsv", "image,text\na,b\n", "has no column image, text; found image,text"),
        ("t.csv", "text\nNormal, clear.\n", "line 2 has 2 cells for 1 columns"),
        ("t.csv", 'image,text\na,"b\nc,d\n', "line 2: unexpected end of data; is a quote left open?"),
        ("t.csv", 'image,text\na,"b\nc,"d"\n', "line 2: ',' expected after '\"'; is a quote left open?"),
        ("t.csv", 'image,text\na,b\nc,"d" e\n', "line 3: ',' expected after '\"'"),
        ("t.csv", "image,text\na," + "x" * 140_000 + "\n", "line 2: field larger than field limit"),
        ("t.csv", "image,text,image\na,b,c\n", "has a column twice: image, text, image"),
        ("t.csv", "image,text, Text\na,b,c\n", "has two columns for text: 'text' and 'Text'"),
        ("t.csv", "a.png,Edema.\nb.png,Clear.\n", "has no column image, text; found a.png, Edema."),
        ("t.csv", "", "has no column image, text; found none"),
        ("t.csv", "image,text\n\n", "has no rows"),
        ("t.csv", b"image,text\ra,b\rc,\xe9\r", "is not a CSV in UTF-8: byte 0xe9 in line 3"),
        ("t.csv", b"image,text\na,b\0\n", "line 2 holds a NUL"),
        ("t.csv", "image,text\na,b\n".encode("utf-16"), "it is UTF-16, expected UTF-8"),
        ("t.csv", b"\x1f\x8b\x08\x00", "it is gzip"),
        ("t.csv", b"PK\x03\x04\x00", "it is a zip"),
        ("t.jsonl", '{"image": "a", "text": "b"}\n{"image": 1,\n', "line 2 is not JSON: "),
        ("t.jsonl", '["image", "text"]\n', "line 1 is no JSON object"),
        ("t.jsonl", '{"image": "a", "text": "b", "text": "c"}\n', "line 1 is not JSON: 'text' is given"),
        ("t.jsonl", "[" * 100_000, "line 1 is not JSON: "),
        ("t.jsonl", '{"image": "a", "text": ["b"]}\n', "column text holds a list in line 1"),
        ("t.jsonl", '{"image": "a", "text": "b"}\n{"image": {}}', "column image holds an object in line 2"),
        ("t.jsonl", '{"image": "a", "text": "\\ud83d"}\n', "column text holds a NUL or half a character"),
        ("t.jsonl", '{"image": "a\\u0000", "text": "b"}\n', "column image holds a NUL or half a character"),
        ("t.jsonl", '{"image": "a"}\n', "has no column text; found image"),
        ("t.jsonl", " \n", "has no column image, text; found none"),
    ],
)
def test_bad_files_are_named_with_the_line(
    tmp_path: Path, name: str, content: str | bytes, words: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CxrlError) as error:
        read_rows(path, ("image", "text"), "--table")
    assert re.match(rf"--table: (cannot read )?{path}", str(error.value))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "has no text"),
        (b" \n\x0c\r", "has no text"),
        (b"a\n\xff\n", "is not a TXT in UTF-8: byte 0xff in line 2"),
        (b"a\rb\0", "line 2"),
    ],
)
def test_bad_lists_are_named_with_the_line(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(CxrlError, match=rf"t\.txt {words}"):
        read_table(tmp_path / "t.txt", ("text",), "x", lists=True)


def test_what_is_no_file(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(CxrlError, match=rf"--table: cannot read {path}: {path.name} is not a file"):
            read_rows(path, ("text",), "--table")


def test_columns_with_a_meaning_are_found_in_any_case(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(",Image, TEXT ,Split,Edema\n0,a,b,train,1\n")
    table = read_table(tmp_path / "t.csv", ("image", "text"), "x")
    assert table.columns == ("image", "text", "split", "Edema")
    assert table.rows == [(2, {"image": "a", "text": "b", "split": "train", "Edema": "1"})]


def test_the_names_of_the_field_stand_for_a_column_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("text,subject_id,StudyID,ViewPosition,view\na,1,2,PA,AP\n")
    table = read_table(tmp_path / "t.csv", ("text",), "x")
    assert table.columns == ("text", "patient", "study", "ViewPosition", "view")
    (tmp_path / "t.csv").write_text("text,subject_id,PatientID\na,1,2\n")
    with pytest.raises(CxrlError, match="two columns for patient: 'subject_id' and 'PatientID'; keep one"):
        read_table(tmp_path / "t.csv", ("text",), "x")


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table(columns), path)
    return path


def test_parquet_reads_as_text(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    columns = {
        "text": pyarrow.array(["Edema.", None, "Clear."]).dictionary_encode(),
        "id": [7, None, 9],
        "Edema": [1.0, None, float("nan")],
        "Fracture": [True, False, None],
        "nothing": pyarrow.nulls(3),
    }
    table = read_table(parquet(tmp_path / "t.PARQUET", columns), ("text",), "x")
    assert table.unit == "row"
    assert [list(row.values()) for _, row in table.rows] == [
        ["Edema.", "7", "1.0", "True", ""],
        ["", "", "", "False", ""],
        ["Clear.", "9", "", "", ""],
    ]
    assert [n for n, _ in table.rows] == [1, 2, 3]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([b"a", b"b"], r"\(binary\) holds bytes in row 1"),
        ([None, ["a"]], r"\(list<.*>\) holds a list in row 2"),
        ([{"bytes": b"x", "path": "a.png"}, None], r"\(struct<.*>\) holds an object in row 1"),
        (["a", "b\0"], r"\(string\) holds a NUL or half a character in row 2"),
    ],
)
def test_parquet_columns_that_hold_no_text_are_named(tmp_path: Path, values: list[Any], words: str) -> None:
    path = parquet(tmp_path / "t.parquet", {"text": ["a", "b"], "image": values})
    with pytest.raises(CxrlError, match=rf"column image {words}, expected text or numbers"):
        read_rows(path, ("text", "image"), "x")
    path = parquet(tmp_path / "t.parquet", {"text": ["a", "b"], "embedding": values})
    assert read_rows(path, ("text",), "x")[0] == (1, {"text": "a", "embedding": ""}), (
        "a column that nobody reads"
    )


def test_parquet_dates_and_damage(tmp_path: Path) -> None:
    import datetime

    path = parquet(tmp_path / "t.parquet", {"text": [datetime.datetime(2020, 1, 1)]})
    with pytest.raises(CxrlError, match=r"column text \(timestamp.*\) holds a datetime in row 1"):
        read_rows(path, ("text",), "x")
    path.write_bytes(b"PAR1")
    with pytest.raises(CxrlError, match="is not a Parquet file"):
        read_rows(path, ("text",), "x")


def test_parquet_without_pyarrow_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(CxrlError, match=r"--table: reading .*t\.parquet needs pyarrow: pip install pyarrow"):
        read_rows(tmp_path / "t.parquet", ("text",), "--table")


def test_a_quoted_empty_cell_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('text\na\n""\n\nb\n')
    rows = read_rows(tmp_path / "t.csv", ["text"], "--t")
    assert rows == [(2, {"text": "a"}), (3, {"text": ""}), (5, {"text": "b"})]


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85", "\f", "\v", " \u2028 ", "\x1e"])
@pytest.mark.parametrize("suffix", [".txt", ".csv", ".tsv", ".jsonl"])
def test_what_breaks_a_line_elsewhere_is_one_space(tmp_path: Path, mark: str, suffix: str) -> None:
    text = f"Small left effusion.{mark}Edema."
    content = {".txt": text, ".jsonl": json.dumps({"text": text})}.get(suffix, f"text\n{text}")
    (tmp_path / f"t{suffix}").write_text(f"{content}\n", newline="")
    rows = read_table(tmp_path / f"t{suffix}", ["text"], "--t", lists=True).rows
    assert [row["text"] for _, row in rows] == ["Small left effusion. Edema."]

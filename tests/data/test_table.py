"""Tables of the user's own, and reports alone: what is read, and every way they can be bad."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cxrl.config import DataConfig
from cxrl.data.index import Index
from cxrl.data.sources import load_index
from cxrl.data.table import read_rows
from cxrl.errors import CxrlError


def write(folder: Path, text: str, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def index(path: Path, source: str = "table", **options: Any) -> Index:
    return load_index(DataConfig(source=source, root=str(path), cache="none", **options))


def test_a_full_table(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "id,image,text,study,patient,split,view,Edema,Pneumonia,Other\n"
        "a,x/a.png,No edema.,s1,p1,train,PA,0,,1\n"
        "b,x/b.png,No edema.,s1,p1,train,AP,0,,1\n"
        'c,x/c.png,"Edema,\n  mild.",s2,p2,test,pa,1,-1,0\n',
    )
    found = index(path)
    assert found.root == tmp_path
    assert found.findings == ("Edema", "Pneumonia")
    a, b, c = found.films
    assert (a.study, b.study, c.study) == (2, 2, 5), "the line of a study's first row"
    assert (a.film, a.patient, a.split, a.view, a.image) == ("a", "p1", "train", "PA", "x/a.png")
    assert (c.text, c.view) == ("Edema, mild.", "PA")
    assert str([f.labels for f in found.films]) == str([(0.0, math.nan)] * 2 + [(1.0, math.nan)])
    assert index(path, uncertain_labels="positive").films[2].labels == (1.0, 1.0)
    named = index(path, label_columns="Other,Edema")
    assert named.findings == ("Other", "Edema")
    assert named.films[2].labels == (0.0, 1.0)


def test_a_plain_table_is_split_by_patient(tmp_path: Path) -> None:
    rows = "".join(f"{i}.png,Report {i // 2}.,p{i // 2}\n" for i in range(60))
    found = index(write(tmp_path, f"image,text,patient\n{rows}"))
    assert {f.film: f.split for f in found.films}.keys() == {f"{i}.png" for i in range(60)}
    by_patient = {f.patient: {g.split for g in found.films if g.patient == f.patient} for f in found.films}
    assert all(len(splits) == 1 for splits in by_patient.values())
    assert {name: len(found.split(name)) for name in ("train", "validate", "test")} == {
        "train": 48,
        "validate": 6,
        "test": 6,
    }
    assert found.findings == ()


def test_bad_rows_are_counted_and_named(tmp_path: Path) -> None:
    rows = (
        "a,a.png,Clear.,p1,train,PA,1",
        "a,b.png,Clear.,p2,train,PA,1",
        "c,c.png,Clear.,p3,train,LATERAL,1",
        "d,d.png,Clear.,p4,train,,1",
        "e,e.png,Clear.,p5,dev,PA,1",
        "f,,Clear.,p6,train,PA,1",
        "g,g.png,  ,p7,train,PA,1",
        "h,h.png,Unchanged.,p8,train,PA,1",
        "i,i.png,Clear.,p9,train,PA,1",
        "j,j.png,Clear.,p9,test,PA,1",
        "k,k.png,Clear.,p10,train,PA,maybe",
    )
    found = index(write(tmp_path, "\n".join(("id,image,text,patient,split,view,Edema", *rows)) + "\n"))
    assert [f.film for f in found.films] == ["a", "k"]
    assert {reason: c.first for reason, c in found.dropped.items()} == {
        "patient in two splits": ("p9: i", "p9: j"),
        "duplicated id": ("a (line 3)",),
        "view LATERAL is not in data.views": ("c",),
        "view blank is not in data.views": ("d",),
        "unknown split 'dev'": ("e",),
        "no image named": ("f",),
        "no text that describes the film": ("g",),
        "nothing left without placeholders and comparisons": ("h",),
    }
    assert found.noted["unknown label value 'maybe', masked"].first == ("k",)
    assert found.noted["no known label"].first == ("k",)


@pytest.mark.parametrize("check", ["exist", "decode"])
def test_images_are_checked_when_asked(tmp_path: Path, check: str) -> None:
    path = write(tmp_path, "image,text\na.png,Clear.\nb.png,Edema.\nc.png,Normal.\n")
    Image.linear_gradient("L").save(tmp_path / "a.png")
    Image.new("L", (9, 9)).save(tmp_path / "b.png")
    assert len(index(path).films) == 3
    found = index(path, check_images=check)
    assert found.dropped["image missing"].first == ("c.png",)
    assert len(found.films) == (2 if check == "exist" else 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no column image, text; found none"),
        ("image,caption\na.png,x\n", "has no column text; found image, caption"),
        ("image,text\n", "has no rows"),
        ("image,text,text\na,b,c\n", "has a column twice: image, text, text"),
        ("image,text\na.png,  \n", "no film is left; dropped: no text that describes the film 1"),
    ],
)
def test_bad_tables_are_named_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CxrlError) as error:
        index(write(tmp_path, text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CxrlError, match=r"data\.root: cannot read .*none\.csv: No such file"):
        index(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"image,text\n\xff\xfe,\xff\n")
    with pytest.raises(CxrlError, match=r"data\.root: .*x\.csv is not a CSV in UTF-8"):
        index(tmp_path / "x.csv")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CxrlError, match=r"data\.root: cannot read .*x\.txt: .*expected UTF-8"):
        index(tmp_path / "x.txt", "prompts")
    with pytest.raises(CxrlError, match=r"data\.root: cannot read"):
        index(tmp_path, "prompts")
    path = write(tmp_path, "image,text\na.png,x\n")
    with pytest.raises(CxrlError, match=r"data\.label_columns: .* has no column Edma; found image, text"):
        index(path, label_columns="Edma")


def test_short_rows_and_spreadsheets(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffimage,text,Edema\r\na.png,"Clear, normal."\r\n')
    (film,) = index(path).films
    assert (film.text, math.isnan(film.labels[0])) == ("Clear, normal.", True)


def test_reports_alone(tmp_path: Path) -> None:
    lines = [f"Report {i}." for i in range(30)]
    path = write(tmp_path, "\n\n".join(lines) + "\n", "prompts.txt")
    found = index(path, "prompts")
    assert [f.text for f in found.films] == lines
    assert [f.study for f in found.films][:3] == [1, 3, 5]
    assert len(found.split("validate")) == len(found.split("test")) == 3
    path = write(tmp_path, "text,split,Edema\nEdema.,train,1\nClear.,validate,0\n")
    found = index(path, "prompts")
    assert [(f.text, f.split, f.labels, f.image) for f in found.films] == [
        ("Edema.", "train", (1.0,), ""),
        ("Clear.", "validate", (0.0,), ""),
    ]
    with pytest.raises(CxrlError, match="no film is left"):
        index(write(tmp_path, "\n \n", "empty.txt"), "prompts")


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas

    rows = {"image": ["a.png", "b.png"], "text": ["Edema.", None], "Edema": [1.0, None], "id": [7, 8]}
    pandas.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    found = index(tmp_path / "t.parquet")
    assert [(f.film, f.text, f.labels) for f in found.films] == [("7", "Edema.", (1.0,))]
    assert found.dropped["no text that describes the film"].first == ("8",)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(CxrlError, match="is not a Parquet file"):
        index(tmp_path / "t.parquet")


def test_parquet_without_pyarrow_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pyarrow", "fastparquet"):
        monkeypatch.setitem(sys.modules, name, None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(CxrlError, match=r"--table: reading .*t\.parquet needs pyarrow: pip install pyarrow"):
        read_rows(tmp_path / "t.parquet", ("text",), "--table")

"""Tables of the user's own, and reports alone: what is read, and every way they can be bad."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cxrl.config import DataConfig
from cxrl.data.index import Index
from cxrl.data.sources import load_index
from cxrl.errors import CxrlError

FOLDED = ("Pleural_Effusion", "pleural effusion", " Pleural Effusion ", "PLEURAL-EFFUSION", "PleuralEffusion")


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
    assert (a.study, b.study, c.study) == (2, 2, 5), "the line where a study's first row ends"
    assert found.noted["column is not read"].first == ("Other",)
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
        "e,e.png,Clear.,p5, ,PA,1",
        "f,,Clear.,p6,train,PA,1",
        "g,g.png,  ,p7,train,PA,1",
        "h,h.png,Unchanged.,p8,train,PA,1",
        "i,i.png,Clear.,p9,train,PA,1",
        "j,j.png,Clear.,p9,test,PA,1",
        "k,k.png,Clear.,p10,train,PA,",
        "l,l.png,As above.,p11,train,PA,1",
    )
    found = index(write(tmp_path, "\n".join(("id,image,text,patient,split,view,Edema", *rows)) + "\n"))
    assert [f.film for f in found.films] == ["a", "k"]
    assert {reason: c.first for reason, c in found.dropped.items()} == {
        "patient in two splits": ("p9: i", "p9: j"),
        "duplicated id": ("a (line 3)",),
        "view LATERAL is not in data.views": ("c",),
        "view blank is not in data.views": ("d",),
        "split blank": ("e",),
        "no image named": ("f",),
        "no text that describes the film": ("g", "l"),
        "nothing left without placeholders and comparisons": ("h",),
    }
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
        ("image,caption\na.png,x\n", "has no column text; found image, caption"),
        ("image,text\n", "has no rows"),
        ("image,text\na.png,  \n", "no film is left; dropped: no text that describes the film 1"),
        ("image,text,Edema\na,b,0\nc,d,2\n", "line 3, column Edema: '2' is no label, expected 1, 0, -1"),
        ("image,text,edema\na,b,maybe\n", "line 2, column edema: 'maybe' is no label"),
        ("image,text,view,Edema\na,b,LATERAL,x\n", "line 2, column Edema: 'x' is no label"),
        ("image,text,split\na,b,trian\n", "line 2, column split: 'trian' is no split, expected train, val"),
        ("image,text,Edema,edema\na,b,0,1\n", "several columns for Edema: 'Edema', 'edema'; keep one"),
        ("image,text,Edma\na,b,0\n", "a column 'Edma', which is not read; did you mean Edema? Rename it"),
        (
            "image,text,Pleural_Effusions\na,b,0\n",
            "'Pleural_Effusions', which is not read; did you mean Pleur",
        ),
        ("image,text,splits\na,b,test\n", "'splits', which is not read; did you mean split?"),
        ("image,text,patients\na,b,1\n", "'patients', which is not read; did you mean patient?"),
    ],
)
def test_bad_tables_are_named_in_one_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CxrlError) as error:
        index(write(tmp_path, text))
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", FOLDED)
def test_findings_are_found_however_they_are_written(tmp_path: Path, name: str) -> None:
    found = index(write(tmp_path, f"image,text,{name}\na.png,Clear.,False\nb.png,Effusion.,TRUE\n"))
    assert found.findings == ("Pleural Effusion",)
    assert [f.labels for f in found.films] == [(0.0,), (1.0,)]
    named = index(tmp_path / "t.csv", label_columns=name.strip())
    assert (named.findings, named.films) == (found.findings, found.films)


def test_label_columns_say_which_of_two(tmp_path: Path) -> None:
    path = write(tmp_path, "image,text,Edema,edema,Edemas\na.png,Clear.,0,1,\n")
    found = index(path, label_columns="edema")
    assert (found.findings, found.films[0].labels) == (("Edema",), (1.0,))
    with pytest.raises(CxrlError, match=r"data\.label_columns: names edema twice"):
        index(path, label_columns="Edema,edema")


def test_columns_that_are_clearly_others_are_left_alone(tmp_path: Path) -> None:
    others = ("Age", "Pneumonia_score", "Edema (second reader)", "findings", "Hernia", "texture", "preview")
    found = index(write(tmp_path, f"image,text,{','.join(others)}\na.png,Clear.{',x' * len(others)}\n"))
    assert (found.findings, len(found.films)) == ((), 1)
    assert found.noted["column is not read"].number == len(others)


def test_splits_go_by_their_usual_names(tmp_path: Path) -> None:
    names = {"Train": "train", " test ": "test", "val": "validate", "valid": "validate", "dev": "validate"}
    rows = "".join(f"{i}.png,Report {i}.,{name}\n" for i, name in enumerate(names))
    found = index(write(tmp_path, f"image,text,Split\n{rows}"))
    assert [f.split for f in found.films] == list(names.values())
    assert not found.dropped


def test_a_whole_report_in_a_cell_gives_its_section(tmp_path: Path) -> None:
    texts = (
        "FINDINGS: Large heart. IMPRESSION: Cardiomegaly.",
        "Findings:\n Large heart.\n\n Impression:\n See above.",
        "CHEST TUBE: in place.",
        "Clear lungs. Comparison: none.",
    )
    rows = "".join(f'{i}.png,"{text}"\n' for i, text in enumerate(texts))
    found = index(write(tmp_path, f"image,text\n{rows}"))
    assert [f.text for f in found.films] == ["Cardiomegaly.", "Large heart.", texts[2], "Clear lungs."]
    assert found.noted["one section of the text is used"].first == ("0.png", "1.png")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(CxrlError, match=r"data\.root: cannot read .*none\.csv: No such file"):
        index(tmp_path / "none.csv")
    (tmp_path / "x.csv").write_bytes(b"image,text\n\xff\xfe,\xff\n")
    with pytest.raises(CxrlError, match=r"data\.root: .*x\.csv is not a CSV in UTF-8: byte 0xff in line 2"):
        index(tmp_path / "x.csv")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CxrlError, match=r"data\.root: cannot read .*x\.txt: it is UTF-16, expected UTF-8"):
        index(tmp_path / "x.txt", "prompts")
    with pytest.raises(CxrlError, match=r"data\.root: cannot read .* is not a file"):
        index(tmp_path, "prompts")
    with pytest.raises(CxrlError, match=r"x\.txt has the suffix \.txt, expected \.csv"):
        index(tmp_path / "x.txt")
    path = write(tmp_path, "image,text\na.png,x\n")
    with pytest.raises(CxrlError, match=r"data\.label_columns: .* has no column Edma; found image, text"):
        index(path, label_columns="Edma")


def test_spreadsheets(tmp_path: Path) -> None:
    path = write(tmp_path, '\ufeffimage,text,Edema\r\na.png,"Clear, normal.",\r\n')
    (film,) = index(path).films
    assert (film.text, math.isnan(film.labels[0])) == ("Clear, normal.", True)


def test_a_comma_without_quotes_never_cuts_a_report(tmp_path: Path) -> None:
    path = write(tmp_path, "image,text\na.png,Small left effusion, no pneumothorax.\nb.png,Normal chest.\n")
    with pytest.raises(CxrlError, match=r"t\.csv line 2 has 3 cells for 2 columns"):
        index(path)


def test_reports_alone(tmp_path: Path) -> None:
    lines = [f"Report of edema {i}." for i in range(30)]
    path = write(tmp_path, "\n\n".join(lines) + "\n", "prompts.txt")
    found = index(path, "prompts")
    assert [f.text for f in found.films] == lines
    assert [f.study for f in found.films][:3] == [1, 3, 5]
    assert len(found.split("validate")) == len(found.split("test")) == 3
    path = write(tmp_path, "text,image,split,Edema\nEdema.,a.png,train,1\nClear.,,validate,0\n", "p.CSV")
    found = index(path, "prompts")
    assert [(f.text, f.split, f.labels, f.image) for f in found.films] == [
        ("Edema.", "train", (1.0,), ""),
        ("Clear.", "validate", (0.0,), ""),
    ]
    with pytest.raises(CxrlError, match="has no text, so no film is left; expected one report a line"):
        index(write(tmp_path, "\n \n", "empty.txt"), "prompts")


def test_only_line_ends_end_a_report(tmp_path: Path) -> None:
    texts = ("Normal chest.\u2028Clear lungs.", "Small left effusion.\x0cEdema.", "Heart\x85large.")
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "p.txt").write_bytes(end.join(texts).encode())
        found = index(tmp_path / "p.txt", "prompts")
        assert [f.text for f in found.films] == [" ".join(text.split()) for text in texts]


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    import pandas

    rows = {"image": ["a.png", "b.png"], "text": ["Edema.", None], "edema": [True, None], "id": [7, 8]}
    pandas.DataFrame(rows).to_parquet(tmp_path / "t.parquet")
    found = index(tmp_path / "t.parquet")
    assert [(f.film, f.text, f.labels) for f in found.films] == [("7", "Edema.", (1.0,))]
    assert found.dropped["no text that describes the film"].first == ("8",)
    pandas.DataFrame({**rows, "edema": [0.0, 0.7]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(CxrlError, match=r"t\.parquet row 2, column edema: '0\.7' is no label"):
        index(tmp_path / "t.parquet")

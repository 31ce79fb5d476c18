"""What is read of a folder or a table, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cxrl.errors import CxrlError
from cxrl.image_sets.sets import open_set


def table(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "films.csv"
    path.write_text(text)
    return path


def test_a_folder_is_read_recursively_and_sorted(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("c.PNG", "b/a.jpg", "a.dcm", "notes.txt"):
        (tmp_path / name).touch()
    found = open_set(tmp_path, "--real")
    assert [str(p.relative_to(tmp_path)) for p in found.paths] == ["a.dcm", "b/a.jpg", "c.PNG"]
    assert found.labels == {}
    assert found.prompts == ("", "", "")


def test_a_name_that_ends_with_letters_of_its_suffix_stays_whole(tmp_path: Path) -> None:
    # "image_gpj.jpg".strip(".jpg") is "image_": names are never cut by their letters.
    for name in ("image_gpj.jpg", "gp.jpg"):
        (tmp_path / name).touch()
    assert {p.name for p in open_set(tmp_path, "--real").paths} == {"image_gpj.jpg", "gp.jpg"}


def test_labels_are_masked_where_they_are_not_known(tmp_path: Path) -> None:
    found = open_set(
        table(tmp_path, "image,pleural_effusion\na.png,1\nb.png,0\nc.png,-1\nd.png,\n"), "--real"
    )
    labels = found.labels["Pleural Effusion"]
    assert labels[:2] == (1.0, 0.0)
    assert all(math.isnan(value) for value in labels[2:])
    assert found.paths[0] == tmp_path / "a.png"


def test_films_of_one_prompt_share_its_id_or_else_its_text(tmp_path: Path) -> None:
    found = open_set(table(tmp_path, "image,prompt,prompt_id\na.png,x,1\nb.png,y,1\nc.png,x,\n"), "--real")
    assert found.prompts == ("1", "1", "x")
    assert found.texts == ("x", "y", "x")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("image,Edema\na.png,2\nb.png,0\n", "'2' is no label"),
        ("image,Edma\na.png,1\nb.png,0\n", "did you mean Edema"),
        ("image,Edema,edema\na.png,1,1\nb.png,0,0\n", "two columns for Edema"),
        ("image,text,prompt\na.png,x,y\nb.png,x,y\n", "several columns of text"),
        ("image\na.png\n", "1 films, expected at least two"),
        ("file\na.png\n", "no column image"),
        ("image,text\na.png,x\n,y\n", "line 3: the column image is blank"),
    ],
)
def test_bad_tables_are_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CxrlError, match=words):
        open_set(table(tmp_path, text), "--real")


def test_a_subgroup_needs_its_column(tmp_path: Path) -> None:
    path = table(tmp_path, "image,sex\na.png,F\nb.png,M\n")
    assert open_set(path, "--real", ("sex",)).groups == {"sex": ("F", "M")}
    with pytest.raises(CxrlError, match="no column age; found image, sex"):
        open_set(path, "--real", ("age",))
    with pytest.raises(CxrlError, match="is a folder"):
        open_set(tmp_path, "--real", ("sex",))

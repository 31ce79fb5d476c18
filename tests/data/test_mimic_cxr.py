"""The index of MIMIC-CXR, on small trees in its layout, sound and spoilt."""

from __future__ import annotations

import csv
import gzip
import math
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from cxrl.config import DataConfig
from cxrl.data.index import Index
from cxrl.data.sources import load_index
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS


@pytest.fixture(scope="module")
def sound(mimic: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Shared by all tests: never write there."""
    return mimic.write_mimic_tree(tmp_path_factory.mktemp("mimic") / "tree", formats=("jpg", "dicom"))


@pytest.fixture
def tree(mimic: Any, sound: Any, tmp_path: Path) -> Any:
    """A copy that may be spoilt."""
    shutil.copytree(sound.root, tmp_path / "tree")
    return mimic.MimicTree(tmp_path / "tree", sound.patients, sound.studies, sound.films, sound.texts)


def index(tree: Any, **options: Any) -> Index:
    options = {"source": "mimic_cxr", "root": str(tree.root), "cache": "none", **options}
    return load_index(DataConfig(**options))


def reasons(index: Index) -> dict[str, int]:
    return {reason: count.number for reason, count in index.dropped.items()}


LATERAL = "view LATERAL is not in data.views"


def test_a_sound_tree(sound: Any) -> None:
    found = index(sound)
    assert found.findings == CHEXPERT_FINDINGS
    assert len(found.films) == 10
    assert {name: len(found.split(name)) for name in ("train", "validate", "test")} == {
        "train": 8,
        "validate": 1,
        "test": 1,
    }
    film = found.films[3]
    assert (film.study, film.film, film.view) == (50000003, sound.films[3], "PA")
    assert f"p{film.patient}" == sound.patients[3]
    assert found.root / film.image == sound.image(3)
    assert sound.image(3).is_file()
    assert film.text == sound.texts[3]
    assert reasons(found) == {LATERAL: 10}
    assert found.dropped[LATERAL].first == tuple(f"{name}-l" for name in sound.films[:3])


def test_labels_are_masked_where_uncertain_or_blank(sound: Any) -> None:
    for uncertain, value in (("mask", math.nan), ("positive", 1.0)):
        films = index(sound, uncertain_labels=uncertain).films
        columns = dict(zip(CHEXPERT_FINDINGS, zip(*(f.labels for f in films), strict=True), strict=True))
        assert str(columns["Pneumonia"]) == str((math.nan, value) * 5)
        assert columns["Fracture"] == (0.0,) * 10
        assert all(math.isnan(v) for v in columns["Atelectasis"])
        others = {v for name, c in columns.items() if name != "Fracture" for v in c}
        assert 0.0 not in others, "a blank is no negative"
        assert 1.0 in others


def test_views_formats_and_label_sets_are_chosen(sound: Any) -> None:
    assert len(index(sound, views="pa,lateral").films) == 20
    dicom = index(sound, image_format="dicom", check_images="decode")
    assert dicom.films[0].image.endswith(".dcm")
    assert len(dicom.films) == 10
    assert len(index(sound, label_set="negbio", check_images="exist").films) == 10


def test_reports_may_be_elsewhere_or_in_their_zip(sound: Any, tree: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w") as archive:
        for k in range(10):
            archive.write(tree.report(k), tree.report(k).relative_to(tree.root))
            tree.report(k).unlink()
    expected = [f.text for f in index(sound).films]
    assert [f.text for f in index(tree, reports=str(tmp_path / "mimic-cxr-reports.zip")).films] == expected
    assert [f.text for f in index(tree, reports=str(sound.root)).films] == expected
    with pytest.raises(CxrlError, match=r"no film is left; dropped: .*report missing or unreadable 10"):
        index(tree)
    (tmp_path / "mimic-cxr-reports.zip").write_bytes(b"PK")
    with pytest.raises(CxrlError, match=r"data\.reports: .*zip cannot be read"):
        index(tree, reports=str(tmp_path / "mimic-cxr-reports.zip"))


@pytest.mark.parametrize("prefix", ["", "mimic-cxr-reports/"])
@pytest.mark.parametrize("where", ["named", "beside the films", "unpacked"])
def test_the_reports_come_in_two_layouts(
    sound: Any, tree: Any, tmp_path: Path, prefix: str, where: str
) -> None:
    expected = [f.text for f in index(sound).films]
    path = (tmp_path if where == "named" else tree.root) / "mimic-cxr-reports.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(10):
            archive.write(tree.report(k), prefix + str(tree.report(k).relative_to(tree.root)))
            tree.report(k).unlink()
    if where == "unpacked":
        reports = tmp_path / "reports"
        with zipfile.ZipFile(path) as archive:
            archive.extractall(reports)
        path.unlink()
        assert [f.text for f in index(tree, reports=str(reports)).films] == expected
    else:
        reports = path if where == "named" else ""
        assert [f.text for f in index(tree, reports=str(reports)).films] == expected


def test_a_zip_of_something_else_is_named(tree: Any, tmp_path: Path) -> None:
    for names, found in ((["p10/p10000000/s50000000.txt"], "p10/p10000000/s50000000.txt"), ([], "nothing")):
        with zipfile.ZipFile(tmp_path / "mimic-cxr-reports.zip", "w") as archive:
            for name in names:
                archive.writestr(name, "Clear.")
        with pytest.raises(CxrlError, match=rf"zip has no files/p10/.*; found {found}"):
            index(tree, reports=str(tmp_path / "mimic-cxr-reports.zip"))


def test_a_blank_view_is_told_by_its_code(tree: Any) -> None:
    code = "ViewCodeSequence_CodeMeaning"

    def blank(rows: list[dict[str, str]]) -> None:
        rows[0] |= {"ViewPosition": "", code: "postero-anterior"}
        rows[2] |= {"ViewPosition": "", code: "antero-posterior"}
        rows[4] |= {"ViewPosition": "", code: "lateral"}
        rows[6] |= {"ViewPosition": "", code: "Recumbent"}
        rows[8] |= {"ViewPosition": "", code: ""}
        rows[10] |= {"ViewPosition": "AP", code: "postero-anterior"}

    tree.edit("metadata", blank)
    found = index(tree)
    views = {f.film: f.view for f in found.films}
    assert [views.get(film, "") for film in tree.films[:6]] == ["PA", "AP", "", "", "", "AP"]
    assert {r: n for r, n in reasons(found).items() if "view" in r} == {
        LATERAL: 11,
        "view RECUMBENT is not in data.views": 1,
        "view blank is not in data.views": 1,
    }
    assert {r.split()[-1]: c.first for r, c in found.noted.items() if "its code" in r} == {
        "PA": (tree.films[0],),
        "AP": (tree.films[1],),
    }


def test_a_table_without_view_codes_is_read(sound: Any, tree: Any) -> None:
    drop_column(tree.table("metadata"), "ViewCodeSequence_CodeMeaning")
    assert [f.view for f in index(tree).films] == [f.view for f in index(sound).films]


def test_a_label_is_kept_where_the_prompt_says_the_same(mimic: Any, tmp_path: Path) -> None:
    cases: list[tuple[str, dict[str, str], dict[str, float]]] = [
        # impression, CheXpert's row, what is left of it
        (
            "1. Unchanged large right pleural effusion. 2. No pneumothorax.",
            {"Pleural Effusion": "1.0", "Pneumothorax": "0.0"},
            {"Pneumothorax": 0.0},
        ),
        (
            "Unchanged right effusion. New small left effusion.",
            {"Pleural Effusion": "1.0"},
            {"Pleural Effusion": 1.0},
        ),
        ("No effusion. Large effusion compared to ___.", {"Pleural Effusion": "1.0"}, {}),
        ("Unchanged cardiomegaly. Lungs are clear.", {"Cardiomegaly": "1.0"}, {}),
        ("No acute process.", {"No Finding": "1.0"}, {"No Finding": 1.0}),
        ("Mild edema.", {"Edema": "1.0", "Support Devices": "1.0"}, {"Edema": 1.0}),
        (
            "Edema since ___. Left picc line.",
            {"Edema": "1.0", "Support Devices": "1.0"},
            {"Support Devices": 1.0},
        ),
        ("Possible pneumonia.", {"Pneumonia": "-1.0"}, {}),
        (
            "Heart size is normal.",
            {"Cardiomegaly": "0.0", "No Finding": "1.0"},
            {"Cardiomegaly": 0.0, "No Finding": 1.0},
        ),
        ("Right rib fracture.", {"Fracture": "1.0", "Edema": "0.0"}, {"Fracture": 1.0}),
    ]
    tree = mimic.write_mimic_tree(tmp_path / "t", texts=[text for text, _, _ in cases])

    def labels(rows: list[dict[str, str]]) -> None:
        for row, (_, values, _) in zip(rows, cases, strict=True):
            row |= dict.fromkeys(CHEXPERT_FINDINGS, "") | values

    tree.edit("chexpert", labels)
    found = index(tree)
    kept = [
        {n: v for n, v in zip(CHEXPERT_FINDINGS, f.labels, strict=True) if not math.isnan(v)}
        for f in found.films
    ]
    assert kept == [left for _, _, left in cases]
    assert {reason: c.number for reason, c in found.noted.items() if reason.startswith("label")} == {
        "label present, masked: the report says it, the prompt does not": 4,
        "label present, masked: no text says it": 1,
        "label absent, masked: the prompt does not say so": 1,
    }


def test_tables_may_be_unpacked_and_numbered_otherwise(tree: Any) -> None:
    for path in tree.root.glob("*.csv.gz"):
        new = tree.root / path.name.removesuffix(".gz").replace("2.0.0", "2.1.0")
        new.write_bytes(gzip.decompress(path.read_bytes()))
        path.unlink()
    assert len(index(tree).films) == 10


def test_splits_go_by_their_usual_names(tree: Any) -> None:
    sound = [f.split for f in index(tree).films]

    def split(rows: list[dict[str, str]]) -> None:
        for row in rows:
            row["split"] = {"validate": "val", "train": " Train"}.get(row["split"], row["split"])

    tree.edit("split", split)
    assert [f.split for f in index(tree).films] == sound


def test_what_is_wrong_is_counted_and_named(tree: Any) -> None:
    def metadata(rows: list[dict[str, str]]) -> None:
        rows.append(dict(rows[0]))  # duplicated
        rows[2] |= {"ViewPosition": "", "ViewCodeSequence_CodeMeaning": ""}  # study 1
        rows.append({**rows[4], "dicom_id": "unlisted"})

    def split(rows: list[dict[str, str]]) -> None:
        rows[6]["split"] = "trian"  # study 3
        rows[9]["split"] = "test"  # the lateral film of study 4: its patient is in two splits
        rows.append({**rows[10], "split": "test"})  # the film of study 5 is in two splits

    def labels(rows: list[dict[str, str]]) -> None:
        rows[6]["Edema"] = "7"
        rows.append({**rows[6], "Edema": "1.0"})
        del rows[7]

    tree.edit("metadata", metadata)
    tree.edit("split", split)
    tree.edit("chexpert", labels)
    tree.report(8).unlink()
    tree.report(9).write_text(" FINAL REPORT\n INDICATION:  Cough.\n")
    found = index(tree)
    assert [f.study - 50000000 for f in found.films] == [0, 2, 6, 7]
    ids = tree.films
    expected = {
        LATERAL: 8,
        "duplicated id": 1,
        "view blank is not in data.views": 1,
        "not in split.csv": 1,
        "unknown split 'trian'": 1,
        "patient in two splits": 4,
        "report missing or unreadable": 1,
        "no text that describes the film": 1,
    }
    assert reasons(found) == expected
    assert found.dropped["duplicated id"].first == (ids[0],)
    assert ids[4] in found.dropped["patient in two splits"].first[0]
    assert tree.studies[8] in found.dropped["report missing or unreadable"].first[0]
    assert {reason: c.first for reason, c in found.noted.items()} == {
        "unknown label value '7', masked": ("s50000006",),
        "study twice in chexpert.csv, first row used": ("s50000006",),
        "study not in chexpert.csv, labels unknown": ("s50000007",),
    }
    assert all(math.isnan(v) for v in found.films[-1].labels)
    total = sum(reasons(found).values()) + len(found.films)
    assert total == 22, "every row of metadata is kept or counted"


def test_placeholders_and_comparisons_in_reports(mimic: Any, tmp_path: Path) -> None:
    texts = ["Clear lungs."] * 7 + [
        "Clear. Seen by ___.",
        "No change since ___.",
        "Unchanged edema. No effusion.",
    ]
    tree = mimic.write_mimic_tree(tmp_path / "t", texts=texts)
    found = index(tree)
    assert [f.text for f in found.films] == ["Clear lungs."] * 7 + ["Clear.", "No effusion."]
    assert reasons(found) == {LATERAL: 10, "nothing left without placeholders and comparisons": 1}
    assert found.noted["report lost a sentence with a placeholder"].number == 2
    kept = index(tree, placeholders="keep", comparisons="keep")
    assert [f.text for f in kept.films] == texts
    strict = index(tree, placeholders="drop_report", comparisons="drop_report")
    assert len(strict.films) == 7


def test_bad_images_are_counted_and_named(tree: Any) -> None:
    tree.image(0).unlink()
    data = tree.image(1).read_bytes()
    tree.image(1).write_bytes(data[: len(data) // 2])
    assert len(index(tree).films) == 10, "training reads no film"
    assert index(tree, check_images="exist").dropped["image missing"].first == (tree.films[0],)
    found = index(tree, check_images="decode")
    assert len(found.films) == 8
    assert found.dropped["image corrupt or truncated"].first == (tree.films[1],)
    shutil.rmtree(tree.root / "files" / "p10")
    shutil.rmtree(tree.root / "files" / "p11")
    with pytest.raises(CxrlError, match=r"no film is left; dropped: .*report missing or unreadable"):
        index(tree, check_images="exist")


def drop_column(path: Path, column: str) -> None:
    with gzip.open(path, "rt", newline="") as file:
        rows = [{k: v for k, v in row.items() if k != column} for row in csv.DictReader(file)]
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.mark.parametrize(
    ("kind", "column"),
    [("metadata", "ViewPosition"), ("split", "split"), ("chexpert", "Edema"), ("chexpert", "study_id")],
)
def test_a_missing_column_is_named(tree: Any, kind: str, column: str) -> None:
    drop_column(tree.table(kind), column)
    with pytest.raises(CxrlError, match=rf"{kind}\.csv\.gz has no column {column}; found") as error:
        index(tree)
    assert "\n" not in str(error.value)


def test_missing_and_damaged_tables_are_named(tree: Any) -> None:
    path = tree.table("split")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(
        CxrlError, match=r"data\.root: .*split\.csv\.gz cannot be read \(Compressed file ended"
    ):
        index(tree)
    path.write_bytes(gzip.compress(b"a,b\n1,2,3\n"))
    with pytest.raises(CxrlError, match=r"split\.csv\.gz has no column dicom_id, .*; found a, b"):
        index(tree)
    path.write_bytes(gzip.compress(b'"'))
    with pytest.raises(CxrlError, match=r"split\.csv\.gz cannot be read as a CSV: "):
        index(tree)
    path.unlink()
    with pytest.raises(CxrlError, match=r"expected one mimic-cxr-2\.\*-split\.csv\.gz in .*found none"):
        index(tree)
    for name in ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.1.0-split.csv"):
        (tree.root / name).write_text("x\n")
    with pytest.raises(CxrlError, match=r"found mimic-cxr-2\.0\.0-split\.csv, mimic-cxr-2\.1\.0-split\.csv"):
        index(tree)
    path.write_bytes(data)
    for name in ("mimic-cxr-2.0.0-split.csv", "mimic-cxr-2.1.0-split.csv"):
        (tree.root / name).unlink()
    with pytest.raises(CxrlError, match=r"data\.reports: .* no folder with files/"):
        index(tree, reports=str(tree.root / "nowhere"))


def test_the_cache_notices_other_files_and_options(tree: Any, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = index(tree, cache=str(cache))
    (path,) = cache.iterdir()
    assert repr(index(tree, cache=str(cache))) == repr(first)
    assert len(list(cache.iterdir())) == 1
    tree.edit("split", lambda rows: rows.pop())
    index(tree, cache=str(cache))
    index(tree, cache=str(cache), comparisons="keep")
    assert len(list(cache.iterdir())) == 3
    text = path.read_text()
    assert sound_text(first) in text


def test_the_cache_notices_reports_that_change_come_and_go(tree: Any, tmp_path: Path) -> None:
    def texts() -> list[str]:
        return [f.text for f in index(tree, cache=str(tmp_path / "cache")).films]

    first = texts()
    report = tree.report(2)
    whole = report.read_text()
    report.write_text(whole.replace(first[2], "Mild edema."))
    assert texts() == [*first[:2], "Mild edema.", *first[3:]]
    report.unlink()
    assert texts() == first[:2] + first[3:]
    report.write_text(whole)
    assert texts() == first
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_the_cache_notices_images_that_were_checked(tree: Any, tmp_path: Path) -> None:
    def films(check: str) -> int:
        return len(index(tree, cache=str(tmp_path / "cache"), check_images=check).films)

    assert [films(check) for check in ("none", "exist", "decode")] == [10, 10, 10]
    data = tree.image(4).read_bytes()
    tree.image(4).unlink()
    assert [films(check) for check in ("none", "exist", "decode")] == [10, 9, 9]
    tree.image(4).write_bytes(data[:200])
    assert [films(check) for check in ("none", "exist", "decode")] == [10, 10, 9]
    tree.image(4).write_bytes(data)
    assert [films(check) for check in ("none", "exist", "decode")] == [10, 10, 10]


def sound_text(index: Index) -> str:
    return index.films[0].text

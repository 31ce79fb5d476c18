"""Open-I from the reports that torchxrayvision ships. No text of theirs is repeated here."""

from __future__ import annotations

import gzip
import io
import math
import re
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from cxrl.config import DataConfig
from cxrl.data import openi
from cxrl.data.equal_texts import HELD_OUT, same_text
from cxrl.data.index import Index
from cxrl.data.sources import load_index
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS


def test_every_film_is_kept_or_counted(openi_index: Index, openi_config: DataConfig) -> None:
    dropped = {reason: count.number for reason, count in openi_index.dropped.items()}
    assert dropped.pop("report without films") == 104  # of 3,955 reports, as published: 3,851 have films
    assert len(openi_index.films) + sum(dropped.values()) == 7470
    assert len(openi_index.films) + dropped[HELD_OUT] > 4000
    assert len({f.film for f in openi_index.films}) == len(openi_index.films)
    assert {f.view for f in openi_index.films} == {"PA", "AP"}
    assert not any("XXXX" in f.text for f in openi_index.films)
    assert not any(f.image for f in openi_index.films), "without data.root there are no images"
    assert repr(load_index(openi_config)) == repr(openi_index)


def test_a_report_is_in_one_split(openi_index: Index) -> None:
    patients = {name: {f.patient for f in openi_index.split(name)} for name in ("train", "validate", "test")}
    assert len(set.union(*patients.values())) == sum(map(len, patients.values()))
    assert len(patients["test"]) == len(patients["validate"]) > 300


def test_the_documentation_has_its_numbers(openi_index: Index) -> None:
    text = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    table = text.split("--data.source openi` counts:")[1].split("\n\n")[1]
    rows = dict(re.findall(r"^\| (\w.*) \| .* \| ([\d,]+) \|$", table, re.M))
    counts = {reason: count.number for reason, count in {**openi_index.dropped, **openi_index.noted}.items()}
    for name in ("train", "validate", "test"):
        texts = {same_text(film.text) for film in openi_index.split(name) if film.text}
        counts[f"prompts: {name}"] = len(texts)
    assert len(rows) == 10
    wrong = {
        what: counts.get(what)
        for what, number in rows.items()
        if counts.get(what) != int(number.replace(",", ""))
    }
    assert wrong == {}, "docs/data.md: what python -m cxrl.inspect_data --data.source openi counts"


def test_labels_follow_the_headings() -> None:
    def labels(*headings: str) -> dict[str, float]:
        values = dict(zip(CHEXPERT_FINDINGS, openi.labels_of(list(headings)), strict=True))
        return {name: value for name, value in values.items() if not math.isnan(value)}

    # Sternotomy wires and clips are indexed elsewhere: a normal report may have devices.
    diseases = {f: 0.0 for f in CHEXPERT_FINDINGS if f != "Support Devices"}
    assert labels("normal") == diseases | {"No Finding": 1.0}
    assert labels("Opacity/lung/upper lobe/right", "Cardiomegaly/mild") == {
        "Lung Opacity": 1.0,
        "Cardiomegaly": 1.0,
        "No Finding": 0.0,
    }
    assert labels("Catheters, Indwelling/right") == {"Support Devices": 1.0}
    # 51 of the 52 reports with this heading say that the heart is enlarged; a nodule may lie in the breast.
    assert labels("Cardiac Shadow/enlarged/mild") == {"Cardiomegaly": 1.0, "No Finding": 0.0}
    assert labels("Nodule/lung/base", "Mass/lung") == {"Lung Lesion": 1.0, "No Finding": 0.0}
    assert labels("Nodule/thorax/left", "Mass/breast/large", "Nodule", "Mass/mediastinum/right") == {}
    assert labels("No Indexing") == labels() == labels("Spine/degenerative") == {}
    assert set(openi.HEADINGS.values()) < set(CHEXPERT_FINDINGS)


def small_copy(folder: Path, num: int = 20) -> list[Path]:
    """The first reports of the archive, in a temporary folder, with the real tables."""
    reports, *tables = openi.openi_files()
    with tarfile.open(reports) as whole, tarfile.open(folder / "some.tgz", "w:gz") as some:
        for member in [m for m in whole if m.name.endswith(".xml")][:num]:
            some.addfile(member, whole.extractfile(member))
    return [folder / "some.tgz", *tables]


def test_films_lie_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = small_copy(tmp_path)
    monkeypatch.setattr(openi, "openi_files", lambda: files)
    root = tmp_path / "images"
    root.mkdir()
    monkeypatch.setattr("cxrl.data.sources.settled", lambda index: index)  # which would drop equal texts
    config = DataConfig(source="openi", root=str(root), cache="none")
    films = load_index(config).films
    assert films[0].image == f"{films[0].film}.png"
    image = Image.linear_gradient("L")
    image.save(root / films[0].image)
    (root / films[1].image).write_bytes(b"")
    found = load_index(DataConfig(source="openi", root=str(root), cache="none", check_images="decode"))
    assert [f.film for f in found.films] == [films[0].film]
    assert found.dropped["image corrupt or truncated"].first == (films[1].film,)
    assert found.dropped["image missing"].number == len(films) - 2


REPORT = """<eCitation><uId id="CXR{number}"/><AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText><MeSH>{mesh}</MeSH>
<parentImage id="I{number}"/></eCitation>"""


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Index]:
    """The index of invented reports: (findings, impression, headings), or the bytes of a file."""

    def build(*reports: tuple[str, str, str] | bytes) -> Index:
        table = gzip.compress(
            "\n".join(
                ["imageid,View Position,tsne-view", *(f"I{n},PA,PA" for n in range(len(reports)))]
            ).encode()
        )
        for name in ("a.csv.gz", "b.csv.gz"):
            (tmp_path / name).write_bytes(table)
        with tarfile.open(tmp_path / "r.tgz", "w:gz") as archive:
            for number, report in enumerate(reports):
                if not isinstance(report, bytes):
                    findings, impression, headings = report
                    mesh = "".join(f"<major>{heading}</major>" for heading in headings.split(";"))
                    filled = REPORT.format(number=number, findings=findings, impression=impression, mesh=mesh)
                    report = filled.encode()
                member = tarfile.TarInfo(f"reports/{number}.xml")
                member.size = len(report)
                archive.addfile(member, io.BytesIO(report))
        files = [tmp_path / name for name in ("r.tgz", "a.csv.gz", "b.csv.gz")]
        monkeypatch.setattr(openi, "openi_files", lambda: files)
        return load_index(DataConfig(source="openi", cache="none"))

    return build


def test_labels_are_those_that_the_impression_says(invented: Callable[..., Index]) -> None:
    found = invented(
        ("Small left effusion.", "No acute cardiopulmonary abnormality.", "Pleural Effusion/left/small"),
        ("Large heart. Small left effusion.", "Small effusion.", "Pleural Effusion/left;Cardiomegaly"),
        ("Clear. Sternotomy wires.", "Normal chest.", "normal"),
        ("Enlarged cardiac silhouette.", "The heart is enlarged.", "Cardiac Shadow/enlarged"),
        ("No pneumothorax.", "", "normal"),
        ("Breast nodule.", "Breast nodule.", "Nodule/breast"),
    )
    known = {
        f.study: {n: v for n, v in zip(found.findings, f.labels, strict=True) if not math.isnan(v)}
        for f in found.films
    }
    absent = {f: 0.0 for f in CHEXPERT_FINDINGS if f not in ("No Finding", "Support Devices")}
    assert known == {
        0: {},
        1: {"Pleural Effusion": 1.0, "No Finding": 0.0},
        2: absent | {"No Finding": 1.0},
        3: {"Cardiomegaly": 1.0, "No Finding": 0.0},
        4: absent | {"No Finding": 1.0},
        5: {},
    }


def test_damaged_reports_are_counted(invented: Callable[..., Index], monkeypatch: pytest.MonkeyPatch) -> None:
    sound = ("", "Edema.", "Pulmonary Edema")
    bomb = b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><eCitation>&c;</eCitation>'
    monkeypatch.setattr("cxrl.data.archives.REPORT_BYTES", 2000)
    found = invented(
        sound,
        b"",
        b"<eCitation>",
        b"<eCitation/>",
        b'<eCitation><uId id="CXR../x"/></eCitation>',
        bomb,
        REPORT.format(number=0, findings="", impression="Again.", mesh="").encode(),
        REPORT.format(number=7, findings="", impression="long " * 400, mesh="").encode(),
        b'<?xml version="1.0" encoding="klingon"?>'
        + REPORT.format(number=8, findings="", impression="x", mesh="").encode(),
    )
    assert [f.text for f in found.films] == ["Edema."]
    assert {reason: count.number for reason, count in found.dropped.items()} == {
        "report damaged": 7,
        "duplicated id": 1,
    }
    assert found.dropped["report damaged"].first[0] == "reports/1.xml"


@pytest.mark.parametrize("which", [1, 2])
def test_damaged_tables_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    files = small_copy(tmp_path, 2)
    copy = tmp_path / files[which].name
    monkeypatch.setattr(openi, "openi_files", lambda: [*files[:which], copy, *files[which + 1 :]])
    for data, words in (
        (files[which].read_bytes()[:1000], r"cannot be read \(.*"),
        (gzip.compress(b"a,b\n1,2\n"), r"is not the table it should be \('imageid'\)"),
        (gzip.compress(b"imageid\n\xff\n"), r"is not the table it should be \(.*"),
    ):
        copy.write_bytes(data)
        with pytest.raises(CxrlError, match=rf"{copy.name} {words}; install torchxrayvision again"):
            load_index(DataConfig(source="openi", cache="none"))


def test_a_damaged_archive_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = small_copy(tmp_path, 5)
    monkeypatch.setattr(openi, "openi_files", lambda: files)
    files[0].write_bytes(files[0].read_bytes()[:500])
    with pytest.raises(CxrlError, match=r"some\.tgz cannot be read \(.*install torchxrayvision again"):
        load_index(DataConfig(source="openi", cache="none"))


def test_without_torchxrayvision_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(CxrlError, match="is missing; pip install torchxrayvision"):
        openi.openi_files()

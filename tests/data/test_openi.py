"""Open-I from the reports that torchxrayvision ships. No text of theirs is repeated here."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from cxrl.config import DataConfig
from cxrl.data import openi
from cxrl.data.index import Index
from cxrl.data.sources import load_index
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Index, DataConfig]:
    config = DataConfig(source="openi", cache=str(tmp_path_factory.mktemp("cache")))
    return load_index(config), config


def test_every_film_is_kept_or_counted(whole: tuple[Index, DataConfig]) -> None:
    index, config = whole
    dropped = {reason: count.number for reason, count in index.dropped.items()}
    assert dropped.pop("report without films") == 104  # of 3,955 reports, as published: 3,851 have films
    assert len(index.films) + sum(dropped.values()) == 7470
    assert len(index.films) > 4000
    assert len({f.film for f in index.films}) == len(index.films)
    assert {f.view for f in index.films} == {"PA", "AP"}
    assert not any("XXXX" in f.text or not f.text for f in index.films)
    assert not any(f.image for f in index.films), "without data.root there are no images"
    assert repr(load_index(config)) == repr(index)


def test_a_report_is_in_one_split(whole: tuple[Index, DataConfig]) -> None:
    index, _ = whole
    patients = {name: {f.patient for f in index.split(name)} for name in ("train", "validate", "test")}
    total = sum(map(len, patients.values()))
    assert len(set.union(*patients.values())) == total
    assert len(patients["test"]) == len(patients["validate"]) == round(total / 10)


def test_labels_follow_the_headings() -> None:
    def labels(*headings: str) -> dict[str, float]:
        values = dict(zip(CHEXPERT_FINDINGS, openi.labels_of(list(headings)), strict=True))
        return {name: value for name, value in values.items() if not math.isnan(value)}

    assert labels("normal") == {f: float(f == "No Finding") for f in CHEXPERT_FINDINGS}
    assert labels("Opacity/lung/upper lobe/right", "Cardiomegaly/mild") == {
        "Lung Opacity": 1.0,
        "Cardiomegaly": 1.0,
        "No Finding": 0.0,
    }
    assert labels("Catheters, Indwelling/right") == {"Support Devices": 1.0}
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

"""Damaged archives of reports: what is left, with every loss counted, or one line that names the file.

Fixed seeds: the same hundreds of files each time. Nothing is ever written, whatever an archive says.
"""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cxrl.config import DataConfig
from cxrl.data import archives, mimic_cxr, openi
from cxrl.data.index import Index
from cxrl.data.sources import load_index
from cxrl.errors import CxrlError

XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{n}"/><Abstract>
<AbstractText Label="FINDINGS">Film {n}. Heart size is normal.</AbstractText>
<AbstractText Label="IMPRESSION">Small effusion {n}.</AbstractText></Abstract>
<MeSH><major>Pleural Effusion/left</major></MeSH><parentImage id="I{n}"/></eCitation>"""
TABLE = "imageid,View Position,tsne-view\n" + "".join(f"I{n},PA,PA\n" for n in range(6))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four bytes changed, a piece lost, doubled, moved or zeroed, or the end cut off."""
    data, where = bytearray(data), rng.randrange(len(data))
    size = rng.choice((1, 2, 4, 16, 100))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randint(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 1:
            del data[where:]
        case 2:
            del data[where : where + size]
        case 3:
            data[where:where] = data[where : where + size]
        case 4:
            data[where : where + size] = bytes(len(data[where : where + size]))
        case 5:
            data[where : where + size] = data[: len(data[where : where + size])]
    return bytes(data)


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def result(load: Callable[[], Index], name: str) -> Index | None:
    """The index, or None where the file is refused in one line that names it."""
    try:
        return load()
    except CxrlError as error:
        message = str(error)
    assert name in message or "no film is left; dropped: " in message
    assert "\n" not in message
    return None


def zipped(texts: dict[str, str], compression: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, text in texts.items():
            archive.writestr(name, text)
    return buffer.getvalue()


@pytest.fixture
def tree(mimic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tree without reports in its folder; its tables, which are not damaged here, are read once."""
    tree = mimic.write_mimic_tree(tmp_path / "tree", formats=())
    monkeypatch.setattr(mimic_cxr, "_read_table", cache(mimic_cxr._read_table))
    return tree


def mimic_index(tree: Any, path: Path) -> Index:
    return load_index(
        DataConfig(
            source="mimic_cxr", root=str(tree.root), reports=str(path), cache="none", comparisons="keep"
        )
    )


def reports(tree: Any, prefix: str = "") -> dict[str, str]:
    return {
        prefix + str(tree.report(k).relative_to(tree.root)): tree.report(k).read_text() for k in range(10)
    }


def test_damaged_zips(tree: Any, tmp_path: Path) -> None:
    rng = random.Random(0)
    path = tmp_path / "mimic-cxr-reports.zip"
    wholes = [
        zipped(reports(tree, prefix), compression)
        for prefix in ("", "mimic-cxr-reports/")
        for compression in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2)
    ]
    expected = {50000000 + k: text for k, text in enumerate(tree.texts)}
    path.write_bytes(wholes[0])
    before, outcomes = files(tmp_path), []
    for n in range(160):
        path.write_bytes(damaged(wholes[n % len(wholes)], rng))
        index = result(lambda: mimic_index(tree, path), path.name)
        outcomes.append(index is not None)
        if index is not None:
            assert len(index.films) + sum(count.number for count in index.dropped.values()) == 20
            assert {f.study: f.text for f in index.films}.items() <= expected.items(), "no other's report"
    assert files(tmp_path) == before
    assert 20 < sum(outcomes) < 140, "both happen"


@pytest.fixture
def openi_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    paths = [tmp_path / name for name in ("reports.tgz", "metadata.csv.gz", "views.csv.gz")]
    for path in paths[1:]:
        path.write_bytes(gzip.compress(TABLE.encode()))
    monkeypatch.setattr(openi, "openi_files", lambda: paths)
    return paths


def tarred(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def openi_index() -> Index:
    return load_index(DataConfig(source="openi", cache="none"))


REPORTS = {f"reports/{n}.xml": XML.format(n=n).encode() for n in range(6)}


@pytest.mark.parametrize("level", ["xml", "tar", "gz", "table"])
def test_damaged_tgzs(openi_files: list[Path], tmp_path: Path, level: str) -> None:
    rng = random.Random(1)
    packed, table = gzip.compress(tarred(REPORTS)), gzip.compress(TABLE.encode())
    openi_files[0].write_bytes(packed)
    before, outcomes = files(tmp_path), []
    for _ in range(60):
        name = openi_files[0].name
        if level == "xml":
            broken = {k: damaged(data, rng) if rng.random() < 0.5 else data for k, data in REPORTS.items()}
            openi_files[0].write_bytes(gzip.compress(tarred(broken), 1))
        elif level == "tar":
            openi_files[0].write_bytes(gzip.compress(damaged(tarred(REPORTS), rng), 1))
        elif level == "gz":
            openi_files[0].write_bytes(damaged(packed, rng))
        else:
            name = openi_files[1].name
            openi_files[1].write_bytes(damaged(table, rng))
        index = result(openi_index, name)
        outcomes.append(index is not None)
        if index is not None:
            assert len(index.films) + sum(count.number for count in index.dropped.values()) <= 8
            if level == "xml":
                assert len(index.films) + sum(count.number for count in index.dropped.values()) >= 6
    assert files(tmp_path) == before
    assert not all(outcomes) or level == "xml"
    assert any(outcomes) or level in ("gz", "table"), "whose checksum tells"


def peak_bytes(function: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_report_that_unpacks_without_end_is_not_read(tree: Any, tmp_path: Path) -> None:
    content = reports(tree)
    name = next(iter(content))
    path = tmp_path / "mimic-cxr-reports.zip"
    data = zipped({**content, name: "0" * (64 << 20)}, zipfile.ZIP_DEFLATED)
    path.write_bytes(data)
    assert peak_bytes(lambda: mimic_index(tree, path)) < 16 << 20
    index = mimic_index(tree, path)
    assert index.dropped["report missing or unreadable"].number == 1
    # The directory says 100 bytes, and lies.
    lie = data.replace((64 << 20).to_bytes(4, "little"), (100).to_bytes(4, "little"))
    assert lie != data
    path.write_bytes(lie)
    assert peak_bytes(lambda: mimic_index(tree, path)) < 16 << 20
    assert mimic_index(tree, path).dropped == index.dropped


def test_archives_and_tables_that_unpack_without_end_are_named(
    openi_files: list[Path], mimic: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archives, "TABLE_BYTES", 1 << 20)
    zeros = gzip.compress(bytes(32 << 20), 1)
    sound = gzip.compress(tarred(REPORTS))
    openi_files[0].write_bytes(sound)
    assert len(openi_index().films) == 6
    for path in openi_files:
        before = path.read_bytes()
        path.write_bytes(zeros)
        with pytest.raises(CxrlError, match=rf"{path.name} unpacks to more than 1 MiB"):
            openi_index()
        path.write_bytes(before)
    tree = mimic.write_mimic_tree(tmp_path / "tree", formats=())
    path = tmp_path / "mimic-cxr-reports.zip"
    path.write_bytes(zipped(reports(tree), zipfile.ZIP_STORED))
    for kind in ("metadata", "split", "chexpert"):
        before = tree.table(kind).read_bytes()
        tree.table(kind).write_bytes(zeros)
        with pytest.raises(CxrlError, match=rf"{kind}\.csv\.gz unpacks to more than 1 MiB"):
            mimic_index(tree, path)
        tree.table(kind).write_bytes(before)


def test_names_that_point_elsewhere_are_not_followed(openi_files: list[Path], tmp_path: Path) -> None:
    (tmp_path / "secret.xml").write_bytes(XML.format(n=5).encode())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for kind, name, target in (
            (tarfile.SYMTYPE, "a.xml", "../secret.xml"),
            (tarfile.SYMTYPE, "b.xml", "b.xml"),
            (tarfile.LNKTYPE, "c.xml", str(tmp_path / "secret.xml")),
            (tarfile.FIFOTYPE, "d.xml", ""),
            (tarfile.CHRTYPE, "e.xml", ""),
            (tarfile.DIRTYPE, "f.xml", ""),
        ):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
        for name in ("../../out.xml", "/tmp/out.xml"):
            member = tarfile.TarInfo(name)
            data = XML.format(n=len(name)).encode()
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    openi_files[0].write_bytes(gzip.compress(buffer.getvalue()))
    before = files(tmp_path)
    with pytest.raises(CxrlError, match=r"no film is left; dropped: view blank is not in data\.views 2"):
        openi_index()
    assert files(tmp_path) == before
    assert not Path("/tmp/out.xml").exists()

"""Counts, labels, splits and the cache of an index."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cxrl.data.index import (
    Count,
    FilmRecord,
    Index,
    Tally,
    assign_splits,
    cached_index,
    describe,
    drop_patients_in_two_splits,
    file_key,
    in_threads,
    label_value,
    stamp,
    together,
)
from cxrl.errors import CxrlError


def film(number: int, patient: str = "p", split: str = "train") -> FilmRecord:
    return FilmRecord(number, f"f{number}", patient, split, "PA", "a.png", "Text “ü”.", (1.0, 0.0, math.nan))


INDEX = Index("table", Path("/r"), ("a", "b", "c"), (film(1), film(2)), {"x": Count(2, ("p", "q"))}, {})


def equal(one: Index, two: Index) -> bool:
    """nan equals nan here."""
    return repr(one) == repr(two)


def test_a_tally_counts_and_names_the_first_few() -> None:
    tally = Tally()
    for name in range(5):
        tally.add("often", name)
    tally.add("once", "z")
    assert tally.counts() == {"often": Count(5, ("0", "1", "2")), "once": Count(1, ("z",))}
    assert describe(tally.counts()) == "often 5 (0, 1, 2, …); once 1 (z)"
    assert describe({}) == "nothing"


@pytest.mark.parametrize(
    ("text", "uncertain", "value"),
    [
        ("1.0", "mask", 1.0),
        ("0", "mask", 0.0),
        (" 1 ", "mask", 1.0),
        ("", "mask", math.nan),
        ("", "positive", math.nan),
        ("nan", "positive", math.nan),
        ("-1.0", "mask", math.nan),
        ("-1.0", "positive", 1.0),
        ("2", "positive", math.nan),
        ("yes", "mask", 1.0),
        ("FALSE", "positive", 0.0),
        ("maybe", "mask", math.nan),
    ],
)
def test_a_blank_and_an_uncertain_label_are_never_negative(text: str, uncertain: str, value: float) -> None:
    tally = Tally()
    result = label_value(text, uncertain=uncertain, tally=tally, name="s1")
    assert result == value or (math.isnan(result) and math.isnan(value))
    unknown = text in ("2", "maybe")
    assert tally.counts() == ({f"unknown label value {text!r}, masked": Count(1, ("s1",))} if unknown else {})


def test_splits_hold_a_tenth_each_and_do_not_depend_on_the_order() -> None:
    patients = [f"p{i}" for i in range(200)]
    splits = assign_splits(patients)
    sizes = {name: list(splits.values()).count(name) for name in ("train", "validate", "test")}
    assert sizes == {"train": 160, "validate": 20, "test": 20}
    assert assign_splits(reversed(patients)) == splits
    assert sorted(assign_splits("abc").values()) == ["test", "train", "validate"]


def test_a_patient_in_two_splits_is_dropped_whole() -> None:
    tally = Tally()
    films = [film(1, "p"), film(2, "q"), film(3, "p", "test")]
    assert drop_patients_in_two_splits(films, tally) == [films[1]]
    assert tally.counts() == {"patient in two splits": Count(2, ("p: f1", "p: f3"))}


def test_threads_keep_the_order() -> None:
    assert in_threads(lambda x: x * x, range(50)) == [x * x for x in range(50)]


@pytest.fixture
def builder() -> tuple[Callable[[], Index], list[int]]:
    built: list[int] = []

    def build() -> Index:
        built.append(1)
        return INDEX

    return build, built


def test_an_index_is_built_once_and_comes_back_equal(
    tmp_path: Path, builder: tuple[Callable[[], Index], list[int]]
) -> None:
    build, built = builder
    folder = tmp_path / "cache" / "deep"
    key = {"source": "table", "option": 1}
    for _ in range(3):
        assert equal(cached_index(key, build, folder), INDEX)
    assert len(built) == 1
    (path,) = folder.iterdir()
    assert path.suffix == ".jsonl"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, "it holds report texts"
    assert stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0
    assert all(json.loads(line) for line in path.read_text().splitlines())
    cached_index({**key, "option": 2}, build, folder)
    cached_index(key, build, folder, rebuild=True)
    cached_index(key, build, None)
    assert len(built) == 4
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("keep", [0, 10, 0.5, 0.9])
def test_a_damaged_cache_is_built_again(
    tmp_path: Path, builder: tuple[Callable[[], Index], list[int]], keep: float
) -> None:
    build, built = builder
    cached_index({"source": "table"}, build, tmp_path)
    (path,) = tmp_path.iterdir()
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if keep < 1 else keep])
    with pytest.warns(UserWarning, match="building the index again"):
        assert equal(cached_index({"source": "table"}, build, tmp_path), INDEX)
    assert len(built) == 2
    assert path.read_bytes() == data


def test_an_index_is_built_again_when_a_file_that_was_read_changes(tmp_path: Path) -> None:
    there, changed, absent = (tmp_path / name for name in ("there", "changed", "absent"))
    there.write_text("a")
    changed.write_text("a")
    built: list[int] = []

    def build() -> Index:
        built.append(1)
        return replace(INDEX, read=(stamp(there), stamp(absent), stamp(changed)))

    def number() -> int:
        """How often it has been built after one more call."""
        found = cached_index({"source": "table"}, build, tmp_path / "cache")
        assert found.films[0].text == INDEX.films[0].text
        return len(built)

    assert [number(), number()] == [1, 1]
    changed.write_text("ab")  # another size
    assert [number(), number()] == [2, 2]
    os.utime(changed, ns=(0, 12345))  # another time
    assert [number(), number()] == [3, 3]
    absent.write_text("")
    assert [number(), number()] == [4, 4]
    there.unlink()
    assert [number(), number()] == [5, 5]


def test_a_million_files_are_not_handed_out_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = tuple(("/nowhere", -1, 0) for _ in range(2500))
    parts: list[int] = []
    monkeypatch.setattr(
        "cxrl.data.index.in_threads",
        lambda function, items: [parts.append(len(i)) or function(i) for i in items],
    )
    cached_index({"source": "table"}, lambda: replace(INDEX, read=read), tmp_path)
    assert equal(cached_index({"source": "table"}, lambda: INDEX, tmp_path), replace(INDEX, read=read))
    assert parts == [1000, 1000, 500]


def test_counts_of_several_tallies() -> None:
    one = {"a": Count(1, ("x",)), "b": Count(5, ("1", "2", "3"))}
    found = together(one, {"a": Count(9, ("y", "z", "w")), "c": Count(6, ())}, {})
    assert list(found.items()) == [("a", Count(10, ("x", "y", "z"))), ("c", Count(6, ())), ("b", one["b"])]


def test_a_cache_that_cannot_be_written_is_named(
    tmp_path: Path, builder: tuple[Callable[[], Index], list[int]]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CxrlError, match=r"cannot write .*table-.*choose another --data\.cache, or none"):
        cached_index({"source": "table"}, builder[0], tmp_path / "file")


def test_a_changed_file_has_another_key(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a")
    before = file_key([path])
    assert file_key([path]) == before
    path.write_text("ab")
    assert file_key([path]) != before

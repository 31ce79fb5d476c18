"""Equal texts share their labels and stand on one side of a split."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cxrl.data.equal_texts import DIFFERENT, HELD_OUT, IN_TEST, SEVERAL, SHARED, same_text, settled
from cxrl.data.index import Count, FilmRecord, Index

NAN = math.nan


def film(study: int, text: str, split: str = "train", labels: tuple[float, ...] = ()) -> FilmRecord:
    return FilmRecord(study, f"f{study}", f"p{study}", split, "PA", "", text, labels)


def index(*films: FilmRecord, findings: tuple[str, ...] = ()) -> Index:
    return Index("table", Path(), findings, films, {"before": Count(9, ("x",))}, {})


@pytest.mark.parametrize(
    "text", ["No edema.", "no EDEMA", "1. No edema.", "No  edema . ", "No\nedema!", "12) No edema;"]
)
def test_texts_that_are_the_same(text: str) -> None:
    assert same_text(text) == same_text("No edema.")


@pytest.mark.parametrize("text", ["Edema.", "No edema, no mass.", "No. Edema.", "2 no edema", "No edema 2"])
def test_texts_that_are_not(text: str) -> None:
    assert same_text(text) != same_text("No edema.")


def test_studies_of_a_text_share_their_labels() -> None:
    found = settled(
        index(
            film(1, "A.", labels=(1.0, NAN, 0.0, NAN)),
            film(2, "a", labels=(1.0, 0.0, 1.0, NAN)),
            film(3, "B.", labels=(NAN, 1.0, NAN, NAN)),
            findings=("Edema", "Fracture", "Pneumonia", "Pneumothorax"),
        )
    )
    assert str([f.labels for f in found.films]) == str([(1.0, 0.0, NAN, NAN)] * 2 + [(NAN, 1.0, NAN, NAN)])
    assert found.noted == {SEVERAL: Count(1, ("1",)), DIFFERENT: Count(1, ("1 Pneumonia",))}


def test_no_finding_does_not_stand_beside_a_finding() -> None:
    films = [film(1, "A.", labels=(1.0, NAN, NAN)), film(2, "A.", labels=(NAN, 1.0, 1.0))]
    found = settled(index(*films, findings=("No Finding", "Edema", "Support Devices")))
    assert str(found.films[0].labels) == str((NAN, 1.0, 1.0))
    films = [film(1, "A.", labels=(1.0, NAN, NAN)), film(2, "A.", labels=(NAN, NAN, 1.0))]
    found = settled(index(*films, findings=("No Finding", "Edema", "Support Devices")))
    assert str(found.films[0].labels) == str((1.0, NAN, 1.0))


def test_a_text_stands_on_one_side_of_a_split() -> None:
    films = [
        film(1, "Only to train."),
        film(2, "Also validated."),
        film(3, "also tested"),
        film(4, "Everywhere."),
        film(5, "Also validated", "validate"),
        film(6, "Everywhere", "validate"),
        film(7, "Only to validate.", "validate"),
        film(8, "1. Also tested.", "test"),
        film(9, "EVERYWHERE", "test"),
    ]
    for order in (films, films[::-1]):
        found = settled(index(*order))
        left = {f.study: f.text for f in found.films}
        assert left == {f.study: "" if f.study == 6 else f.text for f in films if f.study not in (2, 3, 4)}
        assert {reason: count.number for reason, count in found.dropped.items()} == {"before": 9, HELD_OUT: 3}
        assert {reason: count.number for reason, count in found.noted.items()} == {SHARED: 3, IN_TEST: 1}


def test_nothing_equal_is_left_as_it_was() -> None:
    films = [film(1, "A.", labels=(1.0,)), film(2, "B.", "test", (0.0,)), film(3, "C.", "validate", (NAN,))]
    found = settled(index(*films, findings=("Edema",)))
    assert list(found.films) == films
    assert found.noted == {}

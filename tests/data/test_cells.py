"""What a cell says: what is unambiguous is read, the rest is nothing."""

from __future__ import annotations

import math

import pytest

from cxrl.data.cells import fold, read_label, read_split


@pytest.mark.parametrize(
    ("cells", "value"),
    [
        (("1", "1.0", " 1 ", "+1", "1e0", "1.", "01", "true", "TRUE", "True", "yes", "YES"), 1.0),
        (("0", "0.0", "-0", "0.", ".0", "false", "False", "FALSE", "no", "No"), 0.0),
        (("-1", "-1.0", " -1 "), -1.0),
    ],
)
def test_labels_in_their_usual_forms(cells: tuple[str, ...], value: float) -> None:
    assert [read_label(cell) for cell in cells] == [value] * len(cells)


@pytest.mark.parametrize("cell", ["", "  ", "nan", "NaN", "NA", "n/a", "<NA>", "null"])
def test_a_missing_label_is_unknown(cell: str) -> None:
    assert math.isnan(read_label(cell) or 0.0)


@pytest.mark.parametrize(
    "cell",
    ["2", "0.7", "-2", "1,0", "1_0", "inf", "maybe", "positive", "none", "None", "x", "1 0", "①", "1e999"],
)
def test_any_other_label_is_none(cell: str) -> None:
    assert read_label(cell) is None


@pytest.mark.parametrize(
    ("cells", "split"),
    [
        (("train", "Train", " TRAIN ", "training"), "train"),
        (("validate", "val", "Valid", "validation", "dev", "development"), "validate"),
        (("test", " test ", "Testing"), "test"),
        (("", "trian", "eval", "holdout", "0", "train2", "none"), None),
    ],
)
def test_splits_by_their_usual_names(cells: tuple[str, ...], split: str | None) -> None:
    assert [read_split(cell) for cell in cells] == [split] * len(cells)


def test_columns_are_told_apart_by_their_letters() -> None:
    names = (
        "Pleural Effusion",
        "pleural_effusion",
        " Pleural-Effusion ",
        "PLEURALEFFUSION",
        "pleural\teffusion",
    )
    assert {fold(name) for name in names} == {"pleuraleffusion"}
    assert fold("Edema") != fold("Edemas")

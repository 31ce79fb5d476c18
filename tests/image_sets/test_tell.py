"""Scores as text."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import pytest

from cxrl.image_sets.judge import Panel, judge_sets
from cxrl.image_sets.sets import open_set
from cxrl.image_sets.tell import scores_csv, scores_markdown, scores_text


@pytest.fixture
def scores(tables: tuple[Path, Path], panel: Panel, tmp_path: Path) -> dict[str, Any]:
    sets = open_set(tables[0], "--generated", ("sex",)), open_set(tables[1].parent, "--real")
    real = open_set(tables[1], "--real", ("sex",))
    return judge_sets(
        sets[0], real, panel, cache=tmp_path / "scan", image_size=64, seed=0, bootstrap=5, per_finding=True,
        subgroups=("sex",),
    )  # fmt: skip


def test_a_spreadsheet_has_the_columns_of_the_benchmark(scores: dict[str, Any]) -> None:
    rows = list(csv.DictReader(io.StringIO(scores_csv(scores))))
    assert {"FID", "KID", "Precision", "Recall", "Density", "Coverage", "Alignment_score"} <= set(rows[0])
    assert float(rows[0]["FID"]) == scores["generated"]["values"]["fid"]
    assert [row["Pathology"] for row in rows[1:]] == [part["finding"] for part in scores["per_finding"]]


def test_markdown_has_all_parts(scores: dict[str, Any]) -> None:
    text = scores_markdown(scores)
    for words in (
        "| fid |",
        "## AUROC",
        "## By finding",
        "## By sex",
        "| F | 12 | 16 |",
        "same 16 real films",
    ):
        assert words in text


def test_the_terminal_says_how_many(scores: dict[str, Any]) -> None:
    text = scores_text(scores)
    assert "24 generated films against 32 real films" in text
    assert "KID over subsets of 12" in text
    assert "real, 16" in text

"""Scores as text."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cxrl.image_sets.judge import Panel, judge_sets
from cxrl.image_sets.measure import DISTANCES
from cxrl.image_sets.sets import open_set
from cxrl.image_sets.tell import scores_csv, scores_markdown, scores_text


def judged(tables: tuple[Path, Path], panel: Panel, tmp_path: Path) -> dict[str, Any]:
    sets = open_set(tables[0], "--generated", ("sex",)), open_set(tables[1].parent, "--real")
    real = open_set(tables[1], "--real", ("sex",))
    return judge_sets(
        sets[0], real, panel, cache=tmp_path / "scan", image_size=64, seed=0, bootstrap=5, per_finding=True,
        subgroups=("sex",),
    )  # fmt: skip


@pytest.fixture
def scores(tables: tuple[Path, Path], panel: Panel, tmp_path: Path) -> dict[str, Any]:
    return judged(tables, panel, tmp_path)


@pytest.fixture
def both(tables: tuple[Path, Path], panel: Panel, corner: Any, tmp_path: Path) -> dict[str, Any]:
    """As ``scores``, in the features of two models."""
    return judged(tables, replace(panel, extractors={"pixels": None, "corner": corner}), tmp_path)


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


def test_a_spreadsheet_has_the_rows_of_each_feature_model(
    scores: dict[str, Any], both: dict[str, Any]
) -> None:
    rows = list(csv.DictReader(io.StringIO(scores_csv(both))))
    of = {name: [row for row in rows if row["Extra Info"] == name] for name in ("pixels", "corner")}
    assert len(of["pixels"]) == len(of["corner"]) == len(rows) / 2
    assert of["pixels"] == list(csv.DictReader(io.StringIO(scores_csv(scores))))
    other = both["generated"]["other_features"]["corner"]["values"]
    assert float(of["corner"][0]["FID"]) == other["fid"] != both["generated"]["values"]["fid"]
    for row, mine in zip(of["corner"], of["pixels"], strict=True):
        assert row["Alignment_score"] == mine["Alignment_score"], "no distance"
        assert (row["Pathology"], row["Num Real"]) == (mine["Pathology"], mine["Num Real"])
        assert (row["FID"] == "") == (mine["FID"] == "")


def test_every_feature_model_is_named_beside_its_numbers(both: dict[str, Any]) -> None:
    other = both["generated"]["other_features"]["corner"]
    assert set(other["values"]) == set(DISTANCES)
    for side in ("generated", "real"):
        assert both["equal_numbers"][side]["other_features"]["corner"]["values"]["fid"] is not None
    assert both["feature_models"]["corner"]["digest"] == "corner"
    markdown = scores_markdown(both)
    for text in (markdown, scores_text(both)):
        assert "corner, corners of the film, 4 wide" in text
        assert f"{other['values']['fid']:.4g} [" in text
    assert "### By sex, features: corner" in markdown
    part = both["subgroups"]["sex"][0]["other_features"]["corner"]["values"]
    assert f"| F | 12 | 16 | {part['fid']:.4g} |" in markdown


def test_the_first_feature_model_is_that_of_the_main_table(
    both: dict[str, Any], tables: tuple[Path, Path], panel: Panel, corner: Any, tmp_path: Path
) -> None:
    alone = judged(tables, replace(panel, extractors={"corner": corner}), tmp_path)
    assert alone["features"] == "corner"
    assert alone["generated"]["other_features"] == {}
    other = both["generated"]["other_features"]["corner"]["values"]
    assert {key: alone["generated"]["values"][key] for key in DISTANCES} == other
    assert "Features: corner, corners of the film, 4 wide." in scores_markdown(alone)

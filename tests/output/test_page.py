import json
import re

import pytest

from cxrl.errors import CxrlError
from cxrl.output.page import curve, read_metrics, run_page, series


def record(epoch, reward, **extra):
    return {"epoch": epoch, "reward": {"a<b": reward}, "reward_std": {"a<b": 0.5}, "kl": 0.1 * epoch, **extra}


def write_metrics(folder, records, tail=""):
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records) + tail)


def test_rewards_are_in_units_of_the_first_spread_and_judges_in_percent():
    records = [
        record(0, 1.0),
        record(1, 2.0, eval={"fid": 4.0, "posture": -0.5}),
        record(2, 0.5, eval={"fid": 3.0}),
    ]
    assert series(records, "reward") == {"a<b": [(1, 0.0), (2, 2.0), (3, -1.0)]}
    assert series(records, "kl") == {"kl": [(1, 0.0), (2, 0.1), (3, 0.2)]}
    assert series(records, "eval") == {"fid": [(2, 0.0), (3, -25.0)], "posture": [(2, 0.0)]}
    assert series([], "reward") == {}


def test_a_curve_spans_its_frame():
    svg = curve("t", {"x": [(1, 5.0), (2, 7.0), (3, 6.0)]})
    points = [tuple(map(float, p.split(","))) for p in re.search(r'points="([^"]+)"', svg)[1].split()]
    assert [p[0] for p in points] == [45.0, 185.0, 325.0]
    assert [p[1] for p in points] == [120.0, 30.0, 75.0]
    assert ">7<" in svg
    assert ">5<" in svg
    assert curve("t", {}) == ""
    assert "nan" not in curve("t", {"x": [(1, 5.0)]})


def test_a_cut_last_line_is_left_out_and_a_damaged_one_named(tmp_path):
    write_metrics(tmp_path, [record(0, 1.0)], tail='{"epoch": 1, "rew')
    assert [r["epoch"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [0]
    (tmp_path / "metrics.jsonl").write_text("oops\n{}\n")
    with pytest.raises(CxrlError, match=r"metrics\.jsonl is damaged at line 1"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_an_unfinished_run_has_a_page_and_names_are_escaped(tmp_path):
    (tmp_path / "config.yaml").write_text("model: {path: <script>}\n")
    write_metrics(tmp_path, [record(0, 1.0), record(1, 2.0)])
    page = run_page(tmp_path)
    assert "The run has not finished" in page
    assert "Not for diagnosis" in page
    assert "<script>" not in page
    assert "a&lt;b" in page
    assert not re.search(r'(src|href)="(?!data:)', page), "self-contained"


def test_what_is_no_run_or_damaged_is_told(tmp_path):
    with pytest.raises(CxrlError, match=r"is not a run of cxrl\.train"):
        run_page(tmp_path)
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "summary.json").write_text('{"anchor"')
    with pytest.raises(CxrlError, match=r"summary\.json is damaged"):
        run_page(tmp_path)

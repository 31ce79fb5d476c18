"""What a run's files say is text on its page, whatever it says."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from pathlib import Path
from typing import Any

import pytest

from cxrl.output.page import runs_page

EVIL = "</title></script><script>alert(1)</script>\"'><img src=x onerror=alert(2)><style>"


def with_evil(run: Path, file: str, *keys: str | int) -> None:
    """Put EVIL into a JSON file: for a value or, where the last key begins with "@", for the key itself."""
    lines = (run / file).read_text().splitlines() if file.endswith("l") else [(run / file).read_text()]
    trees = [json.loads(line) for line in lines]
    for tree in trees:
        place = tree
        for key in keys[:-1]:
            place = place[key]
        last = keys[-1]
        if isinstance(last, str) and last.startswith("@"):
            place[EVIL] = place.pop(last[1:])
        else:
            place[last] = EVIL
    (run / file).write_text("".join(f"{json.dumps(tree)}\n" for tree in trees))


FIELDS: tuple[tuple[str | int, ...], ...] = (
    ("metrics.jsonl", "reward", "@posture"),
    ("metrics.jsonl", "win_rate", "@posture"),
    ("metrics.jsonl", "grad_norm", "@lora"),
    ("metrics.jsonl", "seconds", "@rollout"),
    ("metrics.jsonl", "eval_reward", "@posture"),
    ("bounds.json", "real_films"),
    ("bounds.json", "anchor", "auroc_per_finding", "@Edema"),
    ("bounds.json", "anchor", "reward", "@posture"),
    ("bounds.json", "judges", "name"),
    *(("summary.json", "judges", name) for name in ("name", "posture", "features", "reference", "no_fid")),
    ("summary.json", "judges", "real_films"),
    ("summary.json", "policy", "auroc_per_finding", "@Edema"),
    ("summary.json", "stopped_early"),
    *(("provenance.json", "sessions", 0, name) for name in ("started", "command", "version", "commit")),
    ("provenance.json", "sessions", 0, "machine", "processor"),
    ("provenance.json", "sessions", 0, "machine", "@cores"),
    ("provenance.json", "sessions", 0, "packages", "torch"),
    ("provenance.json", "sessions", 0, "packages", "@torch"),
)


def check_tame(page: str, page_reader: Any) -> None:
    """That of a page's tags none comes from a text."""
    tags = page_reader.Reader(page).tags
    names = [tag for tag, _ in tags]
    assert (names.count("script"), names.count("style")) == (1, 1)
    assert all(str(a["src"]).startswith("data:image/png;base64,") for tag, a in tags if tag == "img")
    assert not any(name.startswith("on") or name == "style" for _, a in tags for name in a)


@pytest.mark.parametrize("field", FIELDS, ids=lambda field: "/".join(map(str, field)))
def test_no_text_of_a_json_file_becomes_a_tag(
    tmp_path: Path, write_run: Any, page_reader: Any, field: tuple[Any, ...]
) -> None:
    run = write_run(tmp_path / "mine", num_reports=2)
    with_evil(run, *field)
    page = runs_page([run])
    check_tame(page, page_reader)
    shadowed = (("bounds.json", "anchor", "auroc_per_finding", "@Edema"), ("bounds.json", "judges", "name"))
    shadowed += (("bounds.json", "real_films"), ("metrics.jsonl", "eval_reward", "@posture"))
    shadowed += (("bounds.json", "anchor", "reward", "@posture"),)
    if field not in shadowed:  # by the summary; or it is only said that it has no judge
        assert "alert(1)" in html.unescape(page)


def test_no_other_text_becomes_a_tag(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    evil = EVIL.replace("/", "")  # no name of a folder has one
    config = json.dumps({"preset": "smoke", "model": {"path": EVIL}})
    run = write_run(tmp_path / evil, texts=(EVIL, "b", "c"), config=config)
    scores = (run / "scores.csv").read_text().replace("Edema", EVIL.replace('"', ""))
    (run / "scores.csv").write_text(scores.replace("reward_posture", "reward_" + EVIL.replace('"', "")))
    page = runs_page([run])
    check_tame(page, page_reader)
    assert EVIL in page_reader.Reader(page).text
    assert page_reader.Reader(page).text.count(evil) >= 1
    other = write_run(tmp_path / "other", config=json.dumps({"preset": "smoke", "model": {"path": EVIL[2:]}}))
    check_tame(runs_page([run, other]), page_reader)


def test_control_characters_do_not_reach_the_page(tmp_path: Path, write_run: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine", texts=("a\x07b\u202ec", "b", "c"))])
    assert "a\ufffdb\ufffdc" in page
    with_evil(tmp_path / "mine", "summary.json", "stopped_early")
    text = (tmp_path / "mine" / "summary.json").read_text().replace(json.dumps(EVIL), '"half \\ud800 of it"')
    (tmp_path / "mine" / "summary.json").write_text(text)
    assert "half ? of it" in runs_page([tmp_path / "mine"])


def test_only_its_own_script_and_style_may_run(tmp_path: Path, write_run: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine")])
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]+)"', page)
    rules = dict(rule.strip().split(" ", 1) for rule in html.unescape(policy).split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.S)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"

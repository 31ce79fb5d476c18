"""The report page: what it says, in which order, and what it refuses."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cxrl.errors import CxrlError
from cxrl.images.png import SYNTHETIC
from cxrl.output import page as module
from cxrl.output.page import changed_settings, metrics_csv, percent, plain, runs_page
from cxrl.output.run_data import read_run
from cxrl.presets import load_preset

ORDER = (
    *("By judges that gave no reward", "Judges, from the anchor on", "Reward against judge", "Findings"),
    *("Gallery", "Epoch by epoch", "Pose ψ, before, after and real", "Training", "Configuration"),
    *("Made with", "Tables"),
)


class Reader(HTMLParser):
    """Tags, attributes and text of a page; a tag that is never closed is an error."""

    VOID = ("meta", "img", "input", "path", "circle", "polyline", "polygon", "rect", "br")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        assert self.open == [], self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID and tag != "option":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID and tag != "option":
            assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_a_reader_finds_everything_in_order(tmp_path: Path, write_run: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine")])
    reader = Reader(page)
    headings = re.findall(r"<h3>(.*?)</h3>", page)
    assert tuple(headings) == ORDER
    text = reader.text
    assert "All images are synthetic. Not for diagnosis." in text
    assert "finished after 2 epochs · preset smoke · seed 4" in text
    assert re.search(r"posture higher is better 0\.200 0\.150 to 0\.250 0\.500 .* 0\.800 .* \+0\.300", text)
    assert "50% 40% to 60%" in text
    assert "real films films of the test" in text
    assert "nearer to real films is better" in text
    assert "MS-SSIM within a report nearer" in text
    assert "abc123" in text
    assert "cxrl train --preset smoke" in text
    assert "processor a fast one; cores 2; devices none" in text
    assert "torch 2.0" in text


def test_it_is_self_contained(tmp_path: Path, write_run: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine")])
    for tag, attributes in Reader(page).tags:
        for name in ("src", "href", "action", "xlink:href"):
            if attributes.get(name):
                assert re.match(r"data:|#", str(attributes[name])), (tag, name)
        assert tag not in ("link", "iframe", "object", "embed", "base", "form")
        assert not any(name.startswith("on") for name in attributes)
    assert "http" not in page.replace("http-equiv", "")
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert 'name="viewport"' in page


def test_the_curves_start_at_the_anchor(tmp_path: Path, write_run: Any) -> None:
    run = read_run(write_run(tmp_path / "mine"))
    assert [point.epoch for point in run.points] == [0, 1, 2]
    assert [point.side.values["posture"] for point in run.points] == [0.2, 0.3, 0.5]
    assert [point.side.values["fid"] for point in run.points] == pytest.approx([80.0, 70.0, 50.0])
    page = runs_page([tmp_path / "mine"])
    (curve,) = re.findall(r"<title>Fréchet distance by epoch</title>.*?</svg>", page)
    (line,) = re.findall(r'class="line policy" points="([^"]+)"', curve)
    xs, ys = zip(*(map(float, point.split(",")) for point in line.split()), strict=True)
    assert len(xs) == 3
    assert ys[0] < ys[1] < ys[2], "it falls, from the anchor on"
    assert "real films" in curve
    assert ">anchor</text>" in curve
    assert 'class="mark"' in curve, "the kept epoch"


def test_a_judge_shares_its_axis_with_no_other(tmp_path: Path, write_run: Any) -> None:
    charts = module.make_section(read_run(write_run(tmp_path / "mine"))).judge_curves
    assert [chart.title for chart in charts][3:] == [
        *("Fréchet distance", "MS-SSIM within a report", "diversity within a report")
    ]
    assert all(chart.svg.count('class="line ') == 1 for chart in charts)
    assert [chart.note for chart in charts][:4] == ["higher is better"] * 3 + ["lower is better"]


def test_the_gallery_shows_every_report_whole(tmp_path: Path, write_run: Any) -> None:
    long = "There is " + "a very long story of the chest " * 12 + "at the end."
    page = runs_page([write_run(tmp_path / "mine", texts=("Short.", long, "Third."))])
    assert page.count(long) >= 1, "no caption is cut"
    pictures = re.findall(
        r'<img alt="(anchor|policy|real film), synthetic" src="data:image/png;base64,([^"]+)"', page
    )
    gallery = pictures[-9:]
    assert [name for name, _ in gallery] == ["anchor", "policy", "real film"] * 3
    for _, data in pictures:
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.text["Synthetic"] == SYNTHETIC  # type: ignore[attr-defined]
    assert re.search(r"<em>consistency</em><i>0\.52 <small>\(0\.50\)</small></i>", page)
    assert re.findall(r"<option>(.*?)</option>", page) == ["Edema", "Lung Lesion", "No Finding"]
    assert set(re.findall(r'data-findings="([^"]*)"', page)) == {"No Finding", "Edema", "Lung Lesion"}


def test_wins_and_losses_are_the_largest(tmp_path: Path, write_run: Any) -> None:
    section = module.make_section(read_run(write_run(tmp_path / "mine")))
    module.fill(section, module.LARGEST)
    assert [(e.task, e.card.number, round(e.change, 2)) for e in section.wins[:3]] == [
        *(("posture", 5, 0.35), ("posture", 4, 0.34), ("posture", 3, 0.33))
    ]
    assert section.losses == [], "every score has risen"


def test_pictures_are_left_out_where_the_page_would_be_too_large(
    tmp_path: Path, write_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "mine", num_reports=60, size=128)
    monkeypatch.setattr(module, "LARGEST", 1_500_000)
    page = runs_page([run])
    assert 700_000 < len(page.encode()) <= 1_500_000
    shown = re.search(r"(\d+) of 60 reports are shown", page)
    assert shown is not None
    assert 0 < int(shown[1]) < 60
    assert page.count('class="sheet"') == 2, "the grids come first"
    both = runs_page([run, write_run(tmp_path / "other", num_reports=60, size=128)])
    assert len(both.encode()) <= 1_500_000


def test_the_same_picture_is_shown_once(tmp_path: Path, write_run: Any) -> None:
    run = write_run(tmp_path / "mine")
    twice = run / "samples" / "epoch-000002-kept.png"
    twice.write_bytes((run / "samples" / "epoch-000002.png").read_bytes())
    assert runs_page([run]).count('class="sheet"') == 2
    twice.write_bytes((run / "samples" / "epoch-000001.png").read_bytes() + b"x")
    assert "epoch 2, whose weights were kept" in runs_page([run])


def test_an_unfinished_and_an_old_run_have_a_page(tmp_path: Path, write_run: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine", finished=False)])
    assert "not finished: 2 of 2 epochs" in page
    assert "Gallery" not in page
    assert re.search(r"0\.200.*?–", page, re.S)
    for name in ("bounds.json", "provenance.json"):
        (tmp_path / "mine" / name).unlink()
    assert "Made with" not in runs_page([tmp_path / "mine"])
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.yaml").write_text("seed: 1\n")
    page = runs_page([bare])
    assert "Nothing has been judged yet." in page
    Reader(page)


def test_without_real_films_it_says_why(tmp_path: Path, write_run: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine", real=False)])
    text = Reader(page).text
    assert "real films no films here" in text
    assert "diversity within a report higher is better" in text
    assert "nearer to real" not in text


def test_names_and_texts_are_escaped(tmp_path: Path, write_run: Any) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>"
    run = write_run(
        tmp_path / "a<b>&",
        texts=(evil, "b", "c"),
        judge=evil,
        config=json.dumps({"preset": "smoke", "model": {"path": evil}}),
    )
    records = (run / "metrics.jsonl").read_text().replace('"posture"', json.dumps(evil))
    (run / "metrics.jsonl").write_text(records.replace(json.dumps(evil), '"posture"', 4))
    provenance = (run / "provenance.json").read_text().replace('"a fast one"', json.dumps(evil))
    (run / "provenance.json").write_text(provenance.replace('"abc123"', json.dumps(evil)))
    scores = (run / "scores.csv").read_text().replace("Edema", evil.replace('"', ""))
    (run / "scores.csv").write_text(scores)
    page = runs_page([run])
    reader = Reader(page)
    assert [tag for tag, _ in reader.tags].count("script") == 1
    assert all(str(a.get("src", "data:")).startswith("data:") for t, a in reader.tags if t == "img")
    assert html.escape("a<b>&") in page
    assert evil in reader.text


def test_settings_are_told_as_a_difference_from_the_preset(tmp_path: Path, write_run: Any) -> None:
    config = type(load_preset("smoke")).from_dict({"train": {"num_epochs": 7}}, load_preset("smoke"))
    assert changed_settings(config) == [("train.num_epochs", "2", "7")]
    assert changed_settings(load_preset("smoke")) == []
    page = runs_page([write_run(tmp_path / "mine", config="preset: smoke\ntrain: {num_epochs: 7}\n")])
    assert re.search(r"<code>train\.num_epochs</code></th><td>2</td><td>7</td>", page)


def test_tables_can_be_downloaded(tmp_path: Path, write_run: Any) -> None:
    run = write_run(tmp_path / "mine")
    links = dict(
        re.findall(r'download="([^"]+)" href="data:text/csv;charset=utf-8,([^"]+)"', runs_page([run]))
    )
    assert set(links) == {"mine-metrics.csv", "mine-scores.csv"}
    table = metrics_csv(read_run(run).records).splitlines()
    assert table[0].startswith("epoch,reward.posture,")
    assert len(table) == 3


def test_several_runs_are_compared(tmp_path: Path, write_run: Any) -> None:
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", config="preset: smoke\nseed: 9\noptim: {kl_weight: 0.5}\n")
    page = runs_page([first, second])
    reader = Reader(page)
    assert "2 runs" in reader.text
    assert re.search(r"<code>seed</code></th><td>4</td><td>9</td>", page)
    assert re.search(r"<code>optim\.kl_weight</code></th><td>0</td><td>0\.5</td>", page)
    ids = [a["id"] for _, a in reader.tags if a.get("id")]
    assert len(set(ids)) == len(ids)
    assert page.count("<h3>Gallery</h3>") == 2
    with pytest.raises(CxrlError, match="is given twice"):
        module.check_runs([first, tmp_path / "." / "first"])


def test_what_is_no_run_or_damaged_is_told(tmp_path: Path, write_run: Any) -> None:
    with pytest.raises(CxrlError, match=r"is not a run of cxrl train"):
        runs_page([tmp_path])
    run = write_run(tmp_path / "mine")
    for name, content in (
        ("summary.json", '{"anchor"'),
        ("summary.json", '{"anchor": 3}'),
        ("bounds.json", "[]"),
        ("bounds.json", '{"anchor": {}}'),
        ("provenance.json", '{"sessions": [{}]}'),
        ("scores.csv", "side,image\nanchor,0\n"),
        ("scores.csv", "side,image,prompt,text\npolicy,7,0,x\n"),
        ("gallery.safetensors", "x"),
        ("metrics.jsonl", '{"epoch": "x"}\n{}\n'),
        ("metrics.jsonl", '{"epoch": 0, "kl": [1]}\n'),
    ):
        before = (run / name).read_bytes()
        (run / name).write_text(content)
        with pytest.raises(CxrlError, match=re.escape(str(run / name))):
            runs_page([run])
        (run / name).write_bytes(before)
    runs_page([run])


def test_numbers_are_short() -> None:
    assert [plain(v) for v in (None, -0.12345, 123.456, 12345.6)] == ["–", "−0.123", "123.5", "1.23e+04"]
    assert plain(0.5, "+") == "+0.500"
    assert [percent(v) for v in (0.5, -0.123, 40.0, -40.0)] == ["50%", "−12%", "> 1000%", "< −1000%"]

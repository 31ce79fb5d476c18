"""The report page: what it says, in which order, and what it refuses."""

from __future__ import annotations

import base64
import io
import json
import re
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


def test_a_reader_finds_everything_in_order(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine")])
    reader = page_reader.Reader(page)
    headings = re.findall(r"<h3>(.*?)</h3>", page)
    assert tuple(headings) == page_reader.ORDER
    text = reader.text
    assert "All images are synthetic. Not for diagnosis." in text
    assert "finished after 2 epochs · preset smoke · seed 4" in text
    assert re.search(
        r"posture higher is better, up to real films 0\.200 0\.150 to 0\.250 0\.500 .* 0\.800 .* \+0\.300",
        text,
    )
    assert "50% 40% to 60%" in text
    assert "real films films of the test" in text
    assert "nearer to real films is better" in text
    assert "MS-SSIM within a report nearer" in text
    assert "abc123" in text
    assert "cxrl train --preset smoke" in text
    assert "processor a fast one; cores 2; devices none" in text
    assert "torch 2.0" in text


def test_it_is_self_contained(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine")])
    for tag, attributes in page_reader.Reader(page).tags:
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
    assert ">real</text>" in curve
    assert ">anchor</text>" in curve
    assert "<desc>policy: 80 at epoch 0, 50 at 2; anchor: 80; real: 20</desc>" in curve
    assert "<title>policy, 1: 0.3 (0.25 to 0.35)</title>" in page, "posture, with its interval"
    assert 'class="mark"' in curve, "the kept epoch"


def test_a_judge_shares_its_axis_with_no_other(tmp_path: Path, write_run: Any) -> None:
    charts = module.make_section(read_run(write_run(tmp_path / "mine"))).judge_curves
    assert [chart.title for chart in charts][3:] == [
        *("Fréchet distance", "MS-SSIM within a report", "diversity within a report", "spread of poses")
    ]
    assert all(chart.svg.count('class="line ') == 1 for chart in charts)
    assert [chart.note for chart in charts][:4] == [
        *("higher is better, up to real films", "higher is better", "higher is better", "lower is better")
    ]


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
    rows = re.findall(r'colspan="3">(.*?)</th></tr>\s*<tr>(.*?)</tr>', page)[-3:]
    assert [name for name, _ in rows] == ["posture", "diagnosis", "consistency"]
    assert re.findall(r"<td>(\S+) <small>\((\S+)\)</small></td>", rows[2][1]) == [
        *(("0.20", "0.20"), ("0.52", "0.50"), ("0.80", "0.80"))
    ]
    assert re.findall(r"<option>(.*?)</option>", page) == ["Edema", "Lung Lesion", "No Finding"]
    assert set(re.findall(r'data-findings="([^"]*)"', page)) == {"No Finding", "Edema", "Lung Lesion"}


def test_wins_and_losses_are_the_largest(tmp_path: Path, write_run: Any) -> None:
    section = module.make_section(read_run(write_run(tmp_path / "mine")))
    module.fill(section, module.LARGEST, lambda card: 1)
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


def test_long_reports_count_too(tmp_path: Path, write_run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = tuple(f"Report {n} " + "<&> " * 3000 for n in range(40))
    monkeypatch.setattr(module, "LARGEST", 600_000)
    page = runs_page([write_run(tmp_path / "mine", texts=texts, config="preset: smoke\n")])
    assert 300_000 < len(page.encode()) <= 600_000
    shown = re.search(r"(\d+) of 40 reports are shown", page)
    assert shown is not None
    assert page.count("<article") < 40


def test_a_long_run_has_a_page_of_the_same_size(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    run = write_run(tmp_path / "mine")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(lines[n % 2]) | {"epoch": n} for n in range(4000)]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    page = runs_page([run])
    assert len(page.encode()) < 1_500_000
    assert len(re.findall(r'class="bar s0"', page)) <= 60
    told = page_reader.parts(page)["Tables"]
    assert re.search(r"metrics\.csv would take \d\.\d MB; metrics\.jsonl is in the run's folder", told)
    assert "mine-scores.csv" in told


def test_too_many_runs_for_a_page_are_refused(
    tmp_path: Path, write_run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LARGEST", 100_000)
    runs = [write_run(tmp_path / f"r{n}") for n in range(3)]
    with pytest.raises(
        CxrlError, match=r"3 runs would have 0\.\d MB without a picture, expected at most 0\.1"
    ):
        runs_page(runs)


def test_a_reward_without_a_judge_is_shown(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    run = write_run(tmp_path / "mine")
    scores = (run / "scores.csv").read_text().replace("reward_posture", "reward_contrast")
    (run / "scores.csv").write_text(scores)
    for name in ("metrics.jsonl", "bounds.json"):
        text = (run / name).read_text()
        (run / name).write_text(re.sub(r'("(?:eval_)?reward": \{)"posture"', r'\1"contrast"', text))
    page = runs_page([run])
    told = page_reader.parts(page)
    assert "No judge stands against contrast." in told["Reward against judge"]
    assert (
        re.search(r"<h3>Reward against judge</h3>.*?<figcaption><b>(.*?)</b>", page, re.S)[1]
        == "diagnosis: AUROC"
    )  # type: ignore[index]
    assert re.search(r'colspan="3">contrast</th></tr>\s*<tr><td> <small>\(0\.20\)</small></td>', page)


def test_the_weights_that_were_kept_are_shown_first(tmp_path: Path, write_run: Any) -> None:
    run = write_run(tmp_path / "mine")
    assert 'max="1" value="1"' in runs_page([run])
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"kept_epoch": 1}))
    page = runs_page([run])
    assert 'max="1" value="0"' in page
    assert page.count('data-name="epoch 1, whose weights were kept"') == 1
    assert "the weights of epoch 1, the last within limits, were kept" in page


def test_the_same_picture_is_shown_once(tmp_path: Path, write_run: Any) -> None:
    run = write_run(tmp_path / "mine")
    twice = run / "samples" / "epoch-000002-kept.png"
    twice.write_bytes((run / "samples" / "epoch-000002.png").read_bytes())
    assert runs_page([run]).count('class="sheet"') == 2
    twice.write_bytes((run / "samples" / "epoch-000001.png").read_bytes() + b"x")
    assert "epoch 2, whose weights were kept" in runs_page([run])


def test_an_unfinished_run_has_a_page(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine", finished=False)])
    assert "not finished: 2 of 2 epochs" in page
    told = page_reader.parts(page)
    assert "Missing: gallery.safetensors and scores.csv, written when a run ends" in told["Gallery"]
    assert "Missing: scores.csv" in told["Pose ψ, before, after and real"]
    assert re.search(r"posture .* 0\.200 0\.150 to 0\.250 – 0\.800", told["By judges that gave no reward"])
    assert page.count('class="sheet"') == 2


def test_every_part_says_what_an_old_run_misses(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    run = write_run(tmp_path / "mine")
    for name in ("bounds.json", "provenance.json", "scores.csv", "gallery.safetensors"):
        (run / name).unlink()
    summary = json.loads((run / "summary.json").read_text())
    for name in ("real", "gap"):
        summary[name] = None
    del summary["judges"]["real_films"]
    (run / "summary.json").write_text(json.dumps(summary))
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        del record["eval_reward"], record["eval_ci"]
    (run / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in records))
    told = page_reader.parts(runs_page([run]))
    assert "none: bounds.json is missing: earlier versions" in told["By judges that gave no reward"]
    assert "metrics.jsonl has no eval_reward" in told["Reward against judge"]
    assert "Missing: provenance.json" in told["Made with"]
    assert [point.epoch for point in read_run(run).points] == [0, 1, 2], "the anchor of the summary"


def test_a_run_that_has_just_begun(tmp_path: Path, page_reader: Any) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    told = page_reader.parts(runs_page([tmp_path]))
    assert "Nothing has been judged yet." in told["By judges that gave no reward"]
    assert "No epoch in metrics.jsonl was judged" in told["Judges, from the anchor on"]
    assert "no picture in samples/" in told["Epoch by epoch"]
    assert "metrics.jsonl is missing or empty" in told["Training"]
    assert set(told) == {*page_reader.ORDER[:-1]}, "and no tables"


def test_settings_of_another_version_are_shown_as_they_are(
    tmp_path: Path, write_run: Any, page_reader: Any
) -> None:
    run = write_run(tmp_path / "mine", config="preset: smoke\ntrain: {num_epoks: 3}\n")
    page = runs_page([run])
    told = page_reader.parts(page)["Configuration"]
    assert "does not know these settings" in told
    assert "did you mean train.num_epochs?" in told
    assert "train: {num_epoks: 3}" in told
    assert "do not pass this page on" in page, "who knows whose data it is"
    (run / "config.yaml").write_text("train: {")
    with pytest.raises(CxrlError, match=r"config\.yaml: not valid YAML"):
        runs_page([run])


def test_without_real_films_it_says_why(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    page = runs_page([write_run(tmp_path / "mine", real=False)])
    text = page_reader.Reader(page).text
    assert "real films no films here" in text
    assert re.search(r'<td class="why" rowspan="7">none: no films here</td>', page)
    assert "diversity within a report higher is better" in text
    assert "nearer to real" not in text


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


def test_several_runs_are_compared(tmp_path: Path, write_run: Any, page_reader: Any) -> None:
    first = write_run(tmp_path / "first")
    second = write_run(tmp_path / "second", config="preset: smoke\nseed: 9\noptim: {kl_weight: 0.5}\n")
    page = runs_page([first, second])
    reader = page_reader.Reader(page)
    assert "2 runs" in reader.text
    assert re.search(r"<code>seed</code></th><td>4</td><td>9</td>", page)
    assert re.search(r"<code>optim\.kl_weight</code></th><td>0</td><td>0\.5</td>", page)
    ids = [a["id"] for _, a in reader.tags if a.get("id")]
    assert len(set(ids)) == len(ids)
    assert page.count("<h3>Gallery</h3>") == 2
    assert re.search(r"second finished after 2 epochs 0\.500 \+0\.300 \+0\.250 to \+0\.350 50%", reader.text)
    curve = re.findall(r"<title>AUROC by epoch</title>.*?</svg>", page)[0]
    assert len(re.findall(r'class="line s\d"', curve)) == 2
    assert 'class="ref real"' in curve, "both have the same films"
    third = write_run(tmp_path / "elsewhere" / "first")
    assert [run.name for run in module.distinct_names([read_run(p) for p in (first, second, third)])] == [
        *(f"{tmp_path.name}/first", "second", "elsewhere/first")
    ]
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
        ("metrics.jsonl", '{"epoch": 0, "seconds": 3}\n'),
        ("metrics.jsonl", '{"epoch": 0, "reward": {"a": 1}, "reward_std": [["a", 1]]}\n'),
        ("metrics.jsonl", '{"epoch": -1}\n'),
        ("metrics.jsonl", "[1]"),
        ("metrics.jsonl", "null"),
        ("metrics.jsonl", "\x00\x01"),
        ("metrics.jsonl", '{"epoch": 0\n'),
        ("samples/epoch-000001.png", "\x89PNG"),
    ):
        before = (run / name).read_bytes()
        (run / name).write_text(content)
        with pytest.raises(CxrlError, match=re.escape(str(run / name))):
            runs_page([run])
        (run / name).write_bytes(before)
    runs_page([run])
    before = (run / "bounds.json").read_bytes()
    (run / "bounds.json").write_text("{}")
    with pytest.raises(CxrlError, match=r"bounds\.json is damaged \(it has no '\w+', which every run"):
        runs_page([run])
    (run / "bounds.json").write_bytes(before)
    metrics = (run / "metrics.jsonl").read_bytes()
    (run / "metrics.jsonl").write_bytes(metrics + b'{"epoch": 99, "kl')
    runs_page([run])
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    with pytest.raises(CxrlError, match=r"metrics\.jsonl: Is a directory"):
        runs_page([run])
    (run / "metrics.jsonl").rmdir()
    (run / "metrics.jsonl").write_bytes(metrics)
    lines = (run / "scores.csv").read_text().splitlines(keepends=True)
    (run / "scores.csv").write_text("".join(line for line in lines if not line.startswith("policy,5")))
    with pytest.raises(CxrlError, match=r"scores\.csv is damaged \(no scores of image 5 of policy\)"):
        runs_page([run])


def test_fewer_real_films_than_reports(tmp_path: Path, write_run: Any) -> None:
    run = write_run(tmp_path / "mine")
    lines = (run / "scores.csv").read_text().splitlines(keepends=True)
    (run / "scores.csv").write_text(
        "".join(line for line in lines if not line.startswith(("real,4", "real,5")))
    )
    section = module.make_section(read_run(run))
    assert [len(card.pictures) for card in section.every_card] == [3, 3, 3, 3, 2, 2]
    other = [line.replace("real,3,3,", "real,3,9,") for line in lines]
    (run / "scores.csv").write_text("".join(other))
    section = module.make_section(read_run(run))
    assert [len(card.pictures) for card in section.every_card] == [3, 3, 3, 2, 3, 3], "of another report"


def test_numbers_are_short() -> None:
    assert [plain(v) for v in (None, -0.12345, 123.456, 12345.6)] == ["–", "−0.123", "123.5", "1.23e+04"]
    assert plain(0.5, "+") == "+0.500"
    assert [percent(v) for v in (0.5, -0.123, 40.0, -40.0)] == ["50%", "−12%", "> 1000%", "< −1000%"]

"""The reports of a run from any source: how many, which, and what is left out."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from cxrl.config import Config
from cxrl.data.equal_texts import same_text
from cxrl.data.prompts import ReportPrompt
from cxrl.data.sources import cache_folder, load_index, load_prompts, message, readable, study_order
from cxrl.errors import CxrlError
from cxrl.findings import PHANTOM_FINDINGS


class Words:
    """A reader that counts words."""

    max_tokens = 5

    def num_tokens(self, text: str) -> int:
        return len(text.split())


def config(path: Path, source: str = "prompts", **data: Any) -> Config:
    data = {"source": source, "root": str(path), "cache": "none", "num_prompts": 8, **data}
    return Config.from_dict({"data": data})


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """40 studies of two films, 30 to train; every fifth is long, every seventh says the same."""
    rows = ["image,text,study,split,Edema"]
    for i in range(40):
        text = f"Report {i} is far longer than five." if i % 5 == 4 else f"Report {0 if i % 7 == 6 else i}."
        split = "train" if i < 30 else "validate" if i < 36 else "test"
        rows += [f"{i}{film}.png,{text},s{i},{split},{i % 2 if i % 3 else ''}" for film in "ab"]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_study_gives_one_prompt_with_its_labels(table: Path) -> None:
    chosen = load_prompts(config(table, "table", num_prompts=99), Words(), "train")
    assert len({p.text for p in chosen.prompts}) == len(chosen.prompts)
    by_text = {p.text: p for p in chosen.prompts}
    assert by_text["Report 1."].findings == ("Edema",)
    assert (by_text["Report 1."].prompt_id, by_text["Report 1."].labels) == (4, (1.0,))
    assert math.isnan(by_text["Report 3."].labels[0])
    counts = {reason: c.number for reason, c in chosen.skipped.items()}
    assert counts["longer than 5 tokens"] == 6
    assert len(chosen.prompts) + sum(counts.values()) == 30
    line = message(config(table, "table", num_prompts=99).data, "train", chosen)
    assert line.startswith(f"{len(chosen.prompts)} of 99 asked for training reports; left out: ")
    assert "longer than 5 tokens 6 (" in line


def test_held_out_reports_come_from_their_split(table: Path) -> None:
    def studies(split: str, **data: Any) -> set[int]:
        chosen = load_prompts(config(table, "table", num_prompts=99, **data), Words(), split)
        return {p.prompt_id for p in chosen.prompts}

    train, validate, test = studies("train"), studies("selection"), studies("eval")
    assert not train & validate
    assert not validate & test
    assert max(train) < min(validate) < min(test), "numbers are lines of the table"
    chosen, judged = (studies(split, eval_split="validate") for split in ("selection", "eval"))
    assert chosen
    assert judged
    assert not chosen & judged
    assert chosen | judged == validate


@pytest.mark.parametrize(
    ("reports", "wanted", "expected"),
    [(40, (16, 64), (8, 32)), (2, (16, 64), (1, 1)), (3, (64, 1), (2, 1)), (200, (10, 20), (10, 20))],
)
def test_one_split_is_divided_as_was_asked_for(
    tmp_path: Path, reports: int, wanted: tuple[int, int], expected: tuple[int, int]
) -> None:
    path = tmp_path / "p.csv"
    lines = [f"Film {n}.,test" for n in range(reports)]
    path.write_text("\n".join(["text,split", "Film x.,train", *lines]))
    made = config(path, selection_num_prompts=wanted[0], eval_num_prompts=wanted[1])
    chosen, judged = (load_prompts(made, Words(), split).prompts for split in ("selection", "eval"))
    assert (len(chosen), len(judged)) == expected
    assert not {p.text for p in chosen} & {p.text for p in judged}


def test_one_held_out_report_cannot_choose_and_be_the_result(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("text,split\nFilm 1.,train\nFilm 2.,validate\nfilm 2,test\n")
    with pytest.raises(CxrlError, match=r"data\.eval_split test: it has 1 held-out report"):
        load_prompts(config(path), Words(), "eval")
    with pytest.raises(CxrlError, match=r"no report in split 'validate'; data\.eval_split test has some"):
        load_prompts(config(path, eval_split="validate"), Words(), "eval")


@pytest.mark.parametrize("source", ["phantom", "table"])
def test_reports_that_choose_are_never_those_of_the_result(table: Path, source: str) -> None:
    class AnyLength(Words):
        max_tokens = 1000

    root = {} if source == "phantom" else {"root": str(table), "cache": "none"}
    for seed in range(3):
        data = {"source": source, "selection_num_prompts": 120, "eval_num_prompts": 200, **root}
        made = Config.from_dict({"seed": seed, "data": data})
        texts = [
            {same_text(p.text) for p in load_prompts(made, AnyLength(), split).prompts}
            for split in ("train", "selection", "eval")
        ]
        assert all(texts)
        assert sum(map(len, texts)) == len(set().union(*texts))


def test_the_phantom_asks_for_other_findings_in_every_split() -> None:
    class AnyLength(Words):
        max_tokens = 1000

    made = Config.from_dict({"data": {"num_prompts": 64, "selection_num_prompts": 64}})
    labels = [
        [p.labels for p in load_prompts(made, AnyLength(), split).prompts]
        for split in ("train", "selection", "eval")
    ]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        same = sum(a == b for a, b in zip(labels[one], labels[other], strict=True))
        assert same < 32, "not the same films in other words"


def test_which_reports_is_a_function_of_the_seed_and_a_prefix(table: Path) -> None:
    def ids(num: int, seed: int = 0) -> list[int]:
        c = Config.from_dict({"seed": seed}, config(table, "table", num_prompts=num))
        return [p.prompt_id for p in load_prompts(c, Words(), "train").prompts]

    assert len(ids(12)) == 12
    assert ids(12)[:8] == ids(8)
    assert ids(8) != ids(8, seed=1)
    films = load_index(config(table, "table").data).split("train")
    assert {f.study for f in study_order(films, 3)} == {f.study for f in films}
    assert {f.film[-5] for f in study_order(films, 3)} == {"a"}, "the first film of a study"


def test_too_long_may_be_an_error_that_quotes_nothing(table: Path) -> None:
    with pytest.raises(CxrlError, match=r"prompt \d+ has 7 tokens, the text encoder reads 5") as error:
        load_prompts(config(table, "table", num_prompts=99, on_long_prompt="error"), Words(), "train")
    assert "Report" not in str(error.value)


def test_nothing_left_says_why(tmp_path: Path, table: Path) -> None:
    (tmp_path / "long.txt").write_text("a b c d e f\n" * 3 + "a b c d e f g\nh i j k l m\n")
    with pytest.raises(CxrlError, match="all 1 prompts are longer than the 5 tokens"):
        load_prompts(config(tmp_path / "long.txt"), Words(), "train")
    (tmp_path / "one.csv").write_text("text,split\nClear.,train\nUnchanged.,test\n")
    with pytest.raises(CxrlError, match=r"no report in split 'test'; dropped: nothing left without .* 1 \("):
        load_prompts(config(tmp_path / "one.csv"), Words(), "eval")


def test_the_phantom_is_as_it_was() -> None:
    from cxrl.data.phantom.films import phantom_prompts

    class Any1000(Words):
        max_tokens = 1000

    phantom = Config.from_dict({"seed": 3, "data": {"num_prompts": 8}})
    chosen = load_prompts(phantom, Any1000(), "train")
    assert [(p.prompt_id, p.text, p.labels) for p in chosen.prompts] == [
        (p.prompt_id, p.text, p.labels) for p in phantom_prompts(8, seed=3)
    ]
    assert chosen.prompts[0].findings == PHANTOM_FINDINGS
    assert message(phantom.data, "train", chosen) == ""
    with pytest.raises(CxrlError, match="phantom has no files"):
        load_index(phantom.data)


def test_given_prompts_are_checked() -> None:
    good = [ReportPrompt(i, "a b", ()) for i in range(2)]
    assert readable(good, Words(), "drop").prompts == tuple(good)
    with pytest.raises(CxrlError, match="prompt list is empty"):
        readable([], Words(), "drop")
    with pytest.raises(CxrlError, match="share a prompt_id"):
        readable([good[0], good[0]], Words(), "drop")


def test_mimic_reports_reach_a_run(mimic: Any, tmp_path: Path) -> None:
    texts = [f"Film {k} is clear." for k in range(10)]
    tree = mimic.write_mimic_tree(tmp_path / "t", texts=texts)
    c = config(tree.root, "mimic_cxr")
    chosen = load_prompts(c, Words(), "train")
    assert {p.text for p in chosen.prompts} == set(texts[:8])
    assert {p.prompt_id for p in chosen.prompts} == {50000000 + k for k in range(8)}
    assert [p.text for p in load_prompts(c, Words(), "selection").prompts] == [texts[8]]
    assert [p.text for p in load_prompts(c, Words(), "eval").prompts] == [texts[9]]
    assert c.data.is_restricted


def test_a_user_without_a_home_has_no_cache(monkeypatch: pytest.MonkeyPatch, table: Path) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    data = config(table, "table", cache="").data
    assert cache_folder(data) is None
    assert len(load_index(data).films) == 80
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert cache_folder(data) == Path("/elsewhere/cxrl/index")

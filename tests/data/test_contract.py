"""A prompt and its labels say the same, and equal texts never stand on both sides of a split: every source.

The words of a finding, the plain statements of health and what equal texts are, are told here once more and
plainly: nothing is judged by the code that it watches.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cxrl.config import Config, DataConfig
from cxrl.data.phantom import reports
from cxrl.data.prompts import ReportPrompt
from cxrl.data.sources import load_prompts
from cxrl.findings import CHEXPERT_FINDINGS

WORDS = {
    "Atelectasis": "atelecta|collaps",
    "Cardiomegaly": "cardiomegaly|heart|cardiac|cardio",
    "Consolidation": "consolidat",
    "Edema": "edema|congest|failure|chf|overload|vascula",
    "Enlarged Cardiomediastinum": "mediastin",
    "Fracture": "fractur",
    "Lung Lesion": "nodul|mass|lesion|tumor|cancer|carcinoma|neoplas|malignan|metasta",
    "Lung Opacity": "opaci|airspace|air space|infiltrat|interstitial|reticul|haz",
    "Pleural Effusion": "effusion|fluid|thorax",
    "Pleural Other": "pleura",
    "Pneumonia": "pneumonia|infect",
    "Pneumothorax": "pneumothora|pleural air",
    "Support Devices": (
        "line|tube|catheter|picc|wire|clip|pace|port|stent|valve|device|hardware|sternotomy|fusion"
    ),
}
HEALTHY = re.compile(r"(no (evidence of )?(acute|active)[^.;,]*|normal[\w ]*|clear lungs|negative[\w ]*)[.]?")
SPLITS = ("train", "validate", "test")


class AnyLength:
    max_tokens = 10**9

    def num_tokens(self, text: str) -> int:
        return len(text)


def key(text: str) -> str:
    return re.sub(r"^\d+[.)]\s", "", " ".join(text.lower().split())).strip(" .,;:!?")


def mimic_tree(mimic: Any, folder: Path, openi: DataConfig) -> dict[str, Any]:
    texts = [
        "1. Unchanged large right pleural effusion. 2. No pneumonia.",
        "No acute cardiopulmonary process. Cardiomegaly as before.",
        "Mild cardiomegaly. Stable effusion compared to ___.",
        "NO  PNEUMOTHORAX",
        "Clear lungs.",
        "Edema, unchanged. Small left effusion.",
        "Right fracture.",
        "Left nodule. Dr. ___ was told of the pneumothorax.",
        "Clear lungs. No fracture.",
        "1. No pneumothorax",
    ]
    tree = mimic.write_mimic_tree(folder / "tree", texts=texts)

    def everything(rows: list[dict[str, str]]) -> None:
        for k, row in enumerate(rows):
            row |= {finding: str(float((k + n) % 3 > 0)) for n, finding in enumerate(CHEXPERT_FINDINGS)}

    tree.edit("chexpert", everything)
    return {"source": "mimic_cxr", "root": str(tree.root)}


REPORTS = (
    ("Small left effusion.", "Pleural Effusion"),
    ("Moderate cardiomegaly. Unchanged effusion.", "Cardiomegaly"),
    ("No acute disease. Unchanged pneumothorax.", "Pneumothorax"),
    ("Mild edema.", "Edema"),
    ("Clear lungs.", "No Finding"),
    ("Left nodule as seen by Dr. ___. Normal heart.", "Lung Lesion"),
)


def rows(*, split: bool) -> list[str]:
    """120 rows: a study of three tells what another one does, in other capitals or with another end."""
    columns = ("Cardiomegaly", "Edema", "Lung Lesion", "No Finding", "Pleural Effusion", "Pneumothorax")
    lines = [",".join(("image", "patient", "text", *columns, *(["split"] if split else [])))]
    for n in range(120):
        text, present = REPORTS[n % len(REPORTS)]
        if n % 3:
            text = f"Film {n}. {text}"
        text = (text, text.upper(), text.rstrip("."), f"1. {text}")[n % 4]
        value = "1" if n % 9 else "0"
        values = [value if column == present else "" for column in columns]
        lines.append(
            ",".join((f"{n}.png", f"p{n // 2}", text, *values, *([SPLITS[n // 2 % 5 % 3]] if split else [])))
        )
    return lines


def table(mimic: Any, folder: Path, openi: DataConfig) -> dict[str, Any]:
    (folder / "t.csv").write_text("\n".join(rows(split=False)))
    return {"source": "table", "root": str(folder / "t.csv")}


def table_with_splits(mimic: Any, folder: Path, openi: DataConfig) -> dict[str, Any]:
    (folder / "t.csv").write_text("\n".join(rows(split=True)))
    return {"source": "table", "root": str(folder / "t.csv")}


def prompts(mimic: Any, folder: Path, openi: DataConfig) -> dict[str, Any]:
    (folder / "p.csv").write_text("\n".join(rows(split=False)))
    return {"source": "prompts", "root": str(folder / "p.csv")}


def lines(mimic: Any, folder: Path, openi: DataConfig) -> dict[str, Any]:
    (folder / "p.txt").write_text("\n".join(row.split(",")[2] for row in rows(split=False)[1:]))
    return {"source": "prompts", "root": str(folder / "p.txt")}


def openi(mimic: Any, folder: Path, openi: DataConfig) -> dict[str, Any]:
    return {"source": "openi", "cache": openi.cache}


def phantom(mimic: Any, folder: Path, openi: DataConfig) -> dict[str, Any]:
    return {"source": "phantom", "num_prompts": 400, "selection_num_prompts": 100, "eval_num_prompts": 200}


@pytest.fixture(params=[mimic_tree, table, table_with_splits, prompts, lines, openi, phantom])
def source(
    request: pytest.FixtureRequest, mimic: Any, tmp_path: Path, openi_config: DataConfig
) -> dict[str, Any]:
    make: Callable[[Any, Path, DataConfig], dict[str, Any]] = request.param
    data = {"cache": "none", "num_prompts": 1500, "selection_num_prompts": 700, "eval_num_prompts": 700}
    return data | make(mimic, tmp_path, openi_config)


@pytest.fixture
def by_split(source: dict[str, Any]) -> dict[str, tuple[ReportPrompt, ...]]:
    found = {"train": load_prompts(Config.from_dict({"data": source}), AnyLength(), "train").prompts}
    for split in ("selection", "eval"):
        found[split] = load_prompts(Config.from_dict({"data": source}), AnyLength(), split).prompts
    return found


def test_equal_texts_are_on_one_side(by_split: dict[str, tuple[ReportPrompt, ...]]) -> None:
    keys = {name: [key(p.text) for p in prompts] for name, prompts in by_split.items()}
    for name, texts in keys.items():
        assert texts, name
        assert len(set(texts)) == len(texts), name
    assert len(set().union(*keys.values())) == sum(map(len, keys.values()))


def test_labels_are_of_the_prompt(by_split: dict[str, tuple[ReportPrompt, ...]]) -> None:
    wrong = []
    for prompt in (p for prompts in by_split.values() for p in prompts):
        present = [f for f, v in zip(prompt.findings, prompt.labels, strict=True) if v == 1.0]
        text = prompt.text.lower()
        wrong += [(prompt.prompt_id, f) for f in present if f in WORDS and not re.search(WORDS[f], text)]
        if HEALTHY.fullmatch(text) or "No Finding" in present:
            ill = [f for f in present if f not in ("No Finding", "Support Devices")]
            wrong += [(prompt.prompt_id, f) for f in ill]
    assert wrong == []
    if by_split["train"][0].findings:
        assert any(1.0 in prompt.labels for prompt in by_split["train"])


def test_the_labels_of_a_text_do_not_depend_on_who_was_drawn(
    source: dict[str, Any], by_split: dict[str, tuple[ReportPrompt, ...]]
) -> None:
    if source["source"] == "phantom":
        return  # a seed is another corpus
    first = {key(p.text): str(p.labels) for p in by_split["train"]}
    other = load_prompts(Config.from_dict({"seed": 1, "data": source}), AnyLength(), "train").prompts
    assert {key(p.text): str(p.labels) for p in other} == first


def test_no_report_of_the_phantom_can_be_in_both_its_sets() -> None:
    """A report is sentences joined, at least one in the words of its set; no sentence is in both sets."""
    sides: dict[str, set[str]] = {"train": set(), "eval": set()}
    for phrases in reports._PHRASES.values():
        for n, phrase in enumerate(phrases):
            side = "eval" if n >= len(phrases) - reports.NUM_HELD_OUT else "train"
            for side_, size, zone in itertools.product(
                ("right", "left", "bilateral"), ("small", "large", "mild", "severe"), ("upper", "lower")
            ):
                sides[side].add(key(phrase.format(side=side_, size=size, zone=zone)))
    assert not sides["train"] & sides["eval"]
    absent = {key(p.format(absent=f)) for p in reports._ABSENT for f in reports.PHANTOM_FINDINGS}
    every = sides["train"] | sides["eval"]
    assert not every & absent
    assert not any(joint.strip() in sentence for joint in reports._JOIN for sentence in every | absent)

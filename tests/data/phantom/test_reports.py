from __future__ import annotations

import itertools

import numpy as np
import pytest

from cxrl.data.phantom import reports
from cxrl.data.phantom.films import phantom_prompts
from cxrl.data.phantom.reports import NUM_HELD_OUT, Finding, labels_of, sample_findings, write_report
from cxrl.findings import PHANTOM_FINDINGS

SIDES = {"Pleural Effusion": ("right", "left", "bilateral")}
SIZES = {"Pleural Effusion": ("small", "large"), "Pneumothorax": ("small", "large")}


def every_case(name: str) -> list[Finding]:
    """All that :func:`sample_findings` can draw of one finding."""
    if name == "No Finding":
        return [Finding(name)]
    sizes = SIZES.get(name, ("mild", "severe"))
    if name in ("Cardiomegaly", "Edema"):
        return [Finding(name, size=size) for size in sizes]
    sides = SIDES.get(name, ("right", "left"))
    if name in ("Consolidation", "Lung Lesion"):
        return [Finding(name, side=side, zone=zone) for side in sides for zone in ("upper", "lower")]
    return [Finding(name, side=side, size=size) for side in sides for size in sizes]


def sentences(phrases: slice) -> set[str]:
    return {
        phrase.format(side=case.side, size=case.size, zone=case.zone).lower()
        for name in PHANTOM_FINDINGS
        for phrase in reports._PHRASES[name][phrases]
        for case in every_case(name)
    }


def test_there_are_at_least_200_phrasings_and_the_held_out_ones_are_others() -> None:
    train, held_out = sentences(slice(None, -NUM_HELD_OUT)), sentences(slice(-NUM_HELD_OUT, None))
    assert (len(train), len(held_out)) == reports.num_phrasings()
    assert len(train) + len(held_out) >= 200
    assert not train & held_out


def test_the_splits_speak_with_their_own_phrasings() -> None:
    written: dict[str, set[str]] = {}
    for split in ("train", "eval"):
        rng = np.random.default_rng(0)
        cases = [case for name in PHANTOM_FINDINGS for case in every_case(name)]
        # A lone finding with no negative sentence is exactly one phrasing.
        texts = [write_report((case,), rng, split) for case in cases for _ in range(60)]
        written[split] = {t.rstrip(".").lower() for t in texts}
    assert written["eval"] >= sentences(slice(-NUM_HELD_OUT, None))
    assert not written["eval"] & sentences(slice(None, -NUM_HELD_OUT))
    assert not written["train"] & sentences(slice(-NUM_HELD_OUT, None))


def test_prompts_are_distinct_and_repeat_with_the_seed() -> None:
    prompts = phantom_prompts(256, seed=3)
    assert prompts == phantom_prompts(256, seed=3)
    assert prompts[:40] == phantom_prompts(40, seed=3)
    assert prompts[:40] != phantom_prompts(40, seed=4)
    assert len({p.text for p in prompts}) == 256
    assert [p.prompt_id for p in prompts] == list(range(256))
    assert not {p.text for p in prompts} & {p.text for p in phantom_prompts(64, seed=3, split="eval")}


def test_more_prompts_than_there_are_reports_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cxrl.data.phantom.films.sample_findings", lambda rng: ())
    with pytest.raises(ValueError, match="only 1 distinct reports found for split 'eval', 3 asked for"):
        phantom_prompts(3, seed=0, split="eval")


def test_labels_say_what_the_report_says() -> None:
    present = {
        "Cardiomegaly": ("cardiomegaly", "heart", "cardiac"),
        "Pleural Effusion": ("effusion", "pleural fluid"),
        "Pneumothorax": ("pneumothorax",),
        "Consolidation": ("consolidation",),
        "Edema": ("edema",),
        "Lung Lesion": ("nodule", "lesion", "nodular"),
    }
    negatives = ("no ", "there is no ", "no evidence of ", "without ")
    for prompt in phantom_prompts(400, seed=1, split="all"):
        parts = [s.strip().lower() for s in prompt.text.rstrip(".").replace(";", ".").split(".")]
        said = [s for s in parts if not s.startswith(negatives) and "not seen" not in s]
        labels = dict(zip(PHANTOM_FINDINGS, prompt.labels, strict=True))
        assert set(prompt.labels) <= {0.0, 1.0}
        assert any(prompt.labels), prompt
        if labels["No Finding"]:
            assert sum(prompt.labels) == 1.0, prompt
            continue
        for name, words in present.items():
            assert labels[name] == float(any(w in s for w in words for s in said)), (name, prompt)


def test_a_negative_sentence_never_denies_what_is_shown() -> None:
    rng = np.random.default_rng(5)
    denied = 0
    for _ in range(500):
        findings = sample_findings(rng)
        text = write_report(findings, rng).lower()
        for name, pattern in itertools.product(PHANTOM_FINDINGS[1:], reports._ABSENT):
            if pattern.format(absent=name.lower()).lower() in text:
                denied += 1
                assert name not in {f.name for f in findings}, text
    assert denied > 50


def test_findings_come_in_the_stated_shares() -> None:
    rng = np.random.default_rng(0)
    drawn = [sample_findings(rng) for _ in range(4000)]
    counts = np.bincount([len(f) for f in drawn], minlength=4) / len(drawn)
    # 3.5 standard deviations of a share of 4000.
    assert np.abs(counts - [0.22, 0.45, 0.25, 0.08]).max() < 3.5 * 0.5 / np.sqrt(4000)
    for findings in drawn:
        names = [f.name for f in findings]
        assert len(set(names)) == len(names)
        assert all(f in every_case(f.name) for f in findings)


def test_no_findings_is_the_label_no_finding() -> None:
    assert labels_of(()) == (1.0, *(0.0,) * 6)
    both = (Finding("Edema", size="mild"), Finding("Cardiomegaly", size="mild"))
    named = {name for name, label in zip(PHANTOM_FINDINGS, labels_of(both), strict=True) if label}
    assert named == {"Edema", "Cardiomegaly"}


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match=r"split must be .* got 'test'"):
        write_report((), np.random.default_rng(0), "test")

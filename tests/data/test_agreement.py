"""Labels that stay, and labels that are masked because the prompt does not say them."""

from __future__ import annotations

import math

import pytest

from cxrl.data.agreement import NOT_DENIED, NOT_IN_PROMPT, NOWHERE, agreeing
from cxrl.data.index import Tally

FINDINGS = ("Cardiomegaly", "Edema", "No Finding", "Pleural Effusion", "Pneumothorax", "Support Devices")
SHORT = dict(zip("CENPXS", FINDINGS, strict=True))


def labels(text: str) -> tuple[float, ...]:
    """``C1 X0`` → Cardiomegaly present, Pneumothorax absent, the others unknown."""
    values = dict.fromkeys(FINDINGS, math.nan) | {SHORT[w[0]]: float(w[1]) for w in text.split()}
    return tuple(values.values())


def masked(before: str, prompt: str, report: str, *, own: bool) -> tuple[str, dict[str, int]]:
    tally = Tally()
    kept = agreeing(FINDINGS, labels(before), prompt, report, own=own, tally=tally, name="s")
    left = [
        f"{letter}{value:.0f}" for letter, value in zip(SHORT, kept, strict=True) if not math.isnan(value)
    ]
    return " ".join(left), {reason: count.number for reason, count in tally.counts().items()}


UNCHANGED = "Unchanged large right pleural effusion. No pneumothorax."


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("before", "prompt", "report", "after", "reasons"),
    [
        ("P1 X0", "No pneumothorax.", UNCHANGED, "X0", {NOT_IN_PROMPT: 1}),
        ("P1 X0", UNCHANGED, UNCHANGED, "P1 X0", {}),
        # Another effusion is denied: the one that the label means was cut.
        ("P1", "No left effusion.", "No left effusion. Unchanged right effusion.", "", {NOT_IN_PROMPT: 1}),
        ("P1", "Left effusion. No right effusion.", "Unchanged. Left effusion. No right effusion.", "P1", {}),
        ("P0", "Left effusion.", "Left effusion. No right effusion since then.", "", {NOT_DENIED: 1}),
        ("C1", "Nothing acute.", "Nothing acute. Unchanged cardiomegaly.", "", {NOT_IN_PROMPT: 1}),
        ("C1", "No acute disease.", "No acute disease. Unchanged cardiomegaly.", "", {NOT_IN_PROMPT: 1}),
        ("N1 C0 E0 S0", "Normal chest. Picc.", "Normal chest. Picc. As before.", "C0 E0 N1", {NOT_DENIED: 1}),
        ("N1 C0", "Scoliosis.", "Scoliosis. Normal heart size.", "", {NOT_IN_PROMPT: 1, NOT_DENIED: 1}),
        ("N1", "Mild edema.", "Mild edema. No acute disease since then.", "", {NOT_IN_PROMPT: 1}),
        ("N1", "No pneumothorax.", "No pneumothorax. No other change.", "N1", {}),
        ("N0 E1", "Mild edema.", "Mild edema, since then.", "E1 N0", {}),
        ("N0 E1", "No effusion.", "No effusion. Unchanged edema.", "", {NOT_IN_PROMPT: 1, NOT_DENIED: 1}),
        ("S1", "Left picc line.", "Left picc line. Unchanged.", "S1", {}),
    ],
)  # fmt: skip
def test_a_label_stays_where_the_prompt_says_it(
    own: bool, before: str, prompt: str, report: str, after: str, reasons: dict[str, int]
) -> None:
    assert masked(before, prompt, report, own=own) == (after, reasons)


def test_labels_that_no_text_says_stay_where_they_are_the_users_own() -> None:
    for cut in ("No pneumothorax.", "No pneumothorax. Unchanged."):
        assert masked("E1 C0", "No pneumothorax.", cut, own=True) == ("C0 E1", {})
        reasons = {NOWHERE: 1, NOT_DENIED: 1}
        assert masked("E1 C0", "No pneumothorax.", cut, own=False) == ("", reasons)
    assert masked("C1 E0", "Normal chest. Edema.", "Normal chest. Edema. Unchanged.", own=True)[0] == ""
    assert masked("C1 N1", "Normal chest.", "Normal chest.", own=True)[0] == "C1 N1", "nothing was cut"


def test_no_finding_is_told_by_findings_without_a_label_too() -> None:
    for prompt, value in (("Small effusion. No edema.", math.nan), ("No edema.", 1.0)):
        kept = agreeing(
            ("No Finding",), (1.0,), prompt, f"{prompt} Unchanged.", own=True, tally=Tally(), name="s"
        )
        assert str(kept) == str((value,))


def test_what_is_masked_is_named() -> None:
    tally = Tally()
    agreeing(FINDINGS, labels("P1 X1"), "Clear.", UNCHANGED, own=False, tally=tally, name="s50")
    assert {reason: count.first for reason, count in tally.counts().items()} == {
        NOT_IN_PROMPT: ("s50 Pleural Effusion",),
        NOWHERE: ("s50 Pneumothorax",),
    }

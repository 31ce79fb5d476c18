"""Sentences: whole ones go or stay, whatever stands beside a full stop; whether a text describes a film."""

from __future__ import annotations

import itertools

import pytest

from cxrl.data.index import Tally
from cxrl.data.sections import clean
from cxrl.data.sentences import describes, sentences

BEFORE_A_NAME = ("Dr.", "Drs.", "Mr.", "Ms.", "Mrs.", "Prof.", "St.", "No.", "Fig.", "J.", "DR.")
BEFORE_ANYTHING = ("vs.", "approx.", "ca.", "e.g.", "i.e.", "cf.", "VS.", "E.G.", "(e.g.", "and/or vs.")
MAY_END = ("a.m.", "p.m.", "A.M.", "M.D.", "R.N.", "Ph.D.", "etc.", "Jr.", "U.S.", "q.d.")
UNITS = ("cm.", "mm.", "ft.")
GOES_ON = {"lower": "about the effusion", "digit": "3 times", "name": "Smith", "hole": "___"}
HALVES = ("It was seen with ___ {} {} by telephone.", "It was seen {} {} by telephone with XXXX.")


def left_of(parts: list[str]) -> str:
    handling = {"placeholders": "drop_sentence", "comparisons": "drop_sentence"}
    return clean(" ".join(parts), **handling, tally=Tally(), name="s")[0]


@pytest.mark.parametrize("abbreviation", [*BEFORE_A_NAME, *BEFORE_ANYTHING, *MAY_END, *UNITS])
def test_a_sentence_with_a_hole_goes_whole(abbreviation: str) -> None:
    for template, (kind, follows) in itertools.product(HALVES, GOES_ON.items()):
        if kind == "name" and abbreviation in (*UNITS, "No."):
            continue  # a capital after a unit or an answer begins a sentence
        bad = template.format(abbreviation, follows)
        assert left_of(["Clear lungs.", bad, "No effusion."]) == "Clear lungs. No effusion."
        assert left_of(["2. " + bad, "3. No effusion."]) == "No effusion."


@pytest.mark.parametrize("abbreviation", [*MAY_END, *UNITS])
def test_an_abbreviation_may_end_a_sentence(abbreviation: str) -> None:
    bad = f"Dr. ___ was told at 9:12 {abbreviation}"
    assert left_of(["Clear lungs.", bad]) == "Clear lungs."
    for after in ("No effusion.", "The heart is large.", "2. Large heart."):
        assert left_of(["Clear lungs.", bad, after]) == f"Clear lungs. {after.removeprefix('2. ')}"


@pytest.mark.parametrize("abbreviation", [*BEFORE_A_NAME, *BEFORE_ANYTHING, *MAY_END, *UNITS])
def test_what_is_left_are_whole_sentences(abbreviation: str) -> None:
    """Also where it cannot be told whether a full stop ends the sentence."""
    for seen, after in itertools.product(
        ("Seen by ___", "Seen by Dr. Smith"),
        ("no effusion.", "No effusion.", "Edema.", "3 views.", "2. Edema.", "___ was told."),
    ):
        parts = ["Clear lungs.", f"{seen} {abbreviation}", after, "Large heart."]
        subsets = itertools.chain.from_iterable(itertools.combinations(parts, n) for n in range(5))
        whole = {" ".join(p.removeprefix("2. ") for p in s) for s in subsets} | {" ".join(parts)}
        assert left_of(parts) in whole


@pytest.mark.parametrize(
    "parts",
    [
        ["One.", "Two!", "Three?"],
        ["1. No edema.", "2. Clear."],
        ["1. a. No edema.", "2. Clear."],
        ["II. Edema.", "III. Clear."],
        ["Measures 1.5 cm.", "Done by Dr. Who."],
        ["Size 2. 5 cm.", "Clear."],
        ["Lungs are clear.", "5 mm granuloma."],
        ["Effusion?", "No.", "Edema?", "Yes."],
        ["Effusion?", "No.", "2. Clear."],
        ["Fracture of rib no. 5 and no. ___.", "Clear."],
        ["Fracture of rib 5.", "Clear.", "Segments 4 and 5.", "2. Clear."],
        ["1. Low volumes 2. Clear 3. Normal."],
        ["1. Low volumes.", "Normal heart 2. Clear."],
        ["XXXX.", "XXXX edema."],
        [
            "Chest 1. Low volumes 2. Clear",
        ],
        ["Opacity ? Pneumonia.", "Clear."],
        ["Clear (see above.)", "Normal."],
        ["No acute disease..", "Clear."],
        ["FILM SEEN AT 9 A.M. BY TELEPHONE.", "NO EFFUSION."],
        ["TIP 4 CM. ABOVE THE CARINA.", "CLEAR."],
        ["Paged at 9 a.m. Tuesday.", "The heart is large."],
        ["no edema .", "heart is large .", "clear ."],
        ["no edema vs. effusion.", "seen at 9 a.m. by dr. smith.", "clear."],
        ["No effusion. large heart."],
        ["no end"],
        [],
    ],
)
def test_sentences(parts: list[str]) -> None:
    assert sentences(" ".join(parts)) == parts


def test_a_long_text_takes_no_time() -> None:
    assert len(sentences("Seen by Dr. ___ at 9 a.m. by telephone vs. " * 20_000)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        " . .",
        "1.",
        "___.",
        "XXXX XXXX.",
        "As above.",
        "See above.",
        "As described above",
        "1. As above.",
        "by telephone.",
        "SEE ABOVE",
        "See findings above.",
        "None.",
        "No.",
        "As per report.",
        "Please see full report.",
        "Findings were communicated by phone.",
        "—",
        "12:30",
        "Discussed with Dr. ___ at 9:12 a.m. by telephone.",
    ],
)
def test_what_describes_nothing(text: str) -> None:
    assert not describes(text)
    assert left_of([text]) == ""


@pytest.mark.parametrize(
    "text", ["Normal.", "No findings.", "Clear", "COPD", "Negative chest.", "心臓拡大。", "Œdème", "Again"]
)
def test_what_describes_something(text: str) -> None:
    assert describes(text)

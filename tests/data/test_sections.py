"""Report sections by the MIT-LCP convention, and what is done about placeholders and comparisons."""

from __future__ import annotations

import pytest

from cxrl.data.index import Count, Tally
from cxrl.data.sections import HANDLING, clean, describing_text, sections, sentences

# The layout of MIMIC-CXR: lines begin with a space, blank lines hold one.
FULL = (
    "                                 FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n"
    " INDICATION:  Cough.\n \n"
    " FINDINGS: \n \n Heart size is normal.\n No effusion.\n \n IMPRESSION: \n \n No acute process.\n"
)


def report(*parts: str) -> str:
    return "                                 FINAL REPORT\n" + "".join(f" {part}\n \n" for part in parts)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (FULL, "No acute process."),
        (FULL.replace("\n", "\r\n"), "No acute process."),
        (report("INDICATION:  Cough.", "FINDINGS:  Clear\n lungs."), "Clear lungs."),
        (report("FINDINGS:  Clear lungs.", "IMPRESSION:"), "Clear lungs."),
        (report("IMPRESSION:  First.", "ADDENDUM:  x.", "IMPRESSION:  Last."), "Last."),
        (report("CONCLUSION:  Clear."), "Clear."),
        (report("FINDINGS AND IMPRESSION:  Clear."), "Clear."),
        (report("IMPRESSOIN:  Clear.", "NOTIFICATION:  Told."), "Clear."),
        (report("CHEST, TWO VIEWS:  Clear."), "Clear."),
        (
            report("HISTORY:  Cough.", "Lungs are clear.", "Heart is normal."),
            "Lungs are clear. Heart is normal.",
        ),
        (report("Single view.", "Lungs are clear."), "Lungs are clear."),
        (report("COMPARISON:  None. Lungs are clear."), "None. Lungs are clear."),
        (report("INDICATION:  Cough."), ""),
        ("", ""),
    ],
)
def test_the_section_that_describes_the_film(text: str, expected: str) -> None:
    assert describing_text(text) == expected


def test_headings_are_normalised() -> None:
    found = sections(
        report("WET READ:  a", "REASON FOR EXAM:  b", "COMPARISONS:  c", "FINDINGS:  NG tube: in.")
    )
    assert found["wet read"] == "a"
    assert found["comparison"] == "c"
    assert found["findings"] == "NG tube: in."
    assert sections(FULL)["findings"] == "Heart size is normal. No effusion."


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("1. No edema. 2. Clear.", ["1. No edema.", "2. Clear."]),
        ("Measures 1.5 cm. Done by Dr. Who.", ["Measures 1.5 cm.", "Done by Dr. Who."]),
        ("no end", ["no end"]),
        ("", []),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


MIXED = "1. Small effusion. 2. Compared to the prior of ___, no change. 3. Seen by ___."


@pytest.mark.parametrize(
    ("placeholders", "comparisons", "expected"),
    [
        ("keep", "keep", (MIXED, "")),
        ("drop_sentence", "keep", ("Small effusion.", "")),
        ("keep", "drop_sentence", ("Small effusion. Seen by ___.", "")),
        ("drop_sentence", "drop_sentence", ("Small effusion.", "")),
        ("drop_report", "keep", ("", "report with a placeholder")),
        ("keep", "drop_report", ("", "report with a comparison with an earlier film")),
    ],
)
def test_what_cannot_be_drawn_is_handled_as_named(
    placeholders: str, comparisons: str, expected: tuple[str, str]
) -> None:
    assert {placeholders, comparisons} <= set(HANDLING)
    result = clean(MIXED, placeholders=placeholders, comparisons=comparisons, tally=Tally(), name="s1")
    assert result == expected


def test_what_was_removed_is_counted() -> None:
    tally, drop = Tally(), {"placeholders": "drop_sentence", "comparisons": "drop_sentence"}
    assert clean("Unchanged.", **drop, tally=tally, name="s1") == (
        "",
        "nothing left without placeholders and comparisons",
    )
    assert clean("Clear. XXXX edema.", **drop, tally=tally, name="s2") == ("Clear.", "")
    assert clean("", **drop, tally=tally, name="s3") == ("", "no text that describes the film")
    assert tally.counts() == {
        "report lost a sentence with a comparison with an earlier film": Count(1, ("s1",)),
        "report lost a sentence with a placeholder": Count(1, ("s2",)),
    }


@pytest.mark.parametrize(
    "text",
    [
        "Stable cardiomegaly.",
        "New right effusion.",
        "No pneumothorax, mild degenerative changes.",
        "Prominent interstitial markings.",
        "Normal chest.",
    ],
)
def test_what_a_film_shows_is_kept(text: str) -> None:
    handling = {"placeholders": "drop_sentence", "comparisons": "drop_report"}
    assert clean(text, **handling, tally=Tally(), name="s") == (text, "")

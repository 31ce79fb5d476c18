"""Report sections by the MIT-LCP convention, and what is done about placeholders and comparisons."""

from __future__ import annotations

import pytest

from cxrl.data.index import Count, Tally
from cxrl.data.sections import HANDLING, clean, describing_text, sections, without_headings

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
    "heading",
    [
        "IMPRESSION:",
        "IMPRESSION",
        "IMPRESSION -",
        "IMPRESSION (PRELIMINARY):",
        "IMPRESSION #1:",
        "IMPRESSIONS:",
        "Impression:",
        "Impression",
        "Impression –",
        "Impresson:",
        "CONCLUSION:",
        "CONCLUSION",
        "Conclusion:",
        "2. IMPRESSION:",
        "## Impression",
        "**Impression:**",
        "Impression and Recommendations:",
        "FINDINGS:",
        "FINDINGS",
        "Findings:",
        "Finding:",
        "FINDINGS AND IMPRESSION:",
        "Findings/Impression:",
    ],
)
def test_headings_are_found_and_never_stay(heading: str) -> None:
    for title, end, break_ in (
        ("FINAL REPORT\n", "\n", "\n "),
        ("", "\r\n", "\r\n\r\n"),
        ("Final Report\n", "\f", " "),
    ):
        if break_ == " " and not heading.endswith(":") and not heading.isupper():
            continue  # a heading alone on its line
        lines = [
            "INDICATION:  Cough.",
            f"{heading}{break_}1. Clear lungs. 2. Large heart.",
            "Notification: Told.",
        ]
        assert describing_text(title + end.join(lines)) == "1. Clear lungs. 2. Large heart."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Lungs are clear. IMPRESSION: Large heart.", "Large heart."),
        ("Lungs are clear. Impression: Large heart.", "Large heart."),
        ("Seen by XXXX IMPRESSION: Large heart.", "Large heart."),
        ("INDICATION: Cough. FINDINGS: Clear. IMPRESSION: Large heart. RECOMMENDATION: CT.", "Large heart."),
        ("IMPRESSION: Old. FINDINGS: None. IMPRESSION: Large heart.", "Large heart."),
        ("FINDINGS: PA film. Comparison: none. Large heart.", "PA film. Comparison: none. Large heart."),
        ("IMPRESSION: Large heart.\n Recommendation: CT.", "Large heart."),
        ("WET READ: ___ Edema.\n ____\n FINAL REPORT\n FINDINGS: Large heart.", "Large heart."),
        ("FINDINGS: Large heart.\n PRELIMINARY REPORT\n Seen by X.", "Large heart."),
        ("IMPRESSION:  FINDINGS ARE THOSE OF EDEMA.", "FINDINGS ARE THOSE OF EDEMA."),
        ("IMPRESSION:\n FINDINGS are those of edema.", "FINDINGS are those of edema."),
        ("INDICATION: TB CLINICAL IMPRESSION: TB\n FINDINGS: Clear.", "Clear."),
    ],
)
def test_headings_amid_a_text(text: str, expected: str) -> None:
    assert describing_text(text) == expected


@pytest.mark.parametrize(
    "nothing",
    ["As above.", "See above.", "As described above", "1. As above.", ".", "Seen by Dr. ___.", "None."],
)
def test_an_impression_that_says_nothing_gives_way(nothing: str) -> None:
    assert describing_text(report("FINDINGS:  Large heart.", f"IMPRESSION:  {nothing}")) == "Large heart."
    assert describing_text(report("IMPRESSION:  Edema.", f"IMPRESSION:  {nothing}")) == "Edema."
    assert describing_text(report("COMPARISON:  Chest CT.", f"IMPRESSION:  {nothing}")) == ""
    assert describing_text(report(f"COMPARISON:  {nothing}")) == ""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Large heart.", "Large heart."),
        ("  Large\n heart. ", "Large heart."),
        ("CHEST TUBE: in place.", "CHEST TUBE: in place."),
        ("Heart: large. Lungs: clear.", "Heart: large. Lungs: clear."),
        ("Clinical impression: edema. Clear.", "Clinical impression: edema. Clear."),
        ("The impression: edema.", "The impression: edema."),
        ("Impression: edema.", "edema."),
        ("FINAL IMPRESSION: Edema.", "Edema."),
        ("Findings: Large heart. Impression: As above.", "Large heart."),
    ],
)
def test_a_text_that_may_be_a_report(text: str, expected: str) -> None:
    assert without_headings(text) == expected


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
    assert clean(". .", **drop, tally=tally, name="s3") == ("", "no text that describes the film")
    gone = "", "nothing left without placeholders and comparisons"
    assert clean("XXXX edema. See above. .", **drop, tally=Tally(), name="s4") == gone
    assert tally.counts() == {
        "report lost a sentence with a comparison with an earlier film": Count(1, ("s1",)),
        "report lost a sentence with a placeholder": Count(1, ("s2",)),
    }


def test_a_stray_full_stop_is_no_sentence() -> None:
    keep = {"placeholders": "keep", "comparisons": "keep"}
    for text in ("1. Clear. 2. Large heart. .", "1. Clear.  . 2. Large heart.", "1. Clear. 2. Large heart."):
        assert clean(text, **keep, tally=Tally(), name="s") == ("1. Clear. 2. Large heart.", "")


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

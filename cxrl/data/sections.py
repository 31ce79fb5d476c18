"""From a radiology report to the text that describes the film: sections, placeholders, comparisons.

Sections follow the convention of the MIMIC-CXR code repository (MIT-LCP/mimic-cxr, ``txt/section_parser.py``
and ``create_section_files.py``): the last impression, else the last findings, else the last paragraph, else
the comparison, where some radiologists wrote the report. Its hand-made list of some fifty odd reports is left
out.
"""

from __future__ import annotations

import difflib
import re
from functools import cache

from cxrl.data.index import Tally

ORDER = ("impression", "findings", "last_paragraph", "comparison")
HANDLING = ("keep", "drop_sentence", "drop_report")

_HEADING = re.compile(r"(?:^|\n)[ \t]*([A-Z][A-Z ()/,-]+):(?=\s|$)")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_EXACT = {
    "conclusion": "impression",
    "findings and impression": "impression",
    "findings/impression": "impression",
    "reference exam": "comparison",
}
_SPELT = ("impression", "findings", "comparison", "indication", "technique", "examination")
_MAIN = ("impression", "findings", "history", "comparison", "addendum")
_VIEWS = re.compile(
    r"chest|portable|pa and lat|lateral and pa|ap and lateral|lateral and ap|frontal (and|view|upright|semi)|"
    r"(two|one) views?|(pa|ap|lateral) view|bone window|ribs"
)

PLACEHOLDER = re.compile(r"_{2,}|\bX{4,}\b")
"""What de-identification left: ``___`` in MIMIC-CXR, ``XXXX`` in Open-I."""
COMPARISON = re.compile(
    r"\bcompar(?:ed|ison|isons|ing|e)\b|\bpriors?\b|\bprevious(?:ly)?\b|\binterval(?:ly)?\b|\bunchanged\b|"
    r"\bsince\b|\bas before\b|\bagain\b|\b(?:no|little|without)\b[\w -]{0,30}\bchange\b",
    re.IGNORECASE,
)
"""Words that point at an earlier film, which cannot be drawn. "Stable", "new", "increased" are not among
them: their sentences also say what the film shows.
"""
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!\s\d\.)(?<!\s\d\d\.)(?<!\bDr\.)\s+(?=\S)")
_LIST_NUMBER = re.compile(r"^\d{1,2}[.)]\s+")


def sections(report: str) -> dict[str, str]:
    """Normalised heading → text of its last section that is not empty, with white space tidied.

    A report without impression and findings gets ``last_paragraph``: what follows the first blank line of its
    last section. Text before the first heading is ``preamble``; without any heading the whole is.
    """
    report = report.replace("\r\n", "\n")
    headings = list(_HEADING.finditer(report))
    starts = [(0, headings[0].start() if headings else len(report), "preamble")]
    for i, heading in enumerate(headings):
        end = headings[i + 1].start() if i + 1 < len(headings) else len(report)
        starts.append((heading.end(), end, _normalise(heading.group(1))))
    parts = [(name, report[start:end]) for start, end, name in starts]
    parts = [(n, t) for n, t in parts if t.strip() or n not in ("impression", "findings")]
    if not {"impression", "findings"} & {name for name, _ in parts}:
        name, text = parts[-1]
        pieces = _BLANK_LINE.split(text.lstrip(), maxsplit=1) if headings else _BLANK_LINE.split(text, 1)
        if len(pieces) == 2:
            parts[-1] = (name, pieces[0])
            parts.append(("last_paragraph", pieces[1]))
    return {name: " ".join(text.split()) for name, text in parts if text.strip()}


@cache
def _normalise(heading: str) -> str:
    name = heading.lower().strip().replace("/ ", "/")
    if name in _EXACT:
        return _EXACT[name]
    for main in _MAIN:
        if main in name:
            return main
    near = difflib.get_close_matches(name, _SPELT, 1, cutoff=0.85)  # impresson, findins, ndication
    if near:
        return near[0]
    return "findings" if _VIEWS.search(name) else name


def describing_text(report: str) -> str:
    """The section that describes the film, "" where there is none."""
    found = sections(report)
    return next((found[name] for name in ORDER if name in found), "")


def sentences(text: str) -> list[str]:
    """The sentences of a text in one line; the number of a list item stays with its sentence."""
    return [part.strip() for part in _SENTENCE_END.split(f" {text}") if part.strip()]


def clean(text: str, *, placeholders: str, comparisons: str, tally: Tally, name: object) -> tuple[str, str]:
    """The text without what cannot be drawn, and why the report is to be dropped ("" where it is not).

    Args:
        text: In one line.
        placeholders: What to do with ``___`` and ``XXXX``: "keep", "drop_sentence" or "drop_report".
        comparisons: The same for sentences that compare with an earlier film.
        tally: Gets what was removed, by reason.
        name: Of the study.
    """
    if not text:
        return "", "no text that describes the film"
    left = sentences(text)
    before = len(left)
    for what, handling, pattern in (
        ("a placeholder", placeholders, PLACEHOLDER),
        ("a comparison with an earlier film", comparisons, COMPARISON),
    ):
        bad = [s for s in left if pattern.search(s)] if handling != "keep" else []
        if bad and handling == "drop_report":
            return "", f"report with {what}"
        if bad:
            tally.add(f"report lost a sentence with {what}", name)
            left = [s for s in left if s not in bad]
    if len(left) == before:
        return text, ""
    text = " ".join(_LIST_NUMBER.sub("", s) for s in left)
    return text, "" if text else "nothing left without placeholders and comparisons"

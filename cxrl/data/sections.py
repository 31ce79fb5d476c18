"""From a radiology report to the text that describes the film: sections, placeholders, comparisons.

Sections follow the convention of the MIMIC-CXR code repository (MIT-LCP/mimic-cxr, ``txt/section_parser.py``
and ``create_section_files.py``): the last impression, else the last findings, else the last paragraph, else
the comparison, where some radiologists wrote the report. Its hand-made list of some fifty odd reports is left
out. Beyond the convention, a section that says nothing of the film ("As above.") is passed over, and the
headings that it misses are found: "Impression:", "IMPRESSION" without a colon, one in the midst of a line.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache
from typing import NamedTuple

from cxrl.data.index import Tally
from cxrl.data.sentences import PLACEHOLDER, describes, sentences

ORDER = ("impression", "findings", "last_paragraph", "comparison")
HANDLING = ("keep", "drop_sentence", "drop_report")

_LINE_END = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_BLANK_LINE = re.compile(r"\n[ \t]*\n")
_EXACT = {
    "conclusion": "impression",
    "conclusions": "impression",
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
_DESCRIBING = (
    "impression", "impressions", "conclusion", "conclusions", "finding", "findings",
    "findings and impression", "findings/impression", "impression and recommendation",
    "impression and recommendations",
)  # fmt: skip
_CONTEXT = (
    "comparison", "comparisons", "indication", "indications", "technique", "examination", "exam", "history",
    "clinical history", "clinical information", "clinical indication", "patient history", "procedure",
    "type of examination", "reason for exam", "reason for examination", "reason for study",
)  # fmt: skip
_BESIDE = ("notification", "recommendation", "recommendations", "recommendation(s)", "addendum", "wet read")
_BANNERS = ("final report", "preliminary report")
_KNOWN = (*_DESCRIBING, *_CONTEXT, *_BESIDE, *_BANNERS)


def _any(names: tuple[str, ...]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


_MARKS = r"[*#]*\s{0,3}(?:\d{1,2}[.)]\s{0,3})?[*]*"  # "## Impression", "2. IMPRESSION"
_AFTER = r"\s{0,3}(?:\([^)]{0,40}\)|#?\d{1,2})?\s{0,3}[*]*"  # "IMPRESSION (PRELIMINARY)", "IMPRESSION #1"
_KNOWN_NAME, _DESCRIBING_NAME = _any(_KNOWN), _any(_DESCRIBING)
_CONVENTION = re.compile(r"(?P<name>[A-Z][A-Z ()/,-]+):(?=\s|$)")
_LINE_START = (
    _CONVENTION,
    # A known name with a colon or a dash, or alone on the line.
    re.compile(rf"{_MARKS}(?P<name>(?=[A-Z])(?i:{_KNOWN_NAME})){_AFTER}(?::[*]*|(?<=\s)[-–—](?=\s|$)|\s*$)"),
    # In capitals without a colon: "IMPRESSION No acute process.", not "FINDINGS ARE", "FINDINGS are".
    re.compile(rf"{_MARKS}(?P<name>{_DESCRIBING_NAME.upper()})\s+(?=[A-Z][a-z]|A\s|\d{{1,2}}[.)]\s)"),
    # Much like a known name: "Impresson:".
    re.compile(rf"{_MARKS}(?P<spelt>[A-Z][a-z]+(?: [A-Za-z]+){{0,2}}){_AFTER}:"),
)
# In the midst of a line: in capitals after a word that is not, or after the end of a sentence.
_AMID = re.compile(
    rf"(?:(?:(?<=[^A-Z\s])|(?<=XXXX))\s+(?P<capitals>{_KNOWN_NAME.upper()})"
    rf"|(?<=[.!?])\s+(?P<name>(?=[A-Z])(?i:{_DESCRIBING_NAME}))){_AFTER}:"
)

COMPARISON = re.compile(
    r"\bcompar(?:ed|ison|isons|ing|e)\b|\bpriors?\b|\bprevious(?:ly)?\b|\binterval(?:ly)?\b|\bunchanged\b|"
    r"\bsince\b|\bas before\b|\bagain\b|\b(?:no|little|without)\b[\w -]{0,30}\bchange\b",
    re.IGNORECASE,
)
"""Words that point at an earlier film, which cannot be drawn. "Stable", "new", "increased" are not among
them: their sentences also say what the film shows.
"""
_HAS_LETTER_OR_DIGIT = re.compile(r"[^\W_]|_{2,}")
_LIST_NUMBER = re.compile(r"^\d{1,2}[.)]\s+(?:\.\s+)*")


class _Heading(NamedTuple):
    start: int
    end: int
    written: str

    @property
    def name(self) -> str:
        return _normalise(self.written)


def sections(report: str) -> dict[str, str]:
    """Normalised heading → text of its last section that says something, with white space tidied.

    A report without impression and findings gets ``last_paragraph``: what follows the first blank line of its
    last section. Text before the first heading is ``preamble``; without any heading the whole is.
    """
    report = _LINE_END.sub("\n", report.lstrip("\ufeff"))
    headings = _headings(report)
    while headings and headings[0].written in _BANNERS:
        title = headings.pop(0)  # of the page, not of a section
        report = report[: title.start] + " " * (title.end - title.start) + report[title.end :]
    ends = [*(h.start for h in headings), len(report)]
    parts = [("preamble", report[: ends[0]])]
    parts += [(h.name, report[h.end : end]) for h, end in zip(headings, ends[1:], strict=True)]
    parts = [(n, t) for n, t in parts if t.strip() or n not in ("impression", "findings")]
    if not {"impression", "findings"} & {name for name, _ in parts}:
        name, text = parts[-1]
        pieces = _BLANK_LINE.split(text.lstrip(), maxsplit=1) if headings else _BLANK_LINE.split(text, 1)
        if len(pieces) == 2:
            parts[-1] = (name, pieces[0])
            parts.append(("last_paragraph", pieces[1]))
    found: dict[str, str] = {}
    for name, text in parts:
        if text.strip() and (name not in found or describes(text) or not describes(found[name])):
            found[name] = " ".join(text.split())
    return found


def _headings(report: str) -> list[_Heading]:
    """Every heading, in order."""
    found: list[_Heading] = []
    offset = 0
    for line in report.split("\n"):
        for match, by_convention in _matches(line):
            written = next(filter(None, match.groupdict().values())).lower().strip()
            amid_others = bool(found) and found[-1].name in ("impression", "findings")
            # "Comparison: none." amid the findings is a sentence of theirs.
            if by_convention or not (amid_others and written in _CONTEXT):
                start, end = offset + match.start(), offset + match.end()
                found.append(_Heading(start, end, written))
        offset += len(line) + 1
    return found


def _matches(line: str) -> Iterator[tuple[re.Match[str], bool]]:
    """The headings of a line, and whether they are the convention's."""
    end = len(line) - len(line.lstrip())
    for pattern in _LINE_START:
        match = pattern.match(line, end)
        if match and (pattern is not _LINE_START[-1] or _is_nearly(match["spelt"].lower(), _KNOWN)):
            yield match, pattern is _CONVENTION
            end = match.end()
            break
    if ":" in line[end:]:
        yield from ((match, False) for match in _AMID.finditer(line, end))


@cache
def _is_nearly(name: str, names: tuple[str, ...]) -> bool:
    return bool(difflib.get_close_matches(name, names, 1, cutoff=0.85))


@cache
def _normalise(heading: str) -> str:
    name = heading.replace("/ ", "/")
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
    return describing_section(sections(report))


def describing_section(found: Mapping[str, str]) -> str:
    """The first of ``ORDER`` that says something of the film: "As above." gives way to the findings.

    The comparison is taken only where no other is there.
    """
    there = [found[name] for name in ORDER[:-1] if found.get(name)] or [found.get(ORDER[-1], "")]
    return next((text for text in there if describes(text)), "")


def without_headings(text: str) -> str:
    """A text that may hold a whole report: its describing section, or itself where no heading tells.

    Only headings that name impression or findings count: "CHEST TUBE: in place." is no heading here.
    """
    written = [h.written for h in _headings(_LINE_END.sub("\n", text))]
    told = any(_is_nearly(w, _DESCRIBING) or {*w.split()} & {*_DESCRIBING} for w in written)
    return describing_text(text) if told else " ".join(text.split())


def clean(text: str, *, placeholders: str, comparisons: str, tally: Tally, name: object) -> tuple[str, str]:
    """The text without what cannot be drawn, and why the report is to be dropped ("" where it is not).

    Sentences go or stay whole, but for the number of a list item whose list has lost another.

    Args:
        text: In one line.
        placeholders: What to do with ``___`` and ``XXXX``: "keep", "drop_sentence" or "drop_report".
        comparisons: The same for sentences that compare with an earlier film.
        tally: Gets what was removed, by reason.
        name: Of the study.
    """
    if not describes(text):
        return "", "no text that describes the film"
    left = [s for s in sentences(text) if _HAS_LETTER_OR_DIGIT.search(s)]  # without the stray "." of Open-I
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
    if len(left) < before:
        left = [_LIST_NUMBER.sub("", s) for s in left]
    text = " ".join(s for s in left if _HAS_LETTER_OR_DIGIT.search(s))
    return (text, "") if describes(text) else ("", "nothing left without placeholders and comparisons")

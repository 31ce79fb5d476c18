"""Sentences of a report in one line, and whether a text describes a film at all.

A sentence that is cut in two leaves half a sentence as a prompt; two that stay together are only dropped
together. So where a full stop may belong to an abbreviation, the text is not split.
"""

from __future__ import annotations

import re

PLACEHOLDER = re.compile(r"_{2,}|\bX{4,}\b")
"""What de-identification left: ``___`` in MIMIC-CXR, ``XXXX`` in Open-I."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_STOP = re.compile(r"[.!?]+[\"'”’)\]]*\s+(?=\S)")
_OPENING = "\"'“‘(["
_NUMBER = re.compile(r"\d{1,2}")
_ROMAN_NUMBER = re.compile(r"i{1,3}|iv|vi{0,3}|ix|x")
_LIST_ITEM = re.compile(r"\d{1,2}[.)]\s")
_DOTTED = re.compile(r"[a-z](?:\.[a-z]{1,2})+")  # e.g, i.e, q.d, u.s, ph.d
_BEFORE_A_NAME_OR_NUMBER = _words(
    "dr drs mr mrs ms prof rev st ste capt sgt lt rt gen hon atty vs v cf viz approx appx ca circa "
    "fig figs nos nr pp pg vol ser img diam meas dist incl excl resp esp prob poss pt pts bilat ant inf sup "
    "lat dept hosp tel ph ext hx dx tx sx"
)
"""Abbreviations that do not end a sentence; written without the full stop, in lower case."""
_MAY_END = _words("a.m p.m m.d r.n n.p p.a d.o ph.d b.i.d t.i.d etc jr sr al inc hr hrs min mins")
_UNITS = _words("cm mm ml cc kg mg lb lbs ft yr yrs wk wks")
_OPENERS = _words(
    "the there this these those no a an it he she they we findings heart lungs otherwise if please"
)
"""Words that begin a sentence, where a capital alone could be that of a name: "at 9 a.m. Tuesday"."""

_SAYS_NOTHING = _words(
    "a i an the this that these those it its he she they them his her their we our us you your who whom "
    "which what there here and or but nor if then than so as at by for from in into of off on onto out "
    "over to up with within without via per upon under about after before above below between during "
    "until also only both all any each other same such some no not none nil na yes is are was were be "
    "been being am has have had do does did can could may might must shall should will would see seen "
    "please refer referred reference note noted describe described description detail detailed details "
    "discuss discussed discussion mention mentioned aforementioned state stated reported dictate dictated "
    "communicate communicated communication notify notified notification inform informed call called page "
    "paged tell told given review reviewed confirm confirmed agree addendum impression impressions "
    "conclusion conclusions finding findings result results section body full summary telephone phone "
    "email verbally person time date day hour hours minute minutes pm dr drs mr mrs ms md doctor "
    "physician radiologist resident attending nurse team service patient clinician provider final "
    "preliminary wet read reading unknown unavailable available pending stable"
)
"""Words of grammar and of talk about reports. A text of these alone asks for nothing that can be drawn."""
_WORD = re.compile(r"[^\W\d_]+")
_WORD_IN_CAPITALS = re.compile(r"[A-Z]{2}")
_REFERENCE = re.compile(r"\b(?:see|per|refer to|in) (?:the )?(?:\w+ )?reports?\b", re.IGNORECASE)
_INITIALS = re.compile(r"\b(?:[A-Za-z]\.)+")  # a.m., M.D., J.
_NOTHING_FOUND = re.compile(r"\b(?:no|without) findings?\b", re.IGNORECASE)


def sentences(text: str) -> list[str]:
    """The sentences of a text in one line; the number of a list item stays with its sentence.

    Joined with blanks they are the text again.
    """
    text = " ".join(text.split())
    # Where nothing is in capitals, a small letter after a full stop says nothing.
    capitals = PLACEHOLDER.sub("", text) != PLACEHOLDER.sub("", text).lower()
    found, start = [], 0
    for stop in _STOP.finditer(text):
        if _ends(text, start, stop, capitals):
            found.append(text[start : stop.end()].rstrip())
            start = stop.end()
    return [*found, text[start:]] if text[start:] else found


def describes(text: str) -> bool:
    """Whether a text holds a word about the film: not "." nor "As above." nor "by telephone."."""
    rest = PLACEHOLDER.sub(" ", text)
    for pattern in (_REFERENCE, _INITIALS):
        rest = pattern.sub(" ", rest)
    words = _WORD.findall(rest.lower())
    return not _SAYS_NOTHING.issuperset(words) or bool(_NOTHING_FOUND.search(text))


def _ends(text: str, start: int, stop: re.Match[str], capitals: bool) -> bool:
    """Whether the sentence that begins at ``start`` ends with ``stop``, and another follows."""
    begin = max(text.rfind(" ", start, stop.start()) + 1, start)
    written = text[begin : stop.end()].rstrip().lstrip(_OPENING)
    rest = text[stop.end() : stop.end() + 40]
    first = rest.lstrip(_OPENING)[:1]
    if first in ",;:)]" or (capitals and first.islower()):
        return False
    if written.startswith("?"):  # "? pneumonia" is a guess, not a question
        return False
    word = written[:-1].lower()
    if not written.endswith(".") or not word or word[-1] in ".!?":
        return True
    begins_item = bool(_LIST_ITEM.match(rest))
    if begin == start and (_NUMBER.fullmatch(word) or _ROMAN_NUMBER.fullmatch(word)):
        return False
    if _NUMBER.fullmatch(word):  # "rib 5. Clear.", but neither "1. Clear 2. Large heart" nor "2. 5 cm"
        before = f" {text[max(0, begin - 2000) : begin]}"
        is_in_list = word == "1" or f" {int(word) - 1}. " in before or f" {int(word) - 1}) " in before
        return begins_item or not (is_in_list or first.isdigit())
    if len(word) == 1 and word.isalpha():  # an initial, or the letter of a list item
        return begins_item
    word = re.split(r"[/–—-]", word)[-1]
    if word in _BEFORE_A_NAME_OR_NUMBER:
        return False
    if word == "no":  # "Effusion? No." is an answer, "rib no. 5" is a number
        is_number = first.isdigit() or first == "#" or bool(PLACEHOLDER.match(rest))
        return not is_number or (begin == start and begins_item)
    if word in _UNITS and capitals and not (written.isupper() and _WORD_IN_CAPITALS.match(rest)):
        return begins_item or (first.isupper() and not PLACEHOLDER.match(rest))
    if word in _MAY_END or word in _UNITS or _DOTTED.fullmatch(word):
        opener = _WORD.match(rest.lstrip(_OPENING))
        return begins_item or (opener is not None and opener.group().lower() in _OPENERS)
    return True

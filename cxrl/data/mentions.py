"""What a text says of findings: which ones it asserts, and which ones it denies.

A prompt must ask for what its labels demand, so a label stays only where the text that is left says the same
(:mod:`cxrl.data.agreement`). This module is how that is found out: sentence by sentence, by phrases much like
those of the CheXpert labeller (Irvin et al. 2019, arXiv 1901.07031) and the field's ways to deny. It reads
English reports and errs to the safe side: what it does not recognise is not said, and costs a label.

    "No pneumothorax. Small left effusion."      asserts Pleural Effusion, denies Pneumothorax
    "Heart size is normal."                      denies Cardiomegaly
    "Heart size at the upper limit of normal."   says neither
    "No acute cardiopulmonary abnormality."      denies all but Fracture and Support Devices
    "Pneumonia cannot be excluded."              asserts Pneumonia: it asks for what may be one
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

from cxrl.data.sections import sentences
from cxrl.findings import CHEXPERT_FINDINGS, NO_FINDING, SUPPORT_DEVICES

_HEART = r"\b(?:heart|cardiac|cardio-?(?:pericardial|vascular|mediastin(?:al|um)))\b(?! (?:fat|valve|stent))"
_MEDIASTINUM = r"\b(?:cardio-?)?mediastin(?:al|um)\b"
_LARGE = r"(?<!non-)\b(?:enlarge\w*|widen\w*|prominen\w*|globular|increased (?:in )?size)"
_ASSERTED = {
    "Atelectasis": r"\batelecta\w*|\b(?:lobar|lung|lobe) collapse|\bcollapse of (?:\w+ ){0,4}(?:lung|lobe)",
    "Cardiomegaly": (
        rf"cardiomegaly|{_LARGE}[^;.,]{{0,30}}{_HEART}|{_HEART}[^;.,]{{0,40}}{_LARGE}|"
        r"\b(?:heart|cardiac)[^;.,]{0,30} (?:is|are|appears?) (?:\w+ ){0,2}(?:increased|large)\b"
    ),
    "Consolidation": r"\bconsolidat\w*",
    "Edema": (
        r"(?<!soft tissue )\bo?edema\w*|\bheart failure|\bchf\b|\bcongesti(?:on|ve)\b|"
        r"\b(?:fluid|volume) overload|\bvascular (?:indistinct|prominen|engorg)\w*|"
        r"\bindistinct\w*[^;.,]{0,30}vascula\w*"
    ),
    "Enlarged Cardiomediastinum": (
        f"{_LARGE}[^;.,]{{0,30}}{_MEDIASTINUM}|{_MEDIASTINUM}[^;.,]{{0,40}}{_LARGE}"
    ),
    "Fracture": r"\bfractur\w*",
    "Lung Lesion": (
        r"\bmass(?:es)?\b|\bmass-?like|\bnodul\w*|\blesions?\b|\blump\b|\bcarcinoma|\bneoplas\w*|"
        r"\btumou?rs?\b|\bmalignan\w*|\bmetasta\w*"
    ),
    "Lung Opacity": (
        r"\bopaci\w*|\bair-?\s?space (?:disease|process)|\binfiltrat\w*|\breticul\w*|\bhaz(?:e|y|iness)\b|"
        r"\binterstitial (?:\w+ )?(?:marking|pattern|disease|process|change|prominence|thickening)\w*"
    ),
    "Pleural Effusion": (
        r"(?<!pericardial )\beffusions?\b|\bpleural fluid|\bh(?:ydro|a?emo)-?(?:pneumo)?thora\w*"
    ),
    "Pleural Other": (
        r"\bpleural[^;.,]{0,25} (?:thicken|scar|plaque|calcifi)\w*|\bfibrothora\w*|\bpleuro-?parenchymal|"
        r"\b(?:thicken|scar)\w*[^;.,]{0,25} pleura\b"
    ),
    "Pneumonia": r"\b(?:broncho)?pneumoni(?:a|as|c)\b|\binfect\w*",
    "Pneumothorax": r"pneumothora\w*|\bpleural air\b",
    "Support Devices": (
        r"\b(?:pacer|pacemaker|catheter|tube|device|drain|plate|screw|coil|stent|lead|wire|clip|suture|staple|"
        r"electrode|stimulator|defibrillator|cannula|anchor|prosthes[ei]|filter)s?\b|\bpicc\b|\ba?icd\b|"
        r"\bhardware\b|\bcentral (?:venous )?lines?\b|\blines? (?:tip|in|is|are|terminat|end|remain|project)|"
        r"\bmedi-?port\b|\bport-?a-?cath\w*|\b(?:chest|infusion) port\b|\barthroplast\w*|\bprosthetic\b|"
        r"\b(?:spinal|spine|cervical) fusion\b|\bsternotomy\b|\btracheostomy\b"
    ),
}
"""What asserts a finding where no word denies it. Another finding goes by its own name."""

_NORMAL = (
    r"(?<!of )(?<!upper )(?<!top )(?<!borderline )\bnormal\b(?! variant)|\bunremarkable\b|"
    r"\bwithin (?:normal|the) limits|\bnot (?:\w+ ){0,2}enlarged|\bnon-?enlarged"
)
_NO = r"\b(?:no|without|negative|free of)\b"
_ACUTE = r"\b(?:acute|active|significant)\b"
_ILL = r"(?:abnormalit|disease|process|finding|patholog)\w*"
_BODY = (
    r"(?:cardio-?\s?pulmonary|cardio-?thoracic|intra-?thoracic|thoracic|chest|cardiac (?:or|and) pulmonary)"
)
_LUNGS = ("Atelectasis", "Consolidation", "Edema", "Lung Lesion", "Lung Opacity", "Pneumonia")
_CHEST = tuple(f for f in CHEXPERT_FINDINGS if f not in (NO_FINDING, SUPPORT_DEVICES, "Fracture"))


def _near(one: str, other: str, distance: int) -> str:
    """Two patterns in one clause, in either order."""
    gap = rf"[^;.]{{0,{distance}}}?"
    return rf"(?:{one}){gap}(?:{other})|(?:{other}){gap}(?:{one})"


_WELL: tuple[tuple[str, Sequence[str]], ...] = (
    (_near(_HEART, _NORMAL, 60), ("Cardiomegaly",)),
    (_near(_MEDIASTINUM, _NORMAL, 60), ("Enlarged Cardiomediastinum",)),
    (_near(r"\blungs?\b|\bparenchyma\b", rf"\bclear\b(?! of)|{_NORMAL}", 60), _LUNGS),
    (_near(r"\bcostophrenic|\bpleura\w*", rf"\bclear\b|\bsharp\b|{_NORMAL}", 40), ("Pleural Effusion",)),
    (_near(r"\b(?:chest|exam(?:ination)?|radiographs?|films?|study|views?)\b", _NORMAL, 30), _CHEST),
    (r"^\W*normal\W*$", _CHEST),
)
_NOTHING: tuple[tuple[str, Sequence[str]], ...] = (
    (rf"{_NO}[^;.]{{0,30}}{_ACUTE} (?:\w+ )?(?:pulmonary|lung|airspace) {_ILL}", _LUNGS),
    (
        rf"{_NO}[^;.]{{0,30}}{_ACUTE} (?:or active )?(?:radiographic |preoperative )?(?:{_BODY} )?{_ILL}",
        _CHEST,
    ),
    (rf"{_NO} [^;.]{{0,40}}{_BODY},? [^;.]{{0,30}}{_ILL}|{_NO} [^;.]{{0,30}}cardiac, pulmonary", _CHEST),
    (r"\bnegative (?:\w+ ){0,2}(?:chest|exam\w*|study|radiograph|film)|^\W*negative\W*$", _CHEST),
)
"""What denies findings though it does not name them: calls a place normal, or says that nothing is there."""
_IS_WELL = re.compile(r"normal|unremarkable|enlarged|clear|sharp|within the limits")
_IS_NOTHING = re.compile(_NO)

_SCOPE = re.compile(
    r"[;:]|\b(?:but|however|although|though|except|aside from|apart from|besides|which|with|secondary to|"
    r"due to|there (?:is|are|has|have))\b"
)
"""Where a denial ends, or has not begun."""
_BEFORE = re.compile(
    r"\bno\b(?! longer)(?! (?:\w+ ){0,4}(?:change|increase|decrease|improvement|worsening)\b)|\bwithout\b|"
    r"\b(?:absence|free|clear|resolution|removal) of\b|\bnegative for\b|\bneither\b|\bnor\b|\bresolved\b|"
    r"\bnot (?:\w+ )?(?:show|demonstrate|reveal|have|see|appear)\w*\b"
)
_AFTER = re.compile(
    r"\b(?:not|no longer) (?:\w+ ){0,2}(?:seen|present|identified|evident|visible|visuali[sz]ed|noted|"
    r"demonstrated|appreciated|detected|apparent|observed|enlarged|widened)\b|\babsent\b|\bremoved\b|"
    r"\bunlikely\b|(?<!not )(?<!partially )(?<!partly )(?<!incompletely )\bresolved\b"
)
_NONE = re.compile(r"\s*(?::\s*(?:none|no|absent)|none)\b")
_NEW_CLAIM = re.compile(
    r"\s*(?:and )?(?:a|an|the|small|tiny|mild|minimal|moderate|large|severe|stable|chronic|persistent|left|"
    r"right|bilateral|bibasilar|low|lungs?|heart|cardio\w+|cardiac|probable|possible|likely|old|healed)\b"
)
_OR = re.compile(r"\b(?:or|nor)\b|/")


@dataclass(frozen=True)
class Said:
    """What a text says: the findings that it asserts, and those that it denies. Some may be in both."""

    asserted: frozenset[str]
    denied: frozenset[str]


def said(text: str, findings: Sequence[str] = CHEXPERT_FINDINGS) -> Said:
    """What a text says of ``findings``; ``No Finding`` is none of them.

    Args:
        text: A report or a part of it, in one line.
        findings: CheXpert's names, or others, which are looked for as they are spelt.
    """
    parts = [_sentence(sentence, tuple(findings)) for sentence in sentences(text.lower())]
    asserted, denied = (frozenset[str]().union(*(part[k] for part in parts)) for k in (0, 1))
    return Said(asserted, denied)


@lru_cache(maxsize=1 << 16)
def _sentence(sentence: str, findings: tuple[str, ...]) -> tuple[frozenset[str], frozenset[str]]:
    asserted: set[str] = set()
    denied: set[str] = set()
    for finding in findings:
        for match in _pattern(finding).finditer(sentence):
            (denied if _is_denied(sentence, *match.span()) else asserted).add(finding)
    for cue, rows in ((_IS_WELL, _WELL), (_IS_NOTHING, _NOTHING)):
        for pattern, names in rows if cue.search(sentence) else ():
            if _compiled(pattern).search(sentence):
                denied.update(name for name in names if name in findings)
    return frozenset(asserted), frozenset(denied)


def _is_denied(sentence: str, start: int, end: int) -> bool:
    """Whether words before or after ``sentence[start:end]`` deny it."""
    before = _SCOPE.split(sentence[:start])[-1]
    after = _SCOPE.split(sentence[end:], maxsplit=1)[0]
    cues = list(_BEFORE.finditer(before))
    if cues:
        # "No edema, small effusion" denies one thing, "no edema, small effusion or mass" denies three.
        listed = before[cues[-1].end() :]
        _, comma, last = listed.rpartition(",")
        if not (comma and _NEW_CLAIM.match(last)) or _OR.search(listed + after):
            return True
    denied_after = _NONE.match(sentence, end) or _AFTER.search(after.partition(",")[0])
    return bool(denied_after) or " not " in sentence[start:end]


@cache
def _pattern(finding: str) -> re.Pattern[str]:
    if finding in _ASSERTED:
        return re.compile(_ASSERTED[finding])
    words = r"[\s_-]+".join(map(re.escape, re.split(r"[\s_-]+", finding.lower().strip())))
    return re.compile(rf"\b{words}" if finding != NO_FINDING else "(?!)")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)  # when first needed, not at import

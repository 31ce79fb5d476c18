"""Reports with the same text: one set of labels, and one side of a split.

A text is one prompt, however many studies have it. So these share their labels, masked where they differ; and
a text that is held out is not trained on, whoever else has it: splits are by patient, which does not see to
that. Test wins over validate, and both over train.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from cxrl.data.index import FilmRecord, Index, Tally, together
from cxrl.findings import NO_FINDING, SUPPORT_DEVICES

SHARED = "text in two splits, now a prompt in one"
HELD_OUT = "text also held out, not trained on"
IN_TEST = "text also in test: no prompt, the film stays"
SEVERAL = "text of several studies with different labels, merged"
DIFFERENT = "label on which studies with the same text differ, masked"

_CLAIM = ("train", "validate", "test")
"""The last of them that has a text keeps it."""
_LIST_NUMBER = re.compile(r"^\d{1,2}[.)]\s+")


def same_text(text: str) -> str:
    """What equal texts share: letters without case, words without white space between, no number of a list
    before and no punctuation after them.
    """
    return _LIST_NUMBER.sub("", " ".join(text.casefold().split())).rstrip(" .,;:!?")


def settled(index: Index) -> Index:
    """The index with one set of labels a text, and without texts on two sides of a split."""
    dropped, noted = Tally(), Tally()
    films = _held_out_once(_one_label_set(index.films, index.findings, noted), dropped, noted)
    return replace(
        index,
        films=tuple(films),
        dropped=together(index.dropped, dropped.counts()),
        noted=together(index.noted, noted.counts()),
    )


def _one_label_set(
    films: Sequence[FilmRecord], findings: Sequence[str], noted: Tally
) -> Sequence[FilmRecord]:
    """Known labels of a text fill its unknown ones; where two are known and differ, neither is."""
    if not findings:
        return films
    by_text: dict[str, dict[str, tuple[float, ...]]] = {}
    first_study: dict[str, int] = {}
    for film in films:
        text = same_text(film.text)
        first_study.setdefault(text, film.study)
        by_text.setdefault(text, {})[str(film.labels)] = film.labels  # as text: nan equals nan
    merged: dict[str, tuple[float, ...]] = {}
    for text, sets in by_text.items():
        first = first_study[text]
        if len(sets) > 1:
            noted.add(SEVERAL, first)
        values = []
        for finding, column in zip(findings, zip(*sets.values(), strict=True), strict=True):
            known = {value for value in column if not math.isnan(value)}
            if len(known) > 1:
                noted.add(DIFFERENT, f"{first} {finding}")
            values.append(known.pop() if len(known) == 1 else math.nan)
        ill = any(
            value == 1.0
            for finding, value in zip(findings, values, strict=True)
            if finding not in (NO_FINDING, SUPPORT_DEVICES)
        )
        if ill and NO_FINDING in findings and values[findings.index(NO_FINDING)] == 1.0:
            values[findings.index(NO_FINDING)] = math.nan
            noted.add("No Finding beside a finding, masked", first)
        merged[text] = tuple(values)
    return [replace(film, labels=merged[same_text(film.text)]) for film in films]


def _held_out_once(films: Sequence[FilmRecord], dropped: Tally, noted: Tally) -> list[FilmRecord]:
    """Without training films whose text is held out; validation films whose text is in test lose it.

    The films of validate stay: they are what real films look like, for the Fréchet distance, and would not be
    without those whose report is a common one.
    """
    home: dict[str, str] = {}
    shared: dict[str, int] = {}
    for film in films:
        text = same_text(film.text)
        if film.split != home.setdefault(text, film.split):
            shared.setdefault(text, film.study)
            home[text] = max(home[text], film.split, key=_CLAIM.index)
    for study in shared.values():
        noted.add(SHARED, study)
    kept = []
    for film in films:
        if film.split == home[same_text(film.text)]:
            kept.append(film)
        elif film.split == "train":
            dropped.add(HELD_OUT, film.film)
        else:
            noted.add(IN_TEST, film.film)
            kept.append(replace(film, text=""))
    return kept

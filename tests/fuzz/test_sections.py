"""Reports at random, laid out as in the field and then spoilt: what comes out are their whole sentences."""

from __future__ import annotations

import random
import re
import textwrap

from cxrl.data.index import Tally
from cxrl.data.sections import COMPARISON, clean, describing_text, without_headings
from cxrl.data.sentences import PLACEHOLDER, describes

DRAWN = (
    "No pneumothorax.",
    "Large right pleural effusion.",
    "Heart size is normal, approx. 12 cm. wide.",
    "Atelectasis vs. consolidation at the left base.",
    "A 1.5 x 2. 5 cm nodule (e.g. granuloma) is seen.",
    "Old fracture of rib No. 5.",
    "5 mm granuloma.",
    "St. Jude valve and a line of J. Smith.",
    "The tip is 4 cm. above the carina.",
    "Is there edema?",
    "Kein Erguß, d.h. frei.",
)
GONE = (
    "Findings were discussed with Dr. ___ at 9:12 a.m. by telephone.",
    "Dr. ___ was paged at 4:30 p.m. regarding the pneumothorax.",
    "Reviewed by ___ M.D. on the day of the film.",
    "Told to Mrs. ___ at 10 p.m. Tuesday by the nurse.",
    "Seen at 9 a.m. EST with St. ___ hospital, i.e. approx. 3 hours later.",
    "Compared with the film of ca. 2010, the heart is larger vs. normal.",
    "Unchanged line of Mr. Smith, Jr. since 2 a.m. today.",
)
HEADINGS = (
    "IMPRESSION:",
    "Impression:",
    "IMPRESSION",
    "CONCLUSION:",
    "FINDINGS:",
    "Findings:",
    "FINDINGS AND IMPRESSION:",
)
BEFORE = (
    "FINAL REPORT",
    "INDICATION:  Cough.",
    "COMPARISON:  ___.",
    "TECHNIQUE: Chest, two views.",
    "Exam: chest",
)
AFTER = ("NOTIFICATION: Told.", "Recommendation: CT.", "RECOMMENDATION(S):  CT.")
NOISE = ".:;,!?\"'()[]-–_*#\n\r\t\f\x0b\x85\u2028\0 123aAZéß心\ufeff"
NUM_LAID_OUT, NUM_SPOILT = 400, 400
DROP = {"placeholders": "drop_sentence", "comparisons": "drop_sentence"}


def is_sublist(text: str, whole: list[str]) -> bool:
    """Whether a text is made of some of the sentences, in order, with or without their list number."""
    ends = {0}
    for sentence in whole:
        for written in {sentence, re.sub(r"^\d{1,2}\. ", "", sentence)}:
            ends |= {end + len(written) + 1 for end in ends if f"{text} ".startswith(f"{written} ", end)}
    return len(text) + 1 in ends


def laid_out(rng: random.Random) -> tuple[str, list[str]]:
    """A report in the layout of MIMIC-CXR, and the sentences of the section that counts."""
    whole = rng.sample(DRAWN, rng.randint(1, 4)) + rng.sample(GONE, rng.randint(0, 3))
    rng.shuffle(whole)
    if rng.random() < 0.4:
        whole = [f"{n}. {sentence}" for n, sentence in enumerate(whole, 1)]
    width, end = rng.choice((30, 78, 10_000)), rng.choice(("\n", "\r\n", "\r"))
    lines = list(rng.sample(BEFORE, rng.randint(0, 3)))
    heading = rng.choice(HEADINGS)
    body = textwrap.wrap(" ".join(whole), width, break_long_words=False, break_on_hyphens=False)
    lines += (
        [heading, *body]
        if rng.random() < 0.5 or heading == "IMPRESSION"
        else [f"{heading}  {body[0]}", *body[1:]]
    )
    lines += rng.sample(AFTER, rng.randint(0, 1))
    gap = rng.choice(("", " "))
    return "".join(
        f"{gap}{line}{end}" + (f"{gap}{end}" if rng.random() < 0.3 else "") for line in lines
    ), whole


def test_prompts_are_whole_sentences() -> None:
    rng = random.Random(0)
    for _ in range(NUM_LAID_OUT):
        report, whole = laid_out(rng)
        for section in (describing_text(report), without_headings(report)):
            assert section == " ".join(whole), repr(report)
        prompt, _ = clean(section, **DROP, tally=Tally(), name="s")
        assert is_sublist(prompt, whole), (report, prompt)
        assert describes(prompt), "every report holds a sentence that can be drawn"
        assert not PLACEHOLDER.search(prompt)
        assert not COMPARISON.search(prompt)
        assert not [s for s in GONE if s in prompt]


def test_spoilt_reports_give_a_line_of_theirs_or_nothing() -> None:
    rng = random.Random(1)
    for _ in range(NUM_SPOILT):
        characters = list(laid_out(rng)[0])
        for _ in range(rng.randint(1, 12)):
            place = rng.randrange(len(characters))
            match rng.randrange(4):
                case 0:
                    characters.insert(place, rng.choice(NOISE))
                case 1:
                    characters[place] = rng.choice(NOISE)
                case 2:
                    del characters[place : place + rng.randint(1, 30)]
                case 3:
                    characters[place:place] = characters[place : place + rng.randint(1, 60)]
            characters = characters or ["."]
        report = "".join(characters)
        for section in (describing_text(report), without_headings(report)):
            prompt, problem = clean(section, **DROP, tally=Tally(), name="s")
            assert bool(prompt) != bool(problem)
            assert not prompt or describes(prompt), (report, prompt)
            assert not PLACEHOLDER.search(prompt)
            assert not COMPARISON.search(prompt)
            assert prompt == " ".join(prompt.split())
            words = iter(section.split())
            assert all(word in words for word in prompt.split()), "words of the section, in its order"

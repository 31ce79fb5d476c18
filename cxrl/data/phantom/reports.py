"""The report grammar of the phantom: findings with side, size and zone, said in many ways.

A report is one or two sentences for what is seen and, sometimes, one for what is not. Phrasings are split:
the ``eval`` ones are never seen by the generator or the reward models, so evaluation asks in new words.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cxrl.findings import PHANTOM_FINDINGS


@dataclass(frozen=True)
class Finding:
    """One finding of a film: ``name`` of PHANTOM_FINDINGS, ``side`` right | left | bilateral | "", ``size``
    and ``zone`` or "".
    """

    name: str
    side: str = ""
    size: str = ""
    zone: str = ""


# {side}, {size} and {zone} are filled in. The last two phrasings of every list are held out for evaluation.
_PHRASES: dict[str, tuple[str, ...]] = {
    "No Finding": (
        "No acute cardiopulmonary abnormality",
        "Normal chest radiograph",
        "The lungs are clear and the heart is normal in size",
        "Clear lungs without acute process",
        "Unremarkable frontal view of the chest",
        "No evidence of acute cardiopulmonary disease",
        "Heart size and lungs are within normal limits",
        "Lungs are clear bilaterally",
        "Normal heart and clear lungs",
        "No acute findings in the chest",
        "Negative chest radiograph",
        "The heart, lungs and mediastinum are unremarkable",
        "Normal cardiac size and clear lungs, no acute abnormality",
        "Unremarkable chest without evidence of acute disease",
    ),
    "Cardiomegaly": (
        "{size} cardiomegaly",
        "There is {size} enlargement of the heart",
        "The cardiac silhouette is enlarged, {size} in degree",
        "{size} enlargement of the cardiac silhouette",
        "The heart shows {size} enlargement",
        "{size} cardiac enlargement is present",
        "Heart size is increased, {size} cardiomegaly",
        "Enlarged heart, {size} cardiomegaly is noted",
        "The heart is enlarged, {size} in degree",
        "{size} enlargement of the heart is noted",
    ),
    "Pleural Effusion": (
        "{size} {side} pleural effusion",
        "There is a {size} {side} effusion",
        "{size} pleural effusion on the {side}",
        "{side} pleural fluid, {size} in volume",
        "A {size} {side} pleural effusion is present",
        "Blunted {side} costophrenic angle from a {size} effusion",
        "{side} effusion, {size} in size, is seen",
        "Layering {size} {side} pleural effusion",
        "{size} {side} pleural effusion is seen",
        "There is {side} pleural fluid, a {size} effusion",
    ),
    "Pneumothorax": (
        "{size} {side} pneumothorax",
        "There is a {size} pneumothorax on the {side}",
        "{side} pneumothorax, {size} in size",
        "A {size} {side} pneumothorax is present",
        "{size} {side} pneumothorax with visible pleural line",
        "Visible pleural line, {size} {side} pneumothorax",
        "{size} apical and lateral pneumothorax on the {side}",
        "{side} sided pneumothorax is seen, {size}",
        "There is a {size} {side} pneumothorax, pleural line visible",
        "A {side} pneumothorax is noted, {size} in size",
    ),
    "Consolidation": (
        "{side} {zone} zone consolidation",
        "There is consolidation in the {side} {zone} lung",
        "Focal airspace consolidation in the {side} {zone} zone",
        "{side} {zone} lung airspace opacity, consolidation",
        "Patchy consolidation of the {side} {zone} zone",
        "The {side} {zone} zone shows consolidation",
        "Consolidation projects over the {side} {zone} lung",
        "Airspace opacity in the {side} {zone} zone, likely consolidation",
        "{side} {zone} lung consolidation is present",
        "There is focal consolidation of the {side} {zone} zone",
    ),
    "Edema": (
        "{size} pulmonary edema",
        "There is {size} pulmonary edema",
        "{size} perihilar haze from pulmonary edema",
        "Vascular congestion with {size} edema",
        "{size} interstitial edema is present",
        "Perihilar opacities, {size} pulmonary edema",
        "The lungs show {size} edema",
        "{size} edema with prominent vessels",
        "{size} pulmonary edema is noted",
        "Perihilar haze, there is {size} edema",
    ),
    "Lung Lesion": (
        "{side} {zone} zone nodule",
        "There is a nodule in the {side} {zone} lung",
        "Round lesion in the {side} {zone} zone",
        "A well defined {side} {zone} lung nodule",
        "{side} {zone} lung lesion, a round nodule",
        "Solitary nodule over the {side} {zone} zone",
        "The {side} {zone} zone contains a round nodule",
        "Nodular lesion of the {side} {zone} lung",
        "There is a round {side} {zone} zone lesion",
        "A solitary nodule is seen in the {side} {zone} lung",
    ),
}
_ABSENT = (
    "No {absent}",
    "There is no {absent}",
    "No evidence of {absent}",
    "{absent} is not seen",
    "Without {absent}",
)
_JOIN = (". ", ". ", "; ")
NUM_HELD_OUT = 2


def num_phrasings() -> tuple[int, int]:
    """Distinct sentence patterns after filling side, size and zone: (train, eval)."""
    fillings = dict.fromkeys(_PHRASES, 4) | {
        "No Finding": 1,
        "Cardiomegaly": 2,
        "Pleural Effusion": 6,
        "Edema": 2,
    }
    train = sum((len(p) - NUM_HELD_OUT) * fillings[name] for name, p in _PHRASES.items())
    return train, sum(NUM_HELD_OUT * n for n in fillings.values())


def labels_of(findings: tuple[Finding, ...]) -> tuple[float, ...]:
    """One 0/1 a finding of PHANTOM_FINDINGS; no findings means ``No Finding``."""
    names = {f.name for f in findings} or {"No Finding"}
    return tuple(float(name in names) for name in PHANTOM_FINDINGS)


def sample_findings(rng: np.random.Generator) -> tuple[Finding, ...]:
    """What one film shows: nothing (22 %), one finding (45 %), two (25 %) or three (8 %)."""
    count = int(rng.choice(4, p=[0.22, 0.45, 0.25, 0.08]))
    names = rng.choice(PHANTOM_FINDINGS[1:], size=count, replace=False)
    found = []
    for name in sorted(names, key=PHANTOM_FINDINGS.index):
        size = str(
            rng.choice(
                ["small", "large"] if name in ("Pleural Effusion", "Pneumothorax") else ["mild", "severe"]
            )
        )
        side = str(
            rng.choice(["right", "left", "bilateral"] if name == "Pleural Effusion" else ["right", "left"])
        )
        zone = str(rng.choice(["upper", "lower"]))
        if name in ("Cardiomegaly", "Edema"):
            found.append(Finding(name, size=size))
        elif name in ("Pleural Effusion", "Pneumothorax"):
            found.append(Finding(name, side=side, size=size))
        else:
            found.append(Finding(name, side=side, zone=zone))
    return tuple(found)


def write_report(findings: tuple[Finding, ...], rng: np.random.Generator, split: str = "train") -> str:
    """A report of these findings in the words of ``split`` ("train", "eval" or "all")."""
    sentences = []
    for finding in findings or (Finding("No Finding"),):
        phrases = _PHRASES[finding.name]
        if split == "train":
            phrases = phrases[:-NUM_HELD_OUT]
        elif split == "eval":
            phrases = phrases[-NUM_HELD_OUT:]
        elif split != "all":
            raise ValueError(f'split must be "train", "eval" or "all", got {split!r}')
        phrase = phrases[int(rng.integers(len(phrases)))]
        sentences.append(phrase.format(side=finding.side, size=finding.size, zone=finding.zone))
    present = {f.name for f in findings}
    absent = [name for name in PHANTOM_FINDINGS[1:] if name not in present]
    if absent and findings and rng.random() < 0.3:
        name = str(absent[int(rng.integers(len(absent)))]).lower()
        sentences.append(_ABSENT[int(rng.integers(len(_ABSENT)))].format(absent=name))
    order = rng.permutation(len(sentences))
    joint = _JOIN[int(rng.integers(len(_JOIN)))]
    text = joint.join(s[0].upper() + s[1:] if joint != "; " else s for s in (sentences[i] for i in order))
    return text[0].upper() + text[1:] + "."

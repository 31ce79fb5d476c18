"""The numbers of two sets of films as text: a terminal, Markdown, and a row for a spreadsheet."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from cxrl.image_sets.measure import DISTANCES, KEYS
from cxrl.tables import format_table

_COLUMNS = {
    "FID": "fid",
    "KID": "kid",
    "Precision": "precision",
    "Recall": "recall",
    "Density": "density",
    "Coverage": "coverage",
    "Alignment_score": "consistency",
}
"""The columns of CheXGenBench's results, and whose numbers are here."""
_NONE: dict[str, Any] = {"values": {}}
_SIDES = ("generated", "held_out")
_ARMS_HEADER = ("trained on", "AUROC [95 %]", "minus real [95 %]", "sd of seeds")


def scores_rows(scores: Mapping[str, Any]) -> list[tuple[str, str, str, str, str]]:
    """(key, generated with its interval, real, generated at equal numbers, real at equal numbers)."""
    equal = scores["equal_numbers"]
    return [
        (
            key,
            _with_interval(scores["generated"], key),
            _value(scores["real"], key),
            _value(equal["generated"], key),
            _value(equal["real"], key),
        )
        for key in KEYS
    ]


def feature_rows(scores: Mapping[str, Any], name: str) -> list[tuple[str, str, str, str]]:
    """As :func:`scores_rows`, the distances in the features of another model; real films have none alone."""
    equal = [scores["equal_numbers"][side]["other_features"] for side in ("generated", "real")]
    ours, theirs = (side.get(name, _NONE) for side in equal)
    return [
        (
            key,
            _with_interval(scores["generated"]["other_features"][name], key),
            _value(ours, key),
            _value(theirs, key),
        )
        for key in DISTANCES
    ]


def scores_text(scores: Mapping[str, Any]) -> str:
    """A table for the terminal."""
    table = format_table(scores_rows(scores), header=_header(scores), right=range(1, 5))
    lines = [_title(scores), table, _judged_by(scores)]
    for name in scores["generated"]["other_features"]:
        header = (name, *_header(scores)[1:2], *_header(scores)[3:])
        lines += [format_table(feature_rows(scores, name), header=header, right=range(1, 4))]
        lines += [f"{_features(scores, name)}."]
    if scores["memorisation"]:
        lines.append(_reidentified(scores["memorisation"]))
    if scores["utility"]:
        told = scores["utility"]
        table = format_table(_arms(told), header=_ARMS_HEADER, right=range(1, 4))
        lines += [_classifiers(told), table]
    return "\n".join(lines)


def scores_markdown(scores: Mapping[str, Any]) -> str:
    """All of ``scores.json`` that is read rather than parsed."""
    equal = scores["equal_numbers"]
    lines = ["# Scores", "", _title(scores), ""]
    lines += [_judged_by(scores), ""]
    lines += _markdown_table(_header(scores), scores_rows(scores))
    lines += ["", f"The last two columns compare with the same {equal['num_reference']} real films.", ""]
    undefined = scores["generated"]["undefined"]
    lines += [f"- {key} is undefined: {reason}" for key, reason in undefined.items()]
    lines += [f"- {warning}" for warning in scores["warnings"]]
    for name, other in scores["generated"]["other_features"].items():
        header = ("", *_header(scores)[1:2], *_header(scores)[3:])
        lines += ["", f"## Features: {name}", "", f"{_features(scores, name)}.", ""]
        lines += _markdown_table(header, feature_rows(scores, name))
        lines += [""] * bool(other["undefined"])
        lines += [f"- {key} is undefined: {reason}" for key, reason in other["undefined"].items()]
    auroc = scores["generated"]["auroc_per_finding"]
    if auroc:
        rows = [(n, str(a["positive"]), str(a["negative"]), _number(a["value"])) for n, a in auroc.items()]
        lines += ["", "## AUROC", "", *_markdown_table(("finding", "label 1", "label 0", "AUROC"), rows)]
    parts = {"finding": scores["per_finding"] or []} | (scores["subgroups"] or {})
    for name, of in parts.items():
        if of:
            lines += ["", f"## By {name}", "", *_parts(name, of, KEYS)]
            for other in scores["generated"]["other_features"]:
                those = [part | part.get("other_features", {}).get(other, {}) for part in of]
                lines += ["", f"### By {name}, features: {other}", "", *_parts(name, those, DISTANCES)]
    if scores["memorisation"]:
        lines += ["", "## Memorisation", "", *_memorisation(scores["memorisation"])]
    if scores["utility"]:
        lines += ["", "## Utility", "", *_utility(scores["utility"])]
    return "\n".join(lines) + "\n"


def scores_csv(scores: Mapping[str, Any]) -> str:
    """A row of all films, and one a finding, with CheXGenBench's columns and the numbers of images; the same
    for every other model of features, whose name is the "Extra Info".
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*_COLUMNS, "Extra Info", "Pathology", "Num Generated", "Num Real"])
    real = scores["sets"]["real"]["num_images"]
    rows = [("", scores["generated"], scores["generated"]["num_images"], real)]
    rows += [(p["finding"], p, p["num_generated"], p["num_real"]) for p in scores["per_finding"] or []]
    for model in (scores["features"], *scores["generated"]["other_features"]):
        for name, part, *numbers in rows:
            of = part.get("values", {})
            if model != scores["features"]:
                of = of | dict.fromkeys(DISTANCES)
                of |= part.get("other_features", {}).get(model, _NONE)["values"]
            cells = ["" if of.get(key) is None else repr(of[key]) for key in _COLUMNS.values()]
            writer.writerow([*cells, model, name, *numbers])
    return file.getvalue()


def _title(scores: Mapping[str, Any]) -> str:
    sets = scores["sets"]
    told = [f"{sets[side]['num_images']} {side} films" for side in ("generated", "real")]
    kid = scores["generated"].get("kid_subset")
    prdc = scores["generated"].get("prdc_images")
    return (
        f"{' against '.join(told)}, {sets['generated']['num_prompts']} prompts"
        + (f"; KID over subsets of {kid}" if kid else "")
        + (f"; neighbours among {prdc} of each side" if prdc else "")
    )


def _judged_by(scores: Mapping[str, Any]) -> str:
    who = ", ".join(dict.fromkeys(map(str, scores["judges"].values())))
    features = _features(scores, scores["features"])
    return f"Judges: {who}. Features: {features}. Films at {scores['image_size']} px."


def _features(scores: Mapping[str, Any], name: str) -> str:
    """The name of a model of features, and what it is; the judges' own is named by them."""
    told = scores["feature_models"][name]
    return name if told is None else f"{name}, {told['description']}"


def _header(scores: Mapping[str, Any]) -> tuple[str, ...]:
    number = scores["equal_numbers"]["num_images"]
    return ("", "generated [95 %]", "real", f"generated, {number}", f"real, {number}")


def _parts(name: str, parts: list[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    rows = []
    for part in parts:
        cells = [_value(part, key) if "values" in part else "-" for key in keys]
        label = part.get("finding", part.get("value", "")) or "(blank)"
        rows.append((label, str(part["num_generated"]), str(part["num_real"]), *cells))
    return _markdown_table((name, "generated", "real", *keys), rows)


def _reidentified(told: Mapping[str, Any]) -> str:
    """The one line of memorisation."""
    against = f"{told['num_training']} training films"
    if told["reidentified"] is None:
        return f"Re-identified against {against}: undefined, {told['undefined']}."
    low, high = told["reidentified_ci"]
    return (
        f"Re-identified against {against}: {told['reidentified']:.2%} [{low:.2%}, {high:.2%}] of "
        f"{told['num_generated']} generated films; of {told['num_held_out']} held-out real films 1 % are."
    )


def _memorisation(told: Mapping[str, Any]) -> list[str]:
    kinds = {"match of pixels": told["match"]}
    kinds |= {f"distance, {name}": of for name, of in told["distance"].items()}
    rows = [
        (
            name,
            _number(of["nearer"]),
            *(_number(of[side][key]) for key in ("median", "nearest_1_percent") for side in _SIDES),
        )
        for name, of in kinds.items()
    ]
    ends = (f"{key}, {side}" for key in ("median", "nearest 1 %") for side in ("generated", "held out"))
    header = ("nearest training film", "generated is nearer", *ends)
    pairs = [
        (p["generated"], p["training"], f"{p['match']:.4f}", "yes" if p["reidentified"] else "no")
        for p in told["closest"]
    ]
    return [
        _reidentified(told),
        "",
        *_markdown_table(header, rows),
        "",
        "Closest pairs (pairs.png):",
        "",
        *_markdown_table(("generated", "training", "match", "re-identified"), pairs),
    ]


def _classifiers(told: Mapping[str, Any]) -> str:
    """What was trained and tested."""
    return (
        f"Classifiers trained on {told['num_generated']} generated and {told['num_train']} training films, "
        f"tested on {told['num_test']} real ones: {told['classifier']}, {told['num_steps']} steps, "
        f"{told['num_seeds']} seeds"
    )


def _arms(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for arm in told["arms"]:
        (low, high), (least, most) = arm["ci"], arm["minus_real_ci"]
        auroc, apart = f"{arm['auroc']:.3f}", f"{arm['minus_real']:+.3f}"
        if low is not None:
            auroc, apart = f"{auroc} [{low:.3f}, {high:.3f}]", f"{apart} [{least:+.3f}, {most:+.3f}]"
        rows.append((arm["arm"], auroc, "" if arm["arm"] == "real" else apart, f"{arm['sd_of_seeds']:.3f}"))
    return rows


def _utility(told: Mapping[str, Any]) -> list[str]:
    by_finding = [
        (
            of["finding"],
            str(of["num_train"]),
            str(of["num_test"]),
            *(f"{arm['auroc_per_finding'][of['finding']]:.3f}" for arm in told["arms"]),
        )
        for of in told["findings"]
    ]
    names = tuple(arm["arm"] for arm in told["arms"])
    return [
        f"{_classifiers(told)}.",
        "",
        *_markdown_table(_ARMS_HEADER, _arms(told)),
        "",
        "AUROC by finding, rarest of the training films first:",
        "",
        *_markdown_table(("finding", "in training", "in test", *names), by_finding),
        *(f"- {name} is left out: {why}" for name, why in told["left_out"].items()),
    ]


def _markdown_table(header: tuple[str, ...], rows: list[Any]) -> list[str]:
    def line(cells: Any) -> str:
        return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"

    return [line(header), line(["---"] * len(header)), *map(line, rows)]


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _value(side: Mapping[str, Any], key: str) -> str:
    return _number(side["values"].get(key))


def _with_interval(side: Mapping[str, Any], key: str) -> str:
    if key == "kid" and side["values"]["kid"] is not None:
        return f"{side['values']['kid']:.4g} ± {side['kid_sd']:.2g}"
    low, high = side["ci"].get(key, (None, None))
    between = "" if low is None else f" [{low:.4g}, {high:.4g}]"
    return _value(side, key) + between

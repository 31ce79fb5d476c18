"""Open-I / Indiana University chest films: the reports that torchxrayvision ships, read where they lie.

3,955 reports with 7,470 films (Demner-Fushman et al. 2016, doi 10.1093/jamia/ocv080), CC BY-NC-ND 4.0.
Nothing is copied or downloaded. The films themselves are optional: ``data.root`` is the folder with
``<imageid>.png``. There is no official split; a report is a patient.

Labels come from the indexers' MeSH headings (``major``), which are of the whole report. A heading says that a
finding is present; a report indexed as normal has none of them, but may have devices, which are indexed
elsewhere; what is not mentioned is unknown, not absent. ``No Finding`` is absent where another finding but a
device is present. Labels that the prompt does not say are masked (:mod:`cxrl.data.agreement`).
"""

from __future__ import annotations

import csv
import importlib.util
import io
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from cxrl.config import DataConfig
from cxrl.data.agreement import agreeing
from cxrl.data.archives import gunzip, tar_members
from cxrl.data.index import FilmRecord, Index, Tally, assign_splits
from cxrl.data.sections import clean, describing_section, without_headings
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS, NO_FINDING, SUPPORT_DEVICES

REPORTS, METADATA, VIEWS = "NLMCXR_reports.tgz", "nlmcxr_dicom_metadata.csv.gz", "nlmcxr_tsne_pa.csv.gz"
HEADINGS = {
    "Pulmonary Atelectasis": "Atelectasis",
    "Cardiomegaly": "Cardiomegaly",
    "Consolidation": "Consolidation",
    "Pulmonary Edema": "Edema",
    "Cardiac Shadow/enlarged": "Cardiomegaly",
    "Mediastinum/enlarged": "Enlarged Cardiomediastinum",
    "Mediastinum/prominent": "Enlarged Cardiomediastinum",
    "Fractures, Bone": "Fracture",
    "Nodule/lung": "Lung Lesion",
    "Mass/lung": "Lung Lesion",
    "Opacity/lung": "Lung Opacity",
    "Airspace Disease": "Lung Opacity",
    "Infiltrate": "Lung Opacity",
    "Pleural Effusion": "Pleural Effusion",
    "Thickening/pleura": "Pleural Other",
    "Pneumonia": "Pneumonia",
    "Pneumothorax": "Pneumothorax",
    "Hydropneumothorax": "Pneumothorax",
    "Hemopneumothorax": "Pneumothorax",
    "Catheters, Indwelling": "Support Devices",
    "Implanted Medical Device": "Support Devices",
    "Medical Device": "Support Devices",
    "Tube, Inserted": "Support Devices",
}
"""MeSH heading, with its first qualifier where that matters → the CheXpert finding it is taken for."""
_NAME = re.compile(r"CXR\d{1,9}")
_REMEDY = "; install torchxrayvision again"


def openi_files() -> list[Path]:
    """The three files of the installed torchxrayvision. Raises CxrlError where they are missing."""
    package = importlib.util.find_spec("torchxrayvision")
    folder = (
        Path(package.origin).parent / "data" if package and package.origin else Path("torchxrayvision/data")
    )
    paths = [folder / name for name in (REPORTS, METADATA, VIEWS)]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise CxrlError(
            f"data.source openi: {missing[0]} is missing; pip install torchxrayvision (1.3 or newer)"
        )
    return paths


def build_openi(config: DataConfig) -> Index:
    """The index of Open-I. Raises CxrlError where the files of torchxrayvision cannot be read."""
    reports, metadata, better = openi_files()
    # Where there is one, the view that torchxrayvision derived from the pixels replaces the recorded one.
    view_of = _column(metadata, "imageid", "View Position") | _column(better, "imageid", "tsne-view")
    wanted = {view.upper() for view in config.views}
    dropped, noted = Tally(), Tally()
    films: list[FilmRecord] = []
    seen: set[str] = set()
    for member, content in tar_members(reports, ".xml", "data.source openi", _REMEDY):
        report = _parsed(content)
        name = next((node.get("id", "") for node in report.iter("uId")), "") if report is not None else ""
        if report is None or not _NAME.fullmatch(name):
            dropped.add("report damaged", member)
            continue
        if name in seen:
            dropped.add("duplicated id", name)
            continue
        seen.add(name)
        number = int(name.removeprefix("CXR"))
        images = [node.get("id", "") for node in report.iterfind(".//parentImage")]
        if not images:
            dropped.add("report without films", name)
        frontal = []
        for image in images:
            view = view_of.get(image, "").upper()
            if view in wanted:
                frontal.append((image, view))
            else:
                dropped.add(f"view {view or 'blank'} is not in data.views", image)
        if not frontal:
            continue
        handling = {"placeholders": config.placeholders, "comparisons": config.comparisons}
        sections = _sections(report)
        text, problem = clean(_text(sections), **handling, tally=noted, name=name)
        labels = labels_of([node.text or "" for node in report.iterfind(".//MeSH/major")])
        if not problem:
            whole = " ".join(sections.get(part, "") for part in ("findings", "impression"))
            labels = agreeing(CHEXPERT_FINDINGS, labels, text, whole, own=False, tally=noted, name=name)
            if all(math.isnan(value) for value in labels):
                noted.add("no known label", name)
        for image, view in frontal:
            if problem:
                dropped.add(problem, image)
            else:
                file = f"{image}.png" if config.root else ""
                films.append(FilmRecord(number, image, name, "", view, file, text, labels))
    splits = assign_splits(film.patient for film in films)
    films = [replace(film, split=splits[film.patient]) for film in films]
    films.sort(key=lambda film: (film.study, film.film))
    root = Path(config.root or ".")
    return Index(config.source, root, CHEXPERT_FINDINGS, tuple(films), dropped.counts(), noted.counts())


def labels_of(headings: list[str]) -> tuple[float, ...]:
    """The 14 labels of a report's MeSH headings, such as ``Opacity/lung/upper lobe/right`` or ``normal``."""
    words = [heading.strip().split("/") for heading in headings]
    if ["normal"] in words:
        absent = dict.fromkeys(CHEXPERT_FINDINGS, 0.0)
        return tuple((absent | {NO_FINDING: 1.0, SUPPORT_DEVICES: math.nan}).values())
    keys = {"/".join(parts[:n]) for parts in words for n in (1, 2)}
    present = {HEADINGS[key] for key in keys & HEADINGS.keys()}
    known = dict.fromkeys(present, 1.0)
    if present - {SUPPORT_DEVICES}:
        known[NO_FINDING] = 0.0
    return tuple(known.get(finding, math.nan) for finding in CHEXPERT_FINDINGS)


def _parsed(content: bytes | None) -> ET.Element | None:
    """The root of a report; None where it is damaged or may declare entities, which may mean gigabytes."""
    if content is None or b"<!DOCTYPE" in content or b"\0" in content:  # the last: UTF-16 spells it otherwise
        return None
    try:
        return ET.fromstring(content)
    except (ET.ParseError, ValueError, LookupError):  # LookupError: an encoding that does not exist
        return None


def _sections(report: ET.Element) -> dict[str, str]:
    """Heading, in small letters, → text."""
    return {node.get("Label", "").lower(): node.text or "" for node in report.iter("AbstractText")}


def _text(sections: Mapping[str, str]) -> str:
    """What describes the film: impression, else findings, in one line."""
    parts = {name: without_headings(sections.get(name, "")) for name in ("impression", "findings")}
    return describing_section(parts)


def _column(path: Path, key: str, value: str) -> dict[str, str]:
    """Of a table, one column by another."""
    file = io.TextIOWrapper(gunzip(path, "data.source openi", _REMEDY), encoding="utf-8", newline="")
    try:
        return {row[key]: (row[value] or "").strip() for row in csv.DictReader(file)}
    except (KeyError, csv.Error, UnicodeDecodeError) as error:
        raise CxrlError(
            f"data.source openi: {path} is not the table it should be ({error}){_REMEDY}"
        ) from None

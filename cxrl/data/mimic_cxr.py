"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 with the reports of MIMIC-CXR.

``data.root`` is the folder of MIMIC-CXR-JPG (or of MIMIC-CXR, for DICOM, with the tables copied there)::

    mimic-cxr-2.0.0-metadata.csv.gz    one row a film: dicom_id, subject_id, study_id, ViewPosition, ...
    mimic-cxr-2.0.0-split.csv.gz       dicom_id, study_id, subject_id, split: by patient
    mimic-cxr-2.0.0-chexpert.csv.gz    one row a study: 14 labels; negbio.csv.gz alike
    files/p10/p10000032/s50414267/<dicom_id>.jpg    (.dcm in MIMIC-CXR)

and ``data.reports`` the folder that holds ``files/p10/p10000032/s50414267.txt``, or
``mimic-cxr-reports.zip``. Johnson et al., MIMIC-CXR-JPG, arXiv 1901.07042. Access needs a PhysioNet
credential, and nothing of it may be passed on.
"""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cxrl.config import DataConfig
from cxrl.data.cells import read_split
from cxrl.data.index import SPLITS, FilmRecord, Index, Tally, in_threads, label_value
from cxrl.data.sections import clean, describing_text
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS

TABLES = {
    "metadata": ("dicom_id", "subject_id", "study_id", "ViewPosition"),
    "split": ("dicom_id", "subject_id", "study_id", "split"),
    "chexpert": ("study_id", *CHEXPERT_FINDINGS),
    "negbio": ("study_id", *CHEXPERT_FINDINGS),
}
SUFFIX = {"jpg": ".jpg", "dicom": ".dcm"}


def table_path(root: Path, kind: str) -> Path:
    """``mimic-cxr-2.x.y-KIND.csv`` or ``.csv.gz`` in the root.

    Raises:
        CxrlError: There is none, or more than one.
    """
    found = sorted(p for end in ("csv", "csv.gz") for p in root.glob(f"mimic-cxr-2.*-{kind}.{end}"))
    if len(found) != 1:
        names = ", ".join(p.name for p in found) or "none"
        raise CxrlError(
            f"data.root: expected one mimic-cxr-2.*-{kind}.csv.gz in {root}, MIMIC-CXR-JPG; found {names}"
        )
    return found[0]


def mimic_files(config: DataConfig) -> list[Path]:
    """What the index is read from, for noticing a change: the tables, and the reports' folder or zip.

    A changed report file in a folder is not noticed: build the index again.
    """
    root = Path(config.root)
    tables = [table_path(root, kind) for kind in ("metadata", "split", config.label_set)]
    return [*tables, _reports_path(config)]


def build_mimic(config: DataConfig) -> Index:
    """The index of MIMIC-CXR.

    Raises:
        CxrlError: A table or the reports are missing or cannot be read, or a column is missing.
    """
    root = Path(config.root)
    dropped, noted = Tally(), Tally()
    rows = _films(config, root, dropped)
    read, reports_read = _report_reader(_reports_path(config))
    studies = {study: patient for _, patient, study, _, _ in rows}
    raw = dict(zip(studies, in_threads(read, [(p, s) for s, p in studies.items()]), strict=True))
    reports_read()
    labels = _labels(config, _read_table(root, config.label_set), studies, noted)
    texts: dict[str, tuple[str, str]] = {}
    unknown = (math.nan,) * len(CHEXPERT_FINDINGS)
    for study, report in raw.items():
        if report is None:
            texts[study] = "", "report missing or unreadable"
            continue
        handling = {"placeholders": config.placeholders, "comparisons": config.comparisons}
        texts[study] = clean(describing_text(report), **handling, tally=noted, name=f"s{study}")
        if study not in labels:
            noted.add(f"study not in {config.label_set}.csv, labels unknown", f"s{study}")
    films = []
    for dicom, patient, study, view, split in rows:
        text, problem = texts[study]
        if problem:
            dropped.add(problem, f"s{study}: {dicom}")
            continue
        image = f"files/p{patient[:2]}/p{patient}/s{study}/{dicom}{SUFFIX[config.image_format]}"
        films.append(
            FilmRecord(int(study), dicom, patient, split, view, image, text, labels.get(study, unknown))
        )
    return Index(config.source, root, CHEXPERT_FINDINGS, tuple(films), dropped.counts(), noted.counts())


def _read_table(root: Path, kind: str) -> list[tuple[str, ...]]:
    """The columns ``TABLES[kind]`` of every row, as text."""
    import pandas

    path, columns = table_path(root, kind), list(TABLES[kind])
    try:
        frame = pandas.read_csv(path, dtype=str, keep_default_na=False)
    except Exception as error:  # pandas, gzip and zlib raise their own
        reason = " ".join(str(error).split())[:160]
        raise CxrlError(f"data.root: {path} cannot be read as a CSV: {reason}") from None
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns[:20]))
        raise CxrlError(f"data.root: {path} has no column {', '.join(missing)}; found {found}")
    return list(frame[columns].itertuples(index=False, name=None))


def _splits(root: Path) -> tuple[dict[str, str], set[str]]:
    """dicom_id → split, and the patients that the table has in more than one."""
    splits: dict[str, str] = {}
    by_patient: dict[str, set[str]] = {}
    for dicom, patient, _, written in _read_table(root, "split"):
        split = read_split(written) or written
        splits.setdefault(dicom, split)
        if split in SPLITS:
            by_patient.setdefault(patient, set()).add(split)
    return splits, {patient for patient, found in by_patient.items() if len(found) > 1}


def _films(config: DataConfig, root: Path, dropped: Tally) -> list[tuple[str, str, str, str, str]]:
    """(dicom_id, subject_id, study_id, view, split) of the films in a split and of the views asked for."""
    views = {view.upper() for view in config.views}
    splits, in_two = _splits(root)
    seen: set[str] = set()
    kept = []
    for dicom, patient, study, view in _read_table(root, "metadata"):
        view, split = view.strip().upper(), splits.get(dicom)
        if dicom in seen:
            dropped.add("duplicated id", dicom)
        elif not (patient.isdecimal() and study.isdecimal() and dicom):
            dropped.add("malformed id", f"{dicom} of {patient}/{study}")
        elif split is None:
            dropped.add("not in split.csv", dicom)
        elif patient in in_two:
            dropped.add("patient in two splits", f"p{patient}: {dicom}")
        elif split not in SPLITS:
            dropped.add(f"unknown split {split[:20]!r}", dicom)
        elif view not in views:
            dropped.add(f"view {view or 'blank'} is not in data.views", dicom)
        else:
            kept.append((dicom, patient, study, view, split))
        seen.add(dicom)
    return kept


def _labels(
    config: DataConfig, rows: Sequence[tuple[str, ...]], studies: dict[str, str], noted: Tally
) -> dict[str, tuple[float, ...]]:
    """study_id → 14 labels, of the studies asked for."""
    labels: dict[str, tuple[float, ...]] = {}
    for study, *cells in rows:
        study = study.removesuffix(".0")
        if study not in studies:
            continue
        if study in labels:
            noted.add(f"study twice in {config.label_set}.csv, first row used", f"s{study}")
            continue
        labels[study] = tuple(
            label_value(cell, uncertain=config.uncertain_labels, tally=noted, name=f"s{study}")
            for cell in cells
        )
    return labels


def _reports_path(config: DataConfig) -> Path:
    path = Path(config.reports or config.root)
    if path.suffix == ".zip" and path.is_file():
        return path
    if (path / "files").is_dir():
        return path / "files"
    raise CxrlError(
        f"data.reports: {path} is no folder with files/p10/... and no mimic-cxr-reports.zip; the reports "
        "come with MIMIC-CXR, not with MIMIC-CXR-JPG"
    )


def _report_reader(path: Path) -> tuple[Callable[[tuple[str, str]], str | None], Callable[[], Any]]:
    """A function of (subject_id, study_id) that returns the report or None, and one that closes it."""

    def name(ids: tuple[str, str]) -> str:
        return f"p{ids[0][:2]}/p{ids[0]}/s{ids[1]}.txt"

    if path.suffix != ".zip":

        def read(ids: tuple[str, str]) -> str | None:
            try:
                return (path / name(ids)).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                return None

        return read, lambda: None
    try:
        archive = zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise CxrlError(f"data.reports: {path} cannot be read: {error}") from None

    def extract(ids: tuple[str, str]) -> str | None:
        try:
            return archive.read(f"files/{name(ids)}").decode("utf-8")
        except (KeyError, OSError, UnicodeDecodeError, zipfile.BadZipFile, zlib.error):
            return None

    return extract, archive.close

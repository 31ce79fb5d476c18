"""MIMIC-CXR-JPG 2.0.0 and 2.1.0 with the reports of MIMIC-CXR.

``data.root`` is the folder of MIMIC-CXR-JPG (or of MIMIC-CXR, for DICOM, with the tables copied there)::

    mimic-cxr-2.0.0-metadata.csv.gz    one row a film: dicom_id, subject_id, study_id, ViewPosition, ...
    mimic-cxr-2.0.0-split.csv.gz       dicom_id, study_id, subject_id, split: by patient
    mimic-cxr-2.0.0-chexpert.csv.gz    one row a study: 14 labels; negbio.csv.gz alike
    files/p10/p10000032/s50414267/<dicom_id>.jpg    (.dcm in MIMIC-CXR)

and ``data.reports``, by default the same folder, the one that holds ``files/p10/p10000032/s50414267.txt`` or
``mimic-cxr-reports.zip``, or that file itself. Johnson et al., MIMIC-CXR-JPG, arXiv 1901.07042. Access needs
a PhysioNet credential, and nothing of it may be passed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from cxrl.config import DataConfig
from cxrl.data.agreement import agreeing
from cxrl.data.archives import REPORT_BYTES, gunzip, zip_reports
from cxrl.data.cells import read_split
from cxrl.data.index import SPLITS, FilmRecord, Index, Stamp, Tally, in_threads, label_value, stamp
from cxrl.data.sections import clean, describing_text
from cxrl.errors import CxrlError
from cxrl.findings import CHEXPERT_FINDINGS

TABLES = {
    "metadata": ("dicom_id", "subject_id", "study_id", "ViewPosition"),
    "split": ("dicom_id", "subject_id", "study_id", "split"),
    "chexpert": ("study_id", *CHEXPERT_FINDINGS),
    "negbio": ("study_id", *CHEXPERT_FINDINGS),
}
VIEW_CODE = "ViewCodeSequence_CodeMeaning"
VIEW_CODES = {"postero-anterior": "PA", "antero-posterior": "AP", "lateral": "LATERAL", "left lateral": "LL"}
"""What a film's view code says where ``ViewPosition`` is blank."""
SUFFIX = {"jpg": ".jpg", "dicom": ".dcm"}
ZIP = "mimic-cxr-reports.zip"


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
    """What the index is read from, for noticing a change: the tables, and the zip with the reports.

    Reports in a folder are in :attr:`cxrl.data.index.Index.read`.
    """
    root = Path(config.root)
    tables = [table_path(root, kind) for kind in ("metadata", "split", config.label_set)]
    reports = _reports_path(config)
    return [*tables, reports] if reports.suffix == ".zip" else tables


def build_mimic(config: DataConfig) -> Index:
    """The index of MIMIC-CXR.

    Raises:
        CxrlError: A table or the reports are missing or cannot be read, or a column is missing.
    """
    root = Path(config.root)
    dropped, noted = Tally(), Tally()
    rows = _films(config, root, dropped, noted)
    read, reports_read = _report_reader(_reports_path(config))
    studies = {study: patient for _, patient, study, _, _ in rows}
    raw = dict(zip(studies, in_threads(read, [(p, s) for s, p in studies.items()]), strict=True))
    reports_read()
    known = _labels(config, _read_table(root, config.label_set), studies, noted)
    texts: dict[str, tuple[str, str]] = {}
    labels: dict[str, tuple[float, ...]] = {}
    handling = {"placeholders": config.placeholders, "comparisons": config.comparisons}
    for study, (report, _) in raw.items():
        name = f"s{study}"
        if report is None:
            texts[study] = "", "report missing or unreadable"
            continue
        text, problem = texts[study] = clean(describing_text(report), **handling, tally=noted, name=name)
        if study not in known:
            noted.add(f"study not in {config.label_set}.csv, labels unknown", name)
            labels[study] = (math.nan,) * len(CHEXPERT_FINDINGS)
        elif not problem:
            labels[study] = agreeing(
                CHEXPERT_FINDINGS, known[study], text, report, own=False, tally=noted, name=name
            )
    films = []
    for dicom, patient, study, view, split in rows:
        text, problem = texts[study]
        if problem:
            dropped.add(problem, f"s{study}: {dicom}")
            continue
        image = f"files/p{patient[:2]}/p{patient}/s{study}/{dicom}{SUFFIX[config.image_format]}"
        films.append(FilmRecord(int(study), dicom, patient, split, view, image, text, labels[study]))
    files = tuple(stamp for _, stamp in raw.values() if stamp)
    return Index(
        config.source, root, CHEXPERT_FINDINGS, tuple(films), dropped.counts(), noted.counts(), files
    )


def _read_table(root: Path, kind: str, optional: Sequence[str] = ()) -> list[tuple[str, ...]]:
    """The columns ``TABLES[kind]`` and ``optional`` of every row, as text; "" for an optional one that is not
    there.
    """
    import pandas

    path, columns = table_path(root, kind), [*TABLES[kind], *optional]
    content = gunzip(path, "data.root")
    try:
        frame = pandas.read_csv(content, dtype=str, keep_default_na=False)
    except Exception as error:  # pandas raises its own
        reason = " ".join(str(error).split())[:160]
        raise CxrlError(f"data.root: {path} cannot be read as a CSV: {reason}") from None
    missing = [name for name in TABLES[kind] if name not in frame.columns]
    if missing:
        found = ", ".join(map(str, frame.columns[:20]))
        raise CxrlError(f"data.root: {path} has no column {', '.join(missing)}; found {found}")
    frame = frame.reindex(columns=columns, fill_value="")
    return list(frame.itertuples(index=False, name=None))


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


def _films(
    config: DataConfig, root: Path, dropped: Tally, noted: Tally
) -> list[tuple[str, str, str, str, str]]:
    """(dicom_id, subject_id, study_id, view, split) of the films in a split and of the views asked for."""
    views = {view.upper() for view in config.views}
    splits, in_two = _splits(root)
    seen: set[str] = set()
    kept = []
    for dicom, patient, study, view, code in _read_table(root, "metadata", (VIEW_CODE,)):
        recorded, split = view.strip().upper(), splits.get(dicom)
        view = recorded or VIEW_CODES.get(code.strip().lower(), code.strip().upper())
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
            if not recorded:
                noted.add(f"view by its code: ViewPosition is blank, {VIEW_CODE} says {view}", dicom)
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
    """The zip with the reports, or the folder that holds ``p10``."""
    path = Path(config.reports or config.root)
    if path.suffix == ".zip" and path.is_file():
        return path
    # The zip comes first: MIMIC-CXR-JPG has a folder files/ too, with films.
    for found in (path / ZIP, path / "mimic-cxr-reports" / "files", path / "files"):
        if found.is_file() if found.suffix else found.is_dir():
            return found
    raise CxrlError(
        f"data.reports: {path} is no folder with files/p10/... and no {ZIP}; the reports come with "
        "MIMIC-CXR, not with MIMIC-CXR-JPG"
    )


Report = tuple[str | None, Stamp | None]
"""A report, None where it is missing or cannot be read, and the file that it was read from."""


def _report_reader(path: Path) -> tuple[Callable[[tuple[str, str]], Report], Callable[[], Any]]:
    """What returns the report of (subject_id, study_id), and what closes the file that they are read from."""

    def name(ids: tuple[str, str]) -> str:
        return f"p{ids[0][:2]}/p{ids[0]}/s{ids[1]}.txt"

    if path.suffix != ".zip":

        def read(ids: tuple[str, str]) -> Report:
            file = path / name(ids)
            before = stamp(file)
            try:
                data = file.read_bytes() if 0 <= before[1] <= REPORT_BYTES else None
            except OSError:
                data = None
            return _decoded(data), before

        return read, lambda: None
    extract, close = zip_reports(path, "data.reports")
    return lambda ids: (_decoded(extract(name(ids))), None), close


def _decoded(data: bytes | None) -> str | None:
    """The text with ``\\n`` at the ends of lines; None where there is none or it is not UTF-8."""
    try:
        return None if data is None else data.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    except UnicodeDecodeError:
        return None

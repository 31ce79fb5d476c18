"""Small trees in the layout of MIMIC-CXR-JPG and MIMIC-CXR: phantom films, synthetic reports."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cxrl.data.phantom.films import corpus
from cxrl.findings import CHEXPERT_FINDINGS, PHANTOM_FINDINGS

Rows = list[dict[str, str]]
REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PORTABLE AP)
 
 INDICATION:  ___-year-old woman with cough.
 
 COMPARISON:  ___.
 
 PHANTOM_FINDINGS: 
 
 The cardiomediastinal silhouette is described here,
 over two lines.
 
 IMPRESSION: 
 
 {impression}
"""  # noqa: W291, W293 the blank lines of the real reports hold a space
SPLITS = ("train",) * 8 + ("validate", "test")


@dataclass(frozen=True)
class MimicTree:
    """A tree. Study k of patient k has a PA and a lateral film."""

    root: Path
    patients: tuple[str, ...]
    studies: tuple[str, ...]
    films: tuple[str, ...]
    texts: tuple[str, ...]

    def image(self, k: int, suffix: str = ".jpg") -> Path:
        """The PA film of study k."""
        folder = self.report(k).with_suffix("")
        return folder / f"{self.films[k]}{suffix}"

    def report(self, k: int) -> Path:
        return self.root / "files" / self.patients[k][:3] / self.patients[k] / f"{self.studies[k]}.txt"

    def table(self, kind: str) -> Path:
        return self.root / f"mimic-cxr-2.0.0-{kind}.csv.gz"

    def edit(self, kind: str, change: Callable[[Rows], Any]) -> None:
        """Rewrite a table with its rows changed in place."""
        with gzip.open(self.table(kind), "rt", newline="") as file:
            rows = list(csv.DictReader(file))
        change(rows)
        write_csv(self.table(kind), rows)


def write_csv(path: Path, rows: Rows) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.write_bytes(gzip.compress(data, 1) if path.suffix == ".gz" else data)


def write_dicom(path: Path, pixels: np.ndarray, *, inverted: bool = False, **tags: Any) -> None:
    """A DICOM of [H, W] in [0, 1]: 12 bits in 16, MONOCHROME2 or, with the values turned round, 1."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    stored = np.round((1.0 - pixels if inverted else pixels) * 4095).astype(np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.Rows, data.Columns = stored.shape
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = stored.tobytes()
    data.save_as(path, enforce_file_format=True)


def write_mimic_tree(
    root: Path, *, texts: Sequence[str] = (), formats: Sequence[str] = ("jpg",), size: int = 32
) -> MimicTree:
    """Ten patients, one study each: eight to train, one to validate, one to test.

    Every report denies a fracture, and every other one may mean pneumonia: labels 0 and -1.

    Args:
        root: Folder; made.
        texts: Ten impressions; the phantom's reports, and these, by default. Labels are of the default.
        formats: "jpg", "dicom", or both. Every other DICOM is MONOCHROME1.
        size: Pixels a side.
    """
    films = corpus(len(SPLITS), seed=5, size=size)
    may_be = [" Possible pneumonia." if k % 2 else "" for k in range(len(SPLITS))]
    texts = tuple(texts or (f"{t} No fracture.{m}" for t, m in zip(films.texts, may_be, strict=True)))
    patients = tuple(f"p1{k % 2}00{k:04d}" for k in range(len(SPLITS)))
    studies = tuple(f"s5000{k:04d}" for k in range(len(SPLITS)))
    ids = tuple(f"{k:08x}-aaaa-bbbb-cccc-{k:08x}" for k in range(len(SPLITS)))
    tree = MimicTree(root, patients, studies, ids, texts)
    metadata: Rows = []
    split: Rows = []
    labels: Rows = []
    for k, name in enumerate(SPLITS):
        folder = tree.image(k).parent
        folder.mkdir(parents=True)
        tree.report(k).write_text(REPORT.format(impression=texts[k]), encoding="utf-8")
        pixels = films.images[k, 0].numpy()
        for dicom, view, code in (
            (ids[k], "PA", "postero-anterior"),
            (f"{ids[k]}-l", "LATERAL", "lateral"),
        ):
            if "jpg" in formats:
                Image.fromarray(pixels).save(folder / f"{dicom}.jpg", quality=95)
            if "dicom" in formats:
                write_dicom(folder / f"{dicom}.dcm", pixels / 255.0, inverted=bool(k % 2))
            key = {"dicom_id": dicom, "subject_id": patients[k][1:], "study_id": studies[k][1:]}
            shape = {"Rows": str(size), "Columns": str(size)}
            metadata.append({**key, "ViewPosition": view, **shape, "ViewCodeSequence_CodeMeaning": code})
            split.append({**key, "split": name})
        present = {f for f, v in zip(PHANTOM_FINDINGS, films.labels[k].tolist(), strict=True) if v}
        row = dict.fromkeys(CHEXPERT_FINDINGS, "") | dict.fromkeys(present, "1.0")
        row["Fracture"] = "0.0"
        if may_be[k]:
            row |= {"Pneumonia": "-1.0", "No Finding": ""}
        labels.append({"subject_id": patients[k][1:], "study_id": studies[k][1:], **row})
    for kind, rows in (("metadata", metadata), ("split", split), ("chexpert", labels), ("negbio", labels)):
        write_csv(tree.table(kind), rows)
    return tree

"""Writing images as DICOM: derived, synthetic, for research, and of no patient. Needs pydicom.

The object is a Secondary Capture image (PS3.3 A.8.1) whose conversion type is SYN, a synthetic image. It is
no digital radiograph (DX): that class requires the acquisition to be described, and there was none.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from cxrl.images.png import BANNER, SYNTHETIC, check_image
from cxrl.images.read_dicom import import_pydicom
from cxrl.storage.writing import replacing
from cxrl.version import __version__

BITS = 16


def _new_uid() -> str:
    """A UID made of a random UUID, below 2.25: nobody's root (PS3.5 B.2)."""
    return str(import_pydicom().uid.generate_uid(prefix=None))


@dataclass(frozen=True)
class Series:
    """What the files of one call share. Every field is new each time, so no two calls look like one person.

    Raises:
        CxrlError: pydicom is not installed.
    """

    study_uid: str = field(default_factory=_new_uid)
    series_uid: str = field(default_factory=_new_uid)
    created: datetime.datetime = field(default_factory=datetime.datetime.now)

    @property
    def patient_id(self) -> str:
        return f"SYNTHETIC-{int(self.study_uid.rpartition('.')[2]) % 16**8:08X}"


def save_dicom(
    path: Path, image: Tensor, series: Series, *, number: int, seed: int, source: str, prompt: str = ""
) -> None:
    """Write one image as 16-bit MONOCHROME2 that says in every attribute made for it that it is synthetic.

    :func:`cxrl.images.read.read_image` gives the image back, to half a level (7.6e-6).

    Args:
        path: The file; its folder exists.
        image: [1, H, W] in [0, 1].
        series: Shared by the files of one call.
        number: Of the instance within the series, from 1.
        seed: Of its latent.
        source: "policy" or "anchor".
        prompt: The report that it was drawn from, into ImageComments; empty leaves it out.

    Raises:
        CxrlError: The file cannot be written, or pydicom is not installed.
        ValueError: A wrong shape, or values that are not finite or outside [0, 1].
    """
    pydicom = import_pydicom()
    pixels = (check_image(image).numpy() * (2**BITS - 1)).round().astype("<u2")
    uids, data = pydicom.uid, pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = uids.ExplicitVRLittleEndian
    for name, value in _attributes(series, number, seed, source, prompt).items():
        setattr(data, name, value)
    for name, value in _image_pixel(pixels).items():
        setattr(data, name, value)
    data.SOPClassUID, data.SOPInstanceUID = uids.SecondaryCaptureImageStorage, _new_uid()
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID
    with replacing(path) as partial:
        data.save_as(partial, enforce_file_format=True)


def _attributes(series: Series, number: int, seed: int, source: str, prompt: str) -> dict[str, Any]:
    """Everything but the pixels, by module of PS3.3 C; empty values are type 2: required, may be unknown."""
    date, time = series.created.strftime("%Y%m%d"), series.created.strftime("%H%M%S")
    comments = SYNTHETIC
    if prompt:
        comments += " Prompt: " + "".join(c if c.isprintable() else " " for c in prompt)
    return {
        # SOP Common
        "SpecificCharacterSet": "ISO_IR 192",
        "InstanceCreationDate": date,
        "InstanceCreationTime": time,
        "SyntheticData": "YES",
        # Patient: nobody
        "PatientName": "SYNTHETIC^CXRL",
        "PatientID": series.patient_id,
        "TypeOfPatientID": "TEXT",
        "PatientBirthDate": "",
        "PatientSex": "",
        "PatientIdentityRemoved": "YES",
        "DeidentificationMethod": "Synthetic image: there is no patient",
        # General Study and Series
        "StudyInstanceUID": series.study_uid,
        "StudyDate": date,
        "StudyTime": time,
        "ReferringPhysicianName": "",
        "StudyID": "1",
        "AccessionNumber": "",
        "StudyDescription": BANNER,
        "SeriesInstanceUID": series.series_uid,
        "SeriesNumber": 1,
        "SeriesDescription": f"{BANNER}; cxrl {source}",
        "Modality": "OT",
        "BodyPartExamined": "CHEST",
        # General and SC Equipment
        "ConversionType": "SYN",
        "Manufacturer": "cxrl",
        "ManufacturerModelName": f"cxrl {source}",
        "SoftwareVersions": __version__,
        # General Image
        "InstanceNumber": number,
        "PatientOrientation": "",
        "ContentDate": date,
        "ContentTime": time,
        "ImageType": ["DERIVED", "SECONDARY"],
        "DerivationDescription": f"Generated from text by a diffusion model: cxrl {source}, seed {seed}.",
        "ImageComments": comments,
        "BurnedInAnnotation": "NO",
        "RecognizableVisualFeatures": "NO",
        "LossyImageCompression": "00",
        "ContentQualification": "RESEARCH",
    }


def _image_pixel(pixels: np.ndarray) -> dict[str, Any]:
    """Image Pixel and VOI LUT; the window is the identity, so a viewer does not choose its own."""
    return {
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": BITS,
        "BitsStored": BITS,
        "HighBit": BITS - 1,
        "PixelRepresentation": 0,
        "WindowCenter": 2 ** (BITS - 1),
        "WindowWidth": 2**BITS,
        "PixelData": pixels.tobytes(),
    }

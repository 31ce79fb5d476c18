"""Every call by which a library writes a picture: a new one must be looked at, since what holds generated
images says that they are synthetic.
"""

from __future__ import annotations

import ast
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cxrl.data.phantom.sheet import contact_sheet
from cxrl.images.dicom import Series, save_dicom
from cxrl.images.png import SYNTHETIC, save_grid, save_picture, save_png
from cxrl.output.gallery import png_source

ROOT = Path(__file__).parents[2] / "cxrl"
WRITERS = {
    "save",
    "save_as",
    "savefig",
    "imsave",
    "imwrite",
    "tofile",
    "add_image",
    "add_figure",
    "write_image",
}
"""Calls by which PIL, pydicom, matplotlib, OpenCV, numpy and TensorBoard write pictures."""
KNOWN = {
    "images/png.py save": "save_picture: the chunk",
    "images/dicom.py save_as": "save_dicom: the attributes",
    "output/gallery.py save": "png_source: the chunk",
    "inspect_data.py save": "real films, which says so",
}


def found() -> set[str]:
    """Files and calls whose receiver is a picture or a dataset."""
    calls = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            call = node.func if isinstance(node, ast.Call) else None
            if isinstance(call, ast.Attribute) and call.attr in WRITERS:
                calls.add(f"{path.relative_to(ROOT)} {call.attr}")
    return calls


OTHERS = {
    "rl/drawing.py save": "save_grid",
    "rl/trainer.py save": "a checkpoint",
    "scorers/feature_models.py save": "tensors for torch-fidelity, in memory",
    "output/demo_app.py save": "the playground's save_png and save_dicom",
    "rl/engine.py add_image": "the grid of a run, whose banner is in its pixels",
}
"""Calls of these names that write no picture, or hand it to one of ``KNOWN``."""


def test_no_writer_is_unknown() -> None:
    assert found() == KNOWN.keys() | OTHERS.keys()


def marks(data: bytes) -> dict[str, str]:
    with Image.open(io.BytesIO(data)) as image:
        return dict(image.text)  # type: ignore[attr-defined]


@pytest.mark.parametrize("writer", ["picture", "png", "grid", "sheet", "page"])
def test_every_picture_says_that_it_is_synthetic(writer: str, tmp_path: Path) -> None:
    path, images = tmp_path / "x.png", torch.rand(2, 1, 16, 16)
    if writer == "picture":
        save_picture(path, Image.new("L", (4, 4)), {})
    elif writer == "png":
        save_png(path, images[0], seed=0)
    elif writer == "grid":
        save_grid(path, {"anchor": images}, ["a", "b"])
    elif writer == "sheet":
        contact_sheet(path, seed=0, size=16)
    else:
        import base64

        _, _, data = png_source(np.zeros((4, 4), np.uint8)).partition("base64,")
        path.write_bytes(base64.b64decode(data))
    assert marks(path.read_bytes())["Synthetic"] == SYNTHETIC


def test_every_dicom_says_that_it_is_synthetic(tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom")
    save_dicom(
        tmp_path / "x.dcm", torch.rand(1, 16, 16), Series(), number=1, seed=0, source="policy", prompt=""
    )
    dataset = pydicom.dcmread(tmp_path / "x.dcm")
    assert "DERIVED" in dataset.ImageType
    assert "ynthetic" in str(dataset)

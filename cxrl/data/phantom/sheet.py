"""The contact sheet of the phantom: every finding, and random films of both corpora."""

from __future__ import annotations

from pathlib import Path

from cxrl.data.phantom.films import IMAGE_SIZE, corpus
from cxrl.data.phantom.reports import Finding
from cxrl.images.png import save_picture

CONTACT_SHEET: tuple[tuple[str, tuple[Finding, ...]], ...] = (
    ("No Finding", ()),
    ("Cardiomegaly, mild", (Finding("Cardiomegaly", size="mild"),)),
    ("Cardiomegaly, severe", (Finding("Cardiomegaly", size="severe"),)),
    ("Effusion, right, small", (Finding("Pleural Effusion", side="right", size="small"),)),
    ("Effusion, left, large", (Finding("Pleural Effusion", side="left", size="large"),)),
    ("Effusion, bilateral", (Finding("Pleural Effusion", side="bilateral", size="small"),)),
    ("Pneumothorax, right, large", (Finding("Pneumothorax", side="right", size="large"),)),
    ("Pneumothorax, left, small", (Finding("Pneumothorax", side="left", size="small"),)),
    ("Consolidation, right lower", (Finding("Consolidation", side="right", zone="lower"),)),
    ("Consolidation, left upper", (Finding("Consolidation", side="left", zone="upper"),)),
    ("Edema, mild", (Finding("Edema", size="mild"),)),
    ("Edema, severe", (Finding("Edema", size="severe"),)),
    ("Nodule, right upper", (Finding("Lung Lesion", side="right", zone="upper"),)),
    ("Nodule, left lower", (Finding("Lung Lesion", side="left", zone="lower"),)),
)


def contact_sheet(
    path: Path, *, seed: int = 0, size: int = IMAGE_SIZE, columns: int = 6, scale: int = 3
) -> None:
    """Write a captioned PNG: every finding, then random natural and random flawed films.

    Args:
        path: The file; it says that it is synthetic.
        seed: Of the films.
        size: Pixels a side of a film.
        columns: Films a row.
        scale: How many times larger a film is shown.

    Raises:
        CxrlError: The file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    still = corpus(len(CONTACT_SHEET), seed=seed, size=size, findings=[f for _, f in CONTACT_SHEET])
    natural = corpus(columns, seed=seed + 1, size=size)
    flawed = corpus(columns, seed=seed + 2, size=size, flawed=True)
    tiles = [(c, i) for (c, _), i in zip(CONTACT_SHEET, still.images, strict=True)]
    tiles += [("", still.images[0] * 0)] * (-len(tiles) % columns)
    tiles += [(f"natural: {t}", i) for t, i in zip(natural.texts, natural.images, strict=True)]
    tiles += [(f"flawed: {t}", i) for t, i in zip(flawed.texts, flawed.images, strict=True)]
    cell, bar = size * scale, 34
    sheet = Image.new("L", (columns * cell, (len(tiles) // columns) * (cell + bar)), 0)
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=11)
    for n, (caption, image) in enumerate(tiles):
        left, top = (n % columns) * cell, (n // columns) * (cell + bar)
        picture = Image.fromarray(image[0].numpy()).resize((cell, cell), Image.Resampling.BICUBIC)
        sheet.paste(picture, (left, top + bar))
        per_line = cell // 6
        pen.multiline_text(
            (left + 3, top + 3), caption[:per_line] + "\n" + caption[per_line : 2 * per_line], 230, font
        )
    save_picture(path, sheet, {"Seed": str(seed)})

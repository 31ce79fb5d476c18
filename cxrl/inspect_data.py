"""``cxrl inspect``: what is in a data set, what was dropped and why, a contact sheet."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrl.command import hint, run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from cxrl.arguments import Parser
    from cxrl.data.index import Count, FilmRecord, Index

CELL, MARGIN, COLUMNS = 192, 10, 6
_OF_A_RUN = ("num_prompts", "eval_num_prompts", "eval_split", "on_long_prompt")
"""Fields of ``data`` that choose a run's reports: they change nothing here."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_inspect, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, whole_number
    from cxrl.cli import add_fields
    from cxrl.config import MAX_SEED, DataConfig

    parser = Parser("cxrl inspect", "Count a data set and show some of its films.")
    parser.usage = "cxrl inspect --data.source NAME [--data.root PATH] [--out sheet.png]"
    parser.add_argument("--out", metavar="FILE", type=file_path, help="write a contact sheet (PNG) of films")
    parser.add_argument(
        "--num-films", metavar="N", type=whole_number(1, 1000), help="on it, at most 1000; default 24"
    )
    parser.add_argument(
        "--seed", metavar="S", type=whole_number(0, MAX_SEED), help="which films are on it; default 0"
    )
    parser.add_argument("--rebuild", action="store_true", help="build the index again, not from the cache")
    parser.add_argument(
        "--model.path", metavar="NAME", help="count the reports that this pipeline's tokenizer would cut"
    )
    add_fields(parser.add_argument_group("data", DataConfig.help), DataConfig, _OF_A_RUN)
    return parser


def _inspect(argv: Sequence[str]) -> None:
    from cxrl.arguments import check_png
    from cxrl.cli import resolve
    from cxrl.config import Config

    parsed = parser().parse(argv)
    args, config = vars(parsed), resolve(parsed, Config()).data
    if args["--data.source"] is None:
        raise CxrlError(
            "which data? openi is offline and needs nothing: cxrl inspect --data.source openi; mimic_cxr, "
            "table and prompts need --data.root too (docs/data.md); the phantom is shown by cxrl phantom"
        )
    for name in ("num_films", "seed"):
        if args["out"] is None and args[name] is not None:
            raise CxrlError(
                f"--{name.replace('_', '-')} has no effect without --out; leave it out, or add it"
            )
    from cxrl.data.index import describe
    from cxrl.data.sources import load_index
    from cxrl.storage.writing import check_writable

    if args["out"] is not None:
        check_png(args["out"], "--out")
        check_writable(args["out"], "--out")
    index = load_index(config, rebuild=args["rebuild"])
    print(summary(index))
    if args["model.path"]:
        print(_long_reports(index, args["model.path"]))
    if args["out"]:
        unreadable = contact_sheet(
            args["out"],
            index,
            num=args["num_films"] or 24,
            seed=args["seed"] or 0,
            restricted=config.is_restricted,
        )
        if unreadable:
            print(f"not on the sheet, cannot be read: {describe(unreadable)}")
        print(f"{args['out']}: films of {index.source}, not synthetic")
    hint(
        "cxrl",
        "doctor",
        "--data.source",
        config.source,
        *(["--data.root", config.root] if config.root else []),
    )


def summary(index: Index) -> str:
    """The counts of an index, as text."""
    from cxrl.data.index import SPLITS
    from cxrl.tables import format_table

    head = f"{index.source}: {_sizes(index.films)}"
    split = ("split", "films", "studies", "patients", "prompts")
    parts = [head, format_table(_split_rows(index), header=split, right=range(1, 5))]
    views = Counter(film.view or "not given" for film in index.films)
    parts.append(format_table(views.most_common(), header=("view", "films"), right=[1]))
    if index.findings:
        header = ("finding (studies: present / absent / unknown)", *SPLITS)
        parts.append(format_table(_finding_rows(index), header=header, right=range(1, 4)))
    for title, counts in (("dropped films", index.dropped), ("kept, but", index.noted)):
        rows = [(reason, c.number, ", ".join(c.first)) for reason, c in counts.items()]
        parts.append(format_table(rows or [("none", "", "")], header=(title, "number", "first"), right=[1]))
    return "\n\n".join(parts)


def _sizes(films: Sequence[FilmRecord]) -> str:
    studies, patients = len({f.study for f in films}), len({f.patient for f in films})
    return f"{len(films)} films, {studies} studies, {patients} patients"


def _split_rows(index: Index) -> Iterable[tuple[Any, ...]]:
    from cxrl.data.equal_texts import same_text
    from cxrl.data.index import SPLITS

    for name in SPLITS:
        films = index.split(name)
        studies, patients = {f.study for f in films}, {f.patient for f in films}
        yield name, len(films), len(studies), len(patients), len({same_text(f.text) for f in films if f.text})


def _finding_rows(index: Index) -> Iterable[tuple[Any, ...]]:
    from cxrl.data.index import SPLITS

    labels = [{f.study: f.labels for f in index.split(name)}.values() for name in SPLITS]
    for k, finding in enumerate(index.findings):
        cells = []
        for rows in labels:
            values = [row[k] for row in rows]
            known = values.count(1.0), values.count(0.0)
            cells.append(f"{known[0]} / {known[1]} / {len(values) - sum(known)}")
        yield finding, *cells


def _long_reports(index: Index, path: str) -> str:
    """How many distinct reports a tokenizer would cut, by split."""
    from cxrl.data.index import SPLITS, describe
    from cxrl.data.sources import choose_prompts
    from cxrl.models.base_files import load_tokenizer
    from cxrl.tables import format_table

    reader, lines = load_tokenizer(path), []
    for name in SPLITS:
        films = list({film.study: film for film in index.split(name) if film.text}.values())
        if films:
            chosen = choose_prompts(
                films, None, findings=index.findings, reader=reader, on_long_prompt="drop"
            )
            lines.append((name, len(chosen.prompts), describe(chosen.skipped)))
    return "\n" + format_table(lines, header=("split", "usable reports", "left out"), right=[1])


def contact_sheet(
    path: Path, index: Index, *, num: int = 24, seed: int = 0, restricted: bool = False
) -> Mapping[str, Count]:
    """Write a PNG of ``num`` films of different studies, with view, split, findings and text.

    Args:
        path: The file; for restricted data only its owner may read it.
        index: Of a data set with images.
        num: Films on it, if as many can be read.
        seed: Which ones.
        restricted: Say on it that it must not be passed on.

    Returns:
        The films that were to be on it and cannot be read, by reason.

    Raises:
        CxrlError: No film can be read, or the file cannot be written.
    """
    import torch
    from PIL import Image, ImageDraw, ImageFont

    from cxrl.data.films import read_films
    from cxrl.data.index import Tally, describe
    from cxrl.data.sources import study_order
    from cxrl.images.png import to_uint8, wrap_caption
    from cxrl.storage.writing import write_bytes

    tally = Tally()
    order = study_order([film for film in index.films if film.image], seed)
    if not order:
        raise CxrlError(f"--out: data.source {index.source} has no images here (see data.root)")
    parts: list[torch.Tensor] = []
    kept: list[FilmRecord] = []
    for start in range(0, len(order), num):
        images, films = read_films(
            order[start : start + num - len(kept)], index.root, CELL, tally=tally, crop=False
        )
        parts.append(images)
        kept += films
        if len(kept) >= num or start > 10 * num:
            break
    if not kept:
        raise CxrlError(f"--out: no film can be read: {describe(tally.counts())}")
    font, line = ImageFont.load_default(11), 14
    footer = 5 * line
    rows = -(-len(kept) // COLUMNS)
    canvas = Image.new("L", (COLUMNS * (CELL + MARGIN) + MARGIN, 2 * line + rows * (CELL + footer)), 255)
    draw = ImageDraw.Draw(canvas)
    terms = "; do not pass on" if restricted else ""
    draw.text((MARGIN, 6), f"{index.source}: films of real patients, or taken for such{terms}", 0, font)
    for n, (image, film) in enumerate(zip(torch.cat(parts), kept, strict=True)):
        left, top = MARGIN + n % COLUMNS * (CELL + MARGIN), 2 * line + n // COLUMNS * (CELL + footer)
        canvas.paste(Image.fromarray(to_uint8(image)), (left, top))
        found = [name for name, v in zip(index.findings, film.labels, strict=True) if v == 1.0]
        caption = f"{film.view} {film.split}: {', '.join(found) or '-'}. {film.text}"
        for k, text in enumerate(wrap_caption(caption, font, CELL)):
            draw.text((left, top + CELL + 2 + k * line), text, 0, font)
    buffer = io.BytesIO()
    canvas.save(buffer, format="PNG")
    write_bytes(path, buffer.getvalue(), private=restricted)
    return tally.counts()


if __name__ == "__main__":
    sys.exit(main())

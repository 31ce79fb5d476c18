"""``cxrl generate``: images of reports, by the policy of a run or by its anchor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cxrl.command import hint, run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    import argparse

    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_generate, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, run_option, whole_number
    from cxrl.config import MAX_IMAGES, MAX_SEED

    parser = Parser("cxrl generate", "Draw synthetic chest radiographs of reports. Not for diagnosis.")
    run_option(parser)
    parser.add_argument("--prompt", metavar="TEXT", help="the report")
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        type=file_path,
        help="reports: .txt (one a line), or .csv, .tsv, .jsonl, .parquet with a column text",
    )
    parser.add_argument(
        "--num-images",
        metavar="N",
        type=whole_number(1, MAX_IMAGES),
        default=4,
        help=f"images of each report; default 4, at most {MAX_IMAGES}",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=whole_number(0, MAX_SEED),
        default=0,
        help="of a report's first image; the next has S + 1; default 0",
    )
    parser.add_argument("--anchor", action="store_true", help="draw with the anchor, from the same latents")
    parser.add_argument(
        "--out",
        metavar="DIR",
        type=file_path,
        required=True,
        help="where the files go; with --prompts also policy.csv or anchor.csv, which lists them",
    )
    parser.add_argument("--grid", action="store_true", help="also SOURCE-grid.png: reports by seeds")
    parser.add_argument(
        "--format",
        metavar="NAME",
        choices=("png", "dicom"),
        default="png",
        help="png or dicom (needs pydicom: pip install 'cxrl[dicom]'); default png",
    )
    return parser


def _generate(argv: Sequence[str]) -> None:
    from cxrl.config import MAX_SEED
    from cxrl.storage.writing import check_folder_writable

    args = parser().parse(argv)
    prompts, columns = _prompts(args)
    check_folder_writable(args.out, "--out")
    from cxrl.images.read_dicom import import_pydicom
    from cxrl.rl.drawing import check_unused, draw_images, save_images

    if args.format == "dicom":
        import_pydicom()  # its absence is told before anything is drawn
    if args.seed + args.num_images - 1 > MAX_SEED:
        raise CxrlError(
            f"--seed: {args.seed} with --num-images {args.num_images} goes beyond the largest, {MAX_SEED}"
        )
    seeds = range(args.seed, args.seed + args.num_images)
    drawn: dict[str, Any] = {"seeds": seeds, "anchor": args.anchor, "numbered": args.prompts is not None}
    check_unused(args.out, len(prompts), **drawn, file_format=args.format, grid=args.grid)
    drawings = draw_images(args.run, prompts, **drawn, columns=columns)
    for path in save_images(args.out, drawings, args.format, grid=args.grid):
        print(path, flush=True)
    if not args.anchor:
        hint("cxrl", "generate", *argv, "--anchor")


def _prompts(args: argparse.Namespace) -> tuple[list[str], list[dict[str, str]]]:
    """The reports, in order, and what else their table says of each, which ``cxrl evaluate`` reads again.

    Raises:
        CxrlError: None, two sources of them, an empty one, or a file that cannot be read.
    """
    from cxrl.data.cells import fold
    from cxrl.data.rows import read_table

    if (args.prompt is None) == (args.prompts is None):
        raise CxrlError("give either --prompt TEXT or --prompts FILE")
    if args.prompt is not None:
        return [args.prompt], []
    table = read_table(args.prompts, ["text"], "--prompts", lists=True)
    table.check(["text"])
    empty = [number for number, row in table.rows if not row["text"].strip()]
    if empty:
        raise CxrlError(
            f"{table.where}: {table.unit} {empty[0]} has no report ({len(empty)} such in all); fill it in, "
            "or leave it out"
        )
    from cxrl.rl.drawing import LISTED

    others = [name for name in table.columns if fold(name) not in (*LISTED, "report", "prompt")]
    table.check(others)
    return [row["text"] for _, row in table.rows], [{n: row[n] for n in others} for _, row in table.rows]


if __name__ == "__main__":
    sys.exit(main())

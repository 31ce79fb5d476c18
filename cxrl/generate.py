"""``python -m cxrl.generate``: images of a report, by the policy of a run or by its anchor."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxrl.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_generate, argv)


def _generate(argv: Sequence[str]) -> None:
    from cxrl.cli import Parser, file_path, whole_number
    from cxrl.config import MAX_IMAGES, MAX_SEED
    from cxrl.storage.writing import check_folder_writable

    parser = Parser("cxrl.generate", "Draw synthetic chest radiographs of a report. Not for diagnosis.")
    parser.add_argument(
        "--run", metavar="DIR", type=file_path, required=True, help="run directory of cxrl.train"
    )
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the report")
    parser.add_argument(
        "--num-images",
        metavar="N",
        type=whole_number(1, MAX_IMAGES),
        default=4,
        help=f"images; default 4, at most {MAX_IMAGES}",
    )
    parser.add_argument(
        "--seed",
        metavar="S",
        type=whole_number(0, MAX_SEED),
        default=0,
        help="of the first image; the next has S + 1",
    )
    parser.add_argument("--anchor", action="store_true", help="draw with the anchor, from the same latents")
    parser.add_argument("--out", metavar="DIR", type=file_path, required=True, help="where the files go")
    parser.add_argument(
        "--format",
        metavar="NAME",
        choices=("png", "dicom"),
        default="png",
        help="png or dicom (needs pydicom: pip install 'cxrl[dicom]'); default png",
    )
    args = parser.parse(argv)
    from cxrl.images.read_dicom import import_pydicom
    from cxrl.rl.reopen import draw_images, save_images

    if args.format == "dicom":
        import_pydicom()  # its absence is told before anything is drawn
    seeds = range(args.seed, args.seed + args.num_images)
    check_folder_writable(args.out, "--out")
    drawings = draw_images(args.run, args.prompt, seeds=seeds, anchor=args.anchor)
    for path in save_images(args.out, drawings, args.format):
        print(path, flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""``python -m cxrl.generate``: images of a report, by the policy of a run or by its anchor."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from cxrl.cli import Parser, at_least, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_generate, argv)


def _generate(argv: Sequence[str]) -> None:
    parser = Parser("cxrl.generate", "Draw synthetic chest radiographs of a report. Not for diagnosis.")
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="run directory of cxrl.train")
    parser.add_argument("--prompt", metavar="TEXT", required=True, help="the report")
    parser.add_argument("--num-images", metavar="N", type=at_least(1), default=4, help="images; default 4")
    parser.add_argument(
        "--seed", metavar="S", type=at_least(0), default=0, help="of the first image; the next has S + 1"
    )
    parser.add_argument("--anchor", action="store_true", help="draw with the anchor, from the same latents")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="where the files go")
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
    drawing = draw_images(args.run, args.prompt, seeds=seeds, anchor=args.anchor)
    for path in save_images(args.out, drawing, args.format):
        print(path)


if __name__ == "__main__":
    sys.exit(main())

"""``cxrl demo``: play with a run in a browser: a report, a seed, anchor beside policy, scores."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cxrl.command import run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from cxrl.arguments import Parser

DEFAULT_RUN = Path("runs", "phantom")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_demo, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import Parser, file_path, whole_number

    parser = Parser("cxrl demo", "Draw by hand in a browser, on this machine alone. Not for diagnosis.")
    parser.add_argument(
        "--run", metavar="DIR", type=file_path, help=f"a run of cxrl train; default {DEFAULT_RUN}"
    )
    parser.add_argument(
        "--port", metavar="N", type=whole_number(0, 65535), default=7860, help="0: a free one; default 7860"
    )
    parser.add_argument("--open", action="store_true", help="open a browser")
    return parser


def _demo(argv: Sequence[str]) -> None:
    args = parser().parse(argv)
    run = args.run or DEFAULT_RUN
    from cxrl.storage.layout import CONFIG

    if not (run / CONFIG).is_file():
        made = "" if args.run else "; cxrl train makes it, or name another with --run"
        raise CxrlError(f"{run} is not a run of cxrl train: it has no {CONFIG}{made}")
    from cxrl.output.demo_app import import_gradio, serve

    import_gradio()  # its absence is told before anything is loaded
    from cxrl.output.playground import Playground

    serve(Playground(run), run.resolve().name, port=args.port, opened=args.open)


if __name__ == "__main__":
    sys.exit(main())

"""``cxrl headroom``: what a reward can gain on a base at all, before anything is trained."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cxrl.command import hint, run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from argparse import Namespace

    from cxrl.arguments import Parser
    from cxrl.config import Config

SAMPLES, REPORTS = 8, 64


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_headroom, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import file_path, whole_number
    from cxrl.cli import ConfigParser
    from cxrl.config import MAX_IMAGES

    about = "Lets the rewards pick the best of N images of the base, and the judges score what they picked."
    parser = ConfigParser("cxrl headroom", about)
    parser.usage = "cxrl headroom [--preset NAME] [--config FILE] [--run DIR] [--section.field VALUE ...]"
    parser.add_argument(
        "--samples",
        metavar="N",
        type=whole_number(2, 1024),
        default=SAMPLES,
        help=f"images of a report; default {SAMPLES}",
    )
    parser.add_argument(
        "--reports",
        metavar="P",
        type=whole_number(2, MAX_IMAGES),
        default=REPORTS,
        help=f"reports, of those that choose (data.selection_num_prompts); default {REPORTS}",
    )
    parser.add_argument(
        "--run",
        metavar="DIR",
        type=file_path,
        help="of a run instead: its anchor and its policy; writes DIR/headroom.json, which the page shows",
    )
    parser.add_argument("--out", metavar="FILE", type=file_path, help="JSON")
    return parser


def _headroom(argv: Sequence[str]) -> None:
    args = parser().parse(argv)
    config = _config(args)
    if args.print_config:
        if config is None:
            raise CxrlError("--print-config goes with a configuration, not with --run; leave one out")
        print(config.to_yaml(), end="")
        return
    from cxrl.storage.layout import HEADROOM
    from cxrl.storage.writing import check_writable, write_json

    if args.out is not None:
        check_writable(args.out, "--out")
    out = args.out or (args.run / HEADROOM if args.run else None)
    from cxrl.output.terminal import TerminalProgress

    progress = TerminalProgress(0)
    try:
        with progress.stage("loading", 0):
            from cxrl.rl.headroom import measure
        result, restricted = measure(
            config, args.run, num_samples=args.samples, num_reports=args.reports, progress=progress
        )
    finally:
        progress.close()
    if out is not None:
        write_json(out, result, private=restricted)
    print(headroom_text(result))
    if args.run:
        hint("cxrl", "report", str(args.run))
    else:
        hint("cxrl", "train", *_shared(args))


def _config(args: Namespace) -> Config | None:
    """That of the command line; None with ``--run``, which has its own."""
    from cxrl.cli import resolve

    if args.run is None:
        config = resolve(args)
        config.data.check_root()
        return config
    given = [flag for flag, value in vars(args).items() if flag.startswith("--") and value is not None]
    given += [f"--{name}" for name in ("preset", "config") if getattr(args, name) is not None]
    if given:
        raise CxrlError(f"--run takes the run's own configuration; leave {given[0]} out")
    return None


def _shared(args: Namespace) -> list[str]:
    """What of the command line ``cxrl train`` takes too."""
    named = {f"--{name}": getattr(args, name) for name in ("preset", "config")}
    named |= {flag: value for flag, value in vars(args).items() if flag.startswith("--")}
    return [word for flag, value in named.items() if value is not None for word in (flag, str(value))]


def headroom_text(result: Mapping[str, Any]) -> str:
    """Tables of at most 80 columns, and a sentence a reward.

    Args:
        result: Of :func:`cxrl.rl.headroom.measure`.
    """
    return "\n\n".join(_side_text(side) for side in result["sides"])


def _side_text(side: Mapping[str, Any]) -> str:
    from cxrl.evaluation.parting import JUDGE_OF
    from cxrl.tables import format_table

    every = side["best"]["chance"]["posture"]
    shown = [0, *range(max(1, len(every) - 3), len(every))]
    rows = []
    for reward, key in JUDGE_OF.items():
        rules = ((reward, reward), ("all rewards", "all rewards"), (f"judge of {reward}", "the judge"))
        known = [(rule, word) for rule, word in rules if rule in side["best"]]
        for place, (rule, word) in enumerate(known):
            rows.append(_row("" if place else key, word, side["best"][rule][key], shown))
        real = side["real"][key]
        if real is not None:
            rows.append(("", "real films", f"{real:.3f}"))
    header = ("judged", "picked by", *(str(every[n]["n"]) for n in shown), "[95 %]", "way")
    title = f"{side['of']}: best of n images, {side['num_reports']} reports"
    table = format_table(rows, header=header, right=range(2, len(header)))
    told = "\n".join(textwrap.fill(line, 80, subsequent_indent="  ") for line in side["verdicts"])
    return f"{title}\n{table}\n\n{told}"


def _row(key: str, rule: str, of_n: Sequence[Mapping[str, Any]], shown: Sequence[int]) -> tuple[str, ...]:
    low, high = of_n[-1]["ci"]
    way = of_n[-1]["gap"]
    return (
        key,
        rule,
        *("-" if of_n[n]["value"] is None else f"{of_n[n]['value']:.3f}" for n in shown),
        "" if low is None else f"[{low:.3f}, {high:.3f}]",
        "-" if way is None else f"{way:.0%}",
    )


if __name__ == "__main__":
    sys.exit(main())

"""``cxrl ablate``: what each part of the method is worth, or any list of variants, at equal updates."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxrl.command import hint, run_command
from cxrl.errors import CxrlError

if TYPE_CHECKING:
    from cxrl.arguments import Parser
    from cxrl.sweep.runner import Job, Outcome
    from cxrl.sweep.variants import Variant

OUT = "runs/ablation"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status: 2 where a run failed."""
    return run_command(_ablate, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.arguments import file_path, whole_number
    from cxrl.cli import ConfigParser

    about = "Trains variants of a configuration at equal updates, and compares them by the judges."
    parser = ConfigParser("cxrl ablate", about)
    parser.usage = (
        "cxrl ablate [--preset NAME] [--sweep FILE] [--seeds N] [--jobs N] [--section.field VALUE ...]"
    )
    parser.add_argument(
        "--sweep", metavar="FILE", type=file_path, help="a YAML list of overrides; default the ablation"
    )
    parser.add_argument(
        "--seeds", metavar="N", type=whole_number(1, 100), default=1, help="from --seed on; default 1"
    )
    parser.add_argument(
        "--jobs", metavar="N", type=whole_number(1, 64), default=1, help="runs at once; default 1"
    )
    parser.add_argument("--out", metavar="DIR", type=file_path, default=Path(OUT), help=f"default {OUT}")
    parser.add_argument("--dry-run", action="store_true", help="show what would be trained")
    return parser


def _ablate(argv: Sequence[str]) -> None:
    from cxrl.cli import absolute, resolve

    args = parser().parse(argv)
    config = absolute(resolve(args))
    if args.print_config:
        print(config.to_yaml(), end="")
        return
    config.data.check_root()
    from cxrl.storage.writing import check_folder_writable
    from cxrl.sweep.runner import RESULTS, Runner, jobs_of, locked
    from cxrl.sweep.variants import ABLATION, read_variants

    variants = read_variants(args.sweep or ABLATION, config)
    seeds = range(config.seed, config.seed + args.seeds)
    jobs = jobs_of(variants, seeds, args.out.absolute())
    if args.dry_run:
        print(_plan(variants, jobs))
        return
    check_folder_writable(args.out, "--out")
    from cxrl.output.terminal import TerminalProgress

    progress = TerminalProgress(0)

    def told(line: str, done: int) -> None:
        progress.message(line)
        progress.advance(done)

    with locked(args.out):
        try:
            with progress.stage("runs of the sweep", len(jobs)):
                outcome = Runner(args.jobs, told).run(jobs)
        except KeyboardInterrupt as stop:
            stop.args = ("the same command goes on",)
            raise
        finally:
            progress.close()
        if not any(job.is_done() for job in jobs):
            raise _failure(outcome, len(jobs))
        result = _write(variants, jobs, list(seeds), args.out, args.sweep, private=config.data.is_restricted)
    print(sweep_text(result))
    print(f"\n{args.out / RESULTS[1]}, {RESULTS[2]} and {RESULTS[0]} have every number with its interval")
    if outcome.failed:
        raise _failure(outcome, len(jobs))
    hint("cxrl", "report", *(str(job.folder) for job in jobs[:2]))


def _failure(outcome: Outcome, num_jobs: int) -> CxrlError:
    which = "; ".join(f"{name} {why}" for name, why in outcome.failed.items())
    return CxrlError(
        f"{len(outcome.failed)} of {num_jobs} runs failed; the same command tries again: {which}"
    )


def _write(
    variants: Sequence[Variant],
    jobs: Sequence[Job],
    seeds: Sequence[int],
    out: Path,
    sweep: Path | None,
    *,
    private: bool,
) -> dict[str, Any]:
    from cxrl.output.sweep_page import sweep_page
    from cxrl.storage.writing import write_json, write_text
    from cxrl.sweep.result import markdown, sweep_result
    from cxrl.sweep.runner import RESULTS

    result = sweep_result(variants, jobs, seeds)
    title = f"Sweep {sweep.stem}" if sweep else "Ablation"
    write_json(out / RESULTS[0], result, private=private)
    write_text(out / RESULTS[1], markdown(result, title), private=private)
    write_text(out / RESULTS[2], sweep_page(result, title), private=private)
    return result


def _plan(variants: Sequence[Variant], jobs: Sequence[Job]) -> str:
    from cxrl.sweep.variants import same_runs
    from cxrl.tables import format_table

    shared = same_runs(variants)
    rows = []
    for variant in variants:
        changes = ", ".join(f"{name} {value}" for name, value in variant.changed.items()) or "nothing"
        same = shared[variant.name]
        rows.append(
            (variant.name, changes if same == variant.name else f"{changes}: the same runs as {same}")
        )
    done = sum(job.is_done() for job in jobs)
    return f"{format_table(rows, header=('variant', 'changes'), width=80)}\n\n{len(jobs)} runs, {done} done"


def sweep_text(result: Mapping[str, Any]) -> str:
    """Tables of at most 80 columns: means over seeds, and differences from the first variant, with a star
    where the interval over seeds leaves 0 out; what they are of, and what is not to be compared.

    Args:
        result: Of :func:`cxrl.sweep.result.sweep_result`.
    """
    from cxrl.metrics.names import KEYS
    from cxrl.output.terminal import score
    from cxrl.tables import format_table

    shown = KEYS[:6]
    rows = [
        (name, *(score(result[side][key]) for key in shown))
        for side, name in (("anchor", "anchor"), ("real", "real films"))
        if result[side]
    ]
    rows += [(row["name"], *(score(row[key]["value"]) for key in shown)) for row in result["variants"]]
    columns = range(1, len(shown) + 1)
    tables = [format_table(rows, header=("mean over seeds", *shown), right=columns)]
    first, *others = result["variants"]
    apart = [(row["name"], *(_starred(row[key]) for key in shown)) for row in others if not row["same_as"]]
    if apart:
        header = (f"minus {first['name']}", *shown)
        tables.append(format_table(apart, header=header, right=columns))
    about = result["about"]
    if len(result["seeds"]) > 1:
        about += (
            " * the 95 % interval over seeds, paired, leaves 0 out; of many differences some do by chance."
        )
    paragraphs = [textwrap.fill(about, 80), *(f"warning: {line}" for line in result["doubts"])]
    return "\n\n".join((*tables, "\n".join(paragraphs)))


def _starred(numbers: Mapping[str, Any]) -> str:
    from cxrl.output.terminal import score

    if numbers.get("difference") is None:
        return "-"
    low, high = numbers["difference_ci"]
    return f"{score(numbers['difference'], '+')}{' ' if low is None or low <= 0 <= high else '*'}"


if __name__ == "__main__":
    sys.exit(main())

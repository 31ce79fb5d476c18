"""``cxrl train``: the whole method, from a preset to ``summary.json``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from cxrl.command import hint, run_command, say

if TYPE_CHECKING:
    from cxrl.arguments import Parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_train, argv)


def parser() -> Parser:
    """The options."""
    from cxrl.cli import train_parser

    return train_parser()


def _train(argv: Sequence[str]) -> None:
    from cxrl.cli import parse_train

    options = parse_train(argv)
    if options.only_print:
        print(options.config.to_yaml(), end="")
        return
    from cxrl.output.terminal import TerminalProgress, summary_table
    from cxrl.storage.layout import CONFIG

    run_dir = str(options.run_dir)
    progress = TerminalProgress(options.config.train.num_epochs)
    try:
        with progress.stage("loading", 0):
            from cxrl.rl.trainer import Trainer

            trainer = Trainer(
                options.config,
                options.run_dir,
                resume=options.resume,
                overwrite=options.overwrite,
                progress=progress,
            )
        try:
            summary = trainer.run()
        except KeyboardInterrupt as stop:
            if not (options.run_dir / CONFIG).is_file():
                raise
            words = ["cxrl", "train", "--run-dir", run_dir, "--resume"]
            stop.args = (f"go on with: {shlex.join(words)}",)
            raise
    finally:
        progress.close()
    if not progress.silent:
        say(f"\n{summary_table(summary)}")
        say(f"\n{options.run_dir}/samples shows anchor above policy")
        hint("cxrl", "report", run_dir)


if __name__ == "__main__":
    sys.exit(main())

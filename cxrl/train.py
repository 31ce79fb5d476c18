"""``python -m cxrl.train``: the whole method, from a preset to ``summary.json``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from cxrl.command import run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_train, argv)


def _train(argv: Sequence[str]) -> None:
    from cxrl.cli import parse_train

    options = parse_train(argv)
    from cxrl.output.terminal import TerminalProgress, summary_table
    from cxrl.rl.trainer import Trainer
    from cxrl.storage.layout import CONFIG

    progress = TerminalProgress(options.config.train.num_epochs)
    try:
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
            words = ["python", "-m", "cxrl.train", "--run-dir", str(options.run_dir), "--resume"]
            stop.args = (f"go on with: {shlex.join(words)}",)
            raise
    finally:
        progress.close()
    progress.message(f"{summary_table(summary)}\n{options.run_dir}/samples shows anchor above policy")


if __name__ == "__main__":
    sys.exit(main())

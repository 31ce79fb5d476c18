"""``python -m cxrl.train``: the whole method, from a preset to ``summary.json``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cxrl.cli import parse_train, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command. Returns the exit status."""
    return run_command(_train, argv)


def _train(argv: Sequence[str]) -> None:
    options = parse_train(argv)
    from cxrl.output.terminal import TerminalReporter, summary_table
    from cxrl.rl.trainer import Trainer

    reporter = TerminalReporter(options.config.train.num_epochs)
    try:
        summary = Trainer(
            options.config,
            options.run_dir,
            resume=options.resume,
            overwrite=options.overwrite,
            reporter=reporter,
        ).run()
    except KeyboardInterrupt:
        resume = f"python -m cxrl.train --run-dir {options.run_dir} --resume"
        raise KeyboardInterrupt(f"go on with: {resume}") from None
    finally:
        reporter.close()
    reporter.message(f"{summary_table(summary)}\n{options.run_dir}/samples shows anchor above policy")


if __name__ == "__main__":
    sys.exit(main())

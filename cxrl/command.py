"""How a command ends: one line on stderr and an exit status, whatever happens.

A command imports this first and everything else inside of what it hands to :func:`run_command`, so that
Ctrl-C is one line from the first moment on.
"""

from __future__ import annotations

import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from cxrl.errors import NO_MEMORY, CxrlError

LEVELS = ("debug", "info", "warning", "error")
"""Of ``--log-level``: libraries speak too; what is done; what is doubtful; what failed."""
EXIT_USER_ERROR, EXIT_BUG, EXIT_INTERRUPTED, EXIT_TERMINATED = 2, 1, 130, 143


class Terminated(KeyboardInterrupt):
    """SIGTERM: as Ctrl-C, by another hand."""


def set_level(level: str) -> None:
    """From here on, what is below this level is not shown; one of ``LEVELS``."""
    import logging

    logging.getLogger("cxrl").setLevel(level.upper())
    if level == "debug":
        logging.basicConfig(level=logging.INFO, stream=sys.stderr)


def is_shown(level: str) -> bool:
    """Whether what is of this level is shown."""
    import logging

    return logging.getLogger("cxrl").isEnabledFor(logging.getLevelName(level.upper()))


def say(text: str) -> None:
    """A line about what was done, or what could be done next; not with ``--quiet``."""
    if is_shown("info"):
        print(text, flush=True)


def hint(*words: str) -> None:
    """Name the command that comes next: on stderr, as what a command prints may be read by another."""
    import shlex

    if is_shown("info"):
        print(f"next: {shlex.join(words)}", file=sys.stderr, flush=True)


def run_command(command: Callable[[Sequence[str]], None], argv: Sequence[str] | None) -> int:
    """Call a command; errors become one line on stderr and an exit status.

    Returns:
        0; 2 for what the user can mend; 130 for Ctrl-C, 143 for SIGTERM; 1 for anything else, which is a bug.
        ``--debug`` (or ``run.debug``) shows the traceback as well.
    """
    argv = sys.argv[1:] if argv is None else argv
    signals: list[KeyboardInterrupt] = []
    set_level("info")
    try:
        with _told_of(signals):
            return _run(command, argv)
    except (Exception, KeyboardInterrupt) as error:
        # An import in C that a signal cuts short ends in an ImportError, or worse: the signal is the reason.
        cause = signals[0] if signals and not isinstance(error, KeyboardInterrupt | CxrlError) else error
        debug = any(token.split("=")[0].replace("_", "-") in ("--debug", "--run.debug") for token in argv)
        if debug:
            import traceback

            traceback.print_exc()
        line, status = _explain(cause)
        # A Ctrl-C within an exec() of text, as in dataclasses, makes `python -m` end by that signal although
        # it was caught, whatever the exit status; the next exec() clears CPython's note of it.
        exec("")
    print(line, file=sys.stderr, flush=True)
    return status


def _run(command: Callable[[Sequence[str]], None], argv: Sequence[str]) -> int:
    import warnings

    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Unicode shows '?', it does not fail
    try:
        command(argv)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has gone: nobody to tell.
        _close_stdout()
        return EXIT_BUG
    except OSError as error:
        if error.errno is not None and error.filename is None and _stdout_fails():
            _close_stdout()
            raise CxrlError(f"cannot write the standard output: {error.strerror}") from None
        raise
    return 0


def _stdout_fails() -> bool:
    """Whether the standard output takes no line: what failed there names no file."""
    try:
        print(flush=True)
    except OSError:
        return True
    return False


def _close_stdout() -> None:
    """Python must not try to write the rest at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _told_of(signals: list[KeyboardInterrupt]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM are raised, and noted in ``signals``. A signal that is ignored stays so."""

    def stop(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)  # a second one ends a process that cleans up for too long
        signals.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise signals[-1]

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {
            number: signal.signal(number, stop)
            for number, usual in (
                (signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)
            )
            if signal.getsignal(number) == usual
        }  # fmt: skip
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explain(error: BaseException) -> tuple[str, int]:
    """The line and the exit status of an error."""
    if isinstance(error, Terminated):
        return "; ".join(("terminated", *map(str, error.args))), EXIT_TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return "; ".join(("interrupted", *map(str, error.args))), EXIT_INTERRUPTED
    line = _one_line(error)
    if isinstance(error, CxrlError | OSError | ValueError):
        return f"error: {line}", EXIT_USER_ERROR
    if isinstance(error, MemoryError) or any(words in line for words in NO_MEMORY):
        advice = "fewer images, smaller batches or a smaller file need less"
        return f"error: out of memory ({line[:200]}); {advice}", EXIT_USER_ERROR
    if isinstance(error, RecursionError | OverflowError):
        return (
            f"error: a value is too large or too deeply nested ({line[:200]}; --debug shows where)",
            EXIT_USER_ERROR,
        )
    return f"error: {type(error).__name__}: {line} (--debug shows where)", EXIT_BUG


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if is_shown("warning"):
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr, flush=True)


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.strerror}: {error.filename}"
    return " ".join(str(error).split()) or type(error).__name__

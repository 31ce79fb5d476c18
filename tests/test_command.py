"""How commands end: one line, an exit status, whatever happens and whenever."""

import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import warnings

import pytest

from cxrl.command import Terminated, run_command
from cxrl.commands import COMMANDS as ENTRIES
from cxrl.errors import CxrlError
from cxrl.presets import load_preset
from cxrl.train import main as train


@pytest.fixture(autouse=True)
def own_warnings(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


LESS = "fewer images, smaller batches or a smaller file need less"


def raising(error):
    def command(*_):
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "line", "status"),
    [
        (CxrlError("seed: 3"), "error: seed: 3", 2),
        (ValueError("two\n  lines"), "error: two lines", 2),
        (PermissionError(13, "Permission denied", "/x/y"), "error: Permission denied: /x/y", 2),
        (OSError("odd"), "error: odd", 2),
        (RuntimeError("boom"), "error: RuntimeError: boom (--debug shows where)", 1),
        (KeyError(), "error: KeyError: KeyError (--debug shows where)", 1),
        (KeyboardInterrupt(), "interrupted", 130),
        (KeyboardInterrupt("go on with --resume"), "interrupted; go on with --resume", 130),
        (Terminated("go on with --resume"), "terminated; go on with --resume", 143),
        (MemoryError(), f"error: out of memory (MemoryError); {LESS}", 2),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            "error: out of memory (DefaultCPUAllocator: can't allocate memory: you tried 9 bytes); " + LESS,
            2,
        ),
        (
            RecursionError("maximum recursion depth exceeded"),
            "error: a value is too large or too deeply nested (maximum recursion depth exceeded; "
            "--debug shows where)",
            2,
        ),
        (
            OverflowError("int too large"),
            "error: a value is too large or too deeply nested (int too large; --debug shows where)",
            2,
        ),
        (UnicodeEncodeError("utf-8", "\udcff", 0, 1, "no"), None, 2),
    ],
)
def test_every_error_is_one_line_and_a_status(capsys, error, line, status):
    assert run_command(raising(error), []) == status
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert line is None or told == f"{line}\n"


@pytest.mark.parametrize("flag", ["--debug", "--run.debug", "--run.debug=true"])
def test_debug_shows_the_traceback(capsys, flag):
    assert run_command(raising(CxrlError("seed: 3")), [flag]) == 2
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last)")
    assert text.endswith("error: seed: 3\n")


def test_warnings_are_one_line(capsys):
    def command(argv):
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("ratio\n  off", RuntimeWarning, stacklevel=1)

    # pytest replaces showwarning inside tests, so the command's own is called through run_command alone.
    assert run_command(command, []) == 0
    assert capsys.readouterr().err == "warning: ratio off\n"


def test_a_closed_pipe_is_quiet():
    script = (
        "import sys\nfrom cxrl.command import run_command\n"
        "def command(argv):\n    for _ in range(100000): print('line')\n"
        "sys.exit(run_command(command, []))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 1


# A shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that.
USUAL = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"


def process(script):
    return subprocess.Popen(
        [sys.executable, "-c", USUAL + script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize(
    ("number", "line", "status"),
    [(signal.SIGINT, b"interrupted\n", 130), (signal.SIGTERM, b"terminated\n", 143)],
)
def test_a_signal_to_a_real_process_is_one_line(number, line, status):
    running = process(
        "import sys, time\nfrom cxrl.command import run_command\n"
        "def command(argv):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.exit(run_command(command, []))\n"
    )
    assert running.stdout.readline() == b"ready\n"
    started = time.monotonic()
    running.send_signal(number)
    out, err = running.communicate(timeout=30)
    assert (out, err, running.returncode) == (b"", line, status)
    assert time.monotonic() - started < 10


def test_ctrl_c_while_a_class_is_made_is_an_exit_status_too(tmp_path):
    # dataclasses and namedtuple call exec() with text, where CPython takes note of a Ctrl-C for `python -m`.
    (tmp_path / "interrupted_command.py").write_text(
        f"{USUAL}import sys\nfrom cxrl.command import run_command\n"
        "def command(argv):\n    exec('signal.raise_signal(signal.SIGINT)')\n"
        "sys.exit(run_command(command, []))\n"
    )
    path = os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))
    done = subprocess.run(
        [sys.executable, "-m", "interrupted_command"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path},
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == (b"", b"interrupted\n", 130)


def test_a_second_sigterm_ends_what_cleans_up_for_too_long():
    running = process(
        "import sys, time\nfrom cxrl.command import run_command\n"
        "def command(argv):\n"
        "    try:\n        print('ready', flush=True)\n        time.sleep(60)\n"
        "    finally:\n        print('cleaning', flush=True)\n        time.sleep(60)\n"
        "sys.exit(run_command(command, []))\n"
    )
    for word in (b"ready\n", b"cleaning\n"):
        assert running.stdout.readline() == word
        running.terminate()
    running.communicate(timeout=30)
    assert running.returncode == -signal.SIGTERM


COMMANDS = tuple(module.removeprefix("cxrl.") for module, _ in ENTRIES.values())
COMMANDS += ("data.inspect", "data.phantom.__main__")


@pytest.mark.parametrize(
    ("name", "module"),
    [
        (name, module)
        for name in COMMANDS
        for module in ("argparse", "yaml", "cxrl.config")
        if name not in ("push", "completion", "demo")
        or module == "argparse"  # the others come after the options
    ],
)
def test_ctrl_c_while_a_command_is_imported_is_one_line(name, module):
    """The signal comes when the command imports ``module``, before it has read a single option."""
    done = process(
        "import importlib.abc, os, runpy, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name == {module!r}:\n"
        "            os.kill(os.getpid(), 2)\n"
        "sys.meta_path.insert(0, Finder())\n"
        f"sys.argv = ['x', '--out', 'x', '--run', 'x']\n"
        f"runpy.run_module('cxrl.{name}', run_name='__main__')\n"
    )
    out, err = done.communicate(timeout=60)
    assert (out, err, done.returncode) == (b"", b"interrupted\n", 130)


def test_a_signal_that_an_import_turns_into_another_error_is_still_that_signal(capsys):
    def command(argv):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("numpy failed to import") from None

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert run_command(command, []) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert capsys.readouterr().err == "interrupted\n"


def test_handlers_are_put_back_and_ignored_signals_stay_ignored():
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert run_command(lambda argv: signal.raise_signal(signal.SIGTERM), []) == 0
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        seen = []
        assert run_command(lambda argv: seen.append(signal.getsignal(signal.SIGTERM)), []) == 0
        assert callable(seen[0])
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_command_in_a_thread_needs_no_signals():
    status = []
    thread = threading.Thread(target=lambda: status.append(run_command(lambda argv: None, [])))
    thread.start()
    thread.join()
    assert status == [0]


class FakeTrainer:
    """In place of the trainer: leaves what a run leaves when it begins, and is stopped."""

    stop: BaseException
    begins = True

    def __init__(self, config, run_dir, **_):
        self.config, self.run_dir = config, run_dir

    def run(self):
        if self.begins:
            self.run_dir.mkdir()
            (self.run_dir / "config.yaml").write_text(load_preset("smoke").to_yaml())
        raise self.stop


@pytest.mark.parametrize(
    ("stop", "word", "status"), [(KeyboardInterrupt(), "interrupted", 130), (Terminated(), "terminated", 143)]
)
def test_a_stopped_training_says_how_to_go_on(tmp_path, capsys, monkeypatch, stop, word, status):
    monkeypatch.setattr("cxrl.rl.trainer.Trainer", FakeTrainer)
    monkeypatch.setattr(FakeTrainer, "stop", stop, raising=False)
    run = tmp_path / "a run's $HOME"
    assert train(["--preset", "smoke", "--run-dir", str(run)]) == status
    line = capsys.readouterr().err
    assert line.startswith(f"{word}; go on with: cxrl train --run-dir '")
    assert line.count("\n") == 1
    # What a shell makes of the advice is what the command takes.
    words = shlex.split(line.partition(": ")[2])
    assert words == ["cxrl", "train", "--run-dir", str(run), "--resume"]


def test_a_training_that_has_not_begun_has_nothing_to_go_on_with(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cxrl.rl.trainer.Trainer", FakeTrainer)
    monkeypatch.setattr(FakeTrainer, "stop", KeyboardInterrupt(), raising=False)
    monkeypatch.setattr(FakeTrainer, "begins", False)
    assert train(["--preset", "smoke", "--run-dir", str(tmp_path / "r")]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("unbuffered", ["1", ""])
def test_a_full_standard_output_is_named(unbuffered):
    script = (
        "import sys\nfrom cxrl.command import run_command\n"
        "sys.exit(run_command(lambda argv: print('line'), []))\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            check=False,
        )
    assert done.stderr == b"error: cannot write the standard output: No space left on device\n"
    assert done.returncode == 2


def test_a_closed_standard_output_does_not_fail():
    script = (
        "import sys\nfrom cxrl.command import run_command\nsys.exit(run_command(lambda argv: print(1), []))\n"
    )
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} -c {shlex.quote(script)} >&-"],
        stderr=subprocess.PIPE, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_terminal_without_unicode_does_not_fail():
    script = (
        "import sys\nfrom cxrl.command import run_command\n"
        "sys.exit(run_command(lambda argv: print('σ'), []))\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, b"?\n")

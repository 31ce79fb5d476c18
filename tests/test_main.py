"""The entry point: every command by its name, and what is said of them."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time

import pytest

from cxrl.__main__ import main
from cxrl.commands import COMMANDS
from cxrl.version import __version__


def test_without_a_command_they_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        page = capsys.readouterr().out
        assert [line.split()[0] for line in page.splitlines() if line.startswith("  ")] == list(COMMANDS)
        assert "Not for diagnosis" in page
        assert max(map(len, page.splitlines())) <= 100
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cxrl {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([name, "--help"])
    assert stop.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: cxrl {name}")
    assert "--quiet" in page
    with pytest.raises(SystemExit):
        main(["--help", name])
    assert capsys.readouterr().out == page
    with pytest.raises(SystemExit):
        main([name, "--version"])
    module = importlib.import_module(COMMANDS[name][0])
    assert module.parser().prog == f"cxrl {name}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["trian"], "error: unknown command 'trian'; did you mean train? (see cxrl --help)"),
        (["zzz"], "error: unknown command 'zzz'; known: "),
        (["--verison"], "error: unknown option '--verison'; did you mean --version? (see cxrl --help)"),
        (["report"], "error: which run? cxrl report runs/phantom"),
    ],
)
def test_what_is_no_command_is_told(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(message)
    assert told.err.count("\n") == 1


def test_as_a_module_it_is_the_same_and_quick() -> None:
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "cxrl", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout == f"cxrl {__version__}\n"
    assert time.monotonic() - started < 5, "a tenth of a second on a machine of its own"


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_shells_complete_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("train", "--optim.clip-range", "bradley_terry", "roentgen-v2", "--num-images"):
        assert word in script, word


def test_bash_takes_the_completion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = (
        capsys.readouterr().out + '\nCOMP_WORDS=(cxrl tra); COMP_CWORD=1; _shtab_cxrl; echo "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["train"]
    assert main(["completion", "fish"]) == 2
    assert "bash" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--overwirte", "unknown option '--overwirte' (see"),
        ("--ovrwrite", "unknown option '--ovrwrite' (see"),
        ("--qqqqq", "unknown option '--qqqqq' (see"),
        ("--resum", "did you mean --resume?"),
        ("--train.num-epoch", "did you mean --train.num-epochs?"),
        ("--overwrite=yes", "--overwrite: takes no value, got 'yes'"),
        ("--run-dir=-", "'-' is no path here"),
    ],
)
def test_only_what_is_near_and_harmless_is_proposed(
    word: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", word]) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["phantom", "--out", "x.jpg"], "x.jpg is written as PNG; name it x.png"),
        (["inspect", "--data.source", "openi", "--out", "x.JPG"], "x.JPG is written as PNG; name it x.png"),
        (["inspect", "--data.source", "openi", "--data.root", "nosuch"], "data.root: nosuch is no folder"),
    ],
)
def test_a_name_that_would_mislead_or_be_ignored(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert expected in capsys.readouterr().err

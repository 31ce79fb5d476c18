"""Mistyped command lines: each is taken as it says, or refused in one line that names the option."""

import contextlib
import functools
import importlib
import random
import re
import resource
import time

import pytest

from cxrl import arguments, cli
from cxrl.config import sections
from cxrl.errors import CxrlError
from cxrl.options import field_types

NUM = 1500
SECONDS, KILOBYTES = 1.0, 100_000
"""Most processor time of one command line, most memory that all together leave behind."""

VALID = {
    "train": [
        "",
        "--preset smoke --seed 3 --run-dir runs/a --overwrite",
        "--optim.clip-range 1e-4 --train.num_epochs=9 --model.offload --run.trackers none",
        "--rewards.names posture,diagnosis --rewards.weights 1,0.5 --comparison.form win --debug",
        "--data.source table --data.root t.csv --data.label-columns a,b --data.views PA,LATERAL",
        "--preset mimic --data.root /d --eval.sha256 diagnosis=00 --run.debug no --sampler.eta 0.5",
        "--run-dir runs/a --resume --train.num-epochs 5",
    ],
    "doctor": ["--preset openi --model.path m", "--data.source prompts --data.root p.txt"],
    "generate": ["--run r --prompt text --out o --num-images 3 --seed 5 --anchor --format dicom"],
    "export": ["--run r --out new"],
    "push": ["--run r --to a/b", "--run r --to a/b --private --yes"],
    "completion": ["bash"],
    "evaluate": ["--run r --out o.json --num-images 16"],
    "report": ["--run r", "--run r --out page.html"],
    "inspect_data": ["--data.source openi --out s.png --num-films 5 --seed 1 --rebuild --model.path phantom"],
    "pretrain": [
        "--preset smoke --out assets --work-dir w --seed 1",
        "--preset posture --data d --out p.safetensors --steps 5",
        "--base b --table t.csv --out new --steps 5 --batch-size 2 --learning-rate 1e-5",
    ],
    "data.phantom.__main__": ["--out s.png --size 32 --seed 3"],
}
NASTY = [
    "", " ", ",", ",,", "a,,b", "a,a", "none", "-", "--", "-1", "-1,2", "--x", "--=", "--seed", "=",
    "--seed=", "-q", "0", "0100", "1_000", "0x10", "1:30", "1e400", "1e30", "1.5", "nan", "inf", "-inf",
    "9" * 400, "1" + "0" * 30, "\u0661\u0662", "\u00b2", "\uff11", "\0", "a\0b", "\udcff", "\ud800",
    "\u2028", "\x85", "\x1b[31m", "\n", "a\nb", "%s", "%(prog)s", "{}", "{0}", "\\", "'", '"', "$HOME", "~",
    ".", "..", "/dev/null", "/dev/zero", "true", "maybe", "x" * 5000, "--" + "x" * 5000,
    "--optim.clip_rnge", "--data", "--data.", "--.root", "--model.path=", "--no-debug", "@file",
    "--debug=1", "--resume=1", "--preset=smoke", "--preset=", "--config=", "--config=/dev/zero",
    "--run-dir=",
]  # fmt: skip
NAMES = {f"{name}.{f}" for name, section in sections().items() for f in field_types(section)}
ALPHABET = "abcdefghijklmnopqrstuvwxyz.-_=,0123456789é\0"


def mistyped(rng: random.Random, words: list[str]) -> list[str]:
    """A valid command line with one to three mishaps."""
    words = list(words)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        kind = rng.randrange(8)
        at = rng.randrange(len(words)) if words else 0
        if kind == 0 or not words:
            words.insert(rng.randint(0, len(words)), rng.choice(NASTY))
        elif kind == 1:
            words[at] = rng.choice(NASTY)
        elif kind == 2:
            del words[at]
        elif kind == 3:
            words.insert(rng.randint(0, len(words)), words[at])
        elif kind == 4:
            other = rng.randrange(len(words))
            words[at], words[other] = words[other], words[at]
        elif kind == 5 and words[at]:  # another letter
            where = rng.randrange(len(words[at]))
            words[at] = words[at][:where] + rng.choice(ALPHABET) + words[at][where + rng.randint(0, 1) :]
        elif kind == 6 and words[at].startswith("--"):
            words[at] = f"{words[at]}={rng.choice(NASTY)}"
        else:
            words += ["--" + rng.choice(sorted(NAMES)), rng.choice(NASTY)]
    return words


class Parsed(Exception):
    """All options were taken: the command would now begin."""


@pytest.fixture
def commands(monkeypatch):
    """Name → what parses a command line and goes no further."""
    real = arguments.Parser.parse
    checks = {"train": cli.parse_train}

    def parse(self, argv):
        real(self, argv)
        raise Parsed

    def stopped(command, argv):
        with monkeypatch.context() as patch:
            patch.setattr(arguments.Parser, "parse", parse)
            command(argv)

    def doctor(argv):
        cli.resolve(real(cli.ConfigParser("cxrl doctor", ""), argv))

    def pretrain(argv):
        module = importlib.import_module("cxrl.pretrain")
        module._check(real(module.parser(), argv))

    checks |= {"doctor": doctor, "pretrain": pretrain}
    for name, function in (
        ("generate", "_generate"),
        ("export", "_export"),
        ("push", "_push"),
        ("completion", "_completion"),
        ("evaluate", "_evaluate"),
        ("report", "_report"),
        ("inspect_data", "_inspect"),
        ("data.phantom.__main__", "_sheet"),
    ):
        module = importlib.import_module(f"cxrl.{name}")

        checks[name] = functools.partial(stopped, getattr(module, function))
    return checks


def names_the_culprit(message: str, words: list[str]) -> bool:
    """Whether a message holds an option, or the word that is none."""
    message = message.partition(" (see cxrl")[0]
    if re.search(r"--[\w.-]", message) or any(name in message for name in NAMES):
        return True
    words = [part for word in words for part in (word, *word.split("=", 1))]
    quoted = [repr(word)[1:30].rstrip("'") or "''" for word in words]
    return any(name in message for name in ("seed:", "preset", "SHELL", *quoted))


@pytest.mark.timeout(120)
def test_mistyped_command_lines_are_taken_or_named(commands, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rng = random.Random(20240608)
    lines = [(name, text.split()) for name, texts in VALID.items() for text in texts]
    taken = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(NUM):
        name, words = lines[number % len(lines)]
        argv = mistyped(rng, words)
        started = time.thread_time()
        try:
            commands[name](argv)
        except (Parsed, SystemExit):  # the latter from -h
            taken += 1
        except CxrlError as error:
            message = str(error)
            assert names_the_culprit(message, argv), (argv, message)
            assert len(message) < 800, (argv, message)
            message.encode()
        except Exception as error:
            raise AssertionError(f"{name} {argv!r} ended in {error!r}") from error
        else:
            taken += 1
        assert time.thread_time() - started < SECONDS, argv
    capsys.readouterr()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES
    assert NUM * 0.05 < taken < NUM * 0.6, f"{taken} of {NUM} were taken: is anything mistyped, or all?"
    assert not list(tmp_path.iterdir()), "parsing writes nothing"


def test_the_valid_lines_are_valid(commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, texts in VALID.items():
        for text in texts:
            if "--resume" not in text:
                with contextlib.suppress(Parsed):
                    commands[name](text.split())

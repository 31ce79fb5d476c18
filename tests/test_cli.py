"""The command line without any training: parsing, help, and how errors are told."""

import os
import re
import subprocess
import sys
import time
import warnings

import pytest

from cxrl import cli
from cxrl.cli import Parser, at_least, parse_train, run_command, write_text
from cxrl.config import Config, sections
from cxrl.errors import CxrlError
from cxrl.options import field_types
from cxrl.presets import load_preset

COMMANDS = ("train", "generate", "evaluate", "report")


@pytest.fixture(autouse=True)
def own_warnings(monkeypatch):
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)


def fails(capsys, command, argv, *words, status=2):
    """The command prints one line that holds the words and exits with the status."""
    assert run_command(command, argv) == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("error: ")
    for word in words:
        assert word in captured.err, captured.err
    return captured.err


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_quick_and_imports_nothing_heavy(command):
    script = (
        "import sys, runpy\n"
        f"sys.argv = ['x', '--help']\n"
        "try:\n"
        f"    runpy.run_module('cxrl.{command}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert stop.code == 0, stop.code\n"
        "heavy = {'torch', 'numpy', 'diffusers', 'transformers', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    before = os.times()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    spent = after.children_user - before.children_user + after.children_system - before.children_system
    assert spent < 2.0


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        parse_train(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, section in sections().items():
        assert section.help in text
        for field in field_types(section):
            if f"{name}.{field}" != "run.dir":
                assert f"--{name}.{field.replace('_', '-')} " in text
    assert re.search(r"cost is linear in it \[steps, 1 to 1000; default \d+;[^]]* smoke 3\]", text)
    assert "--seed N" in text
    assert "--optim.clip-range X" in text
    assert "--rewards.names NAME,..." in text


def test_the_default_is_the_phantom_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = parse_train([])
    assert options.config.preset == "phantom"
    assert str(options.run_dir) == "runs/phantom"
    assert not options.resume
    assert not options.overwrite
    assert Config.from_dict({"run": {"dir": ""}}, options.config) == load_preset("phantom")
    assert list(tmp_path.iterdir()) == [], "parsing writes nothing"


@pytest.mark.parametrize(
    "argv",
    [
        ["--optim.clip_range", "0.5"],
        ["--optim.clip-range", "0.5"],
        ["--optim.clip-range=0.5"],
        ["--optim.clip_range=5e-1"],
    ],
)
def test_names_with_underscores_or_dashes(argv):
    assert parse_train(argv).config.optim.clip_range == 0.5


def test_every_kind_of_value():
    argv = (
        "--preset smoke --seed 7 --rewards.names posture,diagnosis --rewards.weights 1,0.5 "
        "--model.allow-pickle --run.debug no --run.trackers none --comparison.form win --rewards.path a_b-c"
    )
    config = parse_train(argv.split()).config
    assert (config.preset, config.seed) == ("smoke", 7)
    assert config.rewards.names == ("posture", "diagnosis")
    assert config.rewards.weights == (1.0, 0.5)
    assert config.rewards.path == "a_b-c", "values keep their underscores"
    assert (config.model.allow_pickle, config.run.debug) == (True, False)
    assert config.run.trackers == ()


def test_preset_then_file_then_fields(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("train: {num_epochs: 5, samples_per_prompt: 6}\n")
    train = parse_train(["--preset", "smoke", "--config", str(file), "--train.num-epochs", "9"]).config.train
    assert (train.num_epochs, train.samples_per_prompt, train.prompts_per_epoch) == (9, 6, 2)


def test_the_run_directory_comes_from_the_option_then_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("run: {dir: from-file}\n")
    assert str(parse_train(["--config", str(file)]).run_dir) == "from-file"
    options = parse_train(["--config", str(file), "--run-dir", "given"])
    assert str(options.run_dir) == "given"
    assert options.config.run.dir == "given"


def test_resume_takes_the_configuration_of_the_run(tmp_path):
    (tmp_path / "config.yaml").write_text(load_preset("smoke").to_yaml())
    options = parse_train(["--run-dir", str(tmp_path), "--resume", "--train.num-epochs", "4"])
    assert options.resume
    assert (options.config.preset, options.config.train.num_epochs) == ("smoke", 4)
    assert options.config.sampler == load_preset("smoke").sampler


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--preset", "smok"], ("unknown preset 'smok'", "did you mean smoke?")),
        (
            ["--optim.clip_rnge", "1"],
            ("unknown option '--optim.clip-rnge'", "did you mean --optim.clip-range?"),
        ),
        (["--resum"], ("unknown option '--resum'", "--resume")),
        (["--optim.clip-range", "3"], ("optim.clip_range: 3 is out of range", "above 0, at most 1")),
        (["--train.num-epochs", "3.5"], ("train.num_epochs: '3.5' is not a whole number",)),
        (["--train.num-epochs", "-3"], ("train.num_epochs: -3 epochs is out of range", "at least 1")),
        (["--rewards.weights", "-1,1,1"], ("rewards.weights: -1 is out of range",)),
        (["--model.allow-pickle", "perhaps"], ("model.allow_pickle: 'perhaps' is not true or false",)),
        (["--comparison.form", "wins"], ("comparison.form: 'wins' is not one of", "did you mean win?")),
        (["--run.trackers", "wandbb"], ("run.trackers: 'wandbb' is not one of", "did you mean wandb?")),
        (["extra"], ("unexpected argument 'extra'",)),
        (["--config"], ("argument --config: expected one argument", "--help")),
        (["--config", "none.yaml"], ("cannot read configuration none.yaml: No such file",)),
        (["--resume", "--overwrite"], ("--resume and --overwrite exclude each other",)),
        (["--resume", "--preset", "smoke"], ("leave --preset out",)),
        (["--resume", "--config", "x.yaml"], ("leave --config out",)),
        (["--resume", "--run-dir", "none"], ("nothing to resume in none", "without --resume")),
    ],
)
def test_bad_options_are_one_line(capsys, tmp_path, monkeypatch, argv, words):
    monkeypatch.chdir(tmp_path)
    fails(capsys, parse_train, argv, *words)
    assert list(tmp_path.iterdir()) == []


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
    ],
)
def test_every_error_is_one_line_and_a_status(capsys, error, line, status):
    assert run_command(raising(error), []) == status
    assert capsys.readouterr().err == f"{line}\n"


@pytest.mark.parametrize("flag", ["--debug", "--run.debug", "--run.debug=true"])
def test_debug_shows_the_traceback(capsys, flag):
    assert run_command(raising(CxrlError("seed: 3")), [flag]) == 2
    text = capsys.readouterr().err
    assert text.startswith("Traceback (most recent call last)")
    assert text.endswith("error: seed: 3\n")


def test_debug_is_recorded():
    assert parse_train(["--debug"]).config.run.debug
    assert not parse_train([]).config.run.debug


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
        "import sys\nfrom cxrl.cli import run_command\n"
        "def command(argv):\n    for _ in range(100000): print('line')\n"
        "sys.exit(run_command(command, []))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(30) == 1


def test_ctrl_c_in_a_real_process_is_one_line():
    # A shell that starts the tests in the background has them ignore Ctrl-C, and children inherit that.
    script = (
        "import signal, sys, time\nfrom cxrl.cli import run_command\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def command(argv):\n    print('ready', flush=True)\n    time.sleep(60)\n"
        "sys.exit(run_command(command, []))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    started = time.monotonic()
    process.send_signal(2)
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == (b"", b"interrupted\n", 130)
    assert time.monotonic() - started < 10


def test_a_terminal_without_unicode_does_not_fail():
    script = (
        "import sys\nfrom cxrl.cli import run_command\nsys.exit(run_command(lambda argv: print('σ'), []))\n"
    )
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, env=environment, check=False)
    assert (done.returncode, done.stdout) == (0, b"?\n")


def test_missing_and_bad_options_of_the_other_commands(capsys):
    def command(argv):
        parser = Parser("cxrl.x", "")
        parser.add_argument("--run", required=True)
        parser.add_argument("--num-images", type=at_least(1))
        parser.parse(argv)

    fails(capsys, command, [], "the following arguments are required: --run")
    fails(capsys, command, ["--run", "a", "--num_images", "0"], "'0' is not a whole number of at least 1")
    fails(capsys, command, ["--run", "a", "--num-images", "x"], "'x' is not a whole number")
    fails(capsys, command, ["--run", "a", "--num-image", "1"], "did you mean --num-images?")
    assert run_command(command, ["--run", "a", "--num_images", "3"]) == 0


def test_a_text_file_is_whole_or_absent(tmp_path, monkeypatch):
    write_text(tmp_path / "a" / "b.json", "old")
    monkeypatch.setattr(cli.os, "replace", raising(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left"):
        write_text(tmp_path / "a" / "b.json", "new")
    assert (tmp_path / "a" / "b.json").read_text() == "old"

"""The command line without any training: parsing, help, and how errors are told."""

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import yaml

from cxrl import doctor
from cxrl.arguments import Parser, file_path, real_number, whole_number
from cxrl.cli import FREQUENT, parse_train
from cxrl.command import run_command, say
from cxrl.commands import COMMANDS as ENTRIES
from cxrl.config import Config, sections
from cxrl.errors import CxrlError
from cxrl.options import field_types
from cxrl.presets import load_preset, preset_sentence, presets
from cxrl.train import main as train
from cxrl.version import __version__

COMMANDS = tuple(module.removeprefix("cxrl.") for module, _ in ENTRIES.values())


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


def help_of(capsys, *words):
    with pytest.raises(SystemExit):
        parse_train(words)
    return capsys.readouterr().out


def test_help_explains_every_option(capsys):
    text = " ".join(help_of(capsys, "--help", "all").split())
    for name, section in sections().items():
        assert section.help in text
        for field in field_types(section):
            if f"{name}.{field}" != "run.dir":
                assert f"--{name}.{field.replace('_', '-')} " in text
    assert re.search(r"cost is linear in it \[steps, 1 to 1000; default 8;[^]]* smoke 3\]", text)
    assert "--seed N" in text
    assert "--optim.clip-range X" in text
    assert "--rewards.names NAME,..." in text


def test_the_first_page_of_help_fits_and_shows_what_would_run(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    page = help_of(capsys, "--help")
    assert len(page.splitlines()) < 75
    assert max(map(len, page.splitlines()[1:])) <= 80, "the usage line is left whole"
    options = [line.split()[0] for line in page.splitlines() if line.startswith("  --")]
    of_others = {"--samples", "--reports", "--run", "--out", "--sweep", "--seeds", "--jobs", "--dry-run"}
    assert options[:10] == [name for name in FREQUENT if name not in of_others]
    flat = " ".join(page.split())
    assert "default 24]" in flat
    assert "default bradley_terry;" in flat
    for name in presets():
        assert re.search(rf"^  {name}  +{preset_sentence(name)[:40]}", page, re.M), name
    for name, section in sections().items():
        assert re.search(rf"^  {name}  +{re.escape(section.help[:30])}", page, re.M), name


def test_help_of_a_section_is_of_the_preset_that_is_named(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    flat = " ".join(help_of(capsys, "--preset", "mimic", "--help", "train").split())
    assert "[epochs, 1 to 1000000; default 200; phantom 24; smoke 2]" in flat
    assert "--optim." not in flat
    flat = help_of(capsys, "--help", "model")
    assert "stable-diffusion-v1-5/stable-diffusion-v1-5" in flat, "hub ids are there to be copied"
    with pytest.raises(CxrlError, match="unknown topic 'optin'; did you mean optim"):
        parse_train(["--help", "optin"])


def test_the_resolved_configuration_is_printed_and_read_again(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(["--preset", "smoke", "--seed", "5", "--print-config"]) == 0
    text = capsys.readouterr().out
    (tmp_path / "c.yaml").write_text(text)
    assert sorted(tmp_path.iterdir()) == [tmp_path / "c.yaml"], "nothing was started"
    again, first = parse_train(["--config", "c.yaml"]), parse_train(["--preset", "smoke", "--seed", "5"])
    assert again.config == first.config
    assert doctor.main(["--preset", "smoke", "--seed", "5", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["seed"] == 5


@pytest.mark.parametrize("name", ["--version", "--vers", "--overwrit", "--rebuil"])
def test_no_option_that_destroys_is_proposed(name, capsys):
    def command(argv):
        parse_train(argv)

    if name == "--version":
        with pytest.raises(SystemExit):
            command([name])
        assert capsys.readouterr().out == f"cxrl {__version__}\n"
        return
    line = fails(capsys, command, [name])
    assert "--overwrite" not in line
    assert "--rebuild" not in line


@pytest.mark.filterwarnings("always:doubtful")
def test_quiet_and_levels(capsys):
    assert run_command(lambda argv: say("told"), []) == 0
    assert capsys.readouterr().out == "told\n"

    def quiet(argv):
        parser = Parser("cxrl x", "")
        parser.parse(argv)
        say("told")
        warnings.warn("doubtful", stacklevel=1)

    assert run_command(quiet, ["--quiet"]) == 0
    assert tuple(capsys.readouterr()) == ("", "warning: doubtful\n")
    assert run_command(quiet, ["--log-level", "error"]) == 0
    assert tuple(capsys.readouterr()) == ("", "")
    assert run_command(quiet, ["--log-level", "info"]) == 0
    assert capsys.readouterr().out == "told\n"
    fails(capsys, quiet, ["-q", "--log-level", "info"], "--quiet is --log-level warning")
    fails(capsys, quiet, ["--log-level", "loud"], "debug")


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
        "--model.offload --run.debug no --run.trackers none --comparison.form win --rewards.path a_b-c"
    )
    config = parse_train(argv.split()).config
    assert (config.preset, config.seed) == ("smoke", 7)
    assert config.rewards.names == ("posture", "diagnosis")
    assert config.rewards.weights == (1.0, 0.5)
    assert config.rewards.path == "a_b-c", "values keep their underscores"
    assert (config.model.offload, config.run.debug) == (True, False)
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
        (["--train.num-epochs", "-3"], ("train.num_epochs: -3 epochs is out of range", "expected 1 to")),
        (["--train.num-epochs", "1_000"], ("train.num_epochs: '1_000' is not a whole number",)),
        (["--train.num-epochs", "9" * 400], ("train.num_epochs: '999", "is not a whole number")),
        (["--eval.num-images", "1000000000"], ("eval.num_images: 1000000000 images is out of range",)),
        (["--seed", "١٢"], ("seed: '١٢' is not a whole number",)),
        (
            ["--rewards.names", "posture,,diagnosis"],
            ("rewards.names: 'posture,,diagnosis' has an empty entry",),
        ),
        (["--rewards.names", "posture,posture"], ("rewards.names: 'posture' is given twice",)),
        (["--rewards.weights", ""], ("rewards.weights: 0 weights for rewards posture",)),
        (["--rewards.names", ""], ("rewards.names: '' is empty",)),
        (["--model.path", ""], ("model.path: the text is empty; expected one such as 'phantom'",)),
        (["--model.path", "a\udcff"], ("--model.path: 'a\\udcff' holds NUL or bytes that are not UTF-8",)),
        (["--model.path=a\0"], ("--model.path: 'a\\x00' holds NUL or bytes that are not UTF-8",)),
        (["a\0"], ("the command line: 'a\\x00' holds NUL",)),
        (["--run-dir", ""], ("argument --run-dir: the path is empty",)),
        (["--run-dir", "r\udcff"], ("--run-dir: 'r\\udcff' holds NUL or bytes that are not UTF-8",)),
        (["--preset", ""], ("unknown preset ''",)),
        (["--config", ""], ("argument --config: the path is empty",)),
        (["--config", "."], ("cannot read configuration .: it is a folder",)),
        (["--config", "/dev/zero"], ("/dev/zero: it is no regular file",)),
        (["x" * 100_000], ("unexpected argument 'xxx",)),
        (["--" + "x" * 100_000], ("unknown option '--xxx",)),
        (["--resume=1"], ("argument --resume: takes no value, got '1'",)),
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


def test_debug_is_recorded():
    assert parse_train(["--debug"]).config.run.debug
    assert not parse_train([]).config.run.debug


def test_a_file_without_a_preset_goes_over_the_default_one(tmp_path):
    (tmp_path / "mine.yaml").write_text("seed: 3\n")
    config = parse_train(["--config", str(tmp_path / "mine.yaml")]).config
    assert Config.from_dict({"seed": 0, "run": {"dir": ""}}, config) == load_preset("phantom")
    (tmp_path / "mine.yaml").write_text("preset: smoke\n")
    assert parse_train(["--config", str(tmp_path / "mine.yaml")]).config.preset == "smoke"
    with pytest.raises(CxrlError, match=r"mine\.yaml: its preset is smoke, but openi is asked for"):
        parse_train(["--preset", "openi", "--config", str(tmp_path / "mine.yaml")])


def test_values_that_look_like_options_or_numbers():
    assert parse_train(["--rewards.names", "a", "--rewards.weights", "1"]).config.rewards.weights == (1.0,)
    assert parse_train(["--run-dir", "-5"]).run_dir.name == "-5"
    assert parse_train(["--run-dir=--odd"]).run_dir.name == "--odd"


@pytest.mark.parametrize("text", ["0", "101", "x", "1.5", "1_0", "١", "9" * 400, "nan", "", "0x1", "-1"])
def test_whole_numbers_of_the_commands(text):
    with pytest.raises(
        argparse.ArgumentTypeError, match="is not a whole number of at least 1 and at most 100"
    ):
        whole_number(1, 100)(text)
    assert [whole_number(1, 100)(t) for t in ("1", "100", "007", " 5 ", "+5")] == [1, 100, 7, 5, 5]


@pytest.mark.parametrize("text", ["0", "1.1", "x", "nan", "inf", "1e400", "-1", "1_0"])
def test_numbers_of_the_commands(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not a number above 0 and at most 1"):
        real_number(0, 1)(text)
    assert real_number(0, 1)("1e-5") == 1e-5


def test_a_path_is_not_empty_and_not_too_long():
    for text in ("", "  "):
        with pytest.raises(argparse.ArgumentTypeError, match="the path is empty"):
            file_path(text)
    for text in ("x" * 256, "a/" + "ä" * 128 + "/b", "a/" * 2050):
        with pytest.raises(argparse.ArgumentTypeError, match="is too long for a path"):
            file_path(text)
    assert file_path("a/" + "x" * 255).name == "x" * 255


ROOT = Path(__file__).parents[1]
DOCUMENTED = [
    command
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for command in re.findall(
        r"^(?:python -m cxrl\.|cxrl )train ([^`\n]+)$",
        page.read_text().replace("\\\n", ""),
        flags=re.MULTILINE,
    )
]


@pytest.mark.parametrize("command", DOCUMENTED)
def test_the_command_lines_of_the_documentation_are_taken(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)
    words = words[: words.index(">")] if ">" in words else words
    for name, value in itertools.pairwise(words):
        if name == "--run-dir" and "--resume" in words:
            (tmp_path / value).mkdir(parents=True)
            (tmp_path / value / "config.yaml").write_text(load_preset("phantom").to_yaml())
        elif name == "--config":
            (tmp_path / value).write_text("train: {num_epochs: 9}\n")
    if "--help" in words:
        with pytest.raises(SystemExit):
            parse_train(words)
    else:
        parse_train(words)


def test_the_documentation_has_command_lines():
    assert len(DOCUMENTED) >= 5


def test_missing_and_bad_options_of_the_other_commands(capsys):
    def command(argv):
        parser = Parser("cxrl.x", "")
        parser.add_argument("--run", required=True)
        parser.add_argument("--num-images", type=whole_number(1, 100))
        parser.parse(argv)

    fails(capsys, command, [], "the following arguments are required: --run")
    fails(capsys, command, ["--run", "a", "--num_images", "0"], "'0' is not a whole number of at least 1")
    fails(capsys, command, ["--run", "a", "--num-images", "x"], "'x' is not a whole number")
    fails(capsys, command, ["--run", "a", "--num-image", "1"], "did you mean --num-images?")
    assert run_command(command, ["--run", "a", "--num_images", "3"]) == 0


def test_paths_of_a_run_are_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("base", "data", "rewards", "phantom"):
        (tmp_path / folder).mkdir()
    (tmp_path / "weights.pt").touch()
    words = "--model.path base --data.source table --data.root data --rewards.path rewards"
    words += " --eval.diagnosis densenet121-res224-chex:weights.pt --eval.consistency some/hub-id"
    options = parse_train(words.split())
    config = options.config
    assert config.model.path == str(tmp_path / "base")
    assert config.data.root == str(tmp_path / "data")
    assert config.rewards.path == str(tmp_path / "rewards")
    assert config.eval.diagnosis == f"densenet121-res224-chex:{tmp_path / 'weights.pt'}"
    assert (config.eval.consistency, config.eval.judges) == ("some/hub-id", "phantom")

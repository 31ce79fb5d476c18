"""The pages of docs/ tell the truth: names, files, links, options and commands that they give exist."""

from __future__ import annotations

import ast
import importlib
import json
import pkgutil
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cxrl import command
from cxrl.cli import train_parser
from cxrl.commands import COMMANDS
from cxrl.config import Config, sections
from cxrl.options import field_types

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
TEXTS = {path.name: path.read_text(encoding="utf-8") for path in PAGES}
TOUR = json.loads((ROOT / "docs" / "tour.ipynb").read_text(encoding="utf-8"))
TEXTS["tour.ipynb"] = "\n".join("".join(cell["source"]) for cell in TOUR["cells"])
NAME = re.compile(r"`(cxrl(?:\.\w+)+)\b")
of_every_page = pytest.mark.parametrize("page", TEXTS)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def commands(text: str) -> Iterator[list[str]]:
    """Every ``cxrl NAME …`` of a page, as words after ``cxrl``."""
    lines = [line for block in blocks(text, "sh") for line in block.replace("\\\n", "").splitlines()] + [
        " ".join(found.split()) for found in re.findall(r"`(cxrl [^`]*)`", text)
    ]
    for line in lines:
        if re.match("cxrl [a-z]+\\b", line):
            yield shlex.split(line, comments=True)[1:]


@of_every_page
def test_names_of_the_code_exist(page: str) -> None:
    names = NAME.findall(TEXTS[page]) + re.findall(r"^::: ([\w.]+)$", TEXTS[page], re.M)
    for name in names:
        pkgutil.resolve_name(name)


def test_there_is_something_to_check() -> None:
    assert len(NAME.findall(TEXTS["metrics.md"])) > 30
    assert len(re.findall(r"^::: ", TEXTS["api.md"], re.M)) > 20
    assert len(list(commands(TEXTS["command-line.md"]))) > 15
    assert len(re.findall(r"--\w+\.[\w-]+", TEXTS["troubleshooting.md"])) > 30


def functions_of(page: str) -> Iterator[tuple[Path, str]]:
    """Of "`FILE`: `name`, `Class.name`": the file and each of the names."""
    for file, names in re.findall(r"`((?:cxrl|examples)/[\w/]+\.py)`: (`[^|;\n]*)", TEXTS[page]):
        for name in re.findall(r"`([A-Za-z_][\w.]*)`", names):
            yield ROOT / file, name


def test_the_method_is_where_the_page_says() -> None:
    """Also in classes, and without an import: what is re-exported elsewhere is not there."""
    found = list(functions_of("method.md"))
    assert len(found) > 40
    for file, name in found:
        assert name in defined(file), (file.name, name)


def defined(file: Path) -> set[str]:
    """Names of the functions, classes, methods and constants that a file defines."""
    names = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return names


def test_the_column_of_the_one_file_names_what_it_has() -> None:
    names = defined(ROOT / "examples" / "cxrl_in_one_file.py")
    methods = {name.partition(".")[2] for name in names if "." in name}
    rows = [line.split(" | ") for line in TEXTS["method.md"].splitlines() if line.startswith("| ")]
    told = {name for row in rows if len(row) == 4 for name in re.findall(r"`([\w.]+)`", row[1])}
    assert len(told) > 10
    assert told <= names | methods


@of_every_page
def test_files_exist(page: str) -> None:
    folders = "cxrl|tests|csrc|benchmarks|kernels|examples|docs"
    for path in re.findall(rf"`((?:{folders})/[\w./-]+)`", TEXTS[page]):
        assert (ROOT / path).exists(), path
    for path in re.findall(r"python (benchmarks/[\w/]+\.py|examples/[\w/]+\.py)", TEXTS[page]):
        assert (ROOT / path).exists(), path


@of_every_page
def test_links_stay_within_the_site_and_lead_somewhere(page: str) -> None:
    made = {"tour.md"}
    for target in re.findall(r"\]\((?!https?:)([^)\s]+)\)", TEXTS[page]):
        file, _, anchor = target.partition("#")
        assert not file.startswith(("/", "..")), f"{target} leaves docs/, and is nowhere on the site"
        assert not file or file in made or (ROOT / "docs" / file).is_file(), target
        if anchor:
            assert anchor in anchors(TEXTS[file or page]), target


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", text, re.M)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


@of_every_page
def test_options_exist(page: str) -> None:
    known = {name for action in train_parser()._actions for name in action.option_strings}
    for option in re.findall(r"--([a-z]+\.[a-z0-9_-]+)", TEXTS[page]):
        assert f"--{option.replace('_', '-')}" in known, option
    fields = {name: set(field_types(section)) for name, section in sections().items()}
    for section, field in re.findall(r"[`\"](?:--)?([a-z]+)\.([a-z][a-z0-9_]*)[`\"]", TEXTS[page]):
        if section in fields and f"{section}.{field}" not in ("run.metrics", "run.summary"):
            assert field in fields[section], f"{section}.{field}"


@of_every_page
def test_commands_can_be_given(page: str) -> None:
    for name, *words in commands(TEXTS[page]):
        assert name in COMMANDS, name
        parser = importlib.import_module(COMMANDS[name][0]).parser()
        known = {option for action in parser._actions for option in action.option_strings}
        for word in words:
            if word.startswith("-") and word != "-":
                option = word.split("=")[0]
                assert option.replace("_", "-") in known, (name, option)


def test_every_command_has_a_section_with_an_example() -> None:
    parts = re.split(r"^## cxrl (\w+)$", TEXTS["command-line.md"], flags=re.M)[1:]
    told = dict(zip(parts[::2], parts[1::2], strict=True))
    assert told.keys() == COMMANDS.keys()
    for name, text in told.items():
        assert any(words[0] == name for words in commands(text)) or name == "completion", name
    common = importlib.import_module("cxrl.report").parser().common
    for action in common._group_actions:
        assert f"`{action.option_strings[-1]}" in TEXTS["command-line.md"], action.option_strings


def test_the_statuses_are_those_of_the_commands() -> None:
    rows = dict(re.findall(r"^\| (\d+) \| (\S+)", TEXTS["command-line.md"], re.M))
    ends = {command.EXIT_USER_ERROR, command.EXIT_BUG, command.EXIT_INTERRUPTED, command.EXIT_TERMINATED}
    assert {int(status) for status in rows} == {0, *ends}
    assert int(next(status for status, text in rows.items() if text == "Ctrl-C;")) == command.EXIT_INTERRUPTED


def test_the_example_of_a_file_loads() -> None:
    (text,) = blocks(TEXTS["configuration.md"], "yaml")
    config = Config.from_dict(yaml.safe_load(text))
    assert (config.train.num_epochs, config.comparison.form) == (12, "win")


def test_the_figures_of_the_study_are_the_measured_ones() -> None:
    """Troubleshooting says by how much a setting mattered."""
    rows = json.loads((ROOT / "benchmarks" / "results" / "phantom_study.json").read_text())
    study = {row["variant"]: row["relative"] for row in rows}
    text = TEXTS["troubleshooting.md"]

    def percent(variant: str) -> str:
        return f"−{-100 * study[variant]['misalignment']:.1f} %"

    for variant in ("default", "smaller steps", "KL to the anchor", "one anchor image a sample"):
        assert percent(variant) in text, variant
    assert text.count(percent("default")) == 2
    for variant in ("default", "one anchor image a sample"):
        assert f"AUROC {study[variant]['auroc']:+.3f}" in text or f"{study[variant]['auroc']:+.3f}" in text
    for variant, told in (("KL to the anchor", "97 %"), ("smaller steps", "99 %")):
        assert f"{100 * study[variant]['diversity']:.0f} %" == told
        assert told in text
    gain = study["default"]["misalignment"]
    assert 0.3 < 1 - study["without ACE"]["misalignment"] / gain < 0.4  # "a third"
    assert 0.6 < study["16 prompts, 6 samples each"]["misalignment"] / gain < 0.7  # "two thirds"
    assert 0.3 < study["smaller steps"]["misalignment"] / gain < 0.37  # "a third"


@pytest.mark.slow
def test_the_example_in_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(TEXTS["api.md"], "python")
    names: dict[str, Any] = {}
    exec(compile(code, "api.md", "exec"), names)
    assert tuple(names["images"].shape) == (2, 4, 1, 64, 64)
    assert names["again"]["num_images"] == 64
    assert len(names["run"].metrics) == 4

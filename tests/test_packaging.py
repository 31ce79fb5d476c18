"""What the package asks of where it is installed: its dependencies, all and no others, and no home."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("cxrl", "kernels") for path in (ROOT / folder).rglob("*.py"))
# Imported by accelerate and transformers, where the sources of cxrl say these words.
BY_OTHERS = {"tensorboard": '("tensorboard",)', "torchvision": "transformers.AutoImageProcessor"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*, extras: bool) -> set[str]:
    """Distributions that pyproject.toml names, the extras for users among them if ``extras``."""
    tomllib = pytest.importorskip("tomllib")  # since Python 3.11
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    if extras:
        wanted += [r for name, rs in project["optional-dependencies"].items() if name != "dev" for r in rs]
    return {normal(re.split(r"[<>=~!; \[]", requirement)[0]) for requirement in wanted}


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that a file imports anywhere, by statement or by importlib."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "find_spec")):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant))


def imported() -> dict[str, Path]:
    """Distribution → a file that imports it."""
    distributions = {module: names[0] for module, names in packages_distributions().items()}
    found = {}
    for path in SOURCES:
        for module in imports(ast.parse(path.read_text())):
            top = module.partition(".")[0]
            if top in sys.stdlib_module_names or top in ("cxrl", "cxrl_kernels"):
                continue
            found[normal(distributions.get(top, top))] = path
    return found


def test_every_import_is_declared() -> None:
    wanted = declared(extras=True)
    assert {name: path for name, path in imported().items() if name not in wanted} == {}


def test_every_declared_dependency_is_imported() -> None:
    assert declared(extras=True) - imported().keys() == set(BY_OTHERS)
    text = "".join(path.read_text() for path in SOURCES)
    assert all(words in text for words in BY_OTHERS.values())


def test_what_an_extra_brings_is_imported_late() -> None:
    optional = declared(extras=True) - declared(extras=False)
    for path in SOURCES:
        for statement in ast.parse(path.read_text()).body:
            if isinstance(statement, ast.Import | ast.ImportFrom):
                assert not optional & {m.partition(".")[0] for m in imports(statement)}, path


def calls_for_a_home(tree: ast.AST) -> Iterator[tuple[ast.Call, bool]]:
    """Calls of ``Path.home`` and ``expanduser``, and whether somebody expects that there is none."""

    def walk(node: ast.AST, expected: bool) -> Iterator[tuple[ast.Call, bool]]:
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".home", "expanduser")):
            yield node, expected and not ast.unparse(node.func).startswith("os.path")
        if isinstance(node, ast.Try):
            caught = {ast.unparse(h.type) for h in node.handlers if h.type is not None}
            for part in node.body:
                yield from walk(part, expected or "RuntimeError" in caught)
            for part in (*node.handlers, *node.orelse, *node.finalbody):
                yield from walk(part, expected)
            return
        for child in ast.iter_child_nodes(node):
            yield from walk(child, expected)

    yield from walk(tree, False)


def test_a_user_without_a_home_is_expected_everywhere() -> None:
    """pathlib raises RuntimeError then; os.path.expanduser would leave a folder named ``~``."""
    calls = [(path, *found) for path in SOURCES for found in calls_for_a_home(ast.parse(path.read_text()))]
    assert len(calls) >= 3
    assert [f"{path}:{call.lineno}" for path, call, expected in calls if not expected] == []

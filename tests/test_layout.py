"""What the layout promises: one op name, one file everywhere; the import of the package costs nothing."""

from __future__ import annotations

import ast
import functools
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cxrl
from cxrl.storage import layout

ROOT = Path(__file__).parents[1]
OPS = ("attention", "pairwise_comparison", "trajectory_log_prob")
TESTS_OF_BACKENDS = (
    {"triton", "cuda", "cuda_emulation", "kernel_resources"} | {f"triton_{op}" for op in OPS}
)  # fmt: skip


def op_files(folder: str, pattern: str, prefix: str = "") -> set[str]:
    return {path.stem.removeprefix(prefix) for path in (ROOT / folder).glob(pattern)}


@pytest.mark.parametrize(
    ("folder", "pattern", "prefix", "others"),
    [
        ("cxrl/ops", "[a-z]*.py", "", {"tune"}),
        ("csrc/cpu", "*.cpp", "", {"dispatch", "kernels"}),
        ("tests/ops", "test_*.py", "test_", {"compiled", "dispatch", "tune", *TESTS_OF_BACKENDS}),
        ("benchmarks", "test_*.py", "test_", {"phantom", "rollout", "train_step"}),
    ],
)
def test_one_file_for_each_op(folder: str, pattern: str, prefix: str, others: set[str]) -> None:
    names = op_files(folder, pattern, prefix)
    assert set(OPS) <= names
    assert names - set(OPS) <= others


@pytest.mark.parametrize(
    ("folder", "pattern"), [("kernels/cxrl_kernels", "[a-z]*.py"), ("csrc/cuda", "*.cu")]
)
def test_gpu_files_are_named_after_their_op(folder: str, pattern: str) -> None:
    assert op_files(folder, pattern) == set(OPS)


def test_kernels_is_no_package() -> None:
    # A top-level package `kernels` would shadow the library of that name for everything run from here.
    assert not (ROOT / "kernels" / "__init__.py").exists()
    program = (
        "import importlib.util as u, sys\n"
        "spec = u.find_spec('kernels')\n"
        "assert spec is None or spec.origin is not None or spec.loader is None, spec\n"
        "import cxrl_kernels, pathlib\n"
        "assert pathlib.Path(cxrl_kernels.__file__).parent.name == 'cxrl_kernels'\n"
        "assert 'triton' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "cxrl").rglob("*.py"))
}
COMMANDS = {"cxrl.data.inspect", "cxrl.data.phantom.__main__"}
"""On the commands' floor, wherever their files are."""


@functools.cache
def imports(module: str) -> set[str]:
    """Modules of the package that a module imports, also within functions and for type checking."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{module}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return {name for name in found if name.split(".")[0] == "cxrl" and name != "cxrl._C"}


def floors() -> dict[str, int]:
    """Room → height, from CONTRIBUTING."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = text.split("```floors\n")[1].split("```")[0]
    lines = [re.split(r"\s{2,}", line)[0].split() for line in block.splitlines()]
    return {room: height for height, line in enumerate(reversed(lines)) for room in line}


def floor(module: str, heights: dict[str, int]) -> int:
    return max(heights.values()) if module in COMMANDS else heights[module.split(".")[1]]


def room(module: str) -> str:
    return module if module in COMMANDS else module.split(".")[1]


def test_imports_point_down() -> None:
    heights = floors()
    rooms = {module.split(".")[1] for module in MODULES if module != "cxrl"}
    assert rooms == heights.keys()
    upward = [
        f"{module} imports {name}"
        for module in MODULES
        if module != "cxrl"
        for name in imports(module) - {"cxrl"}
        if room(module) != room(name) and floor(name, heights) >= floor(module, heights)
        if not (module in COMMANDS and floor(name, heights) == max(heights.values()))
    ]
    assert upward == []


def test_nothing_imports_the_face() -> None:
    assert [module for module in MODULES if "cxrl" in imports(module)] == []


def test_no_circle() -> None:
    ordered = graphlib.TopologicalSorter({m: imports(m) for m in MODULES if m != "cxrl"})
    ordered.prepare()  # raises CycleError, which names the circle


def test_the_layout_of_a_run_is_named_in_one_place() -> None:
    names = set(vars(layout)) & {"CONFIG", "METRICS", "SUMMARY", "WEIGHTS_FILE", "EMA_FILE", "ADAPTER_FILE"}
    files = {vars(layout)[name] for name in names}
    assert len(files) == 6
    for module, path in MODULES.items():
        if module == "cxrl.storage.layout":
            continue
        strings = {
            node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)
        }
        assert not strings & files, (module, strings & files)


def test_the_name_of_what_ships_is_resolved_in_one_place() -> None:
    """Elsewhere "phantom" is compared with a source of data alone, or with a preset of cxrl.pretrain."""
    compared = {
        f"{module}: {ast.unparse(node)}"
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Compare)
        and any(isinstance(part, ast.Constant) and part.value == "phantom" for part in ast.walk(node))
        and not ast.unparse(node.left).endswith(".source")
    }
    assert compared == {"cxrl.pretrain: args.preset == 'phantom'"}
    parts = {path.name for path in (ROOT / "cxrl" / "assets").iterdir()}
    named = {m for m, path in MODULES.items() if '"assets"' in path.read_text(encoding="utf-8")}
    assert (parts, named) == ({"phantom"}, {"cxrl.shipped"})


WRITES = re.compile(r"\bos\.(replace|rename)\(|\.write_(text|bytes)\(|open\([^)]*[\"'][wax]b?\+?[\"']")


def test_files_are_written_in_one_place() -> None:
    """But for what is not a file of its own: a line of the metrics, files of libraries."""
    elsewhere = {m for m, path in MODULES.items() if WRITES.search(path.read_text())}
    assert elsewhere == {
        "cxrl.storage.writing",
        "cxrl.storage.checkpoint",  # renames folders
        "cxrl.storage.run_dir",  # adds lines to the metrics; the marker
        "cxrl.models.adapter",  # reorders a header within the file that is being written
        "cxrl.rl.drawing",  # adds a line an image
        "cxrl.sweep.runner",  # the log of a run's process, and the lock
        "cxrl.data.index",  # writes line by line, into the file that is being written
        "cxrl.pretraining.text_encoder",  # a tokenizer's files, beside those that transformers writes
        "cxrl.ops.tune",  # ops import nothing of the project
    }


def test_import_is_light() -> None:
    program = "import cxrl, sys; assert 'torch' not in sys.modules, 'importing cxrl imports torch'"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_public_surface() -> None:
    assert set(cxrl.__all__) <= set(dir(cxrl))
    for name in cxrl.__all__:
        assert getattr(cxrl, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'trian'; public names: Config"):
        cxrl.trian  # noqa: B018


def test_every_mutant_still_applies() -> None:
    """``tests/mutants.py`` lists places in the code; a change that moves one moves the list too."""
    command = [sys.executable, "tests/mutants.py", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

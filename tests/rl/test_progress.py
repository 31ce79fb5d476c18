"""What a user's own progress is told, and what becomes of its errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cxrl.errors import CxrlError
from cxrl.rl.progress import Progress, checked


class Own(Progress):
    """Notes what it is told; the method ``fails`` raises."""

    def __init__(self, fails: str = "") -> None:
        self.told: list[Any] = []
        self.fails = fails

    def _note(self, name: str, *what: Any) -> None:
        self.told.append((name, *what))
        if name == self.fails:
            raise ValueError(f"no {name}")

    @contextlib.contextmanager
    def stage(self, name: str, total: int) -> Iterator[None]:
        self._note("stage", name, total)
        try:
            yield
        finally:
            self._note("end", name)

    def advance(self, count: int) -> None:
        self._note("advance", count)

    def evaluation(self, epoch: int, record: dict[str, Any]) -> None:
        self._note("evaluation", epoch, record)

    def checkpoint(self, path: Path) -> None:
        self._note("checkpoint", path)

    def epoch(self, record: dict[str, Any]) -> None:
        self._note("epoch", record)

    def message(self, text: str) -> None:
        self._note("message", text)


CALLS: dict[str, tuple[Any, ...]] = {
    "advance": (3,),
    "evaluation": (1, {"a": 2}),
    "checkpoint": (Path("p"),),
    "epoch": ({"b": 1},),
    "message": ("text",),
}


def test_everything_is_passed_on() -> None:
    own = Own()
    progress = checked(own)
    with progress.stage("drawing", 5):
        for name, arguments in CALLS.items():
            getattr(progress, name)(*arguments)
    called = [(name, *arguments) for name, arguments in CALLS.items()]
    assert own.told == [("stage", "drawing", 5), *called, ("end", "drawing")]
    methods = {name for name in vars(Progress) if not name.startswith("_")}
    assert methods == {*CALLS, "stage"}, "a new method is passed on too"


@pytest.mark.parametrize("name", CALLS)
def test_what_raises_is_named(name: str) -> None:
    with pytest.raises(CxrlError, match=f"progress: Own.{name} raised ValueError: no {name}"):
        getattr(checked(Own(name)), name)(*CALLS[name])


@pytest.mark.parametrize("name", ["stage", "end"])
def test_a_stage_that_raises_is_named(name: str) -> None:
    with (
        pytest.raises(CxrlError, match=f"progress: Own.stage raised ValueError: no {name}"),
        checked(Own(name)).stage("s", 1),
    ):
        pass


@pytest.mark.parametrize("error", [KeyError("mine"), CxrlError("told"), KeyboardInterrupt()])
def test_what_fails_within_a_stage_stays_what_it_is(error: BaseException) -> None:
    own = Own()
    with pytest.raises(type(error)) as raised, checked(own).stage("s", 1):
        raise error
    assert raised.value is error
    assert own.told[-1] == ("end", "s")

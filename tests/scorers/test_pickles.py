"""Pickles of others are read without running any of their code, and refused where they need more."""

from __future__ import annotations

import os
import shutil
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cxrl.errors import CxrlError
from cxrl.scorers import pickles
from cxrl.scorers.choice import file_sha256
from cxrl.scorers.pickles import read_pickled_state
from cxrl.scorers.xrv_densenet import import_xrv


def read(path: Path) -> dict[str, torch.Tensor]:
    return read_pickled_state(path, sha256=file_sha256(path), option="rewards.diagnosis")


@pytest.mark.parametrize("zipped", [False, True])
def test_a_whole_network_gives_its_state(write_densenet: Callable[..., Path], zipped: bool) -> None:
    path = write_densenet(3, zipped=zipped)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import_xrv()
        expected = torch.load(path, weights_only=False).state_dict()
    found = read(path)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not any(value.requires_grad for value in found.values())


@pytest.mark.parametrize("zipped", [False, True])
def test_a_state_dict_is_itself(tmp_path: Path, zipped: bool) -> None:
    state = OrderedDict(a=torch.rand(3, 5).T, b=torch.arange(4), c=torch.rand(2).half(), d=torch.tensor(2.0))
    torch.save(state, tmp_path / "state.pth", _use_new_zipfile_serialization=zipped)
    found = read(tmp_path / "state.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[k], v) and found[k].dtype == v.dtype for k, v in state.items())


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("zipped", [False, True])
def test_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pt"
    torch.save({"weight": torch.zeros(1), "x": Evil(marker)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CxrlError, match=r"rewards\.diagnosis: .*evil\.pt cannot be read .*nsupported"):
        read(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "reduced",
    [
        (getattr, (dict, "fromkeys")),
        (torch.nn.Linear, (1, 1)),
        (eval, ("1",)),
        (torch.load, ("x",)),
        (import_xrv, ()),
    ],
    ids=["getattr", "module_called", "eval", "torch.load", "project"],
)
def test_no_other_name_is_looked_up(tmp_path: Path, reduced: tuple[Any, ...]) -> None:
    class Other:
        def __reduce__(self) -> tuple[Any, ...]:
            return reduced

    path = tmp_path / "other.pt"
    torch.save({"x": Other()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CxrlError, match="cannot be read without running code"):
        read(path)


def test_a_constructor_of_an_allowed_class_is_not_called(tmp_path: Path) -> None:
    # DenseNet(weights=…) would download, and load another pickle without any check.
    class Call:
        def __reduce__(self) -> tuple[Any, ...]:
            return import_xrv().models.DenseNet, (32,)

    path = tmp_path / "call.pt"
    torch.save(Call(), path, _use_new_zipfile_serialization=False)
    with pytest.raises(CxrlError, match="cannot be read"):
        read(path)


def test_another_digest_is_refused_before_the_file_is_opened(
    densenet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pickles, "_OldFile", None)
    monkeypatch.setattr(torch, "load", None)
    path = tmp_path / "copy.pt"
    shutil.copy(densenet, path)
    with path.open("r+b") as file:
        file.seek(10**6)
        file.write(b"\0\1\2\3")
    with pytest.raises(
        CxrlError, match=r"has SHA-256 [0-9a-f]{64}, expected [0-9a-f]{64}; .*--rewards\.sha256"
    ):
        read_pickled_state(path, sha256=file_sha256(densenet), option="rewards.diagnosis")
    with pytest.raises(CxrlError, match=r"no SHA-256 is known for it; .*--rewards\.sha256 diagnosis=HEX"):
        read_pickled_state(path, sha256="", option="rewards.diagnosis")


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.999])
def test_truncated_files_are_refused(densenet: Path, tmp_path: Path, keep: float) -> None:
    data = densenet.read_bytes()
    path = tmp_path / "cut.pt"
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(CxrlError, match=r"cut\.pt cannot be read"):
        read(path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"a": 1}, {"a": {"b": torch.zeros(1)}}, "text"])
def test_anything_but_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(CxrlError, match="expected the tensors of a network, nothing else"):
        read(tmp_path / "odd.pt")

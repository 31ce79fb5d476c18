"""Damaged pickles, zipped and old-style: tensors, or a CxrlError that names the file; no code, no crash."""

from __future__ import annotations

import random
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from cxrl.errors import CxrlError
from cxrl.scorers.choice import file_sha256
from cxrl.scorers.pickles import read_pickled_state

NASTY = (
    b"cos\nsystem\n(S'true'\ntR.", b"\x80\x02cposix\nsystem\n", b"cbuiltins\neval\n", b"\x95" + b"\xff" * 8,
    b"\x8e" + b"\xff" * 8, b"(" * 3000, b"]" * 3000, b"}" * 300 + b"s" * 300, b"Vx\n" * 50,
    b"L" + b"9" * 5000 + b"L\n.", b"\x94" * 100, b"j\xff\xff\xff\x7f", b"Q", b"R", b".", b"",
    b"\x00" * 64, b"0" * 200,
)  # fmt: skip


def damaged(data: bytes, rng: random.Random) -> bytes:
    place, kind = rng.randrange(len(data)), rng.randrange(4)
    if kind == 0:
        return data[:place]
    if kind == 1:
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
    if kind == 2:
        return data[:place] + rng.choice(NASTY) + data[place:]
    return data[:place] + rng.choice(NASTY) + data[place + rng.randrange(1, 40) :]


def outcome(path: Path) -> str | None:
    """The message that reading ended in, None for tensors."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_pickled_state(path, sha256=file_sha256(path), option="rewards.diagnosis")
    except CxrlError as error:
        return str(error)
    assert all(isinstance(value, torch.Tensor) for value in found.values())
    return None


@pytest.mark.parametrize("zipped", [False, True])
def test_damaged_pickles(tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.system", lambda command: pytest.fail(f"ran {command}"))
    path, rng, refused = tmp_path / "weights.pt", random.Random(f"pickle {zipped}"), 0
    torch.save({"a": torch.rand(3, 4), "b": torch.arange(5)}, path, _use_new_zipfile_serialization=zipped)
    sound = path.read_bytes()
    members = {}
    if zipped:
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
    for number in range(300):
        if zipped and number % 2:  # a whole archive around a damaged member: the checksum notices nothing
            victim = rng.choice(list(members))
            with zipfile.ZipFile(path, "w") as archive:
                for name, data in members.items():
                    archive.writestr(name, damaged(data, rng) if name == victim else data)
        else:
            path.write_bytes(damaged(sound, rng))
        message = outcome(path)
        refused += message is not None
        assert message is None or (str(path) in message and "\n" not in message)
    assert refused > 100
    path.write_bytes(sound)
    assert outcome(path) is None

"""Damaged configuration files: each is read as it says, or refused in one line that names it."""

import random
import resource
import time

import pytest

from cxrl.cli import ConfigParser, resolve
from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.presets import FOLDER, load_preset

NUM = 1500
SECONDS, KILOBYTES = 1.0, 100_000
"""Most processor time of one file, most memory that all together leave behind."""

VALID = [
    (FOLDER / "phantom.yaml").read_bytes(),
    (FOLDER / "smoke.yaml").read_bytes(),
    b"preset: smoke\nseed: 3\nmodel:\n  path: 'a b'\n  offload: yes\n"
    b"run: {dir: x, trackers: [tensorboard]}\n",
    b"---\noptim:\n  clip-range: 1e-4\n  kl_weight: .5\nrewards:\n  names: posture, diagnosis\n"
    b"  weights:\n  - 1\n  - 0.5\n...\n",
    b'{"seed": 5, "train": {"num_epochs": 5}, "eval": {"sha256": []}}',
    b"data:\n  source: prompts\n  root: >-\n    two\n    words.csv\n  label_columns: ['a', \"b\\u00e4\"]\n",
    load_preset("mimic").to_yaml().encode()[-900:],  # begins inside of a section
]
NASTY = [
    b"&a ", b"*a", b"&a [*a]", b"<<: *a\n", b"!!bool abc", b"!!python/object/apply:os.system [x] ", b"!x ",
    b"!!binary |\n  /w==\n", b"!!set {a}", b"!!timestamp ", b"!<tag:yaml.org,2002:int> ", b"! ", b"\0",
    b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\xc2\x85", b"\xe2\x80\xa8", b"\r", b"\r\n", b"\t",
    b"\n---\n", b"\n...\n", b"%YAML 1.1\n---\n", b"%TAG ! tag:x,1:\n---\n", b"[" * 60, b"{a: " * 60,
    b"- " * 60, b"? ", b": ", b"? [a]\n: b\n", b'"\\ud800"', b'"\\0"', b'"\\U00110000"', b'"\\x', b'"',
    b"'", b"|\n ", b">-\n", b"#", b" #", b"~", b"null", b"0100", b"1:30", b"1_000", b"0x1F", b"0o17",
    b".inf", b".nan", b"1e400", b"9" * 400, b"-1", b"1e-4", b"2020-01-01", b"yes", b"No", b"true", b"[]",
    b"{}", b"[a, a]", b"[a,,b]", b"seed: 3\n", b"seed: 4\nseed: 5\n", b"train:\n  num_epochs: 3\n",
    b"train: {num-epochs: 3, num_epochs: 4}\n", "\u0661\u0662".encode(), b"x" * 3000,
]  # fmt: skip


def damaged(rng: random.Random) -> bytes:
    """A valid file with one to four mishaps."""
    data = bytearray(rng.choice(VALID))
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0 and data:
            data[min(where, len(data) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[where : where + rng.randint(1, 20)]
        elif kind == 2:
            del data[where:]
        elif kind in (3, 4):
            data[where:where] = rng.choice(NASTY)
        elif kind == 5:  # another value in the place of one
            colon = data.find(b": ", where)
            end = min((e for e in (data.find(c, colon) for c in (b",", b"}", b"\n")) if e >= 0), default=-1)
            if 0 <= colon < end:
                data[colon + 2 : end] = rng.choice(NASTY)
        else:  # a line again, somewhere else
            lines = bytes(data).splitlines(keepends=True) or [b""]
            lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            data = bytearray(b"".join(lines))
    return bytes(data)


@pytest.mark.timeout(120)
def test_damaged_files_are_read_or_named(tmp_path):
    rng = random.Random(20240607)
    file = tmp_path / "mine.yaml"
    parser = ConfigParser("cxrl train", "")
    args = parser.parse(["--config", str(file)])
    taken = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(NUM):
        content = damaged(rng)
        file.write_bytes(content)
        started = time.thread_time()
        try:
            config = resolve(args)
        except CxrlError as error:
            message = str(error)
            assert str(file) in message, (content, message)
            assert "\n" not in message.replace(str(file), ""), (content, message)
            assert len(message) < 800, (content, message)
            message.encode()  # nothing in it that cannot be printed
        except Exception as error:
            raise AssertionError(f"{content!r} ended in {error!r}") from error
        else:
            taken += 1
            if taken % 10 == 0:
                file.write_text(config.to_yaml(), encoding="utf-8")
                assert resolve(args) == config, content
        assert time.thread_time() - started < SECONDS, content
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < KILOBYTES
    assert NUM * 0.05 < taken < NUM * 0.6, f"{taken} of {NUM} were taken: is there damage, or nothing else?"


def test_the_valid_files_are_valid(tmp_path):
    parser = ConfigParser("cxrl train", "")
    for content in VALID[:-1]:
        (tmp_path / "c.yaml").write_bytes(content)
        assert isinstance(resolve(parser.parse(["--config", str(tmp_path / "c.yaml")])), Config)

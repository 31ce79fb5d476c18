"""The reader of YAML: what is read means what it says, and everything else is refused by file and line."""

import os
import re
import resource
import time

import pytest

from cxrl.config import Config, sections
from cxrl.errors import CxrlError
from cxrl.presets import load_yaml, read_config
from cxrl.presets.strict_yaml import MAX_BYTES, read_yaml


@pytest.fixture
def file(tmp_path):
    return tmp_path / "c.yaml"


def refused(file, match):
    with pytest.raises(CxrlError, match=match) as caught:
        load_yaml(file)
    text = str(caught.value)
    assert str(file) in text
    assert "\n" not in text
    assert len(text) < 500 + len(str(file))


LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{n}: &{n} [{','.join([f'*{m}'] * 9)}]\n" for m, n in zip("abcdefgh", "bcdefghi", strict=True)
)

CASES = {
    "a section twice": (
        "train: {num_epochs: 7}\noptim: {}\ntrain: {patience: 5}\n",
        "line 3: 'train' is given twice, first in line 1",
    ),
    "a field twice": (
        "train:\n  patience: 5\n  patience: 5\n",
        "line 3: 'patience' is given twice, first in line 2",
    ),
    "a field twice in a line": (
        "train: {patience: 5, patience: 5}\n",
        "line 1: 'patience' is given twice, first in line 1",
    ),
    "two spellings": (
        "optim:\n  clip-range: 0.1\n  clip_range: 0.1\n",
        "line 3: 'clip_range' is given twice, first in line 2",
    ),
    "quoted": ("seed: 1\n'seed': 2\n", "line 2: 'seed' is given twice"),
    "base 60": ("seed: 1:30\n", "seed: '1:30' is not a whole number"),
    "hexadecimal": ("seed: 0x10\n", "seed: '0x10' is not a whole number"),
    "underscores": ("train: {num_epochs: 1_000}\n", "num_epochs: '1_000' is not a whole number"),
    "a date": ("seed: 2020-01-01\n", "seed: '2020-01-01' is not a whole number"),
    "infinity": ("optim: {clip_range: .inf}\n", "clip_range: '.inf' is not a finite number"),
    "nan": ("optim: {clip_range: .nan}\n", "clip_range: '.nan' is not a finite number"),
    "400 digits": (f"seed: {'9' * 400}\n", r"seed: '999+… is not a whole number"),
    "a null": ("seed: null\n", "seed: nothing is not a whole number"),
    "no value": ("model:\n  path:\n", "model.path: nothing is not text"),
    "a section without fields": ("train:\n", "train: nothing is not a section"),
    "3000 deep": ("train: " + "[" * 3000 + "\n", "line 1: nested deeper than 8 levels"),
    "3000 deep in lines": (
        "train:\n" + "- \n" * 0 + "".join(" " * n + "a:\n" for n in range(1, 300)),
        "line 9: nested deeper",
    ),
    "3000 mappings": ("train: " + "{a: " * 3000, "line 1: nested deeper than 8 levels"),
    "aliases of aliases": (LAUGHS, r"line 1: anchors \(&\) and aliases \(\*\) are not read"),
    "an anchor": ("seed: &s 3\n", r"line 1: anchors"),
    "an alias": ("seed: *s\n", "line 1: anchors"),
    "a merge": ("<<: {seed: 3}\n", "unknown field '<<'"),
    "!!bool": ("seed: 1\nmodel: {offload: !!bool abc}\n", "line 2: the tag '!!bool' is not read"),
    "!!int": ("seed: !!int x\n", "line 1: the tag '!!int'"),
    "!!float": ("seed: !!float x\n", "line 1: the tag '!!float'"),
    "!!binary": ("seed: !!binary \\xff\n", "line 1: the tag '!!binary'"),
    "!!timestamp": ("seed: !!timestamp x\n", "line 1: the tag '!!timestamp'"),
    "!!set": ("rewards: {names: !!set {a}}\n", "line 1: the tag '!!set'"),
    "!!omap": ("rewards: !!omap [a: b]\n", "line 1: the tag '!!omap'"),
    "!!python": (
        "seed: !!python/object/apply:os.system ['touch x']\n",
        "line 1: the tag '!!python/object/apply:os.system'",
    ),
    "an own tag": ("seed: !mine 3\n", "line 1: the tag '!mine'"),
    "a bare tag": ("seed: ! 3\n", "line 1: the tag '!'"),
    "a number as key": ("1: x\n", "unknown field '1'"),
    "no key": ("? \n: x\n", "line 1: the key nothing is not the name"),
    "a list as key": ("seed: 1\n? [a]\n: b\n", r"line 2: the key \['a'\] is not the name"),
    "a mapping as key": ("{a: b}: c\n", r"line 1: the key \{'a': 'b'\} is not the name"),
    "NUL": ("seed: 1\nmodel: {path: a\0b}\n", "not valid YAML at line 2: special characters"),
    "an escaped NUL": ('model: {path: "a\\0b"}\n', "line 1: .* holds NUL"),
    "a surrogate": ('model:\n  path: "\\ud800"\n', "line 2: .* not UTF-8"),
    "no character": ('model: {path: "\\U00110000"}\n', "an escape names no character"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "line 2: a second document begins here"),
    "two documents, one empty": ("---\nseed: 1\n...\n---\n", "line 4: a second document"),
    "a list": ("- a\n", "expected sections such as 'train:', got a list"),
    "a word": ("hello\n", "expected sections such as 'train:', got 'hello'"),
    "cut": ("train: [", r"not valid YAML at line 1"),
    "a tab": ("train:\n\tseed: 1\n", r"not valid YAML at line 2"),
    "an unknown directive version": ("%YAML 3.0\n---\nseed: 1\n", "not valid YAML at line 1"),
    "out of range": (
        "train: {num_epochs: 0}\n",
        r"train\.num_epochs: 0 epochs is out of range, expected 1 to",
    ),
    "long": ("#" + "x" * MAX_BYTES, f"more than {MAX_BYTES} bytes"),
    "an unknown preset": ("preset: smok\n", r"unknown preset 'smok'; did you mean smoke\?"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_no_configuration_holds_is_refused_by_file_and_line(file, name):
    text, match = CASES[name]
    file.write_text(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    refused(file, rf"c\.yaml.*{match}")
    assert time.process_time() - started < 2
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000, "kB"


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"seed: 1\nmodel: {path: \xff}\n", "line 2 is not UTF-8"),
        ("seed: 1\n".encode("utf-16"), "line 1 is not UTF-8"),
        (b"\xed\xa0\x80: 1\n", "line 1 is not UTF-8"),
        (b"seed: 1\n" * 2_000_000, f"more than {MAX_BYTES} bytes"),
    ],
)
def test_bytes_that_are_no_text(file, content, match):
    file.write_bytes(content)
    refused(file, match)


def test_places_that_are_no_files(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path, "it is a folder")
    refused(tmp_path / "pipe", "it is no regular file")
    refused(tmp_path / "none.yaml", r"cannot read configuration .*: No such file")
    with pytest.raises(CxrlError, match="/dev/zero: it is no regular file"):
        load_yaml("/dev/zero")
    with pytest.raises(CxrlError, match="null"):
        load_yaml("a\0b")
    (tmp_path / "loop").symlink_to("loop")
    refused(tmp_path / "loop", "symbolic links")


def test_scalars_are_what_is_written(file):
    file.write_text(
        "a: 0100\nb: 1e-4\nc: yes\nd: ~\ne:\nf: ''\ng: '~'\nh: [no, 1.0, null]\ni: |\n  two\n  lines\n"
    )
    assert read_yaml(file) == {
        "a": "0100",
        "b": "1e-4",
        "c": "yes",
        "d": None,
        "e": None,
        "f": "",
        "g": "~",
        "h": ["no", "1.0", None],
        "i": "two\nlines\n",
    }


def test_the_option_decides_what_a_text_means(file):
    file.write_text(
        "seed: 0100\n"
        "optim: {clip-range: 1e-4, weight_decay: .5}\n"
        "model: {offload: yes, gradient_checkpointing: off, path: 123}\n"
        "data: {restricted: no}\n"
        "run: {trackers: none}\n"
        "rewards: {names: 'posture, diagnosis', weights: [1, 0.5]}\n"
    )
    config = load_yaml(file)
    assert config.seed == 100
    assert (config.optim.clip_range, config.optim.weight_decay) == (1e-4, 0.5)
    assert (config.model.offload, config.model.gradient_checkpointing) == (True, False)
    assert (config.model.path, config.data.restricted) == ("123", "no")
    assert config.run.trackers == ()
    assert (config.rewards.names, config.rewards.weights) == (("posture", "diagnosis"), (1.0, 0.5))


@pytest.mark.parametrize(
    "content",
    [
        b"seed: 3\ntrain: {num_epochs: 5}\n",
        b"\xef\xbb\xbfseed: 3\ntrain: {num_epochs: 5}\n",
        b"seed: 3\r\ntrain:\r\n  num_epochs: 5\r\n",
        b"%YAML 1.2\n---\n# a comment\nseed: 3\ntrain: {num_epochs: 5,}\n...\n",
        b"{seed: 3, train: {num_epochs: 5}}",
        b'{"seed": 3, "train": {"num_epochs": 5}}',
    ],
)
def test_every_way_to_write_the_same(file, content):
    file.write_bytes(content)
    config = load_yaml(file)
    assert (config.seed, config.train.num_epochs) == (3, 5)


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "null\n", "{}\n"])
def test_an_empty_file_changes_nothing(file, content):
    file.write_text(content)
    assert load_yaml(file) == Config()


WORDS = """
    yes No ON off true null Null ~ 0100 1:30 1e-4 0x10 .nan 2020-01-01 = << - ? : # & * ! | > % @ ` ' " [] {}
    a:b a#b #a -a !a &a *a a, [a {a 'a "a a' ... --- ---a
"""
TEXTS = [
    *WORDS.split(),
    " a ",
    "a b",
    "a: b",
    "a #b",
    "- a",
    "two\nlines",
    "\ttab",
    "x" * 300,
    "ends\n",
    "ä 肺",
    "🙂",
    "\u2028",
    "\x85",
    "\x07",
    "\ufeffa",
    "\r\n",
    "\\",
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_being_written(file, text):
    made = Config.from_dict(
        {"model": {"path": text}, "run": {"dir": text}, "data": {"label_columns": [text.strip() or "x", "b"]}}
    )
    file.write_text(made.to_yaml(), encoding="utf-8")
    assert load_yaml(file) == made


def test_numbers_survive_being_written(file):
    values = (1e-5, 1.0, 0.1, 1e-300, 0.30000000000000004, 1 / 3)
    for value in values:
        made = Config.from_dict({"optim": {"clip_range": value}, "seed": 2**31 - 1})
        file.write_text(made.to_yaml())
        assert load_yaml(file) == made


def test_a_file_goes_over_its_preset(file):
    file.write_text("preset: smoke\ntrain: {num_epochs: 5}\n")
    config = load_yaml(file)
    assert (config.train.num_epochs, config.sampler.guidance_scale) == (5, 2.0)


def test_a_file_that_names_another_preset_than_the_one_asked_for(file):
    file.write_text("preset: smoke\n")
    assert read_config(file, "smoke")[0].preset == "smoke"
    with pytest.raises(CxrlError, match=r"c\.yaml: its preset is smoke, but phantom is asked for"):
        read_config(file, "phantom")


def test_the_names_that_a_file_gives(file):
    file.write_text("seed: 1\noptim: {clip-range: 0.1, kl_weight: 1}\nrun: {}\n")
    config, start, names = read_config(file, None, "smoke")
    assert names == ["seed", "optim.clip_range", "optim.kl_weight"]
    assert (config.preset, start.preset) == ("smoke", "smoke")
    assert start.seed == 0


def test_no_preset_of_this_folder_needs_more_than_the_reader_gives():
    assert set(sections()) < {re.sub("-", "_", name) for name in Config().to_dict()}

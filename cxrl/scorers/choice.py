"""Weights that do not ship: which model an option means, where its file belongs, and what to do without it.

Nothing here downloads. :func:`required_files` lists what a configuration needs and whether it is there;
:func:`missing` is the one error for a file that is not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cxrl.conditions import TASKS
from cxrl.config import Config
from cxrl.errors import CxrlError, nearest
from cxrl.storage.reading import in_hub_cache

ASSETS = Path(__file__).parents[1] / "assets" / "phantom"
XRV_CACHE = Path("~/.torchxrayvision/models_data")
XRV_URL = "https://github.com/mlmed/torchxrayvision/releases/download/v1/"
XRV_LICENCE = (
    "torchxrayvision is Apache-2.0, the films it learned from have terms of their own; no credential"
)
PSPNET = "pspnet"
_DECIDING = (".safetensors", ".json", ".txt", ".model")
"""Suffixes of weights, configuration, vocabulary and merges in a folder of transformers."""


@dataclass(frozen=True)
class KnownFile:
    """A file of torchxrayvision's release.

    Attributes:
        file: Its name.
        size: Bytes; None where it is not known.
        sha256: "" where it is not known.
    """

    file: str
    size: int | None = None
    sha256: str = ""


_DENSENET = "densenet121-d121-tw-lr001-rot45-tr15-sc15-seed0-best.pt"
# The release publishes no digests. These are the ones that users of the files have recorded in public
# repositories; where none was found there is none here.
XRV_FILES = {
    "densenet121-res224-all": KnownFile(
        f"nih-pc-chex-mimic_ch-google-openi-kaggle-{_DENSENET}",
        28_382_008,
        "56524913dd16a906422e8d8b66a7a5c46be1d82eb7ac012d8103776f1aa68899",
    ),
    "densenet121-res224-chex": KnownFile(
        f"chex-{_DENSENET}", 28_381_998, "1a914ae802170187a4852e594708206c12468eeeefd66aa4e8e26141649d61a4"
    ),
    "densenet121-res224-mimic_ch": KnownFile(
        f"mimic_ch-{_DENSENET}",
        28_382_012,
        "23b13a04459684ffa41247d068207a7657b4e1b4dec2b02431f5026bd75b1189",
    ),
    "densenet121-res224-mimic_nb": KnownFile(f"mimic_nb-{_DENSENET}"),
    "densenet121-res224-nih": KnownFile(f"nih-{_DENSENET}"),
    "densenet121-res224-pc": KnownFile(f"pc-{_DENSENET}"),
    "densenet121-res224-rsna": KnownFile(f"kaggle-{_DENSENET}"),
    PSPNET: KnownFile(
        "pspnet_chestxray_best_model_4.pth",
        272_988_989,
        "019b167eac6b729fc1bb92bbbc185fc1730aaa65819f4e3fe718186cadc044fc",
    ),
}
"""Name that an option gives → file of the release."""


@dataclass(frozen=True)
class RequiredFile:
    """Something that a configuration needs.

    Attributes:
        option: Which setting asks for it, for example "rewards.diagnosis".
        name: What it is, in words.
        path: The file or folder; None for a hub id.
        is_present: Whether it is there (a hub id: in huggingface_hub's cache) and can be used.
        size: Bytes, None where unknown.
        sha256: Hex digest it must have; "" where none is known or needed.
        source: URL or hub id to get it from; "" where it is the user's own.
        note: Licence and credential.
        problem: Why what is there cannot be used; "" where it can, or where nothing is.
    """

    option: str
    name: str
    path: Path | None
    is_present: bool
    size: int | None = None
    sha256: str = ""
    source: str = ""
    note: str = ""
    problem: str = ""


class MissingFile(CxrlError):
    """A file that a configuration needs is not there.

    Attributes:
        required: Which.
    """

    def __init__(self, required: RequiredFile) -> None:
        self.required = required
        super().__init__(
            f"{required.option}: missing {how_to_get(required)}; cxrl downloads no weights by itself"
        )


def how_to_get(required: RequiredFile) -> str:
    """What it is, its size and digest, where it is to be had and where to put it."""
    parts = (
        f"{required.size:,} bytes" if required.size else "",
        f"SHA-256 {required.sha256}" if required.sha256 else "",
    )
    known = ", ".join(filter(None, parts))
    if not known and required.source.startswith(XRV_URL):
        section, _, task = required.option.partition(".")
        known = f"no SHA-256 is known: pin yours with --{section}.sha256 {task}=HEX"
    get = f"; get it from {required.source}" if required.source else ""
    place = f" and put it into {required.path.parent}" if required.source and required.path else ""
    where = str(required.path or required.source)
    return (
        f"{required.name}{f': {where}' if where else ''}"
        f"{f' ({known})' if known else ''}{get if required.path else ''}{place}"
        f"{f' ({required.note})' if required.note else ''}"
    )


@dataclass(frozen=True)
class ModelChoice:
    """Which model takes a task, on the side of the rewards or of the judges.

    Attributes:
        section: "rewards" or "eval".
        task: "posture", "diagnosis" or "consistency".
        value: What the option says; "" is the file of that name in ``folder``.
        folder: Of the models that cxrl.pretrain makes.
        cache: Of torchxrayvision's files.
        sha256: Digest that the user gives; "" for none.
        batch_size: Images at once.
        dtype: Of the network, "float32", "bfloat16" or "float16".
    """

    section: str
    task: str
    value: str
    folder: Path
    cache: Path = XRV_CACHE
    sha256: str = ""
    batch_size: int = 32
    dtype: str = "float32"

    @property
    def option(self) -> str:
        return f"{self.section}.{self.task}"

    @property
    def name(self) -> str:
        """The name in torchxrayvision's release; "" for anything else."""
        name = self.value.split(":", 1)[0]
        return name if name in XRV_FILES and (name == PSPNET) == (self.task == "posture") else ""

    @property
    def kind(self) -> str:
        """ "scorer" (safetensors of cxrl.pretrain), "xrv" (a name of the release) or "transformers".

        Raises:
            CxrlError: The value is none of what the task allows.
        """
        if self.name and self.task != "consistency":
            return "xrv"
        if not self.value or self.value.endswith(".safetensors"):
            return "scorer"
        if self.task == "consistency":
            return "transformers"
        known = [n for n in XRV_FILES if (n == PSPNET) == (self.task == "posture")]
        raise CxrlError(
            f"{self.option}: {self.value!r} is not a .safetensors file, {' or '.join(known[:2])}"
            f"{', …' if len(known) > 2 else ''}, or one of these with its own file, NAME:FILE; "
            f"{nearest(self.value, known)}"
        )

    @property
    def path(self) -> Path:
        """The file; for transformers the folder, which does not exist where the value is a hub id."""
        if self.kind == "scorer":
            return Path(self.value) if self.value else self.folder / f"{self.task}.safetensors"
        if self.kind == "transformers":
            return Path(self.value)
        _, _, file = self.value.partition(":")
        return Path(file) if file else self._cache_folder() / XRV_FILES[self.name].file

    def _cache_folder(self) -> Path:
        try:
            return self.cache.expanduser()
        except RuntimeError:  # no HOME and no entry in passwd, as in containers
            raise CxrlError(
                f"{self.option}: {self.cache} names no folder, because this user has no home; say where "
                "torchxrayvision's files are with --run.xrv-cache DIR"
            ) from None

    @property
    def model_folder(self) -> Path | None:
        """Of a transformers model: the folder, or where huggingface_hub keeps the files of a hub id; None
        where there are none.
        """
        config = self.path / "config.json" if self.path.is_dir() else in_hub_cache(self.value, "config.json")
        return config.parent if config is not None and config.is_file() else None

    @property
    def files(self) -> list[Path]:
        """What decides what the model says: its file, or its folder's weights, configuration, tokenizer."""
        if self.kind != "transformers":
            return [self.path]
        folder = self.model_folder
        found = sorted(folder.iterdir()) if folder else []
        return [path for path in found if path.suffix in _DECIDING and path.is_file()]

    @property
    def weights(self) -> list[Path]:
        """Those of ``files`` that hold its numbers."""
        if self.kind != "transformers":
            return [self.path]
        return [path for path in self.files if path.suffix == ".safetensors"]

    @property
    def expected_sha256(self) -> str:
        """The user's digest, else that of the release's file; "" where there is none."""
        return self.sha256 or (XRV_FILES[self.name].sha256 if self.kind == "xrv" else "")

    def required(self) -> RequiredFile:
        """The file that this choice needs."""
        path, kind = self.path, self.kind
        if kind == "xrv":
            known = XRV_FILES[self.name]
            return RequiredFile(
                self.option,
                f"the weights {self.name} of torchxrayvision",
                path,
                path.is_file(),
                known.size if not self.sha256 else None,
                self.expected_sha256,
                XRV_URL + known.file,
                XRV_LICENCE,
            )
        if kind == "scorer":
            note = "python -m cxrl.pretrain --preset posture trains one" if self.task == "posture" else ""
            return RequiredFile(
                self.option, "a model of cxrl.pretrain", path, path.is_file(), sha256=self.sha256, note=note
            )
        folder, present = path if path.is_dir() else None, self.model_folder is not None
        note = f"`hf download {self.value}`; its page on the hub states licence and credential"
        name = "an image-text model of transformers"
        return RequiredFile(
            self.option, name, folder, present, source=self.value, note="" if folder else note
        )


def model_choices(config: Config, section: str) -> dict[str, ModelChoice]:
    """Task → choice, of the rewards in use or of the judges.

    Raises:
        CxrlError: ``sha256`` of the section is malformed.
    """
    part = config.rewards if section == "rewards" else config.eval
    folder = config.rewards.path if section == "rewards" else config.eval.judges
    place = (
        ASSETS / ("rewards" if section == "rewards" else "judges") if folder == "phantom" else Path(folder)
    )
    digests = parse_digests(part.sha256, section)
    return {
        task: ModelChoice(
            section,
            task,
            getattr(part, task),
            place,
            Path(config.run.xrv_cache or XRV_CACHE),
            digests.get(task, ""),
            part.batch_size,
            part.dtype,
        )
        for task in TASKS
        if section == "eval" or task in config.rewards.names
    }


def phantom_models(config: Config) -> list[str]:
    """What to warn of: models that know the phantom only, where the reports are others'."""
    if config.data.source == "phantom":
        return []
    choices = [c for section in ("rewards", "eval") for c in model_choices(config, section).values()]
    names = [c.option for c in choices if not c.value and c.folder.parent == ASSETS]
    if not names:
        return []
    return [f"{', '.join(names)}: models of the phantom, which mean nothing on films (docs/rewards.md)"]


def parse_digests(entries: Iterable[str], section: str) -> dict[str, str]:
    """``("diagnosis=HEX", …)`` as task → lower-case digest. Raises CxrlError where one is malformed."""
    digests = {}
    for entry in entries:
        task, _, digest = entry.partition("=")
        if task not in TASKS or len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
            raise CxrlError(
                f"{section}.sha256: {entry!r} is not TASK=DIGEST, one of {', '.join(TASKS)} and 64 hex digits"
            )
        digests[task] = digest.lower()
    return digests


def required_files(config: Config) -> list[RequiredFile]:
    """All files and folders that a configuration needs: base, rewards, judges and data.

    Raises:
        CxrlError: An option names no model.
    """
    found = [_base(config)]
    judges = model_choices(config, "eval")
    found += [choice.required() for choice in (*model_choices(config, "rewards").values(), *judges.values())]
    if not judges["diagnosis"].value:
        path = judges["diagnosis"].folder / "reference.safetensors"
        found.append(RequiredFile("eval.judges", "features of clean films", path, path.is_file()))
    return found + _data(config)


def _base(config: Config) -> RequiredFile:
    from cxrl.models.base_files import check_base, local_folder

    value, folder, problem = config.model.path, local_folder(config.model.path), ""
    if folder is not None:
        try:
            check_base(folder, allow_pickle=config.model.allow_pickle, name=value)
        except CxrlError as error:
            problem = str(error).removeprefix("model.path: ")
    name, present = "the base, a StableDiffusionPipeline", folder is not None and not problem
    if value == "phantom" or Path(value).is_dir():
        return RequiredFile("model.path", name, folder, present, problem=problem)
    note = "diffusers fetches it when a run starts; its page on the hub states licence and credential"
    return RequiredFile("model.path", name, None, present, source=value, note=note, problem=problem)


def _data(config: Config) -> list[RequiredFile]:
    data = config.data
    if data.source == "phantom":
        return []
    found = []
    if data.root or data.source != "openi":
        path = Path(data.root) if data.root else None
        is_there = path is not None and path.exists()
        found.append(
            RequiredFile("data.root", f"the data of {data.source}", path, is_there, note="give --data.root")
        )
    if data.source == "mimic_cxr" and (data.reports or data.root):
        path = Path(data.reports or data.root)
        present = (path / "files").is_dir() or (path.suffix == ".zip" and path.is_file())
        found.append(
            RequiredFile(
                "data.reports",
                "the reports, which come with MIMIC-CXR",
                path,
                present,
                source="https://physionet.org/content/mimic-cxr/",
                note="PhysioNet credential and data use agreement",
            )
        )
    return found


def check_present(choice: ModelChoice) -> None:
    """Raise :class:`MissingFile` where a file of torchxrayvision is not there."""
    required = choice.required()
    if choice.kind == "xrv" and not required.is_present:
        raise MissingFile(required)


def check_digest(path: Path, expected: str, option: str) -> None:
    """Raise CxrlError unless the file has the SHA-256, or where none is expected: a pickle needs one."""
    try:
        found = file_sha256(path)
    except OSError as error:
        raise CxrlError(f"{option}: cannot read {path}: {error.strerror}") from None
    section, _, task = option.partition(".")
    pin = f"--{section}.sha256 {task}=HEX"
    if not expected:
        raise CxrlError(
            f"{option}: {path} is a pickle and no SHA-256 is known for it; compare it with its source and "
            f"pin it with {pin} (the file has {found})"
        )
    if found != expected:
        raise CxrlError(
            f"{option}: {path} has SHA-256 {found}, expected {expected}; it is damaged or another file: get "
            f"it again, or pin yours with {pin}"
        )


def file_sha256(path: Path) -> str:
    """Hex digest of a file; remembered while its size and modification time stay."""
    stat = path.stat()
    return _digest(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@cache
def _digest(path: str, size: int, modified: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

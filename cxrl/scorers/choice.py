"""Which model takes a task: what an option says, the files that it means, and opening them once.

Nothing here downloads. :meth:`ModelChoice.open` sees that the files are there and are the right ones; what it
gives is what the models of this package are loaded from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from cxrl.conditions import TASKS
from cxrl.config import Config
from cxrl.errors import CxrlError, nearest
from cxrl.scorers.required import MissingFile, RequiredFile
from cxrl.scorers.xrv_release import PSPNET, XRV_CACHE, XRV_FILES, XRV_LICENCE, XRV_URL
from cxrl.shipped import JUDGES, REWARDS, folder_of
from cxrl.storage.reading import in_hub_cache

_DECIDING = (".safetensors", ".json", ".txt", ".model")
"""Suffixes of weights, configuration, vocabulary and merges in a folder of transformers."""


@dataclass(frozen=True)
class OpenedModel:
    """The model of a choice, whose files are there and have the digest that is expected of them.

    Attributes:
        option: Which setting chose it, for example "rewards.diagnosis".
        task: "posture", "diagnosis" or "consistency".
        value: What the option says; "" is the file of the task in ``folder``.
        name: Its name in torchxrayvision's release, else "".
        kind: "scorer", "xrv" or "transformers", see :attr:`ModelChoice.kind`.
        path: Its file; for transformers its folder.
        files: What decides what it says.
        sha256: The digest that was expected of its weights; "" where none was.
        folder: Of the models that cxrl.pretrain makes.
        batch_size: Images at once.
        dtype: Of the network, "float32", "bfloat16" or "float16".
    """

    option: str
    task: str
    value: str
    name: str
    kind: str
    path: Path
    files: tuple[Path, ...]
    sha256: str
    folder: Path
    batch_size: int
    dtype: str


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
        """ "scorer" (safetensors of cxrl pretrain), "xrv" (a name of the release) or "transformers".

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
        where there are none, and for other kinds.
        """
        if self.kind != "transformers":
            return None
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

    def open(self) -> OpenedModel:
        """See that the files are there and are the expected ones. Reads no weights but for their digest.

        Raises:
            MissingFile: They are not there.
            CxrlError: The value is none of what the task allows, the digest differs, or a pickle has none
                that is known.
        """
        required, kind = self.required(), self.kind
        if not required.is_present:
            raise MissingFile(required)
        path = self.model_folder or self.path
        is_pickle = kind == "xrv" and path.suffix != ".safetensors"
        sha256 = self.expected_sha256 if is_pickle else self.sha256
        if sha256 or is_pickle:
            weights = path / "model.safetensors" if kind == "transformers" else path
            check_digest(weights, sha256, self.option)
        return OpenedModel(
            self.option, self.task, self.value, self.name, kind, path, tuple(self.files), sha256,
            self.folder, self.batch_size, self.dtype,
        )  # fmt: skip

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
            preset = "posture" if self.task == "posture" and self.value else "phantom"
            note = f"`cxrl pretrain --preset {preset}` makes one"
            return RequiredFile(
                self.option, "a model of cxrl pretrain", path, path.is_file(), sha256=self.sha256, note=note
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
    folder = (
        folder_of(config.rewards.path, REWARDS)
        if section == "rewards"
        else folder_of(config.eval.judges, JUDGES)
    )
    digests = parse_digests(part.sha256, section)
    return {
        task: ModelChoice(
            section,
            task,
            getattr(part, task),
            folder,
            Path(config.run.xrv_cache or XRV_CACHE),
            digests.get(task, ""),
            part.batch_size,
            part.dtype,
        )
        for task in TASKS
        if section == "eval" or task in config.rewards.names
    }


def open_models(config: Config, section: str, without: Collection[str] = ()) -> dict[str, OpenedModel]:
    """Task → opened model, of all of :func:`model_choices` but ``without``. Raises as opening does."""
    choices = model_choices(config, section)
    return {task: choice.open() for task, choice in choices.items() if task not in without}


def phantom_models(config: Config) -> list[str]:
    """What to warn of: models that know the phantom only, where the reports are others'."""
    if config.data.source == "phantom":
        return []
    choices = [c for section in ("rewards", "eval") for c in model_choices(config, section).values()]
    names = [c.option for c in choices if not c.value and c.folder in (REWARDS, JUDGES)]
    if not names:
        return []
    return [f"{', '.join(names)}: models of the phantom, which mean nothing on films (docs/rewards.md)"]


def parse_digests(entries: Iterable[str], section: str, more: Collection[str] = ()) -> dict[str, str]:
    """``("diagnosis=HEX", …)`` as task, or name in ``more``, → lower-case digest. Raises CxrlError where one
    is malformed.
    """
    digests = {}
    names = (*TASKS, *more)
    for entry in entries:
        task, _, digest = entry.partition("=")
        if task not in names or len(digest) != 64 or not set(digest.lower()) <= set("0123456789abcdef"):
            raise CxrlError(
                f"{section}.sha256: {entry!r} is not TASK=DIGEST, one of {', '.join(names)} and 64 hex digits"
            )
        digests[task] = digest.lower()
    return digests


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

"""Weights in folders of diffusers and transformers: which files they are, whether they fit, what they hold.

Both libraries warn and go on with random numbers where a tensor is missing. Here a network is refused unless
every tensor that its ``config.json`` asks for is there, of its shape, in floating point and finite. Names and
shapes are compared with the architecture on the meta device, so :func:`check_network` reads headers alone;
values are read once, by :meth:`NetworkFiles.digest`.

A tensor too many is refused where it says that configuration and weights are not of one network: always in
diffusers' networks, in those of transformers inside of the modules that they have (a layer more than the
configuration). What stands beside, as other towers, heads and projections of the model that a text encoder
was cut from, changes nothing that is computed; neither do buffers of positions, which older files hold.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.models.weight_check import NO_WEIGHT, describe, not_finite, shape_problem, what_is_bad

T = TypeVar("T")
_SAFE, _PICKLED = ".safetensors", ".bin"
_FLOATS = {"F64", "F32", "F16", "BF16"} | {
    str(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
"""Names of an autoencoder's attention in files of before 2023 → today's, as diffusers reads them."""
_THREADS = min(4, os.cpu_count() or 1)
_LARGE = 1 << 26
"""Bytes from which on several threads are worth their start."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a file.

    Attributes:
        file: Which.
        shape: Its sizes.
        dtype: As the file calls it.
    """

    file: Path
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class NetworkFiles:
    """A network of diffusers or transformers on disk, whose names and shapes fit.

    Attributes:
        kind: Its class.
        folder: Of its configuration and weights.
        what: How messages begin: the option, the part and where it is.
        skeleton: The network on the meta device.
        main: The file of its weights, or the index of their shards.
        tensors: Name in the files → what is stored.
        variant: Of the files, "fp16" or None.
    """

    kind: Any
    folder: Path
    what: str
    skeleton: Any
    main: Path
    tensors: Mapping[str, Stored]
    variant: str | None

    def digest(self) -> str:
        """SHA-256 over names, shapes and values: equal for equal numbers, however they are stored.

        Values are taken as float32, so that files in half precision and their copies in full precision agree.
        Shards and the order of the tensors do not matter.

        Raises:
            CxrlError: A value is nan or infinite; file and tensor are named.
        """

        def one(item: tuple[str, Path, Tensor]) -> tuple[str, bytes]:
            self._check_value(*item)
            name, _, tensor = item
            values = tensor.detach().to(torch.float32).contiguous().view(-1).numpy()
            head = f"{_canonical(self.kind, name)}{tuple(tensor.shape)}"
            return head, hashlib.sha256(values.data).digest()

        size = sum(tensor.nbytes for _, _, tensor in self._values)
        with ThreadPoolExecutor(_THREADS) as pool:  # hashlib lets other threads run
            rows = sorted((pool.map if size > _LARGE else map)(one, self._values))
        whole = hashlib.sha256()
        for head, digest in rows:
            whole.update(head.encode() + digest)
        return whole.hexdigest()

    def check_values(self) -> None:
        """Raise CxrlError, naming file and tensor, where a value is nan or infinite."""
        for item in self._values:
            self._check_value(*item)

    def load(self, dtype: torch.dtype) -> Any:
        """The network, on the CPU, for evaluation. Once: diffusers' skeletons are filled.

        Its tensors are copies: those of a mapped file lie at odd addresses, where matrix products give other
        bits, and equal weights are to give equal images however they are stored.

        Raises:
            CxrlError: It cannot be loaded, or a value is too large for the dtype.
        """
        with quiet():
            network = attempt(self.what, lambda: self._filled(dtype))
        if dtype != torch.float32 and (problem := not_finite(network.state_dict())):
            name = str(dtype).removeprefix("torch.")
            raise CxrlError(f"{self.what}: {self.main.name} {problem} in {name}")
        return network.eval()

    def _filled(self, dtype: torch.dtype) -> Any:
        if _is_diffusers(self.kind):
            names = _own_names(self.kind, self.skeleton, self.main, self.tensors)
            state = {names[name]: tensor.to(dtype, copy=True) for name, _, tensor in self._values}
            self.skeleton.load_state_dict(state, strict=True, assign=True)
            return self.skeleton
        network, info = self.kind.from_pretrained(
            str(self.folder),
            dtype=dtype,
            use_safetensors=_SAFE in self.main.name,
            variant=self.variant,
            output_loading_info=True,
        )
        if problem := _told(info, self.kind, self.skeleton):
            raise CxrlError(f"{self.main.name} {problem}")
        return network._apply(torch.clone)

    def _check_value(self, name: str, file: Path, tensor: Tensor) -> None:
        if bad := what_is_bad(tensor):
            raise CxrlError(f"{self.what}: {file.name} has a tensor {name} that holds {bad}")

    @cached_property
    def _values(self) -> list[tuple[str, Path, Tensor]]:
        """The network's own tensors, mapped: not what stands beside it."""
        modules = _modules(self.kind, self.skeleton)
        return [
            (name, file, tensor)
            for file in sorted({stored.file for stored in self.tensors.values()})
            for name, tensor in attempt(self.what, partial(_read, file)).items()
            if not NO_WEIGHT.search(name) and _is_inside(self.kind, modules, name)
        ]


def check_network(
    kind: Any, folder: Path, what: str, *, allow_pickle: bool = False, pickle_option: str = ""
) -> NetworkFiles:
    """Compare the weights of a folder with its configuration, without reading their values.

    Args:
        kind: A class of diffusers or transformers.
        folder: With ``config.json`` and weights, one file or shards; those of the variant fp16 where there
            are no others.
        what: How messages begin, for example "model.path: cannot load unet of DIR".
        allow_pickle: Also take weights that are not safetensors. A pickle can run code.
        pickle_option: What allows them, for the message.

    Raises:
        CxrlError: There are no weights or no configuration; a tensor is missing, too many, of another shape
            or not in floating point. File and tensor are named.
    """
    with quiet():
        config = attempt(what, lambda: _config(kind, folder))
    main, variant = _find(kind, folder, what, allow_pickle, pickle_option)
    tensors = attempt(what, lambda: _headers(main))
    for name, stored in tensors.items():
        if stored.dtype not in _FLOATS and not NO_WEIGHT.search(name):
            raise CxrlError(
                f"{what}: {stored.file.name} has a tensor {name} of {stored.dtype}, expected floating point"
            )
    if deep := _too_deep(config if isinstance(config, dict) else config.to_dict(), len(tensors)):
        raise CxrlError(f"{what}: {deep} in config.json is more than {main.name} has tensors, {len(tensors)}")
    with quiet():
        skeleton, problem = attempt(what, lambda: _fit(kind, config, main, tensors))
    if problem:
        raise CxrlError(f"{what}: {main.name} {problem}")
    return NetworkFiles(kind, folder, what, skeleton, main, tensors, variant)


def attempt(what: str, load: Callable[[], T]) -> T:
    """What ``load`` gives, or a CxrlError that begins with ``what``: the libraries raise a dozen types."""
    try:
        return load()
    except CxrlError as error:
        raise CxrlError(f"{what}: {error}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CxrlError(f"{what}: {reason}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' progress bars and warnings: what they warn of is an error here."""
    from diffusers.utils import logging as of_diffusers
    from transformers.utils import logging as of_transformers

    levels = [(module, module.get_verbosity()) for module in (of_diffusers, of_transformers)]
    enabled = of_transformers.is_progress_bar_enabled()
    of_transformers.disable_progress_bar()
    for module, _ in levels:
        module.set_verbosity_error()
    try:
        yield
    finally:
        for module, level in levels:
            module.set_verbosity(level)
        if enabled:
            of_transformers.enable_progress_bar()


def _is_diffusers(kind: Any) -> bool:
    return kind.__module__.startswith("diffusers.")


def _config(kind: Any, folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise CxrlError(f"{folder.name}/config.json is missing")
    load = kind.load_config if _is_diffusers(kind) else kind.config_class.from_pretrained
    config = load(str(folder))
    if not isinstance(config, dict if _is_diffusers(kind) else kind.config_class):
        raise CxrlError(f"{folder.name}/config.json holds a {type(config).__name__}, expected a JSON object")
    return config


def _too_deep(config: Any, most: int, name: str = "") -> str:
    """A setting that asks for more layers than ``most``: a library builds them, however many they are."""
    if isinstance(config, dict):
        return next(filter(None, (_too_deep(value, most, str(key)) for key, value in config.items())), "")
    if isinstance(config, (list, tuple)):
        return next(filter(None, (_too_deep(value, most, name) for value in config)), "")
    return name if "layers" in name and isinstance(config, int) and config > most else ""


def _find(
    kind: Any, folder: Path, what: str, allow_pickle: bool, pickle_option: str
) -> tuple[Path, str | None]:
    """The file of the weights or the index of their shards, and its variant, in the library's own order."""
    stems = ("diffusion_pytorch_model",) * 2 if _is_diffusers(kind) else ("model", "pytorch_model")
    pickled = None
    for variant in (None, "fp16"):
        part = f".{variant}" if variant else ""
        for stem, suffix in zip(stems, (_SAFE, _PICKLED), strict=True):
            names = [f"{stem}{part}{suffix}", f"{stem}{suffix}.index{part}.json"]
            for name in reversed(names) if _is_diffusers(kind) else names:
                if not (folder / name).is_file():
                    continue
                if suffix == _SAFE or allow_pickle:
                    return folder / name, variant
                pickled = pickled or name
    if pickled:
        allow = f", or allow them with {pickle_option}" if pickle_option else ""
        raise CxrlError(
            f"{what}: its weights are pickles ({pickled}), which can run code; convert them to "
            f"safetensors{allow}"
        )
    raise CxrlError(f"{what}: it has no weights; expected a file named {stems[0]}{_SAFE}, or shards of it")


def _headers(main: Path) -> dict[str, Stored]:
    """Name → what is stored, of a file or of all shards of an index."""
    if not main.name.endswith(".json"):
        return _header(main)
    try:
        places = json.loads(main.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted({name.strip() for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise CxrlError(f"{main.name} is no index of shards") from None
    tensors: dict[str, Stored] = {}
    for shard in shards:
        if Path(shard).name != shard or not (main.parent / shard).is_file():
            raise CxrlError(f"{main.name} names {shard}, which is missing")
        tensors |= _header(main.parent / shard)
    for name in sorted(set(places) ^ set(tensors)):
        state = "names a tensor" if name in places else "does not name the tensor"
        where = f"that {places[name]} does not have" if name in places else f"of {tensors[name].file.name}"
        raise CxrlError(f"{main.name} {state} {name} {where}")
    return tensors


def _header(file: Path) -> dict[str, Stored]:
    if file.suffix != _SAFE:
        return {name: Stored(file, tuple(t.shape), str(t.dtype)) for name, t in _read(file, "meta").items()}
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            return {
                name: Stored(file, tuple(part.get_shape()), str(part.get_dtype()))
                for name, part in slices.items()
            }
    except Exception as error:
        raise CxrlError(f"{file.name} cannot be read: {error}") from None


def _read(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The tensors of a file, mapped and not copied where the format allows it."""
    try:
        if file.suffix == _SAFE:
            with safe_open(file, framework="pt", device=device) as opened:
                return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
        mapped = zipfile.is_zipfile(file)
        tensors = torch.load(file, map_location=device, weights_only=True, mmap=mapped)
    except Exception as error:
        raise CxrlError(f"{file.name} cannot be read: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise CxrlError(f"{file.name} holds other things than named tensors")
    return tensors


def _fit(kind: Any, config: Any, main: Path, tensors: Mapping[str, Stored]) -> tuple[Any, str]:
    """The network on the meta device, and what does not fit it."""
    if _is_diffusers(kind):
        from accelerate import init_empty_weights

        with init_empty_weights():  # buffers that are computed stay real
            network = kind.from_config(config)
        names = _own_names(kind, network, main, tensors)
        found = {names[name]: stored.shape for name, stored in tensors.items()}
        return network, shape_problem({n: tuple(t.shape) for n, t in network.state_dict().items()}, found)
    state = {name: torch.empty(stored.shape, device="meta") for name, stored in tensors.items()}
    network, info = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        device_map={"": "meta"},
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    return network, _told(info, kind, network)


def _told(info: Mapping[str, Any], kind: Any, network: Any) -> str:
    """What a library says that it could not load, in words after "it …"."""
    missing = sorted(name for name in info["missing_keys"] if not NO_WEIGHT.search(name))
    extra = [name for name in info["unexpected_keys"] if not NO_WEIGHT.search(name)]
    if not missing:
        modules = _modules(kind, network)
        extra = [name for name in extra if _is_inside(kind, modules, name)]
    wrong = sorted(info["mismatched_keys"])
    if wrong and isinstance(wrong[0], str) and not missing:  # transformers before 5 gives no shapes
        return f"has a tensor {wrong[0]} of another shape than expected"
    errors = info.get("error_msgs") or ()
    return describe(missing, sorted(extra), wrong) or " ".join(errors)[:200]


def _own_names(kind: Any, network: Any, main: Path, names: Iterable[str]) -> dict[str, str]:
    """Name in the files → name in a network of diffusers, which knows old attention in single files only."""
    own = network.state_dict()
    is_single = main.suffix != ".json"
    return {n: _canonical(kind, n) if is_single and n not in own else n for n in names}


def _canonical(kind: Any, name: str) -> str:
    """A tensor's name whatever version of the libraries wrote it."""
    if _is_diffusers(kind):
        path = name.split(".")
        path[-2:-1] = [_OLD_ATTENTION.get(part, part) for part in path[-2:-1]]
        return ".".join(path)
    for prefix in (kind.base_model_prefix, "text_model"):
        name = name.removeprefix(f"{prefix}.") if prefix else name
    return name


def _modules(kind: Any, network: Any) -> set[str]:
    """Names of the network's outermost modules."""
    return {_canonical(kind, name).split(".")[0] for name in network.state_dict()}


def _is_inside(kind: Any, modules: set[str], name: str) -> bool:
    """Whether a name is of one of these modules; in diffusers' networks every name is."""
    return _is_diffusers(kind) or _canonical(kind, name).split(".")[0] in modules

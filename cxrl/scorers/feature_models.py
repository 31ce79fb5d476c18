"""Frozen image models in whose features sets of films are compared: DenseNet, RAD-DINO, Inception-v3.

Each takes a film as it was read and brings it to its own size and range, as the model's own library does it.
All are read from local files; nothing is downloaded, and no pickle can run code.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from cxrl.errors import CxrlError, nearest
from cxrl.images.png import to_uint8
from cxrl.images.read import resize
from cxrl.models.loading import attempt, check_network, quiet
from cxrl.models.weight_check import not_finite
from cxrl.scorers.choice import OpenedModel, file_sha256
from cxrl.scorers.xrv_densenet import XrvClassifier, read_state, square
from cxrl.scorers.xrv_release import XRV_FILES

JUDGE = "judge"
"""The name that stands for the diagnosis judge's own features."""
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""Of ``pt_inception-2015-12-05-6726825d.pth`` (pytorch-fid) and ``weights-inception-…`` (torch-fidelity), one
file under two names. Neither release publishes it whole; the name holds its beginning, and users of both have
recorded it in public repositories.
"""
RAD_DINO = {"model_type": "dinov2", "hidden_size": 768}
"""What the configuration of microsoft/rad-dino says."""
_PROCESSOR = "preprocessor_config.json"
_BATCH = 16


class FeatureModel(Protocol):
    """A frozen model of features.

    Attributes:
        name: "densenet", "rad-dino" or "inception".
        description: Which weights, which layer, how wide, and the size of the films.
        digest: SHA-256 of the files that decide what it says.
        num_features: D.
        batch_size: Films at once.
    """

    name: str
    description: str
    digest: str
    num_features: int
    batch_size: int

    def prepare(self, film: Tensor) -> Tensor:
        """What the model is given of a film float32 [1, H, W] in [0, 1], of any size: one shape for all."""
        ...

    def features(self, prepared: Tensor) -> Tensor:
        """float32 [N, D] of N prepared films."""
        ...


class DenseNetFeatures:
    """torchxrayvision's DenseNet-121 (Cohen et al., arXiv 2111.00595): the pooled last layer, 1024 wide.

    The central square of a film, antialiased to 224 pixels, from -1024 to 1024.
    """

    name, batch_size, num_features = "densenet", _BATCH, XrvClassifier.num_features

    def __init__(self, path: Path, sha256: str = "") -> None:
        """Raises CxrlError: the file is missing, damaged, unknown and not pinned, or another network."""
        expected = "the weights of torchxrayvision's DenseNet-121"
        self.digest = _file_digest(path, self.name, expected)
        known = {known.sha256: name for name, known in XRV_FILES.items() if known.sha256}
        _check_digest(path, self.name, self.digest, sha256, known)
        release = known.get(self.digest, "")
        # Names and operating points of its outputs, which the release's name decides, are not used here.
        opened = _opened(self.name, path, self.digest, release or "densenet121-res224-all")
        try:
            self._network = XrvClassifier(opened, "cpu")
        except CxrlError as error:
            raise CxrlError(f"{error}; expected {expected}") from None
        self.description = f"torchxrayvision {release or f'DenseNet-121 {path.name}'}, 1024 wide, 224 px"

    def prepare(self, film: Tensor) -> Tensor:
        """float32 [1, 224, 224]."""
        return square(film[None], 224)[0]

    def features(self, prepared: Tensor) -> Tensor:
        """float32 [N, 1024]."""
        return self._network.features(prepared)


class RadDinoFeatures:
    """RAD-DINO (Pérez-García et al., arXiv 2401.10815): the class token of the last layer, 768 wide.

    Films go as 8-bit grey through the folder's own processor (shorter side, centre, mean and spread of its
    ``preprocessor_config.json``), whatever size that says.
    """

    name, batch_size = "rad-dino", 4

    def __init__(self, path: Path) -> None:
        """Raises CxrlError: the folder is missing or damaged, or another model's."""
        import transformers

        what = f"{_option(self.name)}: cannot load {path}"
        expected = "expected a folder of microsoft/rad-dino"
        names = ("config.json", _PROCESSOR, "model.safetensors")
        for name in names:
            if not (path / name).is_file():
                raise CxrlError(f"{what}: there is no {name}; {expected} with {', '.join(names)}")
        config = attempt(what, lambda: transformers.AutoConfig.from_pretrained(path, local_files_only=True))
        for key, value in RAD_DINO.items():
            if (found := getattr(config, key, None)) != value:
                raise CxrlError(f"{what}: its {key} is {found!r}; {expected}, whose {key} is {value!r}")
        files = check_network(transformers.Dinov2Model, path, what)
        files.check_values()
        self.digest = _folder_digest(path, names, what)
        self._network = files.load(torch.float32).requires_grad_(False)
        self._processor = attempt(what, lambda: _processor(path, expected))
        self.num_features = int(config.hidden_size)
        blank = attempt(what, lambda: self.prepare(torch.zeros(1, 2, 2)))
        if blank.ndim != 3 or len(blank) != 3:
            raise CxrlError(f"{what}: its processor gives {tuple(blank.shape)}, expected [3, height, width]")
        height, width = blank.shape[1:]
        size = f"{height}×{width}" if height != width else str(height)
        self.description = f"RAD-DINO {path.name}, class token, {self.num_features} wide, {size} px"

    def prepare(self, film: Tensor) -> Tensor:
        """float32 [3, h, w] of the processor's size."""
        pixels = torch.from_numpy(to_uint8(film)).expand(3, -1, -1)
        given = self._processor(images=pixels, input_data_format="channels_first", return_tensors="pt")
        return given["pixel_values"][0]

    @torch.no_grad()
    def features(self, prepared: Tensor) -> Tensor:
        """float32 [N, 768]."""
        return self._network(pixel_values=prepared).pooler_output.float()


class InceptionFeatures:
    """The Inception-v3 of the Fréchet Inception distance (Heusel et al., arXiv 1706.08500): torch-fidelity's.

    The last pooled layer, 2048 wide. The central square of a film is antialiased to 299 pixels and rounded to
    8 bits (as clean-fid, Parmar et al., arXiv 2104.11222), so the network's own resizing, which has no
    antialiasing, changes nothing.
    """

    name, batch_size, num_features = "inception", _BATCH, 2048

    def __init__(self, path: Path, sha256: str = "") -> None:
        """Raises CxrlError: torch-fidelity or the file is missing; it is damaged, or another network."""
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise CxrlError(
                f"{_option(self.name)} needs torch-fidelity: pip install 'cxrl[inception]'"
            ) from None
        option, expected = _option(self.name), "the Inception-v3 weights of the FID (1008 classes)"
        self.digest = _file_digest(path, self.name, expected)
        _check_digest(path, self.name, self.digest, sha256, {INCEPTION_SHA256: "FID"})
        state = read_state(_opened(self.name, path, self.digest))
        classes = state.get("fc.bias", torch.empty(0)).numel()
        if classes != 1008:
            raise CxrlError(f"{option}: {path} holds a network of {classes} classes, expected {expected}")
        if bad := not_finite(state):
            raise CxrlError(f"{option}: {path} {bad}, expected {expected}")
        # torch-fidelity unpickles whatever file it is given, and downloads without one: it is given the
        # tensors that were read here.
        buffer = io.BytesIO()
        torch.save(state, buffer)
        buffer.seek(0)
        try:
            network = FeatureExtractorInceptionV3(option, ["2048"], feature_extractor_weights_path=buffer)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:160]
            raise CxrlError(f"{option}: {path} does not hold {expected} ({reason})") from None
        self._network = network
        which = "2015-12-05" if self.digest == INCEPTION_SHA256 else f"with the weights {path.name}"
        self.description = f"Inception-v3 of the FID, {which}, 2048 wide, 299 px"

    def prepare(self, film: Tensor) -> Tensor:
        """uint8 [1, 299, 299]."""
        return torch.from_numpy(to_uint8(resize(film, (299, 299))))[None]

    @torch.no_grad()
    def features(self, prepared: Tensor) -> Tensor:
        """float32 [N, 2048]."""
        return self._network(prepared.expand(-1, 3, -1, -1))[0]


_MODELS: dict[str, Callable[..., FeatureModel]] = {
    model.name: model for model in (DenseNetFeatures, RadDinoFeatures, InceptionFeatures)
}
PINNED = (DenseNetFeatures.name, InceptionFeatures.name)
"""Those whose weights are one file, often a pickle, so that ``--sha256`` can pin it."""


def parse_features(entries: Sequence[str]) -> dict[str, Path | None]:
    """``("judge", "rad-dino=FOLDER", …)`` as name → path, None for the judge.

    Raises:
        CxrlError: A name is unknown or named twice, or its path is missing.
    """
    found: dict[str, Path | None] = {}
    for entry in entries:
        name, given, path = entry.partition("=")
        if name not in (JUDGE, *_MODELS):
            raise CxrlError(f"--features: {name!r} is no feature model; {nearest(name, (JUDGE, *_MODELS))}")
        if name in found:
            raise CxrlError(f"--features: {name} is named twice")
        if name == JUDGE and given:
            raise CxrlError(f"--features: {JUDGE} takes no path; another judge is named by --diagnosis")
        if name != JUDGE and not path:
            raise CxrlError(f"--features: {name} needs a path, {name}=PATH")
        found[name] = Path(path) if path else None
    return found


def open_feature_models(
    paths: dict[str, Path | None], sha256: dict[str, str] | None = None
) -> dict[str, FeatureModel]:
    """The models that :func:`parse_features` names, in its order; the judge is not among them.

    Args:
        paths: Name → file or folder.
        sha256: Name → digest that its file must have.

    Raises:
        CxrlError: A file is missing or damaged, or not the model that was asked for; it is named.
    """
    pins = sha256 or {}
    for name in pins:
        if name not in paths:
            raise CxrlError(f"--sha256: {name} is pinned, and --features does not name it")
    return {
        name: _MODELS[name](path, *([pins[name]] if name in pins else []))
        for name, path in paths.items()
        if path is not None
    }


def _option(name: str) -> str:
    return f"--features {name}"


def _opened(name: str, path: Path, digest: str, release: str = "") -> OpenedModel:
    """A file of weights as :mod:`cxrl.scorers.xrv_densenet` reads them."""
    return OpenedModel(
        option=_option(name), task="diagnosis", value=str(path), name=release, kind="xrv", path=path,
        files=(path,), sha256=digest, folder=path.parent, batch_size=_BATCH, dtype="float32",
    )  # fmt: skip


def _processor(path: Path, expected: str) -> Any:
    """Raises CxrlError where the library would put a number of its own in place of one that is not there."""
    import transformers

    said = json.loads((path / _PROCESSOR).read_text(encoding="utf-8"))
    for key in ("size", "image_mean", "image_std"):
        if key not in said:
            raise CxrlError(f"{_PROCESSOR} has no {key}; {expected}")
    with quiet():
        return transformers.AutoImageProcessor.from_pretrained(path, local_files_only=True)


def _file_digest(path: Path, name: str, expected: str) -> str:
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "is no file"
        raise CxrlError(f"{_option(name)}: {path} {state}, expected {expected}")
    try:
        return file_sha256(path)
    except OSError as error:
        raise CxrlError(f"{_option(name)}: cannot read {path}: {error.strerror}") from None


def _check_digest(path: Path, name: str, found: str, pinned: str, known: dict[str, str]) -> None:
    """Raise CxrlError unless the file is the pinned one, or a known one, or none that can run code."""
    if pinned and found != pinned:
        raise CxrlError(f"{_option(name)}: {path} has SHA-256 {found}, expected {pinned} (--sha256)")
    if not pinned and found not in known and path.suffix != ".safetensors":
        raise CxrlError(
            f"{_option(name)}: {path} is a pickle and not one that is known; compare it with its source and "
            f"pin it with --sha256 {name}={found}"
        )


def _folder_digest(path: Path, names: Sequence[str], what: str) -> str:
    rows = attempt(what, lambda: [f"{name}\0{file_sha256(path / name)}\n" for name in names])
    return hashlib.sha256("".join(rows).encode()).hexdigest()

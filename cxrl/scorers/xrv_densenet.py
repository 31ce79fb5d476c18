"""torchxrayvision's DenseNet-121 as a frozen classifier of films (Cohen et al., arXiv 2111.00595).

The network wants one grey channel of 224 × 224 pixels from -1024 to 1024. Its 18 outputs are a fixed list, of
which a set of weights knows some: the others have an empty name and are left out. Each known output's
probability is bent so that the operating point that torchxrayvision gives for it becomes 0.5.
"""

from __future__ import annotations

import math
import warnings
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cxrl.errors import CxrlError
from cxrl.models.base import DTYPES
from cxrl.models.weight_check import not_finite, state_problem
from cxrl.scorers.choice import OpenedModel
from cxrl.scorers.pickles import read_pickled_state
from cxrl.scorers.validity import film_validity

CHEXPERT_NAMES = {"Effusion": "Pleural Effusion"}
"""torchxrayvision's name → CheXpert's, which the data sources use; others are equal or have no partner."""


def import_xrv() -> ModuleType:
    """torchxrayvision; its import switches all warnings off, which is undone."""
    with warnings.catch_warnings():
        import torchxrayvision
        import torchxrayvision.models
    return torchxrayvision


def square(images: Tensor, size: int) -> Tensor:
    """Centre crop to a square, then antialiased bilinear resizing: [N, 1, H, W] to [N, 1, size, size].

    What ``XRayCenterCrop`` and ``XRayResizer`` do to one array, for tensors on any device.
    """
    height, width = images.shape[-2:]
    side = min(height, width)
    top, left = height // 2 - side // 2, width // 2 - side // 2
    images = images[..., top : top + side, left : left + side]
    if side == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", antialias=True, align_corners=False)


def read_state(model: OpenedModel) -> dict[str, Tensor]:
    """The weights of a file of torchxrayvision's release, or of one in its place, .safetensors or a pickle.

    Raises:
        CxrlError: It is damaged, or would have to run code.
    """
    if model.path.suffix != ".safetensors":
        return read_pickled_state(model.path, sha256=model.sha256, option=model.option)
    try:
        # Copies, as in cxrl.storage.reading.
        return {name: tensor.clone() for name, tensor in load_file(model.path).items()}
    except (SafetensorError, OSError) as error:
        raise CxrlError(f"{model.option}: cannot read {model.path}: {error}") from None


def put_weights(network: Any, state: dict[str, Tensor], model: OpenedModel, device: torch.device) -> Any:
    """A network on the meta device with the weights in it, frozen, on the device, in the model's dtype.

    Raises:
        CxrlError: A tensor is missing, too many, of another shape or not finite; it is named.
    """
    if problem := state_problem(network.state_dict(), state):
        raise CxrlError(f"{model.option}: {model.path} holds another network, or is damaged: it {problem}")
    try:
        network.load_state_dict(state, assign=True)
    except (RuntimeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CxrlError(f"{model.option}: {model.path} holds another network ({reason})") from None
    network = network.to(device=device, dtype=DTYPES[model.dtype]).eval().requires_grad_(False)
    if model.dtype != "float32" and (problem := not_finite(network.state_dict())):
        section = model.option.partition(".")[0]
        raise CxrlError(f"{model.option}: {model.path} {problem} in {model.dtype}; see --{section}.dtype")
    return network


class XrvClassifier:
    """A DenseNet-121 of torchxrayvision.

    Attributes:
        findings: CheXpert's names of the F outputs that the weights know.
        description: What it is, for summary.json.
        num_features: 1024, the pooled last layer.
    """

    num_features = 1024

    def __init__(self, model: OpenedModel, device: torch.device | str) -> None:
        """Raises CxrlError, see :func:`read_state`."""
        state = read_state(model)
        models = import_xrv().models
        info = models.model_urls[model.name]
        with torch.device("meta"):
            network = models.DenseNet()
        self.device, self.batch_size, self.description = torch.device(device), model.batch_size, model.value
        self._network = put_weights(network, state, model, self.device)
        self._size = int(info["input_resolution"])
        slots = [i for i, name in enumerate(info["labels"]) if name]
        self.findings = tuple(CHEXPERT_NAMES.get(info["labels"][i], info["labels"][i]) for i in slots)
        self._slots = torch.tensor(slots, device=self.device)
        points = [float(info["op_threshs"][i]) for i in slots]
        self._points = torch.tensor([0.5 if math.isnan(p) else p for p in points], device=self.device)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """float32 [N, 1024] of images float32 [N, 1, H, W] in [0, 1]."""
        return torch.cat([self._pooled(part) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def diagnose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Probability [N, F] of every finding, and validity [N] in [0, 1] of every image, see
        :func:`cxrl.scorers.validity.film_validity`.
        """
        weight = self._network.classifier.weight[self._slots].float()
        bias = self._network.classifier.bias[self._slots].float()
        probability = F.linear(self.features(images), weight, bias).sigmoid()
        return operating_point(probability, self._points), film_validity(images.to(self.device))

    def _pooled(self, images: Tensor) -> Tensor:
        pixels = (2.0 * square(images.to(self.device).float(), self._size) - 1.0) * 1024.0
        maps = self._network.features(pixels.to(self._network.classifier.weight.dtype))
        return F.relu(maps).mean((2, 3)).float()


def operating_point(probability: Tensor, points: Tensor) -> Tensor:
    """Probabilities [N, F] bent linearly on both sides so that ``points`` [F] become 0.5."""
    below = probability / (2.0 * points)
    above = 1.0 - (1.0 - probability) / (2.0 * (1.0 - points))
    return torch.where(probability < points, below, above)

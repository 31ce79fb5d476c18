"""torchxrayvision's PSPNet (Lian et al., arXiv 2104.10326): posture by its masks of 14 structures.

The network wants 512 × 512 pixels, three equal channels with ImageNet's mean and deviation.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from cxrl.scorers.choice import OpenedModel
from cxrl.scorers.posture_geometry import STRUCTURES, posture_from_masks
from cxrl.scorers.validity import film_validity
from cxrl.scorers.xrv_densenet import import_xrv, put_weights, read_state, square


class AnatomicalPosture:
    """Posture by PSPNet's masks.

    Attributes:
        description: What it is, for summary.json.
    """

    size = 512

    def __init__(self, model: OpenedModel, device: torch.device | str) -> None:
        """Raises CxrlError: the weights cannot be read or are of another network."""
        state = {name.removeprefix("module."): tensor for name, tensor in read_state(model).items()}
        import_xrv()
        from torchxrayvision.baseline_models.chestx_det.ptsemseg.pspnet import pspnet

        with torch.device("meta"):
            network = pspnet(len(STRUCTURES))
        self.device, self.batch_size, self.description = torch.device(device), model.batch_size, model.value
        self._network = put_weights(network, state, model, self.device)
        self._mean = torch.tensor([0.485, 0.456, 0.406], device=self.device).view(3, 1, 1)
        self._std = torch.tensor([0.229, 0.224, 0.225], device=self.device).view(3, 1, 1)

    @torch.no_grad()
    def pose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """psi [N, 5] and validity [N] in [0, 1] of images float32 [N, 1, H, W] in [0, 1]: 0 without two
        lungs, and lower for an image that is no plausible film.
        """
        parts = [posture_from_masks(self.masks(part)) for part in images.split(self.batch_size)]
        psi, found = (torch.cat(values) for values in zip(*parts, strict=True))
        return psi, found * film_validity(images.to(self.device))

    def masks(self, images: Tensor) -> Tensor:
        """Probability [N, 14, 512, 512] of every structure."""
        pixels = (square(images.to(self.device).float(), self.size) - self._mean) / self._std
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its upsampling has an old name
            logits = self._network(pixels.to(self._network.classification.weight.dtype))
        return logits.float().sigmoid()

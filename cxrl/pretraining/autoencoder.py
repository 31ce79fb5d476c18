"""The autoencoder: a diffusers ``AutoencoderKL``, one grey channel, 8x smaller latents with 8 channels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.func import functional_call

from cxrl.data.phantom.films import Films
from cxrl.pretraining.fit import FitOptions, fit

KL_WEIGHT = 1e-6
BATCH_SIZE = 8
DECODER_BATCH_SIZE = 16
LATENT_NOISE = 0.03
"""Noise on the decoder's input, in latent standard deviations: generated latents are never exact."""
ADVERSARIAL_WEIGHT = 0.5
DETAIL_GAIN = 20.0
ADVERSARIAL_START = 0.3
"""Share of the decoder's steps after which the discriminator has its full say; it joins half way there."""
LATENT_CHANNELS = 8
"""Four lose the ribs at this size: 512 numbers hold a 64 x 64 film, 256 do not."""


def build_autoencoder(size: int, channels: tuple[int, ...] = (16, 24, 64, 64)) -> Any:
    """A small AutoencoderKL for ``size`` x ``size`` grey images in [-1, 1]."""
    model: Any = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * len(channels),
        up_block_types=("UpDecoderBlock2D",) * len(channels),
        block_out_channels=channels,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=size,
        mid_block_add_attention=False,
    )
    return model


def reconstruction_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 of the image and of its finite differences along both axes: edges stay sharp."""
    error = output - target
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + edges


def fit_autoencoder(
    films: Films, *, num_steps: int, seed: int, work_dir: Path, tell: Callable[[str], None] = print
) -> Any:
    """Trains on ``films`` and sets ``scaling_factor`` so that latents have unit standard deviation."""
    torch.manual_seed(seed)
    model = build_autoencoder(films.images.shape[-1])
    model.to(memory_format=torch.channels_last)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(films), (BATCH_SIZE,), generator=generator)
        images = films.pixels(index) * 2.0 - 1.0
        if step % 2:  # mirrored halves double the corpus; the generator never sees them
            images = images.flip(-1)
        images = images.to(memory_format=torch.channels_last)
        posterior = model.encode(images).latent_dist
        noise = torch.randn(posterior.mean.shape, generator=generator)
        output = model.decode(posterior.mean + posterior.std * noise).sample
        return reconstruction_loss(output, images) + KL_WEIGHT * posterior.kl().mean()

    options = FitOptions(num_steps, learning_rate=2e-3, weight_decay=0.0, ema_decay=0.998)
    fit("autoencoder", model, loss_at, options, seed=seed, work_dir=work_dir, tell=tell)
    latents = encode(model, films.images[:1024])
    model.register_to_config(scaling_factor=float(1.0 / latents.std()))
    return model


class PatchDiscriminator(nn.Module):
    """A PatchGAN discriminator (arXiv 1611.07004): images [N, 1, H, W] in [-1, 1] -> scores
    [N, 1, H/4, W/4], each of a patch of about 20 x 20.

    It sees the image and, enlarged, what a 3 x 3 blur takes from it: the grain of a film is 3 % of its range.
    """

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(2, width, 4, stride=2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 3, padding=1),
        )

    def forward(self, images: Tensor) -> Tensor:
        blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return self.layers(torch.cat([images, DETAIL_GAIN * (images - blurred)], dim=1))


def adversarial_loss(
    discriminator: nn.Module, output: Tensor, images: Tensor, reconstruction: Tensor, last_layer: Tensor
) -> tuple[Tensor, Tensor]:
    """The decoder's loss against the discriminator, and the discriminator's hinge loss.

    As in VQGAN (arXiv 2012.09841, eq. 7) the first is scaled so that its gradient at the decoder's last
    layer has the norm of the reconstruction's. Neither changes the other's weights.
    """
    frozen = {name: p.detach() for name, p in discriminator.named_parameters()}
    against = -functional_call(discriminator, frozen, (output,)).mean()
    pull, push = (
        torch.autograd.grad(loss, last_layer, retain_graph=True)[0].norm()
        for loss in (reconstruction, against)
    )
    real, fake = discriminator(images), discriminator(output.detach())
    hinge = 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean())
    return against * (pull / (push + 1e-6)).clamp(max=1e4).detach(), hinge


def fit_decoder(
    model: Any,
    films: Films,
    *,
    num_steps: int,
    seed: int,
    work_dir: Path,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains the decoder on, the encoder and so the latents fixed: the base model can train beside it.

    The encoder finds early what to keep; drawing fine ribs from it takes the decoder longer. What the latents
    do not hold, edges and the grain of the film, a plain L1 would average away: a patch discriminator that
    joins later asks for it, as for the autoencoder of Stable Diffusion (arXiv 2112.10752, appendix G).
    """
    latents = encode(model, films.images)
    model.requires_grad_(False)
    model.decoder.requires_grad_(True)
    model.post_quant_conv.requires_grad_(True)
    torch.manual_seed(seed)
    discriminator = PatchDiscriminator()
    last_layer = model.decoder.conv_out.weight

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(films), (DECODER_BATCH_SIZE,), generator=generator)
        images = films.pixels(index) * 2.0 - 1.0
        z = latents[index] + LATENT_NOISE * latents.std() * torch.randn(
            latents[index].shape, generator=generator
        )
        output = model.decode(z.to(memory_format=torch.channels_last)).sample
        reconstruction = reconstruction_loss(output, images)
        against, hinge = adversarial_loss(discriminator, output, images, reconstruction, last_layer)
        share = min(1.0, max(0.0, 2.0 * step / (ADVERSARIAL_START * num_steps) - 1.0))
        return reconstruction + share * ADVERSARIAL_WEIGHT * against + hinge

    both = nn.ModuleDict({"autoencoder": model, "discriminator": discriminator})
    options = FitOptions(num_steps, learning_rate=1e-3, weight_decay=0.0, ema_decay=0.998)
    fit("decoder", both, loss_at, options, seed=seed, work_dir=work_dir, tell=tell)


@torch.no_grad()
def encode(model: Any, images: Tensor, batch_size: int = 64) -> Tensor:
    """Posterior means, unscaled, float32 [N, 8, h, w], of uint8 images [N, 1, H, W]."""
    parts = [model.encode(part.float() / 127.5 - 1.0).latent_dist.mean for part in images.split(batch_size)]
    return torch.cat([part.contiguous() for part in parts])


def reconstruction_psnr(model: Any, films: Films) -> float:
    """Peak signal-to-noise ratio in dB over ``films``, images in [0, 1]."""
    with torch.no_grad():
        latents = encode(model, films.images)
        output = (
            torch.cat([model.decode(part).sample for part in latents.split(64)])
            .add(1.0)
            .div(2.0)
            .clamp(0.0, 1.0)
        )
    return float(-10.0 * torch.log10(F.mse_loss(output, films.pixels())))

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from cxrl.data.phantom.films import Films, corpus
from cxrl.pretraining.autoencoder import (
    LATENT_CHANNELS,
    PatchDiscriminator,
    adversarial_loss,
    build_autoencoder,
    encode,
    fit_autoencoder,
    fit_decoder,
    reconstruction_loss,
    reconstruction_psnr,
)


@pytest.fixture(scope="module")
def films() -> Films:
    return corpus(12, seed=8301, size=32)


def test_the_decoder_trains_alone_and_latents_have_unit_deviation(films: Films, tmp_path: Path) -> None:
    quiet: list[str] = []
    options = {"seed": 0, "work_dir": tmp_path, "tell": quiet.append}
    model = fit_autoencoder(films, num_steps=2, **options)
    latents = encode(model, films.images)
    assert tuple(latents.shape) == (12, LATENT_CHANNELS, 4, 4)
    assert float(latents.std() * model.config.scaling_factor) == pytest.approx(1.0, abs=1e-4)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    fit_decoder(model, films, num_steps=2, **options)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved
    assert {name.split(".")[0] for name in moved} == {"decoder", "post_quant_conv"}
    assert torch.equal(encode(model, films.images), latents)


def test_loss_is_zero_for_a_perfect_copy_and_counts_edges() -> None:
    image = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(reconstruction_loss(image, image)) == 0.0
    # A constant offset has no edges: the mean absolute error alone.
    assert float(reconstruction_loss(image + 0.25, image)) == pytest.approx(0.25, abs=1e-6)
    stripes = torch.zeros(1, 1, 8, 8)
    stripes[..., ::2] = 0.5
    # Half of the pixels off by 0.5, and every step along the rows by 0.5.
    assert float(reconstruction_loss(stripes, torch.zeros(1, 1, 8, 8))) == pytest.approx(0.25 + 0.5)


def test_psnr_of_a_known_error(films: Films, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_autoencoder(32)

    class Output:
        def __init__(self, z: Tensor) -> None:
            self.sample = films.pixels() * 2 - 1 + 0.2  # 0.1 of the range [0, 1]

    monkeypatch.setattr(model, "decode", Output)
    inside = films.pixels() < 0.9  # brighter ones are clamped and closer
    psnr = reconstruction_psnr(model, films)
    assert psnr >= 20.0 - 1e-4
    assert psnr == pytest.approx(20.0, abs=10 * float((~inside).float().mean()) + 0.01)


def test_decoder_and_discriminator_each_get_their_own_loss() -> None:
    torch.manual_seed(3)
    discriminator, images = PatchDiscriminator(8), torch.rand(2, 1, 32, 32) * 2 - 1
    last_layer = torch.nn.Parameter(torch.randn(1, 4, 3, 3))
    output = torch.nn.functional.conv2d(torch.randn(2, 4, 32, 32), last_layer, padding=1)
    reconstruction = reconstruction_loss(output, images)
    against, hinge = adversarial_loss(discriminator, output, images, reconstruction, last_layer)
    weights = list(discriminator.parameters())
    assert torch.autograd.grad(hinge, last_layer, retain_graph=True, allow_unused=True) == (None,)
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(hinge, weights, retain_graph=True))
    assert set(torch.autograd.grad(against, weights, retain_graph=True, allow_unused=True)) == {None}
    norms = [
        torch.autograd.grad(x, last_layer, retain_graph=True)[0].norm() for x in (against, reconstruction)
    ]
    assert float(norms[0]) == pytest.approx(float(norms[1]), rel=1e-3)


def test_the_discriminator_learns_to_see_grain() -> None:
    generator = torch.Generator().manual_seed(4)
    torch.manual_seed(4)
    discriminator = PatchDiscriminator(8)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=3e-3)
    smooth = torch.nn.functional.interpolate(torch.rand(16, 1, 4, 4, generator=generator), 32, mode="bicubic")
    for _ in range(40):
        grainy = smooth + 0.03 * torch.randn(smooth.shape, generator=generator)
        real, fake = discriminator(grainy), discriminator(smooth)
        loss = (1 - real).relu().mean() + (1 + fake).relu().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(real.detach().mean() - fake.detach().mean()) > 1.0

from __future__ import annotations

import torch

from cxrl.models.ace import init_ace


def test_tokens_start_near_the_padding_embedding_and_apart_from_each_other() -> None:
    pad = 3.0 * torch.randn(4096, generator=torch.Generator().manual_seed(0)) + 1.0
    tokens = init_ace(pad, 5, torch.Generator().manual_seed(1))
    noise = tokens.detach() - pad
    # 2 % of the embedding's own spread, whatever its scale: 4096 samples tell it to a percent or two.
    torch.testing.assert_close(noise.std(1) / pad.std(), torch.full((5,), 0.02), rtol=0.05, atol=0)
    assert float(noise.mean(1).abs().max()) < 0.1 * float(noise.std())
    assert float(torch.corrcoef(noise).fill_diagonal_(0).abs().max()) < 0.1
    assert tokens.requires_grad
    assert tokens.dtype == torch.float32


def test_the_seed_decides() -> None:
    pad = torch.randn(16, dtype=torch.bfloat16)
    one, same, other = (init_ace(pad, 2, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)

"""Adaptive condition embeddings (ACE): n learnable tokens that follow the prompt embeddings.

    [c_p; c_s]   c_p [B, L, D] from the frozen text encoder, c_s [n, D] learned

They start from the padding token's embedding. Equal tokens would get equal gradients for ever, so a little
noise tells them apart.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INIT_NOISE = 0.02
"""Standard deviation of the noise, relative to that of the padding embedding."""


def init_ace(pad_embedding: Tensor, num_tokens: int, generator: torch.Generator) -> nn.Parameter:
    """float32 [n, D] tokens around the padding embedding [D]; the generator lives on the CPU."""
    pad = pad_embedding.detach().float()
    noise = torch.randn(num_tokens, pad.numel(), generator=generator).to(pad.device)
    return nn.Parameter(pad + INIT_NOISE * pad.std() * noise)

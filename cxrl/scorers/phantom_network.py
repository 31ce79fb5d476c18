"""Small networks that score phantom images: two kinds of trunk and of text tower, and how they are stored.

The reward models use the ``resnet`` trunk and a recurrent reader, the judges the ``convnext`` trunk and a
convolutional one. Every network also answers whether the image is a chest film at all (``validity``):
blank, noise, inverted or scrambled images get a low one.

Images are float32 [N, 1, H, W] in [0, 1]; the normalisation is inside.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from cxrl.errors import CxrlError
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.models.weight_check import state_problem
from cxrl.scorers.validity import halves_validity
from cxrl.storage.writing import write_tensors


@dataclass(frozen=True)
class ScorerConfig:
    """What rebuilds a scorer.

    Attributes:
        task: "posture", "diagnosis" or "consistency".
        trunk: "resnet" or "convnext".
        width: Channels of the first stage; they double twice.
        image_size: Pixels a side.
        num_outputs: 5 for posture, the number of findings, or the embedding size.
        vocabulary: Words of the text tower (consistency only).
        findings: Names of the outputs (diagnosis only); empty means the phantom's.
        crop: Central share of an image's height and width that is looked at.
    """

    task: str
    trunk: str
    width: int
    image_size: int
    num_outputs: int
    vocabulary: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.findings and len(self.findings) != self.num_outputs:
            raise ValueError(f"{self.num_outputs} outputs for {len(self.findings)} findings")


class _ResidualBlock(nn.Module):
    def __init__(self, num_in: int, num_out: int, stride: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(num_in, num_out, 3, stride, 1, bias=False),
            nn.BatchNorm2d(num_out),
            nn.ReLU(inplace=True),
            nn.Conv2d(num_out, num_out, 3, 1, 1, bias=False),
            nn.BatchNorm2d(num_out),
        )
        same = stride == 1 and num_in == num_out
        self.skip = nn.Identity() if same else nn.Conv2d(num_in, num_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.main(x) + self.skip(x))


class _ConvNeXtBlock(nn.Module):
    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(num_channels, num_channels, 5, padding=2, groups=num_channels)
        self.norm = nn.GroupNorm(1, num_channels)
        self.expand = nn.Conv2d(num_channels, 3 * num_channels, 1)
        self.project = nn.Conv2d(3 * num_channels, num_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.project(F.gelu(self.expand(self.norm(self.depthwise(x)))))


def _trunk(kind: str, width: int) -> nn.Sequential:
    """[N, 1, H, W] -> [N, 4 width, H/16, W/16]."""
    if kind == "resnet":
        return nn.Sequential(
            nn.Conv2d(1, width, 5, 2, 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            _ResidualBlock(width, width, 2),
            _ResidualBlock(width, 2 * width, 2),
            _ResidualBlock(2 * width, 4 * width, 2),
            _ResidualBlock(4 * width, 4 * width, 1),
        )
    if kind == "convnext":
        return nn.Sequential(
            nn.Conv2d(1, width, 4, 4),
            _ConvNeXtBlock(width),
            _ConvNeXtBlock(width),
            nn.Conv2d(width, 2 * width, 2, 2),
            _ConvNeXtBlock(2 * width),
            _ConvNeXtBlock(2 * width),
            nn.Conv2d(2 * width, 4 * width, 2, 2),
            _ConvNeXtBlock(4 * width),
        )
    raise CxrlError(f'unknown trunk {kind!r}: expected "resnet" or "convnext"')


NUM_WORDS = 48
"""Texts are padded to this length at least: the reader that runs backwards starts in the padding, so a text
would else mean something else beside longer ones."""


class TextTower(nn.Module):
    """Words -> embedding [N, E], a recurrent or a convolutional reader; unknown words are ignored."""

    def __init__(self, vocabulary: tuple[str, ...], num_outputs: int, reader: str, hidden: int = 64) -> None:
        super().__init__()
        self.index = {word: i + 1 for i, word in enumerate(vocabulary)}
        self.embed = nn.Embedding(len(vocabulary) + 1, hidden, padding_idx=0)
        self.gru = nn.GRU(hidden, hidden, batch_first=True, bidirectional=True) if reader == "gru" else None
        self.conv = nn.Conv1d(hidden, 2 * hidden, 7, padding=3) if reader == "conv" else None
        self.head = nn.Linear(2 * hidden, num_outputs)

    def forward(self, texts: list[str]) -> Tensor:
        rows = [[self.index[w] for w in words(text) if w in self.index] or [0] for text in texts]
        longest = max(NUM_WORDS, *(len(row) for row in rows))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=self.head.weight.device)
        mask = (ids > 0).unsqueeze(-1)
        embedded = self.embed(ids)
        if self.gru is not None:
            states, _ = self.gru(embedded)
        else:
            assert self.conv is not None
            states = F.gelu(self.conv(embedded.transpose(1, 2))).transpose(1, 2)
        pooled = states.masked_fill(~mask, -1e4).amax(dim=1)
        return self.head(pooled.clamp(min=-1.0))


def words(text: str) -> list[str]:
    """Lower-case words; a sentence end is a word of its own."""
    return text.lower().replace(".", " . ").replace(";", " ; ").replace(",", " ").split()


class Scorer(nn.Module):
    """A trunk, a 64-number feature vector, the task's head and validity."""

    num_features = 64

    def __init__(self, config: ScorerConfig) -> None:
        super().__init__()
        self.config = config
        self.trunk = _trunk(config.trunk, config.width)
        grid = config.image_size // 16
        self.reduce = nn.Conv2d(4 * config.width, 32, 1)
        self.features_layer = nn.Linear(32 * grid * grid, self.num_features)
        self.head = nn.Linear(self.num_features, config.num_outputs)
        self.validity_head = nn.Linear(self.num_features, 1)
        if config.task == "consistency":
            self.text = TextTower(
                config.vocabulary, config.num_outputs, "gru" if config.trunk == "resnet" else "conv"
            )
            self.log_scale = nn.Parameter(torch.tensor(2.3))
            self.bias = nn.Parameter(torch.tensor(-5.0))

    def features(self, images: Tensor) -> Tensor:
        """[N, 1, H, W] -> [N, 64]."""
        size, crop = self.config.image_size, self.config.crop
        if crop < 1.0:
            height, width = (round(crop * n) for n in images.shape[-2:])
            top, left = (images.shape[-2] - height) // 2, (images.shape[-1] - width) // 2
            images = images[..., top : top + height, left : left + width]
        if images.shape[-2:] != (size, size):
            images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
        x = F.gelu(self.reduce(self.trunk((images - 0.5) * 4.0)))
        return F.gelu(self.features_layer(x.flatten(1)))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(task output [N, num_outputs], validity logit [N])."""
        features = self.features(images)
        return self.head(features), self.validity_head(features).squeeze(-1)

    @property
    def findings(self) -> tuple[str, ...]:
        """Names of the outputs (diagnosis only)."""
        return self.config.findings or PHANTOM_FINDINGS

    def pose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(psi [N, 5], validity [N] in [0, 1]) (posture only). A model of real films, which sees their middle
        alone, cannot tell a half that is there twice: :func:`cxrl.scorers.validity.halves_validity` does.
        """
        psi, logit = self(images)
        validity = logit.sigmoid()
        return psi, validity if self.config.crop == 1.0 else validity * halves_validity(images)

    def diagnose(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(probability [N, F], validity [N] in [0, 1]) (diagnosis only)."""
        logits, logit = self(images)
        return logits.sigmoid(), logit.sigmoid()

    def embed_images(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(unit-norm embeddings [N, E], validity [N] in [0, 1]) (consistency only)."""
        features = self.features(images)
        validity = self.validity_head(features).squeeze(-1).sigmoid()
        return F.normalize(self.head(features), dim=-1), validity

    def image_embeds(self, images: Tensor) -> Tensor:
        """Unit-norm [N, E] (consistency only)."""
        return F.normalize(self.head(self.features(images)), dim=-1)

    def text_embeds(self, texts: list[str]) -> Tensor:
        """Unit-norm [N, E] (consistency only)."""
        return F.normalize(self.text(texts), dim=-1)


def save_scorer(scorer: Scorer, path: Path, *, dtype: torch.dtype = torch.float16) -> None:
    """One safetensors file; the configuration is in its metadata."""
    tensors = {k: v.to(dtype if v.is_floating_point() else v.dtype) for k, v in scorer.state_dict().items()}
    write_tensors(path, tensors, metadata={"config": json.dumps(asdict(scorer.config))})


def load_scorer(path: Path, *, device: torch.device | str = "cpu") -> Scorer:
    """Loads a frozen scorer in float32.

    Raises:
        CxrlError: the file is missing, truncated or not a scorer; a tensor is missing, too many, of another
            shape or not finite, and is named.
    """
    if not path.is_file():
        raise CxrlError(f"{path} is missing; `cxrl pretrain --preset phantom` makes it")
    try:
        with safe_open(path, framework="pt") as file:
            fields = json.loads(file.metadata()["config"])
        fields |= {name: tuple(fields.get(name, ())) for name in ("vocabulary", "findings")}
        scorer = Scorer(ScorerConfig(**fields))
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in load_file(path).items()}
        if problem := state_problem(scorer.state_dict(), tensors):
            raise ValueError(f"it {problem}")
        scorer.load_state_dict(tensors)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CxrlError(
            f"{path} cannot be read ({reason}); install the package again or repeat `cxrl.pretrain`"
        ) from None
    return scorer.to(device).eval().requires_grad_(False)

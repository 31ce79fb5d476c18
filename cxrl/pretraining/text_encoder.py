"""The base model's text side: a CLIP tokenizer learnt from the reports, and a small CLIPTextModel.

As in Stable Diffusion the text encoder is trained first and then frozen. It learns to say what a report
names: every finding, its side, size and zone, read from the last position of the padded prompt, which sees
all words. A UNet that starts from such features follows the text many times sooner.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cxrl.data.phantom.films import distinct_reports
from cxrl.data.phantom.reports import Finding
from cxrl.pretraining.fit import FitOptions, fit

MAX_TOKENS = 48
TEXT_WIDTH = 128
BATCH_SIZE = 64


def build_tokenizer(texts: Sequence[str], folder: Path) -> Any:
    """A byte-level CLIPTokenizer whose merges are learnt from ``texts``; its files are written to
    ``folder``.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=1000, min_frequency=2, end_of_word_suffix="</w>", show_progress=False
    )
    model.train_from_iterator(sorted(set(texts)), trainer)
    learnt = json.loads(model.to_str())["model"]["merges"]
    merges = [tuple(m.split(" ")) if isinstance(m, str) else tuple(m) for m in learnt]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *("".join(m) for m in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, rules = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: i for i, token in enumerate(tokens)}), encoding="utf-8")
    rules.write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(vocabulary), str(rules), model_max_length=MAX_TOKENS)
    tokenizer.save_pretrained(folder)
    return CLIPTokenizer.from_pretrained(folder)


def build_text_encoder(tokenizer: Any) -> nn.Module:
    """A small CLIPTextModel for ``tokenizer``."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_WIDTH,
            intermediate_size=3 * TEXT_WIDTH,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=MAX_TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokenize(tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """int64 [N, L], padded to the tokenizer's length."""
    return tokenizer(
        list(texts),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def statements(findings: Sequence[Finding]) -> set[str]:
    """What a report says, in pieces: each finding, and each with its side, size and zone."""
    parts = (("", "side", "size", "zone"), findings)
    return {f"{f.name} {getattr(f, part) if part else ''}" for f in parts[1] for part in parts[0]}


def fit_text_encoder(
    text_encoder: nn.Module,
    tokenizer: Any,
    *,
    num_reports: int,
    num_steps: int,
    seed: int,
    work_dir: Path,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains ``text_encoder`` in place on ``num_reports`` training reports, and freezes it."""
    reports = list(distinct_reports(num_reports, seed, "train"))
    said = [statements(findings) for _, findings in reports]
    names = sorted(set().union(*said))
    target = torch.tensor([[float(name in s) for name in names] for s in said])
    ids = tokenize(tokenizer, [prompt.text for prompt, _ in reports])
    head = nn.Linear(TEXT_WIDTH, len(names))

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(ids), (BATCH_SIZE,), generator=generator)
        logits = head(text_encoder(ids[index])[0][:, -1])
        return F.binary_cross_entropy_with_logits(logits, target[index])

    both = nn.ModuleDict({"text_encoder": text_encoder, "head": head})
    options = FitOptions(num_steps, learning_rate=1e-3, ema_decay=0.99)
    fit("text_encoder", both, loss_at, options, seed=seed, work_dir=work_dir, tell=tell)
    text_encoder.requires_grad_(False)

from __future__ import annotations

from pathlib import Path

import torch

from cxrl.data.phantom.films import phantom_prompts
from cxrl.data.phantom.reports import Finding
from cxrl.pretraining.text_encoder import (
    MAX_TOKENS,
    build_text_encoder,
    build_tokenizer,
    fit_text_encoder,
    statements,
    tokenize,
)

FINDINGS = (Finding("Consolidation", side="left", zone="upper"), Finding("Edema", size="mild"))


def test_statements_are_the_findings_and_their_properties() -> None:
    said = {s.strip() for s in statements(FINDINGS)}
    assert said == {"Consolidation", "Consolidation left", "Consolidation upper", "Edema", "Edema mild"}
    assert statements(()) == set()


def test_training_moves_it_freezes_it_and_repeats(tmp_path: Path) -> None:
    texts = [p.text for p in phantom_prompts(32, seed=0)]
    tokenizer = build_tokenizer(texts, tmp_path / "tokenizer")
    ids = tokenize(tokenizer, texts)
    assert tuple(ids.shape) == (32, MAX_TOKENS)
    assert ids.dtype == torch.int64
    states, quiet = [], []
    for name in ("a", "b"):
        torch.manual_seed(0)
        encoder = build_text_encoder(tokenizer)
        start = {k: v.clone() for k, v in encoder.state_dict().items()}
        fit_text_encoder(
            encoder,
            tokenizer,
            num_reports=32,
            num_steps=2,
            seed=0,
            work_dir=tmp_path / name,
            tell=quiet.append,
        )
        assert not any(p.requires_grad for p in encoder.parameters())
        states.append(encoder.state_dict())
    assert any(not torch.equal(v, start[k]) for k, v in states[0].items())
    assert all(torch.equal(v, states[1][k]) for k, v in states[0].items())

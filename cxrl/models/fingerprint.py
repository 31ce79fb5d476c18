"""What a base was made of, in five digests: every value, setting and token that decides a pixel.

They are of what is stored, not of what is loaded: the dtype and the device of a run, adapters on the UNet and
the way the weights are cut into files do not matter. Of the scheduler they leave out what DDIM replaces
(``timestep_spacing``, ``clip_sample``) or does not know.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

from cxrl.errors import CxrlError
from cxrl.models.loading import NetworkFiles

SCHEDULER_FIELDS = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas"),
    *("set_alpha_to_one", "steps_offset", "prediction_type", "thresholding", "rescale_betas_zero_snr"),
)
"""What of a scheduler's configuration :func:`cxrl.rl.schedule.ddim_table` depends on."""
_NO_SETTING = ("architectures", "dtype", "torch_dtype", "transformers_version", "initializer_range")
"""Of the configuration of a network in transformers: where it comes from, not what it computes."""


def network_digest(files: NetworkFiles) -> str:
    """Of a network's values and of the settings that are not its class's own.

    Raises:
        CxrlError: A value is not finite.
    """
    return _digest([files.digest(), _settings(files.skeleton)])


def scheduler_digest(config: Mapping[str, Any]) -> str:
    """Of ``SCHEDULER_FIELDS``, with diffusers' defaults where a field is absent."""
    from diffusers import DDIMScheduler

    defaults = inspect.signature(DDIMScheduler.__init__).parameters
    values = {name: config.get(name, defaults[name].default) for name in SCHEDULER_FIELDS}
    return _digest({name: _plain(value) for name, value in values.items()})


def tokenizer_digest(tokenizer: Any, max_tokens: int) -> str:
    """Of what decides a text's tokens: vocabulary, merges, normalisation, special tokens, padding, limit."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        core = json.loads(backend.to_str())
        for name in ("version", "decoder", "padding", "truncation"):  # the last two: of the last call
            core.pop(name, None)
    else:
        core = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
        core["merges"] = sorted((rank, pair) for pair, rank in getattr(tokenizer, "bpe_ranks", {}).items())
    padding = (tokenizer.padding_side, tokenizer.pad_token_id)
    return _digest([core, tokenizer.special_tokens_map, padding, max_tokens])


def check_fingerprint(saved: Any, found: Mapping[str, str], source: str, base: str) -> None:
    """Refuse a base that is not the one that something was trained from.

    Args:
        saved: Part → digest of that one.
        found: Of the base that was loaded.
        source: What was trained, for the message.
        base: Where the loaded base is.

    Raises:
        CxrlError: A part differs, which is named, or ``saved`` is of an earlier version.
    """
    if not isinstance(saved, Mapping):
        raise CxrlError(
            f"{source}: was written by an earlier version of cxrl, whose fingerprint does not tell whether "
            f"{base} is the base that it was trained from; use that version, or train again"
        )
    every = dict.fromkeys([*found, *saved])
    parts = [part.replace("_", " ") for part in every if saved.get(part) != found.get(part)]
    if parts:
        verb = "differs" if len(parts) == 1 else "differ"
        raise CxrlError(
            f"{source}: was trained from another base than {base}: its {' and '.join(parts)} {verb}; "
            "put the base back that it was trained from"
        )


def _settings(network: Any) -> dict[str, Any]:
    """Settings that are not the class's defaults: new settings of newer libraries change nothing."""
    if type(network).__module__.startswith("diffusers."):
        signature = inspect.signature(type(network).__init__).parameters
        values, defaults = dict(network.config), {name: p.default for name, p in signature.items()}
    else:
        kind = type(network.config)
        values = network.config.to_dict()
        defaults = {} if getattr(kind, "has_no_defaults_at_init", False) else kind().to_dict()
    plain = {name: _plain(value) for name, value in values.items()}
    return {
        name: value
        for name, value in plain.items()
        if not name.startswith("_")
        and name not in _NO_SETTING
        and (name not in defaults or value != _plain(defaults[name]))
    }


def _plain(value: Any) -> Any:
    """As JSON has it: tuples are lists, 1.0 is 1."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

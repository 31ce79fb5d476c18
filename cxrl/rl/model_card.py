"""The model card of a policy: what travels with its weights, so that nobody takes them for more than they
are.

Markdown with the hub's metadata. No report and no path of a machine is in it, and the same run gives the same
text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cxrl.config import Config
from cxrl.metrics.names import KEYS, LOWER_IS_BETTER, NEAR_TO_REAL
from cxrl.models.base_files import local_folder
from cxrl.shipped import PHANTOM
from cxrl.storage.layout import ACE_FILE, CARD_MARK, LORA_FILE, UNET_FILE
from cxrl.version import __version__

_SPECIAL = str.maketrans({c: f"\\{c}" for c in "\\`*_{}[]<>|#"})


def model_card(config: Config, summary: Mapping[str, Any], fingerprint: Mapping[str, str]) -> str:
    """The text of ``README.md`` beside the weights.

    Args:
        config: Of the run.
        summary: The content of ``summary.json``.
        fingerprint: Of the base, part by part.
    """
    from huggingface_hub import ModelCard, ModelCardData

    name, hub = _base(config)
    data = ModelCardData(
        base_model=hub or None,
        library_name="diffusers",
        pipeline_tag="text-to-image",
        tags=["chest-x-ray", "synthetic", "reinforcement-learning", "lora", "cxrl"],
    )
    body = _BODY.format(
        base=name,
        fingerprint=", ".join(f"{part} {digest[:12]}" for part, digest in fingerprint.items()),
        data=_data(config),
        rewards=_rewards(config),
        comparison=f"{config.comparison.form}, anchor {config.comparison.anchor}",
        epochs=f"{summary['kept_epoch']} of {summary['epochs']}",
        seed=config.seed,
        mark=CARD_MARK,
        version=__version__,
        table=_table(summary),
        judged=_judged(summary),
        use=_use(config, hub or (name if name != PHANTOM else "cxrl/assets/phantom/pipeline")),
    )
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def _base(config: Config) -> tuple[str, str]:
    """How the base is called, and its hub id where it has one. A path stays at home but for its last part."""
    path = config.model.path
    if path == PHANTOM:
        return PHANTOM, ""
    if Path(path).exists() or (path.startswith(("/", ".", "~")) or path.count("/") != 1):
        return f"the folder {Path(path).name}", ""
    return path, path if local_folder(path) is not None else ""


def escaped(text: object) -> str:
    """A text that Markdown shows as it is, in one line of a table too."""
    return " ".join(str(text).split()).translate(_SPECIAL)


def _data(config: Config) -> str:
    restricted = "; a data set that may not be passed on" if config.data.is_restricted else ""
    return f"{config.data.num_prompts} training reports of {config.data.source}{restricted}"


def _rewards(config: Config) -> str:
    r = config.rewards
    own = {name: Path(getattr(r, name, "") or r.path).name for name in r.names}
    return ", ".join(
        f"{escaped(name)} × {weight:g} ({escaped(own[name])})"
        for name, weight in zip(r.names, r.weights, strict=True)
    )


def _table(summary: Mapping[str, Any]) -> str:
    real, gap = summary.get("real"), summary.get("gap")
    lines = ["| | anchor | policy | real films | change [95 %] | gap closed |", "|---|---|---|---|---|---|"]
    for key in KEYS:
        better = "lower" if key in LOWER_IS_BETTER else "higher"
        if real and key in NEAR_TO_REAL:
            better = "nearer to real"
        sides = (summary["anchor"], summary["policy"], real)
        cells = [_number(None if side is None else side[key]) for side in sides]
        low, high = summary["change"]["ci"][key]
        change = _number(summary["change"][key], "+")
        change += "" if low is None else f" [{_number(low, '+')}, {_number(high, '+')}]"
        share = "–" if not gap or gap[key] is None else f"{gap[key]:.0%}"
        lines.append(f"| {key} ({better} is better) | {' | '.join(cells)} | {change} | {share} |")
    return "\n".join(lines)


def _number(value: float | None, sign: str = "") -> str:
    return "–" if value is None else f"{value:{sign}.3f}"


def _judged(summary: Mapping[str, Any]) -> str:
    judges = summary["judges"]
    tasks = ("posture", "diagnosis", "consistency")
    names = dict.fromkeys(Path(str(judges.get(task) or judges["name"])).name for task in tasks)
    films = str(judges.get("real_films") or "no real films were judged")
    who = escaped(", ".join(names))
    return f"{summary['num_images']} images a side; judges {who}; real films: {escaped(films)}."


def _use(config: Config, base: str) -> str:
    s, lines = config.sampler, []
    if config.policy.train == "lora":
        lines.append(f'pipe.load_lora_weights(folder, weight_name="{LORA_FILE}")')
    if config.policy.num_ace_tokens:
        lines += [
            f'ace = load_file(folder + "/{ACE_FILE}")["ace"][None]',
            "embeds = torch.cat([embeds, ace], dim=1)",
            *(["negative = torch.cat([negative, ace], dim=1)"] if s.guidance_scale > 1 else []),
        ]
    lora = [line for line in lines if "lora" in line]
    if config.policy.train == "full":
        lora = [f'pipe.unet.load_state_dict(load_file(folder + "/{UNET_FILE}"))']
    ace = [line for line in lines if "lora" not in line]
    negative = "negative" if s.guidance_scale > 1 else "_"
    given = ", negative_prompt_embeds=negative" if s.guidance_scale > 1 else ""
    eta = min(s.eta, 0.99999994)  # at 1 diffusers takes the root of a number that rounding puts below zero
    return "\n".join(
        [
            "import torch",
            "from diffusers import DDIMScheduler, StableDiffusionPipeline",
            "from safetensors.torch import load_file",
            "",
            'folder = "."',
            f"pipe = StableDiffusionPipeline.from_pretrained({base!r})",
            "pipe.scheduler = DDIMScheduler.from_config(",
            f'    pipe.scheduler.config, timestep_spacing="{s.timestep_spacing}", clip_sample=False',
            ")",
            *lora,
            f'embeds, {negative} = pipe.encode_prompt("Small left pleural effusion.", pipe.device, 1, '
            f"{s.guidance_scale > 1})",
            *ace,
            "image = pipe(",
            f"    prompt_embeds=embeds{given}, guidance_scale={s.guidance_scale:g},",
            f"    num_inference_steps={s.num_steps}, eta={eta!r},",
            ").images[0]",
        ]
    )


_BODY = """# A text-to-chest-X-ray policy, trained by comparative feedback

**Synthetic images only. Not for diagnosis.** What this draws is no patient, and must be marked as synthetic
wherever it is shown or stored. It was not validated clinically, and nothing was checked for memorised images.

- Base and anchor: {base} (fingerprint {fingerprint}), which these weights belong to
- Data: {data}
- Rewards: {rewards}; comparison {comparison}
- Epochs: weights of {epochs}; seed {seed}
{mark} {version}

## Judged by models that gave no reward

{table}

{judged} Gap closed: (policy − anchor) / (real − anchor). Intervals are a bootstrap over reports.

## Limits

Rewards can be gamed: look at images, at diversity and at the Fréchet distance, not at one number. Scores hold
for these judges and reports alone. Findings that the rewards do not know were not trained for.

## Use

```python
{use}
```
"""

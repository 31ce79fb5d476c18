"""The commands by name."""

from __future__ import annotations

COMMANDS: dict[str, tuple[str, str]] = {
    "headroom": ("cxrl.headroom", "what a reward can gain on a base at all, before anything is trained"),
    "train": ("cxrl.train", "fine-tune a base by comparative feedback; without options the whole demo"),
    "report": ("cxrl.report", "one HTML page of runs: judges, curves, gallery"),
    "generate": ("cxrl.generate", "draw images of reports by a run's policy or its anchor"),
    "evaluate": ("cxrl.evaluate", "judge a run again, or any films against real ones"),
    "ablate": ("cxrl.ablate", "what each part of the method is worth: variants at equal updates"),
    "demo": ("cxrl.demo", "play with a run in a browser, on this machine alone"),
    "export": ("cxrl.export", "write a run's policy as a pipeline for plain diffusers"),
    "push": ("cxrl.push", "upload a run's adapter with its model card; never of restricted data"),
    "doctor": ("cxrl.doctor", "what a configuration needs, what is there, what a run will cost"),
    "inspect": ("cxrl.inspect_data", "count a data set, say what is dropped and why, show films"),
    "pretrain": ("cxrl.pretrain", "make what ships, a posture reward, or fine-tune a base on a table"),
    "phantom": ("cxrl.data.phantom.__main__", "draw every finding of the phantom"),
    "completion": ("cxrl.completion", "print the completion of a shell, bash or zsh"),
}
"""Name → module and what it is for."""

"""All that a configuration needs and whether it is there, for ``cxrl.doctor``."""

from __future__ import annotations

from pathlib import Path

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.models.base_files import check_base, is_here, local_folder
from cxrl.scorers.choice import model_choices
from cxrl.scorers.required import RequiredFile


def required_files(config: Config) -> list[RequiredFile]:
    """All files and folders that a configuration needs: base, rewards, judges and data.

    Raises:
        CxrlError: An option names no model.
    """
    found = [_base(config)]
    judges = model_choices(config, "eval")
    found += [choice.required() for choice in (*model_choices(config, "rewards").values(), *judges.values())]
    if not judges["diagnosis"].value:
        path = judges["diagnosis"].folder / "reference.safetensors"
        found.append(RequiredFile("eval.judges", "features of clean films", path, path.is_file()))
    return found + _data(config)


def _base(config: Config) -> RequiredFile:
    value, folder, problem = config.model.path, local_folder(config.model.path), ""
    if folder is not None:
        try:
            check_base(folder, allow_pickle=config.model.allow_pickle, name=value)
        except CxrlError as error:
            problem = str(error).removeprefix("model.path: ")
    name, present = "the base, a StableDiffusionPipeline", folder is not None and not problem
    if is_here(value):
        return RequiredFile("model.path", name, folder, present, problem=problem)
    note = "diffusers fetches it when a run starts; its page on the hub states licence and credential"
    if "/" not in value:
        note = "no such folder here: give yours with --model.path"
    return RequiredFile("model.path", name, None, present, source=value, note=note, problem=problem)


def _data(config: Config) -> list[RequiredFile]:
    data = config.data
    if data.source == "phantom":
        return []
    found = []
    if data.root or data.source != "openi":
        path = Path(data.root) if data.root else None
        is_there = path is not None and path.exists()
        found.append(
            RequiredFile("data.root", f"the data of {data.source}", path, is_there, note="give --data.root")
        )
    if data.source == "mimic_cxr" and (data.reports or data.root):
        path = Path(data.reports or data.root)
        present = (path / "files").is_dir() or (path.suffix == ".zip" and path.is_file())
        found.append(
            RequiredFile(
                "data.reports",
                "the reports, which come with MIMIC-CXR",
                path,
                present,
                source="https://physionet.org/content/mimic-cxr/",
                note="PhysioNet credential and data use agreement",
            )
        )
    return found

"""From ``data.source`` to an index, and from there to the reports of a run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from cxrl.config import Config, DataConfig
from cxrl.data.equal_texts import same_text, settled
from cxrl.data.index import (
    Count,
    FilmRecord,
    Index,
    Stamp,
    Tally,
    cached_index,
    describe,
    file_key,
    in_threads,
    stamp,
    together,
)
from cxrl.data.prompts import ReportPrompt
from cxrl.errors import CxrlError

_NOT_CONTENT = (
    *("num_prompts", "selection_num_prompts", "eval_num_prompts", "eval_split", "on_long_prompt"),
    *("cache", "restricted"),
)
"""Fields of ``data`` that do not change the index."""


class TextReader(Protocol):
    """What reads the prompts; :class:`cxrl.models.base.BaseModel` is one."""

    @property
    def max_tokens(self) -> int:
        """The longest text."""

    def num_tokens(self, text: str) -> int:
        """Tokens of a text, with the two that mark its ends."""


@dataclass(frozen=True)
class PromptSet:
    """The reports of a split.

    Attributes:
        prompts: At most as many as were asked for.
        skipped: Reason → reports that were looked at and left out.
    """

    prompts: tuple[ReportPrompt, ...]
    skipped: Mapping[str, Count] = field(default_factory=dict)


def load_index(config: DataConfig, *, rebuild: bool = False) -> Index:
    """The index of a data set, from the cache where it is there.

    Args:
        config: Which data set, and what of it.
        rebuild: Build it again.

    Raises:
        CxrlError: A file is missing or cannot be read, or no film is left; the message says what was dropped.
    """
    files, build = _source(config)
    options = {k: v for k, v in vars(config).items() if k not in _NOT_CONTENT}
    try:
        key = {**options, "root": os.path.abspath(config.root), "files": file_key(files)}
    except OSError as error:
        raise CxrlError(f"data.root: cannot read {error.filename}: {error.strerror}") from None
    folder = cache_folder(config)
    index = cached_index(key, lambda: settled(_checked(build(config), config)), folder, rebuild=rebuild)
    if not index.films:
        raise CxrlError(f"data.source {config.source}: no film is left; dropped: {describe(index.dropped)}")
    return index


def _source(config: DataConfig) -> tuple[list[Path], Callable[[DataConfig], Index]]:
    """The files that the index is read from, and what builds it."""
    config.check_root()
    if config.source == "openi" and config.root and not Path(config.root).is_dir():
        raise CxrlError(f"data.root: {config.root} is no folder; leave it out for reports without films")
    if config.source == "mimic_cxr":
        from cxrl.data.mimic_cxr import build_mimic, mimic_files

        return mimic_files(config), build_mimic
    if config.source == "openi":
        from cxrl.data.openi import build_openi, openi_files

        return openi_files(), build_openi
    if config.source in ("table", "prompts"):
        from cxrl.data.table import build_prompts, build_table

        return [Path(config.root)], build_table if config.source == "table" else build_prompts
    raise CxrlError(f"data.source: {config.source} has no files; its films: cxrl phantom --out sheet.png")


def cache_folder(config: DataConfig) -> Path | None:
    """Where indexes are kept; None where they are not, as for a user without a home."""
    if config.cache == "none":
        return None
    if config.cache:
        return Path(config.cache)
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:  # no HOME and no entry in passwd, as in containers
        return None
    return Path(cache) / "cxrl" / "index"


def _checked(index: Index, config: DataConfig) -> Index:
    """The index without films whose file fails ``data.check_images``."""
    if config.check_images == "none":
        return index
    from cxrl.images.read import UnreadableImage, read_image
    from cxrl.images.read_dicom import import_pydicom

    if any(film.image.endswith(".dcm") for film in index.films):
        import_pydicom()

    def look(film: FilmRecord) -> tuple[str, list[str], Stamp]:
        """Why a film is dropped, or ""; what is to be said of one that is kept; and its file."""
        path, notes = index.root / film.image, list[str]()
        before = stamp(path)
        if config.check_images == "exist":
            return "" if path.is_file() else "image missing", notes, before
        try:
            read_image(path, note=notes.append)
        except UnreadableImage as error:
            return error.reason, [], before
        return "", notes, before

    dropped, noted = Tally(), Tally()
    kept: list[FilmRecord] = []
    looked = in_threads(look, index.films)
    for film, (reason, notes, _) in zip(index.films, looked, strict=True):
        if reason:
            dropped.add(reason, film.film)
        else:
            kept.append(film)
        for note in notes:
            noted.add(note, film.film)
    return replace(
        index,
        films=tuple(kept),
        dropped=together(index.dropped, dropped.counts()),
        noted=together(index.noted, noted.counts()),
        read=(*index.read, *(stamp for _, _, stamp in looked)),
    )


def load_prompts(config: Config, reader: TextReader, split: str) -> PromptSet:
    """Reports of a split that the text encoder can read whole, with distinct texts.

    One study gives one prompt. Studies are taken in the order of a digest of (seed, study), so a larger
    ``data.num_prompts`` keeps the smaller one's reports.

    Args:
        config: ``data`` says which and how many, ``seed`` which of them.
        reader: Counts tokens.
        split: "train"; "eval" (``data.eval_split``), the reports of the result; or "selection", those that
            choose: of split validate, and never a text of the result. For the phantom both are phrasings
            never trained on.

    Raises:
        CxrlError: None is left, or one is too long and ``data.on_long_prompt`` is "error".
    """
    data = config.data
    num = num_asked(data, split)
    if data.source == "phantom":
        from cxrl.data.phantom.films import phantom_prompts
        from cxrl.findings import PHANTOM_FINDINGS

        prompts = phantom_prompts(num, seed=config.seed, split=split)
        return readable([replace(p, findings=PHANTOM_FINDINGS) for p in prompts], reader, data.on_long_prompt)
    index = load_index(data)
    name = split_name(index, data, split)
    films = study_order([film for film in index.split(name) if film.text], config.seed)
    if not films:
        other = {"test": "validate", "validate": "test"}.get(name, "")
        hint = f"; data.eval_split {other} has some" if other and index.split(other) else ""
        raise CxrlError(
            f"data.source {data.source}: no report in split {name!r}{hint}; "
            f"dropped: {describe(index.dropped)}"
        )
    shared = split != "train" and split_name(index, data, "selection") == data.eval_split
    chosen = choose_prompts(
        films,
        data.selection_num_prompts + data.eval_num_prompts if shared else num,
        findings=index.findings,
        reader=reader,
        on_long_prompt=data.on_long_prompt,
    )
    return part(chosen, data, split, f"data.eval_split {data.eval_split}") if shared else chosen


def num_asked(data: DataConfig, split: str) -> int:
    """How many reports of a split a configuration asks for."""
    of_split = {"train": data.num_prompts, "selection": data.selection_num_prompts}
    return of_split.get(split, data.eval_num_prompts)


def split_name(index: Index, data: DataConfig, split: str) -> str:
    """The data set's name of a run's split. Reports that choose are of ``validate``, or, where that has none,
    of the split that the result's are of.
    """
    if split != "selection":
        return "train" if split == "train" else data.eval_split
    return "validate" if any(film.text for film in index.split("validate")) else data.eval_split


def part(chosen: PromptSet, data: DataConfig, split: str, where: str) -> PromptSet:
    """Selection or result from one list, in the proportion that was asked for; the result's come first.

    Raises:
        CxrlError: It is one report, of ``where``.
    """
    prompts, selection, result = chosen.prompts, data.selection_num_prompts, data.eval_num_prompts
    if len(prompts) < 2:
        raise CxrlError(
            f"{where}: it has {len(prompts)} held-out report, expected one for the result and another for "
            "what is chosen before it (data.selection_num_prompts)"
        )
    wanted = round(len(prompts) * result / (selection + result))
    border = min(max(wanted, 1), len(prompts) - 1)
    own = prompts[border:] if split == "selection" else prompts[:border]
    return replace(chosen, prompts=own)


def study_order(films: Sequence[FilmRecord], seed: int) -> list[FilmRecord]:
    """The first film of every study, studies in the order of a digest of (seed, study)."""

    def digest(film: FilmRecord) -> bytes:
        return hashlib.blake2b(f"{seed}/{film.study}".encode(), digest_size=8).digest()

    return sorted({film.study: film for film in reversed(films)}.values(), key=digest)


def choose_prompts(
    films: Sequence[FilmRecord],
    num: int | None,
    *,
    findings: tuple[str, ...],
    reader: TextReader,
    on_long_prompt: str,
) -> PromptSet:
    """The first ``num`` (None: all) distinct texts that the reader can read whole; arguments as above.

    Texts are distinct by :func:`cxrl.data.equal_texts.same_text`.
    """
    prompts: list[ReportPrompt] = []
    skipped = Tally()
    seen: set[str] = set()
    for film in films:
        if len(prompts) == num:
            break
        if same_text(film.text) in seen:
            skipped.add("same text as another report", film.study)
            continue
        seen.add(same_text(film.text))
        if _too_long(film.study, film.text, reader, on_long_prompt):
            skipped.add(f"longer than {reader.max_tokens} tokens", film.study)
            continue
        prompts.append(ReportPrompt(film.study, film.text, film.labels, findings))
    return _some(prompts, len(seen), skipped, reader)


def readable(prompts: Sequence[ReportPrompt], reader: TextReader, on_long_prompt: str) -> PromptSet:
    """The prompts that fit the text encoder, distinct by number.

    Raises:
        CxrlError: The list is empty, none fits, one is too long and that is an error, or a number occurs
            twice.
    """
    if not prompts:
        raise CxrlError("the prompt list is empty; expected at least one report")
    if len({p.prompt_id for p in prompts}) != len(prompts):
        raise CxrlError(
            "two prompts share a prompt_id, which names the anchor bank's rows; make them distinct"
        )
    skipped, kept = Tally(), []
    for prompt in prompts:
        if _too_long(prompt.prompt_id, prompt.text, reader, on_long_prompt):
            skipped.add(f"longer than {reader.max_tokens} tokens", prompt.prompt_id)
        else:
            kept.append(prompt)
    return _some(kept, len(prompts), skipped, reader)


def _too_long(number: int, text: str, reader: TextReader, on_long_prompt: str) -> bool:
    """Whether a report would be cut. The error names it by number: logs are no place for report texts."""
    count = reader.num_tokens(text)
    if count > reader.max_tokens and on_long_prompt == "error":
        raise CxrlError(
            f"prompt {number} has {count} tokens, the text encoder reads {reader.max_tokens}; shorten it or "
            "set data.on_long_prompt drop"
        )
    return count > reader.max_tokens


def _some(prompts: Sequence[ReportPrompt], total: int, skipped: Tally, reader: TextReader) -> PromptSet:
    if not prompts:
        raise CxrlError(
            f"all {total} prompts are longer than the {reader.max_tokens} tokens that the text encoder "
            "reads; shorten them"
        )
    return PromptSet(tuple(prompts), skipped.counts())


def message(config: DataConfig, split: str, chosen: PromptSet) -> str:
    """What to tell the user about a split: nothing for the phantom as it ships, else a line."""
    if config.source == "phantom" and not chosen.skipped:
        return ""
    num = num_asked(config, split)
    asked = "" if len(chosen.prompts) == num else f" of {num} asked for"
    left_out = f"; left out: {describe(chosen.skipped)}" if chosen.skipped else ""
    kind = {"train": "training", "selection": "selection"}.get(split, "held-out")
    return f"{len(chosen.prompts)}{asked} {kind} reports{left_out}"

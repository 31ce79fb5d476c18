"""The one reader of YAML: mappings, lists and texts, nothing else of the language.

A scalar stays the text that is written, and the option it is for decides what it means, as on the command
line: ``0100`` is a hundred and not octal, ``1:30`` no number, ``1e-4`` a float, ``no`` a boolean only where
one is expected. An empty value, ``null`` or ``~`` is None. Refused, with file and line: a key given twice or
one that is no text, anchors and aliases (336 bytes of them can mean a gigabyte), tags (which can build any
object), several documents, deep nesting, large files, NUL and bytes that are not UTF-8.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from cxrl.errors import CxrlError, shown
from cxrl.options import NO_TEXT_REASON, is_text

MAX_BYTES = 50_000
"""Ten times a resolved configuration; PyYAML can take a second for it."""
MAX_DEPTH = 8
_TAGS = "tag:yaml.org,2002:"
_NULL = ("", "~", "null", "Null", "NULL")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping of a file: keys are texts, values texts, None, lists or mappings. An empty file is {}.

    Raises:
        CxrlError: The file cannot be read or holds what is refused; the message names file and line.
    """
    data = _read(path)
    if not isinstance(data, dict):
        kind = "a list" if isinstance(data, list) else shown(data)
        raise CxrlError(f"{path}: expected sections such as 'train:', got {kind}")
    return data


def read_yaml_list(path: Path) -> list[Any]:
    """The list of a file, as :func:`read_yaml`. Raises CxrlError where it is none."""
    data = _read(path)
    if not isinstance(data, list):
        kind = "a mapping" if isinstance(data, dict) else shown(data)
        raise CxrlError(f"{path}: expected a list, got {kind}")
    return data


def _read(path: Path) -> Any:
    text = _text(path)
    try:
        return _document(path, _events(path, text))
    except yaml.YAMLError as error:
        mark, position = getattr(error, "problem_mark", None), getattr(error, "position", None)
        line = mark.line if mark else text.count("\n", 0, position) if position is not None else None
        where = "" if line is None else f" at line {line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "cannot be parsed"
        raise CxrlError(f"{path}: not valid YAML{where}: {problem}") from None
    except (ValueError, OverflowError):  # "\\U00110000"; PyYAML asks Python for it
        raise CxrlError(f"{path}: not valid YAML: an escape names no character") from None


def _text(path: Path) -> str:
    try:
        if not path.is_file() and path.stat():  # opening a pipe would wait for its other end
            what = "a folder" if path.is_dir() else "no regular file"
            raise CxrlError(f"cannot read configuration {path}: it is {what}")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        text = content.decode("utf-8-sig")  # Windows' editors write a byte order mark
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise CxrlError(f"cannot read configuration {path}: line {line} is not UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise CxrlError(f"cannot read configuration {path}: {reason}") from None
    if len(content) > MAX_BYTES:
        raise CxrlError(f"{path}: more than {MAX_BYTES} bytes, far beyond any configuration")
    return text


def _events(path: Path, text: str) -> Iterator[yaml.Event]:
    """PyYAML's events, none of which is refused, after the start of the document. No recursion anywhere."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        where = f"{path}: line {_line(event)}"
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise CxrlError(f"{where}: a second document begins here; a configuration is one")
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
            raise CxrlError(f"{where}: anchors (&) and aliases (*) are not read; write the value out")
        tag = getattr(event, "tag", None)
        if tag is not None:
            raise CxrlError(
                f"{where}: the tag {shown(tag.replace(_TAGS, '!!'))} is not read; write the plain value"
            )
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise CxrlError(f"{where}: nested deeper than {MAX_DEPTH} levels; a configuration has three")
        if isinstance(event, yaml.ScalarEvent) and not is_text(event.value):
            raise CxrlError(f"{where}: {shown(event.value)} {NO_TEXT_REASON}")
        if isinstance(event, yaml.NodeEvent | yaml.CollectionEndEvent):
            yield event


def _document(path: Path, events: Iterator[yaml.Event]) -> Any:
    """The content, an empty mapping where there is none."""
    event = next(events, None)
    data = None if event is None else _node(path, event, events)
    for _ in events:  # to the end: what follows the document is looked at too
        pass
    return {} if data is None else data


def _node(path: Path, event: yaml.Event, events: Iterator[yaml.Event]) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return None if event.style is None and event.value in _NULL else event.value
    if isinstance(event, yaml.SequenceStartEvent):
        return [_node(path, item, events) for item in _until(yaml.SequenceEndEvent, events)]
    mapping: dict[str, Any] = {}
    lines: dict[str, int] = {}
    for key in _until(yaml.MappingEndEvent, events):
        line, name = _line(key), _node(path, key, events)
        if not isinstance(name, str):
            raise CxrlError(f"{path}: line {line}: the key {shown(name)} is not the name of an option")
        first = lines.setdefault(name.replace("-", "_"), line)
        if len(lines) == len(mapping):
            raise CxrlError(f"{path}: line {line}: {shown(name)} is given twice, first in line {first}")
        mapping[name] = _node(path, next(events), events)
    return mapping


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _until(end: type[yaml.Event], events: Iterator[yaml.Event]) -> Iterator[yaml.Event]:
    for event in events:
        if isinstance(event, end):
            return
        yield event

"""How a knob is declared, checked and described: the machinery below :mod:`cxrl.config`.

A value is a Python value, or a text of the command line or of a YAML file, which mean the same: numbers are
decimal (``0100`` is a hundred), true, false, yes, no, on, off, 1 and 0 are booleans where a boolean is
expected, lists are separated by commas and ``none`` is the empty one.
"""

from __future__ import annotations

import math
import re
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, ClassVar, TypeVar

from cxrl.errors import CxrlError, nearest, shown, unknown_name

S = TypeVar("S", bound="Section")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_LONGEST_NUMBER, _LONGEST_TEXT = 40, 4095
_NO_TEXT = re.compile("[\0\ud800-\udfff]")
"""NUL ends a path or a text where C reads it; lone surrogates are bytes that were not UTF-8."""
_WORDS = {
    **dict.fromkeys(("true", "yes", "on", "1"), True),
    **dict.fromkeys(("false", "no", "off", "0"), False),
}


@dataclass(frozen=True)
class Needs:
    """When an option has an effect.

    Attributes:
        words: What to set for it, as in "leave it out, or set …".
        holds: Whether a configuration has that.
        named: The fields that decide, for the message.
    """

    words: str
    holds: Callable[[Any], bool]
    named: tuple[str, ...]


def needs(name: str, *values: str) -> Needs:
    """The need for one of some values of the field ``name``."""
    words = f"{name} {' or '.join(filter(None, (', '.join(values[:-1]), values[-1])))}"
    return Needs(words, lambda config: value_of(config, name) in values, (name,))


def option(
    default: Any,
    reason: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
    only_if: Needs | tuple[Needs, ...] = (),
) -> Any:
    """A field with a default. ``low`` and ``high`` are allowed values, ``above`` is not.

    ``only_if`` says what it needs to have an effect; see :func:`check_effect`.
    """
    conditions = (only_if,) if isinstance(only_if, Needs) else only_if
    metadata = {"reason": reason, "unit": unit, "low": low, "high": high, "above": above, "choices": choices}
    return field(default=default, metadata={**metadata, "only_if": conditions})


def value_of(config: Any, name: str) -> Any:
    """The value of ``section.field``, or of a field outside of sections."""
    for part in name.split("."):
        config = getattr(config, part)
    return config


def check_effect(config: Section, base: Section, given: Mapping[str, str]) -> None:
    """Refuse what was asked for and would be ignored.

    Args:
        config: The configuration as a whole.
        base: The one that it started from: what has its value there was not asked for.
        given: Full name of every field that the user gave → file that it comes from, or "".

    Raises:
        CxrlError: A given value differs from the base's and has no effect in this configuration.
    """
    for name, source in given.items():
        section, _, key = name.rpartition(".")
        owner = type(getattr(config, section) if section else config)
        if value_of(config, name) == value_of(base, name):
            continue
        for need in next(f for f in fields(owner) if f.name == key).metadata.get("only_if", ()):
            if not need.holds(config):
                found = ", ".join(f"{n} {show(value_of(config, n))}" for n in need.named)
                raise CxrlError(
                    f"{source}{': ' if source else ''}{name}: {show(value_of(config, name))} has no effect "
                    f"with {found}; leave it out, or set {need.words}"
                )


def show(value: Any) -> str:
    """A value as the command line takes it; "empty" for a text or list without content."""
    if isinstance(value, tuple):
        return ",".join(show(v) for v in value) or "empty"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value) or "empty"


def allowed(metadata: Mapping[str, Any]) -> str:
    """The allowed values of a field in words, empty when anything goes."""
    if metadata["choices"]:
        return "one of " + ", ".join(metadata["choices"])
    low, high, above = (
        f"{metadata[key]:.10g}" if metadata[key] is not None else "" for key in ("low", "high", "above")
    )
    if low and high:
        return f"{low} to {high}"
    parts = (
        f"above {above}" if above else "",
        f"at least {low}" if low else "",
        f"at most {high}" if high else "",
    )
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Section:
    """The base of the sections: checks every field when it is built.

    Raises:
        CxrlError: A value has the wrong type or lies outside its range.
    """

    section: ClassVar[str] = ""
    help: ClassVar[str] = ""

    def __post_init__(self) -> None:
        types = field_types(type(self))
        for f in fields(self):
            name = f"{self.section}.{f.name}" if self.section else f.name
            value = coerce(name, getattr(self, f.name), types[f.name])
            _check_range(name, value, f.metadata)
            if value == "" and f.default != "":
                raise CxrlError(f"{name}: the text is empty; expected one such as {f.default!r}{_knob(name)}")
            object.__setattr__(self, f.name, value)


def field_types(cls: type[Section]) -> dict[str, Any]:
    """Field name → resolved type of a section."""
    return _field_types(typing.cast(Any, cls))


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def coerce(name: str, value: Any, tp: Any) -> Any:
    """``value`` (typed, or a text) as ``tp``. Raises CxrlError naming ``name``."""
    if typing.get_origin(tp) is tuple:
        return _coerce_list(name, value, typing.get_args(tp)[0])
    if isinstance(tp, type) and issubclass(tp, Section):
        if isinstance(value, tp):
            return value
    elif tp is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
    elif tp is str:
        if isinstance(value, str):
            if _NO_TEXT.search(value):
                raise CxrlError(f"{name}: {shown(value)} {NO_TEXT_REASON}{_knob(name)}")
            if len(value) > _LONGEST_TEXT:
                raise CxrlError(
                    f"{name}: {shown(value)} has more than {_LONGEST_TEXT} characters{_knob(name)}"
                )
            return value
    else:
        number = to_number(value)
        if tp is float and math.isfinite(number):
            return float(number)
        if tp is int and math.isfinite(number) and number == int(number):
            return int(number)
    raise CxrlError(f"{name}: {shown(value)} is not {_describe(tp)}{_knob(name)}")


NO_TEXT_REASON = "holds NUL or bytes that are not UTF-8, which no path or text may"


def is_text(value: str) -> bool:
    """Whether a text has neither NUL nor bytes that are not UTF-8."""
    return not _NO_TEXT.search(value)


def _coerce_list(name: str, value: Any, item: Any) -> tuple[Any, ...]:
    if isinstance(value, str):
        value = [] if value.strip().lower() in ("", "none") else value.split(",")
    elif not isinstance(value, list | tuple):
        value = [value]
    values = [v.strip() if isinstance(v, str) else v for v in value]
    if "" in values:
        raise CxrlError(f"{name}: {shown(','.join(map(str, values)))} has an empty entry{_knob(name)}")
    result = tuple(coerce(name, v, item) for v in values)
    if item is str and len(set(result)) < len(result):
        twice = next(v for v, count in Counter(result).items() if count > 1)
        raise CxrlError(f"{name}: {shown(twice)} is given twice{_knob(name)}")
    return result


def to_number(value: Any) -> int | float:
    """A number that is written or given; nan for anything else, and for what no float can hold."""
    if isinstance(value, bool):
        return math.nan
    if isinstance(value, str):
        text = value.strip()
        if len(text) > _LONGEST_NUMBER or not _NUMBER.fullmatch(text):
            return math.nan
        value = int(text) if text.lstrip("+-").isdecimal() else text
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return value if isinstance(value, int) else number


def _describe(tp: Any) -> str:
    words = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}
    return words.get(tp, "a section")


def _knob(name: str) -> str:
    return f" (change --{name.replace('_', '-')})"


def _check_range(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    if not metadata:
        return
    for v in value if isinstance(value, tuple) else (value,):
        if metadata["choices"] and v not in metadata["choices"]:
            near = nearest(str(v), metadata["choices"])
            raise CxrlError(f"{name}: {shown(v)} is not {allowed(metadata)}; {near}{_knob(name)}")
        low, high, above = metadata["low"], metadata["high"], metadata["above"]
        if (
            (low is not None and v < low)
            or (high is not None and v > high)
            or (above is not None and v <= above)
        ):
            unit = f" {metadata['unit']}" if metadata["unit"] else ""
            raise CxrlError(
                f"{name}: {v:.10g}{unit} is out of range, expected {allowed(metadata)}{_knob(name)}"
            )


def override(base: S, data: Mapping[str, Any]) -> S:
    """A copy of a section (or of the whole) with some fields replaced; names may use dashes."""
    types = field_types(type(base))
    prefix = f"{base.section}." if base.section else ""
    changes: dict[str, Any] = {}
    for key, value in data.items():
        name = str(key).replace("-", "_")
        if name not in types:
            known = [f"{prefix}{n}" for n in types]
            raise unknown_name("field", f"{prefix}{key}", known)
        if name in changes:
            raise CxrlError(f"{prefix}{name} is given twice, once as {key}; leave one out")
        tp = types[name]
        if isinstance(tp, type) and issubclass(tp, Section):
            if not isinstance(value, Mapping):
                raise CxrlError(
                    f"{name}: {shown(value)} is not a section; expected 'field: value' pairs below it"
                )
            changes[name] = override(getattr(base, name), value)
        else:
            changes[name] = value
    return replace(base, **changes)

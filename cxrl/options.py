"""How a knob is declared, checked and described: the machinery below :mod:`cxrl.config`."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any, ClassVar, TypeVar

from cxrl.errors import CxrlError, unknown_name

S = TypeVar("S", bound="Section")


def option(
    default: Any,
    reason: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A field with a default. ``low`` and ``high`` are allowed values, ``above`` is not."""
    metadata = {"reason": reason, "unit": unit, "low": low, "high": high, "above": above, "choices": choices}
    return field(default=default, metadata=metadata)


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
            object.__setattr__(self, f.name, value)


def field_types(cls: type[Section]) -> dict[str, Any]:
    """Field name → resolved type of a section."""
    return _field_types(typing.cast(Any, cls))


@cache
def _field_types(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in fields(cls)}


def coerce(name: str, value: Any, tp: Any) -> Any:
    """``value`` (typed, or a string of the command line) as ``tp``. Raises CxrlError naming ``name``."""
    if typing.get_origin(tp) is tuple:
        item = typing.get_args(tp)[0]
        if isinstance(value, str):
            value = [] if value.strip().lower() in ("", "none") else value.split(",")
        elif not isinstance(value, list | tuple):
            value = [value]
        return tuple(coerce(name, v.strip() if isinstance(v, str) else v, item) for v in value)
    if isinstance(tp, type) and issubclass(tp, Section):
        if isinstance(value, tp):
            return value
    elif tp is bool:
        words = {
            "true": True,
            "yes": True,
            "on": True,
            "1": True,
            "false": False,
            "no": False,
            "off": False,
            "0": False,
        }
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in words:
            return words[value.lower()]
    elif tp is str:
        if isinstance(value, str):
            return value
    elif not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if tp is float and math.isfinite(number):
            return number
        if tp is int and math.isfinite(number) and number == int(number):
            return int(number)
    raise CxrlError(f"{name}: {value!r} is not {_describe(tp)}{_knob(name)}")


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
            bad = unknown_name(name, str(v), metadata["choices"])
            raise CxrlError(
                f"{name}: {v!r} is not {allowed(metadata)}; {str(bad).split('; ')[1]}{_knob(name)}"
            )
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
        tp = types[name]
        if isinstance(tp, type) and issubclass(tp, Section):
            if not isinstance(value, Mapping):
                raise CxrlError(f"{name}: {value!r} is not a section; expected 'field: value' pairs below it")
            changes[name] = override(getattr(base, name), value)
        else:
            changes[name] = value
    return replace(base, **changes)

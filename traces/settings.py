"""Fields of settings have the types that their dataclass declares and lie in their ranges; one line says what does not."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from traces.errors import InputError

Settings = TypeVar("Settings")
LARGEST_SEED = 2**32 - 1  # of NumPy's and torch's generators
SCALARS: dict[Any, tuple[Any, str]] = {
    bool: (bool, "true or false"),
    int: ((int, np.integer), "a whole number"),
    float: ((int, float, np.integer, np.floating), "a number"),
    str: (str, "text"),
    type(None): (type(None), "null"),
}
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def read_settings(kind: type[Settings], values: Any, place: str) -> Settings:
    """A dataclass from a mapping that a user wrote (YAML, JSON, keyword arguments); lists become tuples where it has tuples.

    Args:
        kind: the dataclass. values: the mapping. place: the file and what is in it, for messages.

    Raises:
        InputError: no mapping, a field that is unknown or missing, or a value of another type.
    """
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(values, Mapping):
        raise InputError(f"{place}: {values!r}; expected a mapping of {', '.join(known)}")
    for name in values:
        if name not in known:
            raise InputError(f"{place}: unknown field {name!r}; known are {', '.join(known)}")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{place}: field {name!r} is missing; expected {expected(_hints(kind)[name])}")
    _check(values, _hints(kind), f"{place}: ")
    return kind(
        **{k: tuple(v) if isinstance(v, list) and _has_tuple(_hints(kind)[k]) else v for k, v in values.items()}
    )


def check_types(settings: Any, prefix: str = "") -> None:
    """InputError for the first field, also of settings inside these, whose value is not of its declared type."""
    _check({field.name: getattr(settings, field.name) for field in fields(settings)}, _hints(type(settings)), prefix)


def check_settings(
    settings: Any,
    prefix: str = "",
    at_least: Mapping[str, float] | None = None,
    above: Mapping[str, float] | None = None,
    at_most: Mapping[str, float] | None = None,
    not_empty: Iterable[str] = (),
) -> None:
    """Check types and ranges; None is in every range, of a list all items are checked, and ``seed`` has a range of its own.

    Args:
        settings: a dataclass. prefix: of a field's name in messages.
        at_least: least value of a field. above: what it must exceed. at_most: greatest value.
        not_empty: lists that must hold something; those with a range must do so, too.

    Raises:
        InputError: a field is of another type or out of range.
    """
    check_types(settings, prefix)
    ranges = [("at least", at_least or {}), ("above", above or {}), ("at most", at_most or {})]
    if hasattr(settings, "seed"):
        ranges += [("at least", {"seed": 0}), ("at most", {"seed": LARGEST_SEED})]
    for name in {*not_empty, *(name for _, bounds in ranges for name in bounds)}:
        if isinstance(getattr(settings, name), list | tuple) and not getattr(settings, name):
            raise InputError(f"{prefix}{name}: empty; must hold at least one")
    for words, bounds in ranges:
        for name, bound in bounds.items():
            value = getattr(settings, name)
            for item in value if isinstance(value, list | tuple) else (value,):
                inside = (
                    item is None or {"at least": item >= bound, "above": item > bound, "at most": item <= bound}[words]
                )
                if not inside or (item is not None and not math.isfinite(item)):
                    raise InputError(f"{prefix}{name}: {value}; must be {words} {bound}")


def size_in_bytes(flag: str, size: str | None) -> int | None:
    """A size such as 512M or 2G in bytes; None for none.

    Raises:
        InputError: it is no size.
    """
    if size is None:
        return None
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([KMGT]?)(?:i?B)?", str(size))
    if match is None:
        raise InputError(f"{flag}: {size!r}; it must be a number of bytes such as 512M or 2G")
    return int(float(match[1]) * UNITS[match[2]])


def expected(kind: Any) -> str:
    """A type in a user's words."""
    if kind in SCALARS:
        return SCALARS[kind][1]
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if origin in (typing.Union, types.UnionType):
        return ", or ".join(expected(part) for part in parts)
    if origin is tuple and Ellipsis not in parts:
        return f"a list [{', '.join(expected(part) for part in parts)}]"
    if origin in (list, tuple):
        return f"a list, each item {expected(parts[0])}"
    if origin is dict:
        return f"a mapping of names to {expected(parts[1])}"
    return "a mapping of settings" if is_dataclass(kind) else getattr(kind, "__name__", str(kind))


def fits(value: Any, kind: Any) -> bool:
    """Whether a value is of a declared type; a switch is no number, and a list does for a tuple."""
    if kind in SCALARS:
        return isinstance(value, SCALARS[kind][0]) and (kind is bool or not isinstance(value, bool)) and value == value
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        return value in parts
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin in (list, tuple):
        if not isinstance(value, list | tuple):
            return False
        items = parts if origin is tuple and Ellipsis not in parts else parts[:1] * len(value)
        return len(items) == len(value) and all(map(fits, value, items))
    if origin is dict:
        return isinstance(value, dict) and all(fits(k, parts[0]) and fits(v, parts[1]) for k, v in value.items())
    return not isinstance(kind, type) or isinstance(value, kind)


def _check(values: Mapping[str, Any], hints: Mapping[str, Any], prefix: str) -> None:
    for name, value in values.items():
        if is_dataclass(value):
            check_types(value, f"{prefix}{name}.")
        if not fits(value, hints[name]):
            raise InputError(f"{prefix}{name}: {value!r}; expected {expected(hints[name])}")


def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _has_tuple(kind: Any) -> bool:
    return tuple in (typing.get_origin(kind), *map(typing.get_origin, typing.get_args(kind)))

"""What a list of models says of tensors and buckets: each field checked, in one form whatever the user wrote."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from serving.models.served import HostStep
from serving.models.tensors import DATATYPES, NAMES, VARIES, TensorSpec, datatype_of
from traces.errors import InputError

SHAPE = "a list of sizes, each an integer of at least 1, or -1 where it varies"


def is_integer(value: Any, least: int, below: float) -> bool:
    """Whether a value is an integer in [least, below)."""
    return type(value) is int and least <= value < below


def is_shape(value: Any) -> bool:
    """Whether a value is a shape of which sizes may vary."""
    return isinstance(value, list | tuple) and all(one == VARIES or is_integer(one, 1, 2**31) for one in value)


def is_buckets(value: Any) -> bool:
    """Whether a value is a list of ascending sizes."""
    sizes = isinstance(value, list) and bool(value) and all(is_integer(one, 1, 2**31) for one in value)
    return sizes and value == sorted(set(value))


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e300


def _is_type(value: Any) -> bool:
    return isinstance(value, str) and (value in DATATYPES or value in NAMES)


Rules = dict[str, tuple[str, Callable[[Any], bool]]]  # by field: what it must be, in words and as a check


def check_fields_by(rules: Rules, fields: Mapping[str, Any], where: str, before: str) -> None:
    """Check fields that a user wrote.

    Args:
        rules: of the fields that there are. fields: what was written.
        where: the place, as an error about an unknown field begins. before: what stands before a field's name in others.

    Raises:
        InputError: a field is unknown, or not what it must be.
    """
    for key, value in fields.items():
        if key not in rules:
            raise InputError(f"{where}: unknown field {key!r}; known are {', '.join(rules)}")
        rule, holds = rules[key]
        if not holds(value):
            raise InputError(f"{before}{key} is {value!r}; it must be {rule}")


_FIELDS: Rules = {
    "shape": (SHAPE, is_shape),
    "datatype": (f"one of {', '.join(DATATYPES)}", _is_type),
    "optional": ("true or false", lambda value: isinstance(value, bool)),
    "default": ("a number", _is_number),
    "pad": ("a number", _is_number),
    "bounded": ("true or false", lambda value: isinstance(value, bool)),
    "high": ("an integer of at least 1", lambda value: is_integer(value, 1, 2**63)),
}


def read_tensors(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """What is said of inputs or outputs, by their names.

    Args:
        value: a mapping from names to fields, or to a shape alone; or a list of names, of which nothing else is said.
        where: the place, as errors begin.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, list):
        value = (
            {name: {} for name in value if isinstance(name, str)} if len(set(map(str, value))) == len(value) else None
        )
    if not isinstance(value, Mapping) or not value or not all(isinstance(name, str) and name for name in value):
        raise InputError(f"{where}: expected a mapping from each tensor's name to its fields, or a list of names")
    found = {}
    for name, given in value.items():
        fields = {"shape": given} if isinstance(given, list | tuple) else given
        if not isinstance(fields, Mapping):
            raise InputError(f"{where}.{name} is {given!r}; it must be a shape or a mapping of {', '.join(_FIELDS)}")
        check_fields_by(_FIELDS, fields, f"{where}.{name}", f"{where}.{name}.")
        found[name] = dict(fields)
        if "datatype" in fields:
            found[name]["datatype"] = datatype_of(str(fields["datatype"]))
        if "shape" in fields:
            found[name]["shape"] = tuple(fields["shape"])
    return found


_STEP_FUNCTION = re.compile(r"[\w.]+:\w+")


def read_step(value: Any, side: str, where: str, folder: str) -> HostStep:
    """What is said of the code before or after a model.

    Args:
        value: a mapping with `function`, and with the tensors of `side`.
        side: "inputs", that clients send, or "outputs", that they get.
        where: the place, as errors begin.
        folder: where its module is looked for.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Mapping) or set(value) != {"function", side}:
        said = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)
        raise InputError(f"{where}: expected a mapping with function and {side}, not {said[:80]}")
    if not isinstance(value["function"], str) or not _STEP_FUNCTION.fullmatch(value["function"]):
        raise InputError(f"{where}.function is {value['function']!r}; it must be module:function")
    tensors = read_tensors(value[side], f"{where}.{side}")
    for name, fields in tensors.items():
        if "shape" not in fields:
            raise InputError(f"{where}.{side}.{name} needs a shape: that of one item, [] for a single value")
    specs = (TensorSpec(name, **{"datatype": "FP32"} | fields) for name, fields in tensors.items())
    return HostStep(value["function"], tuple(specs), folder)

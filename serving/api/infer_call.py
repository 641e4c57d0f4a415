"""A request for inference as both protocols mean it: what is known is checked, all else is refused, in the same words.

HTTP hands in the JSON part of a body, gRPC a message in the same form, each with the bytes of the tensor that is binary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from serving.api.model_view import INPUT, OUTPUT, ModelView, check_name
from serving.api.tensors import check_datatype, check_shape, from_bytes, from_values
from traces.errors import InputError

LONGEST_TIMEOUT_US = 86_400_000_000  # a day
LONGEST_ID = 1024  # characters
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")  # zero, false or empty: not a sequence
PARAMETERS = frozenset(("priority", "timeout", "binary_data_output", *SEQUENCE))
INPUT_PARAMETERS = frozenset(("binary_data_size",))
OUTPUT_PARAMETERS = frozenset(("binary_data", "classification"))
FIELDS = frozenset(("id", "inputs", "outputs", "parameters"))
INPUT_FIELDS = frozenset(("name", "datatype", "shape", "data", "parameters"))
OUTPUT_FIELDS = frozenset(("name", "parameters"))


class InferCall(NamedTuple):
    """A checked request.

    Attributes:
        id: the client's, echoed; None if it gave none.
        values: (n, *item) of the model's input type.
        parameters: `priority` and `timeout`, as far as they are given.
        binary: whether the output is to be binary data.
    """

    id: str | None
    values: np.ndarray
    parameters: Mapping[str, int]
    binary: bool


def read_id(head: Mapping[str, Any]) -> str | None:
    """The client's id of a request.

    Raises:
        InputError: it is not a string, or too long.
    """
    id_ = head.get("id")
    if id_ is None:
        return None
    # A half of a surrogate pair can be neither sent back nor logged.
    if not isinstance(id_, str) or len(id_) > LONGEST_ID or any("\ud800" <= one <= "\udfff" for one in id_):
        raise InputError(f"id must be a string of at most {LONGEST_ID} characters")
    return id_


def read_call(head: Mapping[str, Any], binary: memoryview | bytes, view: ModelView, most: int) -> InferCall:
    """Check a request.

    Args:
        head: its fields: id, parameters, inputs, outputs, as the protocol's JSON has them.
        binary: the bytes of the tensor whose parameter binary_data_size says so.
        view: the model.
        most: most items of one call.

    Raises:
        InputError: anything is not as it should be, or not known here.
    """
    check_fields(head, FIELDS, "the request")
    id_, parameters = read_id(head), _parameters(head, "the request", PARAMETERS)
    if parameters and any(parameters.get(name) for name in SEQUENCE):
        raise InputError("sequence_id: stateful models are not supported")
    inputs = head.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InputError(f"inputs must be a list of exactly one tensor, {INPUT!r}")
    wants_binary = _wants_binary(head, parameters)
    asked: dict[str, Any] = {}
    if parameters:
        asked = {name: parameters[name] for name in ("priority", "timeout") if name in parameters}
        check_schedule(asked)
    return InferCall(id_, _read_tensor(inputs[0], binary, view, most), asked, wants_binary)


def check_schedule(parameters: Mapping[str, Any]) -> None:
    """Refuse a priority or a timeout that cannot be."""
    priority, timeout = parameters.get("priority", 0), parameters.get("timeout", 0)
    if type(priority) is not int or not 0 <= priority <= 2:
        raise InputError(f"priority is {str(priority)[:80]!r}; it must be 1 (high), 2 (low) or 0 (the model's default)")
    if type(timeout) is not int or not 0 <= timeout <= LONGEST_TIMEOUT_US:
        raise InputError(
            f"timeout is {str(timeout)[:80]!r}; it must be microseconds from 1 to {LONGEST_TIMEOUT_US}, or 0 (default)"
        )


def check_fields(given: Mapping[str, Any], known: frozenset[str], where: str, what: str = "field") -> None:
    """Refuse what is not known: it would be ignored, and its sender would not notice."""
    for name in given:
        if name not in known:
            raise InputError(
                f"{where}: {what} {name[:80]!r} is not supported; known: {', '.join(sorted(known)) or 'none'}"
            )


def _read_tensor(tensor: dict[str, Any], binary: memoryview | bytes, view: ModelView, most: int) -> np.ndarray:
    check_fields(tensor, INPUT_FIELDS, INPUT)
    check_name(tensor.get("name"), INPUT)
    parameters = _parameters(tensor, INPUT, INPUT_PARAMETERS)
    check_datatype(tensor.get("datatype"), view.datatype, INPUT)
    shape = check_shape(tensor.get("shape"), view.item, most, INPUT)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in tensor:
            raise InputError(f"{INPUT}: neither data nor the parameter binary_data_size")
        if len(binary):
            raise InputError(f"{INPUT}: data is in the JSON part, but {len(binary)} bytes follow it")
        values = from_values(tensor["data"], view.dtype, shape, INPUT)
    else:
        if "data" in tensor:
            raise InputError(f"{INPUT}: its data must be in one place; it is given both as numbers and as bytes")
        if type(size) is not int or size != len(binary):
            raise InputError(f"{INPUT}: binary_data_size is {str(size)[:80]}; {len(binary)} bytes follow the JSON part")
        values = from_bytes(binary, view.dtype, shape, INPUT)
    view.check_values(values)
    return values


def _wants_binary(head: Mapping[str, Any], parameters: Mapping[str, Any]) -> bool:
    binary = parameters.get("binary_data_output", False)
    outputs = head.get("outputs")
    if outputs is not None:
        if not isinstance(outputs, list) or not all(isinstance(one, dict) for one in outputs):
            raise InputError(f"outputs must be a list of tensors; there is one, {OUTPUT!r}")
        for output in reversed(outputs):  # it may be named again, as Triton has it; the first one counts
            check_fields(output, OUTPUT_FIELDS, OUTPUT)
            check_name(output.get("name"), OUTPUT)
            own = _parameters(output, OUTPUT, OUTPUT_PARAMETERS)
            if own.get("classification"):
                raise InputError(f"{OUTPUT}: classification is not supported")
            binary = own.get("binary_data", parameters.get("binary_data_output", False))
    if not isinstance(binary, bool):
        raise InputError(f"binary_data is {str(binary)[:80]!r}; it must be true or false")
    return binary


def _parameters(holder: Mapping[str, Any], where: str, known: frozenset[str]) -> dict[str, Any]:
    given = holder.get("parameters")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"parameters of {where} is not a JSON object")
    if not known.issuperset(given):
        if "shared_memory_region" in given:
            raise InputError(f"{where}: shared memory is not supported")
        check_fields(given, known, where, "parameter")
    return given

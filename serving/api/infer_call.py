"""A request for inference as both protocols mean it: what is known is checked, all else is refused, in the same words.

HTTP hands in the JSON part of a body, gRPC a message in the same form, each with the bytes of the tensors that are binary.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from serving.api.model_view import ModelView
from serving.api.tensors import check_datatype, check_shape, from_values
from serving.models.tensors import TensorSpec, from_bytes
from traces.errors import InputError

LONGEST_TIMEOUT_US = 86_400_000_000  # a day
LONGEST_ID = 1024  # characters
SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")  # zero, false or empty: not a sequence
PARAMETERS = frozenset(("priority", "timeout", "quote", "binary_data_output", *SEQUENCE))
INPUT_PARAMETERS = frozenset(("binary_data_size",))
OUTPUT_PARAMETERS = frozenset(("binary_data", "classification"))
FIELDS = frozenset(("id", "inputs", "outputs", "parameters"))
INPUT_FIELDS = frozenset(("name", "datatype", "shape", "data", "parameters"))
OUTPUT_FIELDS = frozenset(("name", "parameters"))


class Wanted(NamedTuple):
    """An output that the client wants.

    Attributes:
        place: among the model's outputs.
        binary: whether it is to be binary data.
    """

    place: int
    binary: bool


class InferCall(NamedTuple):
    """A checked request.

    Attributes:
        id: the client's, echoed; None if it gave none.
        values: (n, *shape) for each of the model's inputs.
        size: the size that varies of its items; None for a model of fixed sizes.
        parameters: `priority` and `timeout`, as far as they are given.
        outputs: that the client wants.
        quoted: whether the answer is to say how likely it was on arrival that the request would be in time.
    """

    id: str | None
    values: tuple[np.ndarray, ...]
    size: int | None
    parameters: Mapping[str, int]
    outputs: tuple[Wanted, ...]
    quoted: bool = False

    @property
    def n_items(self) -> int:
        """How many items it has."""
        return len(self.values[0])


def whole_call(view: ModelView, *values: np.ndarray) -> InferCall:
    """A call for all outputs of a model of fixed sizes, by the program itself: (n, *shape) for each input."""
    return InferCall(None, values, None, {}, tuple(Wanted(place, binary=True) for place in range(len(view.outputs))))


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
        binary: the bytes of the tensors whose parameter binary_data_size says so, in their order.
        view: the model.
        most: most items of one call.

    Raises:
        InputError: anything is not as it should be, or not known here.
    """
    check_fields(head, FIELDS, "the request")
    id_, parameters = read_id(head), _parameters(head, "the request", PARAMETERS)
    if parameters and any(parameters.get(name) for name in SEQUENCE):
        raise InputError("sequence_id: stateful models are not supported")
    values, size = _read_inputs(head.get("inputs"), binary, view, most)
    outputs = _wanted(head.get("outputs"), parameters, view)
    asked: dict[str, Any] = {}
    quoted = False
    if parameters:
        quoted = _is_true(parameters.get("quote", False), "quote")
        asked = {name: parameters[name] for name in ("priority", "timeout") if name in parameters}
        check_schedule(asked)
    return InferCall(id_, values, size, asked, outputs, quoted)


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


def _read_inputs(
    given: Any, binary: memoryview | bytes, view: ModelView, most: int
) -> tuple[tuple[np.ndarray, ...], int | None]:
    """The model's inputs, those that were left out filled; and the size that varies."""
    if not isinstance(given, list) or not given:
        raise InputError(f"inputs must be a list of tensors; expected {_names(view.inputs)}")
    places = view.input_places
    found: list[np.ndarray | None] = [None] * len(places)
    at, count, size = 0, 0, None
    for tensor in given:
        if not isinstance(tensor, dict):
            raise InputError(f"inputs must be a list of tensors; expected {_names(view.inputs)}")
        name = tensor.get("name")
        place = places.get(name) if isinstance(name, str) else None
        if place is None:
            raise InputError(f"there is no tensor {str(name)[:80]!r} here; expected {_names(view.inputs)}")
        if found[place] is not None:
            raise InputError(f"{name}: given twice")
        spec = view.inputs[place]
        values, at = _read_tensor(tensor, binary, at, spec, most)
        if count not in (0, len(values)):
            raise InputError(f"{name}: shape has {len(values)} items; that of {given[0].get('name')} has {count}")
        count = len(values)
        if spec.varies:
            size = same_size(spec, values.shape[1:], size, view)
        view.check_values(spec, values)
        found[place] = values
    if at != len(binary):
        raise InputError(f"{len(binary) - at} bytes follow the last of the binary tensors")
    if len(given) < len(found):
        found = [left_out(spec, (count,), size) if one is None else one for spec, one in zip(view.inputs, found)]
    return tuple(found), size  # type: ignore[arg-type]


def _names(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{spec.name!r}{' (optional)' if spec.optional else ''}" for spec in specs)


def same_size(spec: TensorSpec, shape: tuple[int, ...], size: int | None, view: ModelView) -> int:
    """The size that varies, which is the same in all inputs, and fits into the largest bucket.

    Args:
        spec: an input of which a size varies.
        shape: of one item of it.
        size: of the inputs before it; None if it is the first.
        view: the model.

    Raises:
        InputError: it is another size, or too small or large.
    """
    own = spec.size_of(shape)
    if own is None or size not in (None, own):
        raise InputError(
            f"{spec.name}: shape is {['n', *shape]}; sizes that vary must be the same in all inputs"
            + (f", here {size}" if size is not None else "")
        )
    view.check_size(own, spec.name)
    return own


def left_out(spec: TensorSpec, batch: tuple[int, ...], size: int | None) -> np.ndarray:
    """An optional input that was left out, filled: (*batch, *shape). Raises InputError: it is not optional."""
    if not spec.optional or (spec.varies and size is None):
        raise InputError(f"input {spec.name!r} is missing")
    return np.full((*batch, *spec.sized(size).shape), spec.fill(spec.default), spec.dtype)


def _read_tensor(
    tensor: dict[str, Any], binary: memoryview | bytes, at: int, spec: TensorSpec, most: int
) -> tuple[np.ndarray, int]:
    """One tensor, and where the bytes of the next one begin."""
    name = spec.name
    check_fields(tensor, INPUT_FIELDS, name)
    parameters = _parameters(tensor, name, INPUT_PARAMETERS)
    check_datatype(tensor.get("datatype"), spec.datatype, name)
    shape = check_shape(tensor.get("shape"), spec.shape, most, name)
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in tensor:
            raise InputError(f"{name}: neither data nor the parameter binary_data_size")
        return from_values(tensor["data"], spec, shape), at
    if "data" in tensor:
        raise InputError(f"{name}: its data must be in one place; it is given both as numbers and as bytes")
    left = len(binary) - at
    if type(size) is not int or not 0 <= size <= left:
        raise InputError(f"{name}: binary_data_size is {str(size)[:80]}; {left} bytes follow the JSON part")
    return from_bytes(binary[at : at + size], spec, shape), at + size


def _wanted(given: Any, parameters: Mapping[str, Any], view: ModelView) -> tuple[Wanted, ...]:
    """The outputs that a client names, or all of them."""
    binary = parameters.get("binary_data_output", False)
    wanted: dict[int, Wanted] = {}
    if given is not None:
        if not isinstance(given, list) or not all(isinstance(one, dict) for one in given):
            raise InputError(f"outputs must be a list of tensors; there are {_names(view.outputs)}")
        places = view.output_places
        for output in given:
            name = output.get("name")
            place = places.get(name) if isinstance(name, str) else None
            if place is None:
                raise InputError(f"there is no tensor {str(name)[:80]!r} here; expected {_names(view.outputs)}")
            check_fields(output, OUTPUT_FIELDS, view.outputs[place].name)
            own = _parameters(output, view.outputs[place].name, OUTPUT_PARAMETERS)
            if own.get("classification"):
                raise InputError(f"{name}: classification is not supported")
            # It may be named again, as Triton has it; the first one counts.
            wanted.setdefault(place, Wanted(place, _is_true(own.get("binary_data", binary), "binary_data")))
    return tuple(wanted.values()) if wanted else _all_outputs(len(view.outputs), _is_true(binary, "binary_data"))


@functools.cache
def _all_outputs(count: int, binary: bool) -> tuple[Wanted, ...]:
    return tuple(Wanted(place, binary) for place in range(count))


def _is_true(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise InputError(f"{name} is {str(value)[:80]!r}; it must be true or false")
    return value


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

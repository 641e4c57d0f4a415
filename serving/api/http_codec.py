"""Bodies of inference over HTTP: a JSON part, and after it the bytes of the tensors that are binary."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.api.dataplane import Answer
from serving.api.model_view import INPUT, OUTPUT, VERSION, ModelView, check_name
from serving.api.refusal import too_large
from serving.api.tensors import check_datatype, check_shape, from_bytes, from_values, to_bytes
from traces.errors import InputError

HEADER_LENGTH = "Inference-Header-Content-Length"
_PLAIN = {"Content-Type": "application/json"}


class InferCall(NamedTuple):
    """A parsed request.

    Attributes:
        id: the client's, echoed; None if it gave none.
        values: (n, *item) of the model's input type.
        parameters: the request's.
        binary: whether the output is to be binary data.
    """

    id: str | None
    values: np.ndarray
    parameters: Mapping[str, Any]
    binary: bool


def read_json(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it is something else.
    """
    try:
        value = orjson.loads(body)
    except ValueError as error:  # also what is not UTF-8, is nested too deeply, or is NaN or an infinity
        raise InputError(f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise InputError(f"the body is a JSON {type(value).__name__}; it must be an object")
    return value


def decompress(body: bytes | bytearray, encoding: str, most: int) -> bytes:
    """A body in gzip or deflate, decompressed to at most `most` bytes.

    Raises:
        InputError: it is not in that encoding.
        Refusal: it is larger.
    """
    machine = zlib.decompressobj(zlib.MAX_WBITS | (16 if encoding == "gzip" else 0))
    try:
        made = machine.decompress(body, most + 1)
    except zlib.error:
        raise InputError(f"the body is not in {encoding}, which Content-Encoding promises") from None
    if len(made) > most:
        raise too_large(most)
    if not machine.eof or machine.unused_data:
        raise InputError(f"the body in {encoding} does not end where its data ends")
    return made


def read_infer(body: bytes | bytearray, header_length: str | None, view: ModelView, most: int) -> InferCall:
    """Parse and check a request's body.

    Args:
        body: whole.
        header_length: the header of that name: length of the JSON part; None: all of it is JSON.
        view: the model.
        most: most items of one call.

    Raises:
        InputError: anything is not as it should be.
    """
    length = len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or not 0 < int(header_length[:16]) <= len(body):
            raise InputError(
                f"{HEADER_LENGTH} is {header_length[:80]!r}; it must be 1 to {len(body)}, the body's length"
            )
        length = int(header_length)
    head = read_json(memoryview(body)[:length])
    parameters = _object(head, "parameters", "the request")
    id_ = head.get("id")
    if id_ is not None and not isinstance(id_, str):
        raise InputError("id is not a string")
    if parameters.get("sequence_id"):
        raise InputError("sequence_id: stateful models are not supported")
    inputs = head.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise InputError(f"inputs must be a list of exactly one tensor, {INPUT!r}")
    values = _read_tensor(inputs[0], memoryview(body)[length:], view, most)
    return InferCall(id_, values, parameters, _wants_binary(head, parameters))


def _read_tensor(tensor: dict[str, Any], binary: memoryview, view: ModelView, most: int) -> np.ndarray:
    check_name(tensor.get("name"), INPUT)
    check_datatype(tensor.get("datatype"), view.datatype, INPUT)
    shape = check_shape(tensor.get("shape"), view.item, most, INPUT)
    parameters = _object(tensor, "parameters", INPUT)
    if "shared_memory_region" in parameters:
        raise InputError(f"{INPUT}: shared memory is not supported")
    size = parameters.get("binary_data_size")
    if size is None:
        if "data" not in tensor:
            raise InputError(f"{INPUT}: neither data nor the parameter binary_data_size")
        if len(binary):
            raise InputError(f"{INPUT}: data is in the JSON part, but {len(binary)} bytes follow it")
        values = from_values(tensor["data"], view.dtype, shape, INPUT)
    else:
        if "data" in tensor:
            raise InputError(f"{INPUT}: both data and the parameter binary_data_size")
        if type(size) is not int or size != len(binary):
            raise InputError(f"{INPUT}: binary_data_size is {str(size)[:80]}; {len(binary)} bytes follow the JSON part")
        values = from_bytes(binary, view.dtype, shape, INPUT)
    view.check_values(values)
    return values


def _wants_binary(head: dict[str, Any], parameters: dict[str, Any]) -> bool:
    binary = parameters.get("binary_data_output", False)
    outputs = head.get("outputs")
    if outputs is not None:
        if not isinstance(outputs, list) or len(outputs) > 1 or not all(isinstance(o, dict) for o in outputs):
            raise InputError(f"outputs must be a list of at most one tensor, {OUTPUT!r}")
        for output in outputs:
            check_name(output.get("name"), OUTPUT)
            own = _object(output, "parameters", OUTPUT)
            if own.get("classification"):
                raise InputError(f"{OUTPUT}: classification is not supported")
            if "shared_memory_region" in own:
                raise InputError(f"{OUTPUT}: shared memory is not supported")
            binary = own.get("binary_data", binary)
    if not isinstance(binary, bool):
        raise InputError(f"binary_data is {str(binary)[:80]!r}; it must be true or false")
    return binary


def _object(holder: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = holder.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{key} of {where} is not a JSON object")
    return value


def write_infer(view: ModelView, call: InferCall, answer: Answer) -> tuple[bytes, dict[str, str]]:
    """The body of an answer and its headers."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": view.output_datatype, "shape": list(answer.output.shape)}
    head: dict[str, Any] = {"model_name": view.name, "model_version": VERSION}
    if call.id is not None:
        head["id"] = call.id
    head["parameters"] = answer.parameters
    head["outputs"] = [output]
    if not call.binary:
        output["data"] = answer.output.ravel()  # NaN and the infinities, which JSON lacks, become null
        return orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY), _PLAIN
    data = to_bytes(answer.output)
    output["parameters"] = {"binary_data_size": len(data)}
    text = orjson.dumps(head)
    return text + data, {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(text))}

"""Bodies of inference over HTTP: a JSON part, and after it the bytes of the tensors that are binary; and their compression."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import orjson
from aiohttp.web import ContentCoding

from serving.api.answer import Answer
from serving.api.infer_call import InferCall
from serving.api.model_view import ModelView
from serving.api.refusal import too_large
from serving.models.processes.pool import Buffer
from serving.models.tensors import to_bytes
from traces.errors import InputError

HEADER_LENGTH = "Inference-Header-Content-Length"
PIECE = 1 << 20  # bytes that are made at a time: each costs a copy under Python's lock


def decompress(body: Buffer, encoding: str, most: int) -> bytearray:
    """A body in gzip (of one or more members) or deflate (with or without zlib's frame), of at most `most` bytes then.

    Raises:
        InputError: it is not in that encoding.
        Refusal: it is larger.
    """
    window = zlib.MAX_WBITS | 32  # gzip or zlib, by the first bytes
    if encoding == "deflate" and len(body) and body[0] & 15 != zlib.DEFLATED:
        window = -zlib.MAX_WBITS
    made, machine, whole = bytearray(), zlib.decompressobj(window), memoryview(body)
    for at in range(0, len(body), PIECE):
        rest, piece = bytes(whole[at : at + PIECE]), b""
        while rest or len(piece) == PIECE:  # of a full piece there may be more inside the machine
            if machine.eof:  # a further member, or padding
                rest = rest.lstrip(b"\0")
                if not rest:
                    break
                if encoding == "deflate":
                    raise InputError("the body in deflate does not end where its data ends")
                machine = zlib.decompressobj(window)
            try:
                piece = machine.decompress(rest, PIECE)
            except zlib.error:
                raise InputError(f"the body is not in {encoding}, which Content-Encoding promises") from None
            made += piece
            if len(made) > most:
                raise too_large(most)
            rest = machine.unused_data if machine.eof else machine.unconsumed_tail
    if not machine.eof:
        raise InputError(f"the body in {encoding} does not end where its data ends")
    return made


def accepted_encoding(header: str) -> ContentCoding | None:
    """The first of gzip and deflate that an Accept-Encoding header takes; None for neither."""
    taken = {}
    for one in header.lower().split(","):
        name, _, weight = one.partition(";")
        taken[name.strip()] = weight.replace(" ", "").rstrip("0.") != "q="
    return next((one for one in (ContentCoding.gzip, ContentCoding.deflate) if taken.get(one.value)), None)


def split(body: Buffer, header_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON part of a body, and the bytes that follow it.

    Args:
        body: whole.
        header_length: the header of that name: length of the JSON part; None: all of it is JSON.

    Raises:
        InputError: the header is wrong.
    """
    view, length = memoryview(body), len(body)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdigit()) or not 0 < int(header_length[:16]) <= len(body):
            raise InputError(
                f"{HEADER_LENGTH} is {header_length[:80]!r}; it must be 1 to {len(body)}, the body's length"
            )
        length = int(header_length[:16])
    return view[:length], view[length:]


def write_answer(
    view: ModelView, call: InferCall, answer: Answer, numbers: Sequence[Buffer] = ()
) -> tuple[list[Buffer], dict[str, str]]:
    """The body of an answer, in parts, and its headers.

    Args:
        view: the model.
        call: the request.
        answer: to the request.
        numbers: those outputs as JSON that are not to be binary, in their order.
    """
    head: dict[str, Any] = {"model_name": view.name, "model_version": view.version}
    if call.id is not None:
        head["id"] = call.id
    head["parameters"] = answer.parameters
    text: list[Buffer] = [orjson.dumps(head)[:-1], b',"outputs":[']
    data: list[Buffer] = []
    as_json = iter(numbers)
    for wanted, array in zip(call.outputs, answer.outputs):
        spec = view.outputs[wanted.place]
        output: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
        if wanted.binary:
            data.append(to_bytes(array))
            text.append(orjson.dumps(output | {"parameters": {"binary_data_size": len(data[-1])}}))
        else:
            text += [orjson.dumps(output)[:-1] + b',"data":', next(as_json), b"}"]
        text.append(b",")
    text[-1] = b"]}"
    if not data:
        return text, {"Content-Type": "application/json"}
    length = sum(map(len, text))
    # One part per buffer: each that is sent costs a call.
    return [b"".join(text), *data], {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(length)}

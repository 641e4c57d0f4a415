"""JSON as Triton reads and writes it: NaN and the infinities are numbers, written NaN, Infinity and -Infinity."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import orjson

from traces.errors import InputError

# A string, which stays, or a number as RapidJSON takes it, for which Python's own parser has another word.
_WORDS = re.compile(rb'"(?:[^"\\]|\\.)*"|-NaN|\bInf\b', re.DOTALL)
_OTHERS = {b"-NaN": b"NaN", b"Inf": b"Infinity"}


def read_json(body: bytes | bytearray | memoryview) -> dict[str, Any]:
    """A JSON object.

    Raises:
        InputError: it is something else.
    """
    try:
        value = _loads(body)
    except (ValueError, RecursionError) as error:  # also what is not UTF-8, or is nested too deeply
        raise InputError(f"the body is not JSON: {str(error)[:120]}") from None
    if not isinstance(value, dict):
        raise InputError(f"the body is a JSON {type(value).__name__}; it must be an object")
    return value


def _loads(body: bytes | bytearray | memoryview) -> Any:
    try:
        return orjson.loads(body)
    except ValueError:
        text = bytes(body)
        if b"NaN" not in text and b"Inf" not in text:
            raise
        return json.loads(_WORDS.sub(lambda found: _OTHERS.get(found[0], found[0]), text))


def json_numbers(array: np.ndarray) -> bytes:
    """A flat JSON list of an array's numbers, or of its texts; bytes that are no text are replaced."""
    flat = array.ravel()
    if flat.dtype.kind == "O":
        return orjson.dumps([one.decode(errors="replace") for one in flat])
    text = orjson.dumps(flat, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" not in text:
        return text
    odd = flat[~np.isfinite(flat)].tolist()  # has become null
    words = iter([b"NaN" if one != one else b"Infinity" if one > 0 else b"-Infinity" for one in odd])
    return re.sub(rb"null", lambda found: next(words), text)

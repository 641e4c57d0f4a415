"""Tensors of the Open Inference Protocol: names of types, JSON and binary data to NumPy arrays and back.

Everything here is checked before it is used: what a client sends is either an array of the promised shape and type, or an
InputError that says what is wrong.
"""

from __future__ import annotations

import math
import struct
import sys
from typing import Any

import numpy as np

from traces.errors import InputError

DATATYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype("bool"),
    "UINT8": np.dtype("uint8"),
    "UINT16": np.dtype("uint16"),
    "UINT32": np.dtype("uint32"),
    "UINT64": np.dtype("uint64"),
    "INT8": np.dtype("int8"),
    "INT16": np.dtype("int16"),
    "INT32": np.dtype("int32"),
    "INT64": np.dtype("int64"),
    "FP16": np.dtype("float16"),
    "FP32": np.dtype("float32"),
    "FP64": np.dtype("float64"),
}
"""The protocol's name of each type that is served. BYTES and BF16 are not: no model here takes them."""

_INTEGERS, _NUMBERS = frozenset((int,)), frozenset((int, float))
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


def datatype_of(dtype: np.dtype | str) -> str:
    """The protocol's name of a NumPy type."""
    return _NAMES[np.dtype(dtype)]


def check_datatype(datatype: object, expected: str, where: str) -> None:
    """Refuse a tensor that is not of the type `expected`; `where` names it in the error."""
    if datatype == expected:
        return
    if datatype in ("BYTES", "BF16"):
        raise InputError(f"{where}: datatype {datatype} is not supported; expected {expected}")
    raise InputError(f"{where}: datatype is {_short(datatype)}; expected {expected}")


def check_shape(shape: Any, item: tuple[int, ...], most: int, where: str) -> tuple[int, ...]:
    """The shape of a batch of items, checked.

    Args:
        shape: as the client wrote it.
        item: shape of one item.
        most: most items of one call.
        where: names the tensor in the error.

    Raises:
        InputError: it is not (n, *item) with 1 <= n <= most.
    """
    if not isinstance(shape, (list, tuple)) or not _INTEGERS.issuperset(map(type, shape)):
        raise InputError(f"{where}: shape is {_short(shape)}; it must be a list of integers")
    if len(shape) != len(item) + 1 or tuple(shape[1:]) != item:
        raise InputError(f"{where}: shape is {_short(list(shape))}; expected {['n', *item]}, n the number of items")
    if not 1 <= shape[0] <= most:
        raise InputError(f"{where}: shape {_short(list(shape))} has {_short(shape[0])} items; it must have 1 to {most}")
    return tuple(shape)


def from_values(data: Any, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array from a list of numbers, flat or nested as `shape` says.

    Raises:
        InputError: other numbers than promised, or numbers that the type cannot hold.
    """
    code = _CODES.get(dtype.char)
    if code and type(data) is list and len(data) == math.prod(shape) and _NUMBERS.issuperset(map(type, data)):
        return _pack(data, code, dtype, where).reshape(shape)
    try:
        array = np.asarray(data)
    except (ValueError, OverflowError):
        raise InputError(f"{where}: data is ragged or not numeric") from None
    if array.ndim != 1 and array.shape != shape:
        raise InputError(f"{where}: data has shape {list(array.shape)[:16]}; expected {list(shape)} or a flat list")
    if array.size != math.prod(shape):
        raise InputError(f"{where}: data has {array.size} elements; shape {list(shape)} has {math.prod(shape)}")
    return _convert(array, dtype, where).reshape(shape)


# A flat list of numbers, which is what clients send, is packed: that takes a fifth of the time of a way through NumPy's
# own types. The codes are those of `struct`, by NumPy's.
_CODES = {code: code for code in "bBhHiIqQefd"} | {"l": "q", "L": "Q"}


def _pack(data: list[Any], code: str, dtype: np.dtype, where: str) -> np.ndarray:
    try:
        return np.frombuffer(struct.pack(f"={len(data)}{code}", *data), dtype)
    except (struct.error, OverflowError):
        raise InputError(f"{where}: data holds a number that {datatype_of(dtype)} cannot") from None


def _convert(array: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
    if array.dtype == dtype:
        return array
    given = array.dtype.kind
    if dtype.kind == "f" and given in "iuf":
        with np.errstate(over="ignore"):
            made = array.astype(dtype)
        if np.isfinite(made).all() or given != "f" or not np.isfinite(array).all():
            return made
    elif dtype.kind in "iu" and given in "iu":
        bounds = np.iinfo(dtype)
        if bounds.min <= int(array.min()) and int(array.max()) <= bounds.max:
            return array.astype(dtype)
    else:
        raise InputError(f"{where}: data holds something else than {_WORDS[dtype.kind]} for {datatype_of(dtype)}")
    raise InputError(f"{where}: data holds a number that {datatype_of(dtype)} cannot")


_WORDS = {"f": "numbers", "i": "integers", "u": "integers", "b": "true and false"}


def from_bytes(buffer: bytes | memoryview, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array over the bytes of a tensor: little-endian, row-major, not copied.

    Raises:
        InputError: another number of bytes than promised.
    """
    expected = math.prod(shape) * dtype.itemsize
    if len(buffer) != expected:
        raise InputError(f"{where}: {len(buffer)} bytes of data; shape {list(shape)} has {expected}")
    if dtype.kind == "b":  # any byte may come, but only 0 and 1 are booleans to NumPy
        return (np.frombuffer(buffer, np.uint8) != 0).reshape(shape)
    made = np.frombuffer(buffer, dtype).reshape(shape)
    return made if sys.byteorder == "little" else made.byteswap()


def to_bytes(array: np.ndarray) -> bytes:
    """The bytes of a tensor: little-endian, row-major."""
    return array.tobytes() if sys.byteorder == "little" else array.byteswap().tobytes()


def _short(value: object) -> str:
    """A client's value, cut to fit in a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

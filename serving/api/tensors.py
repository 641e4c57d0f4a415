"""Tensors of the Open Inference Protocol: names of types, JSON and binary data to NumPy arrays and back.

Everything here is checked before it is used: what a client sends is either an array of the promised shape and type, or an
InputError that says what is wrong.
"""

from __future__ import annotations

import math
import struct
import sys
from itertools import chain
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
    if not isinstance(shape, (list, tuple)) or not _KINDS["i"][1].issuperset(map(type, shape)):
        raise InputError(f"{where}: shape is {_short(shape)}; it must be a list of integers")
    if len(shape) != len(item) + 1 or tuple(shape[1:]) != item:
        raise InputError(f"{where}: shape is {_short(list(shape))}; expected {['n', *item]}, n the number of items")
    if most < 1:
        raise InputError(f"{where}: one item is more than a message may hold (--max_body_bytes, --max_grpc_bytes)")
    if not 1 <= shape[0] <= most:
        raise InputError(f"{where}: shape {_short(list(shape))} has {_short(shape[0])} items; it must have 1 to {most}")
    return tuple(shape)


def from_values(data: Any, dtype: np.dtype, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array from a list of numbers, flat or nested as `shape` says.

    Raises:
        InputError: other numbers than promised, or numbers that the type cannot hold.
    """
    flat = _flat(data, shape, where)
    if len(flat) != math.prod(shape):
        raise InputError(f"{where}: data has {len(flat)} elements; shape {list(shape)} has {math.prod(shape)}")
    words, types = _KINDS[dtype.kind]
    if not types.issuperset(map(type, flat)):
        raise InputError(f"{where}: data holds something else than {words} for {datatype_of(dtype)}")
    # Packing takes a fifth of the time of a way through NumPy's own types.
    try:
        made = np.frombuffer(struct.pack(f"={len(flat)}{_CODES.get(dtype.char, dtype.char)}", *flat), dtype)
    except (struct.error, OverflowError):
        raise InputError(f"{where}: data holds a number that {datatype_of(dtype)} cannot") from None
    return made.reshape(shape)


def _flat(data: Any, shape: tuple[int, ...], where: str) -> list[Any]:
    if isinstance(data, list) and not (data and isinstance(data[0], list)):
        return data
    lists = [data]
    for size in shape:
        # Not NumPy, which would build an array of any form first.
        if not all(isinstance(one, list) and len(one) == size for one in lists):
            raise InputError(
                f"{where}: data is ragged or not nested as shape {list(shape)} says; it may be a flat list"
            )
        lists = list(chain.from_iterable(lists))
    return lists


_KINDS = {
    "f": ("numbers", frozenset((int, float))),
    "i": ("integers", frozenset((int,))),
    "u": ("integers", frozenset((int,))),
    "b": ("true and false", frozenset((bool,))),
}
_CODES = {"l": "q", "L": "Q"}  # `struct` has other codes for these than NumPy


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


def to_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a tensor: little-endian, row-major; not copied where they lie so."""
    made = np.ascontiguousarray(array if sys.byteorder == "little" else array.byteswap())
    return made.reshape(-1).view(np.uint8).data


def _short(value: object) -> str:
    """A client's value, cut to fit in a line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."

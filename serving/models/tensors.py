"""What a model's tensors are: names, types, shapes. One description serves executors, HTTP and gRPC, metadata and config."""

from __future__ import annotations

import math
import struct
import sys
from dataclasses import dataclass, replace
from functools import cached_property
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
    "BF16": np.dtype("uint16"),
    "BYTES": np.dtype("object"),
}
"""The protocol's name of each type, and the NumPy type that holds it: BF16 by its bits, BYTES as objects of type bytes."""

NAMES: dict[str, str] = {dtype.name: name for name, dtype in DATATYPES.items() if name not in ("BF16", "BYTES")}
NAMES |= {"bfloat16": "BF16", "bytes": "BYTES"}
"""The protocol's name of each type by that of NumPy and PyTorch."""

Item = tuple[np.ndarray, ...]
"""The inputs, or the outputs, of one request: an array for each, without batch dimension."""

VARIES = -1  # a size that may differ from item to item
VERSION_MARK = ":"  # between a name and a version that is not the one served under the name alone
LENGTH = struct.Struct("<I")  # in front of each element of BYTES
BUCKET_MARK = "@"  # between a model's name and its bucket; no model's name may hold it


def datatype_of(word: str | np.dtype) -> str:
    """The protocol's name of a type that is named in its words or in NumPy's.

    Raises:
        KeyError: there is no such type.
    """
    return word if isinstance(word, str) and word in DATATYPES else NAMES[str(word)]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a model, without the batch dimension.

    Attributes:
        name: its name.
        datatype: its type in the protocol's words.
        shape: of one item; -1 where the size varies.
        optional: whether clients may leave it out.
        default: what an input that is left out is filled with.
        pad: what an input is filled with between its own size and that of its bucket.
        high: integer examples are drawn from [0, high).
        bounded: whether integers outside of [0, high) are refused.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False
    default: float = 0.0
    pad: float = 0.0
    high: int = 2
    bounded: bool = False

    @cached_property
    def dtype(self) -> np.dtype:
        """The NumPy type that holds it."""
        return DATATYPES[self.datatype]

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of one item, each size that varies counted as 1; an element of BYTES takes 4 at least."""
        sizes = [1 if size == VARIES else size for size in self.shape]
        return int(np.prod(sizes, dtype=np.int64)) * (4 if self.datatype == "BYTES" else self.dtype.itemsize)

    @cached_property
    def varies(self) -> bool:
        """Whether a size differs from item to item."""
        return VARIES in self.shape

    def sized(self, size: int | None) -> TensorSpec:
        """The same with `size` where it varies."""
        if size is None or not self.varies:
            return self
        return replace(self, shape=tuple(size if one == VARIES else one for one in self.shape))

    def size_of(self, shape: tuple[int, ...]) -> int | None:
        """The size that varies of an item of this shape; None if none does or they differ."""
        found = {given for given, size in zip(shape, self.shape) if size == VARIES}
        return found.pop() if len(found) == 1 else None

    def fill(self, value: float) -> Any:
        """A value as the array that holds this tensor has it."""
        if self.datatype == "BYTES":
            return b""
        return bf16_bits(np.array(value, np.float32)) if self.datatype == "BF16" else value

    def example(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one item: normal numbers for floating types, integers below `high` for the others, short words for BYTES."""
        if self.optional:
            return np.full(self.shape, self.fill(self.default), self.dtype)
        if self.datatype == "BYTES":
            words = [b"example %d" % number for number in rng.integers(0, 100, int(np.prod(self.shape, dtype=int)))]
            return np.array(words, object).reshape(self.shape)
        if self.datatype == "BF16":
            return bf16_bits(rng.standard_normal(self.shape).astype(np.float32))
        if np.issubdtype(self.dtype, np.floating):
            return rng.standard_normal(self.shape).astype(self.dtype)
        return rng.integers(0, self.high, self.shape).astype(self.dtype)

    def takes(self, values: np.ndarray) -> bool:
        """Whether an array can be one item: of its shape, and of a type that converts safely enough (not float to integer)."""
        shape = values.shape
        fits = len(shape) == len(self.shape) and all(a == b or b == VARIES for a, b in zip(shape, self.shape))
        return fits and np.can_cast(values.dtype, self.dtype, "same_kind")


def bf16_bits(values: np.ndarray) -> np.ndarray:
    """Numbers as the bits of bfloat16, rounded to the nearest, ties to even."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # Rounding up would turn some NaNs into infinities.
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def bf16_numbers(bits: np.ndarray) -> np.ndarray:
    """The numbers that bits of bfloat16 stand for, as float32."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def bucket_name(model: str, bucket: int | None) -> str:
    """The name under which a bucket of a model is scheduled: a model of its own to the scheduler."""
    return model if bucket is None else f"{model}{BUCKET_MARK}{bucket}"


def split_bucket(name: str) -> tuple[str, str]:
    """A scheduled model's name as clients know it, and its bucket; "" where it has none."""
    model, _, bucket = name.partition(BUCKET_MARK)
    return model, bucket


# Tensors as bytes.


def objects(values: list[bytes], shape: tuple[int, ...]) -> np.ndarray:
    """An array of elements of BYTES."""
    made = np.empty(len(values), object)
    made[:] = values
    return made.reshape(shape)


def from_bytes(buffer: bytes | memoryview, spec: TensorSpec, shape: tuple[int, ...]) -> np.ndarray:
    """An array over the bytes of a tensor: little-endian, row-major, not copied; each element of BYTES behind its length.

    Raises:
        InputError: another number of bytes than promised.
    """
    where, dtype = spec.name, spec.dtype
    if dtype.kind == "O":
        return objects(_elements(buffer, math.prod(shape), where), shape)
    expected = math.prod(shape) * dtype.itemsize
    if len(buffer) != expected:
        raise InputError(f"{where}: {len(buffer)} bytes of data; shape {list(shape)} has {expected}")
    if dtype.kind == "b":  # any byte may come, but only 0 and 1 are booleans to NumPy
        return (np.frombuffer(buffer, np.uint8) != 0).reshape(shape)
    made = np.frombuffer(buffer, dtype).reshape(shape)
    return made if sys.byteorder == "little" else made.byteswap()


def _elements(buffer: bytes | memoryview, count: int, where: str) -> list[bytes]:
    found, at = [], 0
    for _ in range(count):
        if at + LENGTH.size > len(buffer):
            break
        (length,) = LENGTH.unpack_from(buffer, at)
        at += LENGTH.size + length
        if at > len(buffer):
            break
        found.append(bytes(buffer[at - length : at]))
    if len(found) != count or at != len(buffer):
        raise InputError(
            f"{where}: {len(buffer)} bytes of data do not hold {count} elements of BYTES, each behind 4 bytes of its length"
        )
    return found


def to_bytes(array: np.ndarray) -> memoryview:
    """The bytes of a tensor: little-endian, row-major; not copied where they lie so."""
    if array.dtype.kind == "O":
        return memoryview(b"".join(part for one in array.ravel() for part in (LENGTH.pack(len(one)), one)))
    made = np.ascontiguousarray(array if sys.byteorder == "little" else array.byteswap())
    return made.reshape(-1).view(np.uint8).data

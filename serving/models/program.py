"""What a source gives: something that runs on batches of named tensors, and what it says of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from serving.models.tensors import NAMES
from traces.errors import InputError

if TYPE_CHECKING:  # a process that runs the user's code before a model does without torch
    from serving.models.served import Forward

CONVENTIONS: dict[str, dict[str, Any]] = {
    "attention_mask": {"optional": True, "default": 1, "pad": 0},
    "pixel_mask": {"optional": True, "default": 1, "pad": 0},
    "token_type_ids": {"optional": True, "default": 0, "pad": 0},
}
"""Inputs that mean the same in every model: what they are where a client leaves them out, and where an item ends."""

Described = dict[str, dict[str, Any]]  # fields of TensorSpec by the tensor's name, as far as they are known


class Output(NamedTuple):
    """One output of a batch, on the host."""

    datatype: str
    values: np.ndarray | list[np.ndarray]


class Program(ABC):
    """Something that runs on batches of named tensors.

    Attributes:
        inputs: what the source says of its inputs, in their order.
        outputs: names of its outputs; empty until `bind`.
        module: as `ServedModel.module`.
        platform: as `ServedModel.platform`.
        on_host: as `ServedModel.on_host`.
        max_size: largest size that varies, where the source says.
        hint: what might help where it fails on a batch.
        kind: a word for the architecture.
    """

    inputs: Described
    outputs: tuple[str, ...] = ()
    module: Any
    platform = "python"
    on_host = True
    max_size: int | None = None
    hint = ""
    kind = "custom"

    @abstractmethod
    def bind(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        """Fix the inputs that are given at each run, and names for the outputs where the source has none."""

    @abstractmethod
    def run(self, arrays: Sequence[np.ndarray]) -> list[Output]:
        """Run a batch on the CPU, as directly as can be.

        Raises:
            InputError: an output is of a type that clients cannot read.
        """

    @abstractmethod
    def build(self, device: str, examples: Sequence[Sequence[np.ndarray]], compiled: bool, name: str) -> Forward:
        """The inference function on a device.

        Args:
            device: "cpu" or "cuda:N".
            examples: batches of four items, of each size that it will run on.
            compiled: whether it may be compiled.
            name: of the model.
        """

    def costs(self, arrays: Sequence[np.ndarray]) -> tuple[float, float]:
        """Floating-point operations of an item, and bytes that its operations write; by default what is known: its inputs."""
        return 0.0, float(sum(array.nbytes for array in arrays)) / len(arrays[0])

    def weights(self) -> tuple[int, int]:
        """Number and bytes of the weights."""
        return 0, 0


class ArrayProgram(Program):
    """A callable over named arrays, `call(ids=..., mask=...)`, that returns an array, a mapping or a sequence of them.

    Arrays have the batch dimension. An output may also be a list of one array per item, whose shapes may differ.

    Args:
        call: the user's; may have `inputs` and `outputs`, mappings as in models.yaml.
        where: the model, as errors begin.
    """

    def __init__(self, call: Callable[..., Any], where: str) -> None:
        self.module = self._call = call
        self._where = where
        self.inputs = {name: dict(known) for name, known in getattr(call, "inputs", {}).items()}
        self._given_outputs = tuple(getattr(call, "outputs", ()))
        self._names: tuple[str, ...] = ()

    def bind(self, inputs: Sequence[str], outputs: Sequence[str]) -> None:
        self._names = tuple(inputs)
        self.outputs = tuple(outputs) or self._given_outputs

    def run(self, arrays: Sequence[np.ndarray]) -> list[Output]:
        values = self._results(self._call(**dict(zip(self._names, arrays))), len(arrays[0]))
        return [Output(_datatype(one[0] if isinstance(one, list) else one, self._where), one) for one in values]

    def build(self, device: str, examples: Sequence[Sequence[np.ndarray]], compiled: bool, name: str) -> Forward:
        return self.forward_of(self._call)

    def forward_of(self, call: Callable[..., Any]) -> Forward:
        """The inference function that a callable like the user's gives."""
        names, results = self._names, self._results

        def forward(*arrays: np.ndarray) -> tuple[Any, ...]:
            return tuple(results(call(**dict(zip(names, arrays))), len(arrays[0])))

        return forward

    def _results(self, result: Any, size: int) -> list[Any]:
        if isinstance(result, Mapping):
            self.outputs = self.outputs or tuple(result)
            if missing := [name for name in self.outputs if name not in result]:
                raise ValueError(f"it returns {', '.join(map(str, result))}, and no {missing[0]}")
            values = [result[name] for name in self.outputs]
        else:
            ragged = isinstance(result, list) and len(self.outputs) < 2
            values = [result] if ragged or not isinstance(result, list | tuple) else list(result)
            numbered = ["output"] if len(values) == 1 else [f"output_{i}" for i in range(len(values))]
            self.outputs = self.outputs or tuple(numbered)
        return [
            [_plain(item) for item in one] if isinstance(one, list) and len(one) == size else _plain(one)
            for one in values
        ]


def _plain(values: Any) -> np.ndarray:
    """An array of a type that the protocol has: text becomes objects of type bytes."""
    array = np.asarray(values)
    if array.dtype.kind in "US" or array.dtype.kind == "O":
        flat = [one.encode() if isinstance(one, str) else one for one in array.ravel().tolist()]
        if odd := [one for one in flat if not isinstance(one, bytes)]:
            raise ValueError(f"it returns objects of type {type(odd[0]).__name__}; expected numbers, text or bytes")
        made = np.empty(len(flat), object)
        made[:] = flat
        return made.reshape(array.shape)
    return array


def _datatype(array: np.ndarray, where: str) -> str:
    if array.dtype == object:
        return "BYTES"
    if array.dtype.name not in NAMES:
        raise InputError(f"{where}: returns an array of type {array.dtype}; supported are {', '.join(NAMES)}")
    return NAMES[array.dtype.name]

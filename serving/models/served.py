"""What a model is to the server: where it comes from, its shapes and its costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "float64": torch.float64,
    "int64": torch.int64,
    "int32": torch.int32,
    "int16": torch.int16,
    "int8": torch.int8,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "uint32": torch.uint32,
    "uint64": torch.uint64,
    "bool": torch.bool,
}
"""Types of inputs and outputs by their NumPy names."""

Forward = Callable[[Tensor], Tensor]
"""A batched inference: (batch, *input_shape) to (batch, *output_shape), on one device."""


@dataclass(frozen=True)
class ModelSpec:
    """One model to serve.

    Attributes:
        name: the name under which requests ask for it.
        source: `builtin:NAME`, a TorchScript file `*.pt`, a torch.export file `*.pt2`, or a Python factory
            `module:factory` that returns an `nn.Module`.
        input_shape: shape of one input, without the batch dimension; None takes the built-in model's own.
        input_dtype: NumPy name of the input's type; None takes the built-in model's own, else float32.
        input_high: integer inputs of examples are drawn from [0, input_high).
        kind: a word for the architecture, used in reports only.
        seed: seed of random weights (built-in models and factories).
        compiled: run as a TorchScript graph where that answers alike, so that a whole forward runs without Python's lock.
        folder: where a factory is looked for, too: that of the list of models.
    """

    name: str
    source: str
    input_shape: tuple[int, ...] | None = None
    input_dtype: str | None = None
    input_high: int = 2
    kind: str = ""
    seed: int = 0
    compiled: bool = True
    folder: str = ""


@dataclass(frozen=True)
class ServedModel:
    """A loaded model with its shapes and its costs.

    Attributes:
        name: the name under which requests ask for it.
        kind: a word for the architecture.
        source: where it came from, as in `ModelSpec`.
        module: the module on the CPU, in evaluation mode; callable on a batched tensor.
        build: returns the inference function for a device ("cpu", "cuda:0"); costs a compilation, so keep the result.
        input_shape: shape of one input, without the batch dimension.
        input_dtype: NumPy name of the input's type.
        input_high: integer examples are drawn from [0, input_high).
        output_shape: shape of one output, without the batch dimension.
        output_dtype: NumPy name of the output's type.
        parameters: number of weights.
        weight_bytes: bytes of weights and buffers.
        flops_per_item: floating-point operations of one item (a multiply-add counts as two).
        activation_bytes_per_item: bytes that the operations of one item write.
    """

    name: str
    kind: str
    source: str
    module: nn.Module
    build: Callable[[str], Forward]
    input_shape: tuple[int, ...]
    input_dtype: str
    input_high: int
    output_shape: tuple[int, ...]
    output_dtype: str
    parameters: int
    weight_bytes: int
    flops_per_item: float
    activation_bytes_per_item: float

    @cached_property
    def input_bytes_per_item(self) -> int:
        """Bytes of one input."""
        return int(np.prod(self.input_shape, dtype=np.int64)) * np.dtype(self.input_dtype).itemsize

    @cached_property
    def output_bytes_per_item(self) -> int:
        """Bytes of one output."""
        return int(np.prod(self.output_shape, dtype=np.int64)) * np.dtype(self.output_dtype).itemsize

    def example(self, rng: np.random.Generator) -> np.ndarray:
        """Draw one input of shape `input_shape`: normal numbers, or integers below `input_high`."""
        return example_input(self.input_shape, self.input_dtype, self.input_high, rng)

    def takes(self, values: np.ndarray) -> bool:
        """Whether an array can be one input: of its shape, and of a type that converts safely enough (not float to integer)."""
        return values.shape == self.input_shape and np.can_cast(values.dtype, self.input_dtype, "same_kind")

    def describe(self) -> dict[str, Any]:
        """Return the model's entry in `machine.json` of the measurement schema."""
        return {
            "name": self.name,
            "kind": self.kind,
            "parameters": self.parameters,
            "weight_bytes": self.weight_bytes,
            "flops_per_item": self.flops_per_item,
            "activation_bytes_per_item": self.activation_bytes_per_item,
            "input_bytes_per_item": self.input_bytes_per_item,
            "output_bytes_per_item": self.output_bytes_per_item,
            "input_shape": list(self.input_shape),
            "input_dtype": self.input_dtype,
        }


def host_array(output: Tensor) -> np.ndarray:
    """An output on the host as an array; bfloat16, which NumPy lacks, becomes float32.

    Raises:
        TypeError, RuntimeError: NumPy has no such type.
    """
    if output.dtype is torch.bfloat16:
        output = output.float()
    return output.detach().resolve_conj().resolve_neg().numpy()


def example_input(shape: tuple[int, ...], dtype: str, high: int, rng: np.random.Generator) -> np.ndarray:
    """Draw one input: normal numbers for floating types, integers of [0, high) for the others."""
    if np.issubdtype(np.dtype(dtype), np.floating):
        return rng.standard_normal(shape).astype(dtype)
    return rng.integers(0, high, shape).astype(dtype)

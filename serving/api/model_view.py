"""A served model as clients see it: names, types and shapes in the protocol's words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.api.tensors import DATATYPES, datatype_of
from traces.errors import InputError

if TYPE_CHECKING:  # the process that parses JSON does without torch
    from serving.models.served import ServedModel

VERSION = "1"  # each model has one version
INPUT, OUTPUT = "input", "output"  # a model has one input and one output
PLATFORM = "pytorch"


@dataclass(frozen=True)
class ModelView:
    """A served model as clients see it, worked out once.

    Attributes:
        name: its name.
        dtype: of its input.
        datatype: the same in the protocol's words.
        item: shape of one input.
        output_datatype: of its output, in the protocol's words.
        output_item: shape of one output.
        below: integer inputs must be in [0, below); None when any will do.
        deadline_ms: of one item, for requests that name none.
        priority: 0 (high) or 1 (low), for requests that name none.
    """

    name: str
    dtype: np.dtype
    datatype: str
    item: tuple[int, ...]
    output_datatype: str
    output_item: tuple[int, ...]
    below: int | None
    deadline_ms: float
    priority: int

    @property
    def item_bytes(self) -> int:
        """Bytes of one input."""
        return math.prod(self.item) * self.dtype.itemsize

    @property
    def output_item_bytes(self) -> int:
        """Bytes of one output."""
        return math.prod(self.output_item) * DATATYPES[self.output_datatype].itemsize

    def metadata(self) -> dict[str, Any]:
        """The model's metadata."""
        return {
            "name": self.name,
            "versions": [VERSION],
            "platform": PLATFORM,
            "inputs": [{"name": INPUT, "datatype": self.datatype, "shape": [-1, *self.item]}],
            "outputs": [{"name": OUTPUT, "datatype": self.output_datatype, "shape": [-1, *self.output_item]}],
        }

    def config(self, most: int, limits: Mapping[str, int]) -> dict[str, Any]:
        """The model's configuration.

        Args:
            most: most items of one call.
            limits: further ones, by their flags.
        """
        return {
            "name": self.name,
            "platform": PLATFORM,
            "max_batch_size": most,
            "parameters": {name: {"string_value": str(value)} for name, value in limits.items()},
            "input": [{"name": INPUT, "data_type": f"TYPE_{self.datatype}", "dims": self.item}],
            "output": [{"name": OUTPUT, "data_type": f"TYPE_{self.output_datatype}", "dims": self.output_item}],
        }

    def check_values(self, values: np.ndarray) -> None:
        """Refuse numbers that would make the model fail, and with it the other requests of its batch."""
        if self.below is not None and (values.min() < 0 or values.max() >= self.below):
            raise InputError(f"{INPUT}: model {self.name!r} takes integers from 0 to {self.below - 1}")


def view_model(model: ServedModel, deadline_ms: float, priority: int) -> ModelView:
    """Work a loaded model's view out."""
    dtype = np.dtype(model.input_dtype)
    # Only of our own models do we know that input_high is a bound and not just an example.
    bounded = model.source.startswith("builtin:") and dtype.kind in "iu"
    return ModelView(
        name=model.name,
        dtype=dtype,
        datatype=datatype_of(dtype),
        item=tuple(model.input_shape),
        output_datatype=datatype_of(model.output_dtype),
        output_item=tuple(model.output_shape),
        below=model.input_high if bounded else None,
        deadline_ms=deadline_ms,
        priority=priority,
    )


def check_name(given: object, expected: str) -> None:
    """Refuse a tensor of another name than the one that every model has."""
    if given != expected:
        raise InputError(f"there is no tensor {str(given)[:80]!r} here; expected {expected!r}")

"""A served model as clients see it: names, types and shapes in the protocol's words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from serving.models.tensors import TensorSpec
from traces.errors import InputError

if TYPE_CHECKING:  # the process that parses JSON does without torch
    from serving.models.served import ServedModel

_TYPES = {"BYTES": "TYPE_STRING"}  # in the configuration, where others have TYPE_ in front


@dataclass(frozen=True)
class ModelView:
    """A served model as clients see it, worked out once.

    Attributes:
        name: its name.
        scheduled: the name under which it is scheduled.
        version: as clients name it.
        versions: all that are served of it.
        platform: what runs it, in the protocol's words.
        inputs: its inputs.
        outputs: its outputs.
        deadline_ms: of one item, for requests that name none.
        priority: 0 (high) or 1 (low), for requests that name none.
        largest: the largest size that varies; None for a model of fixed sizes.
        least: the least size that varies.
        buckets: the model as it is scheduled for each of its sizes, ascending; none for a model of fixed sizes.
    """

    name: str
    scheduled: str
    version: str
    platform: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    deadline_ms: float
    priority: int
    largest: int | None = None
    least: int = 1
    buckets: tuple[tuple[int, ModelView], ...] = ()
    versions: tuple[str, ...] = ()

    @cached_property
    def input_places(self) -> dict[str, int]:
        """Place of each input, by name."""
        return {spec.name: place for place, spec in enumerate(self.inputs)}

    @cached_property
    def output_places(self) -> dict[str, int]:
        """Place of each output, by name."""
        return {spec.name: place for place, spec in enumerate(self.outputs)}

    @cached_property
    def item_bytes(self) -> int:
        """Bytes of the inputs of one item, at least."""
        return sum(spec.item_bytes for spec in self.inputs)

    @cached_property
    def output_item_bytes(self) -> int:
        """Bytes of the outputs of one item, at least."""
        return sum(spec.item_bytes for spec in self.outputs)

    def bucket(self, size: int | None) -> ModelView:
        """The model as it is scheduled for items of a size, which is at most `largest`."""
        return self if size is None else next(view for bound, view in self.buckets if size <= bound)

    def check_size(self, size: int, where: str) -> None:
        """Refuse a size of the inputs that the model does not take; `where` names it in the error."""
        if self.largest is None:
            raise InputError(f"{where}: the inputs of model {self.name!r} have fixed sizes")
        if size > self.largest:
            raise InputError(f"{where}: size {size} is over {self.largest}, the most that model {self.name!r} takes")
        if size < self.least:
            raise InputError(f"{where}: size {size} is under {self.least}, the least that model {self.name!r} takes")

    def metadata(self) -> dict[str, Any]:
        """The model's metadata."""
        return {
            "name": self.name,
            "versions": list(self.versions or (self.version,)),
            "platform": self.platform,
            "inputs": [_metadata(spec) for spec in self.inputs],
            "outputs": [_metadata(spec) for spec in self.outputs],
        }

    def config(self, most: int, limits: Mapping[str, int]) -> dict[str, Any]:
        """The model's configuration.

        Args:
            most: most items of one call.
            limits: further ones, by their flags.
        """
        parameters = dict(limits) | ({"buckets": [size for size, _ in self.buckets]} if self.buckets else {})
        return {
            "name": self.name,
            "platform": self.platform,
            "max_batch_size": most,
            "parameters": {name: {"string_value": str(value)} for name, value in parameters.items()},
            "input": [_config(spec) | ({"optional": True} if spec.optional else {}) for spec in self.inputs],
            "output": [_config(spec) for spec in self.outputs],
        }

    def check_values(self, spec: TensorSpec, values: np.ndarray) -> None:
        """Refuse numbers that would make the model fail, and with it the other requests of its batch."""
        if spec.bounded and (values.min() < 0 or values.max() >= spec.high):
            raise InputError(f"{spec.name}: model {self.name!r} takes integers from 0 to {spec.high - 1}")


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": [-1, *spec.shape]}


def _config(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": _TYPES.get(spec.datatype, f"TYPE_{spec.datatype}"), "dims": spec.shape}


def view_model(models: Sequence[ServedModel], deadlines_ms: Sequence[float], priority: int) -> ModelView:
    """Work a loaded model's view out.

    Args:
        models: the model, or its buckets.
        deadlines_ms: of one item of each.
        priority: of requests that name none.
    """
    order = sorted(range(len(models)), key=lambda place: models[place].bucket or 0)
    views = [
        ModelView(
            name=models[place].model.partition(":")[0],
            scheduled=models[place].name,
            version=models[place].version,
            platform=models[place].platform,
            inputs=models[place].inputs,
            outputs=models[place].outputs,
            deadline_ms=deadlines_ms[place],
            priority=priority,
        )
        for place in order
    ]
    sizes = [models[place].bucket for place in order]
    if sizes[-1] is None:
        return views[0]
    buckets = tuple((size or 0, view) for size, view in zip(sizes, views))
    return replace(views[-1], largest=sizes[-1], least=models[order[0]].least, buckets=buckets)

"""What a replica says of itself: its models, as clients see them and as the scheduler does: JSON, sent at each change."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, NamedTuple

from serving.api.model_view import ModelView
from serving.cluster.frames import FrameError, FrameKind, framed
from serving.models.tensors import DATATYPES, TensorSpec


class Greeting(NamedTuple):
    """A replica's words.

    Attributes:
        views: its models, by the names under which `Plane.views` has them.
        total_ms: time of each of `batch_sizes` alone, copies and all, by the name under which a model is scheduled.
        share: the device's share in each of these times, by the same names: see `envs.scheduling.state.Tables`.
        batch_sizes: ascending.
        queue_places: requests that a queue holds.
        most_bytes: of the tensors of one request.
        repository: the models that are or could be served, as `Plane.repository_index`.
        number: of the greeting, of those that a door was given over its connection.
    """

    views: Mapping[str, ModelView]
    total_ms: Mapping[str, list[float]]
    share: Mapping[str, list[float]]
    batch_sizes: list[int]
    queue_places: int
    most_bytes: int
    repository: list[dict[str, str]]
    number: int = 0

    @property
    def scheduled(self) -> tuple[str, ...]:
        """Names under which the models are scheduled."""
        return tuple(self.total_ms)

    @property
    def signature(self) -> tuple[Any, ...]:
        """What must be the same of two replicas for one to answer in the other's place."""
        return tuple(
            (name, view.version, view.scheduled, tuple(size for size, _ in view.buckets), view.inputs, view.outputs)
            for name, view in self.views.items()
        )

    def pack(self) -> list[bytes | memoryview]:
        """As sent."""
        described = self._asdict() | {"views": {name: asdict(view) for name, view in self.views.items()}}
        return framed(bytes([FrameKind.GREETING]) + json.dumps(described).encode())


NO_GREETING = Greeting({}, {}, {}, [], 0, 0, [])  # before the first


def scheduled_views(views: Mapping[str, ModelView]) -> list[ModelView]:
    """Each model as it is scheduled: its buckets, or itself."""
    return [one for view in views.values() for one in ([own for _, own in view.buckets] or [view])]


def read_greeting(frame: memoryview) -> Greeting:
    """The greeting in a frame. Raises FrameError."""
    try:
        said = json.loads(bytes(frame[1:]))
        greeting = Greeting(**said | {"views": {str(name): _view(one) for name, one in said["views"].items()}})
        sizes = len(greeting.batch_sizes)
        names = [view.scheduled for view in scheduled_views(greeting.views)]
        for of in (greeting.total_ms, greeting.share):
            if names != list(of) or any(len(row) != sizes for row in of.values()):
                raise ValueError("times that are not those of its models")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FrameError(f"its greeting cannot be read: {str(error)[:200]}") from None
    return greeting


def _view(said: dict[str, Any]) -> ModelView:
    own = {field.name: said[field.name] for field in fields(ModelView)}
    tensors = {side: tuple(_spec(one) for one in said[side]) for side in ("inputs", "outputs")}
    buckets = tuple((int(size), _view(one)) for size, one in said["buckets"])
    return ModelView(**own | tensors | {"buckets": buckets, "versions": tuple(said["versions"])})


def _spec(said: dict[str, Any]) -> TensorSpec:
    if said["datatype"] not in DATATYPES:
        raise ValueError(f"no type {str(said['datatype'])[:80]!r}")
    return TensorSpec(**said | {"shape": tuple(map(int, said["shape"]))})

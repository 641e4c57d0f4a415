"""A simulated device: a batch takes the time that a profile says, and no CPU; two cores can hold a cluster of honest timing.

Batches in flight slow each other as the simulator's truth has it (envs.simulation.device): by what they share, pair by pair.
Outputs are zeros.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable

import numpy as np

from envs.profiles.profile import Profile
from serving.executors.base import Batch, OnResult, now_ms
from serving.executors.executor import Executor, LoadedModel
from serving.models.served import Forward, ServedModel
from serving.models.tensors import Item
from traces.errors import InputError
from traces.machine import DeviceInfo
from traces.measurements import Phases

KIND = "sim"


def simulated_profile(device: str) -> tuple[Profile, float] | None:
    """Profile and slowness that "sim:PROFILE" or "sim:PROFILE:SLOWNESS" names; None for another device.

    Raises:
        InputError: there is no such profile, or the slowness is no number above 0.
    """
    kind, _, rest = device.partition(":")
    if kind != KIND:
        return None
    name, _, slowness = rest.partition(":")
    try:
        factor = float(slowness or 1.0)
    except ValueError:
        factor = math.nan
    if not 0.0 < factor < math.inf:
        raise InputError(f"device {device!r}: slowness {slowness!r}; it must be a number above 0")
    if not name:
        raise InputError(f"device {device!r}: it must name a profile, as in sim:gpu-v100")
    return Profile.load(name), factor


class SimulatedExecutor(Executor):
    """Streams that wait in place of executing.

    Args:
        streams: how many batches may be in flight.
        on_result: called once for every submitted batch.
        profile: says how long each model takes; one that it does not know takes as long as its first.
        slowness: factor on all execution times.
    """

    def __init__(self, streams: int, on_result: OnResult, profile: Profile, slowness: float = 1.0) -> None:
        self._profile = profile
        self._shared = _SharedDevice(profile, streams, slowness)
        super().__init__(streams, on_result)

    @property
    def device(self) -> DeviceInfo:
        """The device as reports name it; it has no peaks."""
        return DeviceInfo("cpu", f"simulated {self._profile.name}", self.streams, 0, 0.0, 0.0, "none")

    def warm_up(self, name: str, batch_sizes: Iterable[int], serving: bool = False) -> None:
        """Nothing: the first batch takes as long as any, and this would take as long as all sizes together on each stream."""

    def _open_stream(self, stream: int) -> _SimulatedStream:
        return _SimulatedStream(self._shared, stream)

    def _build(self, model: ServedModel) -> Forward:
        return lambda values: values  # never called


def _answer(served: ServedModel, item: Item) -> Item:
    """Nothing, in the form that the model's outputs have for an item."""
    size = served.size_of(item)
    shapes = [served.output_shape(place, size) for place in range(len(served.outputs))]
    sides = [tuple(max(side, 0) for side in shape) for shape in shapes]
    return tuple(np.full(shape, spec.fill(0.0), spec.dtype) for spec, shape in zip(served.outputs, sides))


class _SharedDevice:
    """What the streams share: who executes, how much is left of each, and how much they slow each other."""

    def __init__(self, profile: Profile, streams: int, slowness: float) -> None:
        self.sizes = np.array(profile.batch_sizes)
        self.models = {name: index for index, name in enumerate(profile.models)}
        self.h2d, self.d2h = profile.h2d_ms, profile.d2h_ms
        truth = profile.truth(streams, noise=False)
        self._solo = truth.solo[0] * slowness
        self._share, self._pair = truth.share[0], truth.pair[0]
        self._host = float(truth.device["host_slowdown"][0])
        self._device = float(truth.device["device_slowdown"][0])
        self._changed = threading.Condition()
        self._left: dict[int, float] = {}  # by stream, ms alone
        self._kind: dict[int, int] = {}  # by stream, model and size
        self._slow: dict[int, float] = {}
        self._at_ms = 0.0

    def place(self, model: str, n: int) -> tuple[int, int]:
        """Index of a model, and of the smallest batch size that holds n requests."""
        return self.models.get(model.partition(" ")[0], 0), min(
            int(np.searchsorted(self.sizes, n)), len(self.sizes) - 1
        )

    def execute(self, stream: int, model: int, size: int) -> None:
        """Wait as long as a batch executes, whatever begins and ends beside it."""
        with self._changed:
            self._advance()
            self._left[stream] = float(self._solo[model, size])
            self._kind[stream] = model * len(self.sizes) + size
            self._set_slowdowns()
            while self._left[stream] > 1e-6:
                self._changed.wait(self._left[stream] * self._slow[stream] / 1e3)
                self._advance()
            del self._left[stream], self._kind[stream], self._slow[stream]
            self._set_slowdowns()

    def _advance(self) -> None:
        now = now_ms()
        passed, self._at_ms = now - self._at_ms, now
        for stream, slow in self._slow.items():
            self._left[stream] = max(self._left[stream] - passed / slow, 0.0)

    def _set_slowdowns(self) -> None:
        for stream, kind in self._kind.items():
            others = [other for at, other in self._kind.items() if at != stream]
            beside = sum(float(self._share[other]) for other in others)
            device = float(self._share[kind]) * (1.0 + self._device * beside)
            pairs = sum(float(self._pair[kind, other]) for other in others)
            self._slow[stream] = max(device, 1.0 + self._host * len(others)) * math.exp(pairs)
        self._changed.notify_all()


class _SimulatedStream:
    """One stream of the device."""

    def __init__(self, shared: _SharedDevice, stream: int) -> None:
        self._shared = shared
        self._stream = stream
        self._never = threading.Event()

    def run(self, model: LoadedModel, batch: Batch, dispatch_ms: float) -> tuple[list[Item], Phases]:
        """Wait for the copies and the execution."""
        served, n = model.served, len(batch.inputs)
        place = self._shared.place(served.name, n)
        start = now_ms()
        self._never.wait(self._shared.h2d[place] / 1e3)
        copied = now_ms()
        self._shared.execute(self._stream, *place)
        executed = now_ms()
        self._never.wait(self._shared.d2h[place] / 1e3)
        rows = [_answer(served, item) for item in batch.inputs]
        return rows, Phases(dispatch_ms, start, copied, copied, executed, now_ms())

    def prepare(self, model: LoadedModel, batch_size: int) -> None:
        """There is nothing to prepare."""

    def forget(self, model: LoadedModel) -> None:
        """Nothing was kept."""

"""Runs batches on a CUDA device: a thread and two CUDA streams, of high and of low priority, for each stream."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import Tensor

from serving.executors.base import Batch, OnResult, now_ms
from serving.executors.cpu import HostStream
from serving.executors.cuda_api import CudaApi, CudaEvent, CudaGraph, TorchCuda, plain_error
from serving.executors.device import gpu_state, probe_device
from serving.executors.executor import Executor, LoadedModel
from serving.executors.staging import copy_inputs, groups_of, rows_of
from serving.models.compile import alike
from serving.models.served import TORCH_DTYPES, Forward, ServedModel, host_array, host_view
from serving.models.tensors import Item
from traces.machine import DeviceInfo
from traces.measurements import Phases

log = logging.getLogger(__name__)

PRIORITIES = (0, 1)
ANCHOR_AGE_MS = 1000.0
ANCHOR_TRIES = 3
DRIFT = 2e-5  # of the device's clock from the host's, a guess


class CudaExecutor(Executor):
    """One worker thread per stream; a batch runs on that thread's CUDA stream of its priority.

    Inputs are gathered in pinned memory, copied to the device, executed and copied back without waiting in between; the
    thread sleeps until the last copy has ended. Copies of one stream overlap the execution of others. `warm_up` records
    each batch size as a CUDA graph, which later batches of that size replay; a model that cannot be recorded, and a
    batch size that was not warmed up, are launched operation by operation.

    Args:
        streams: how many batches may be in flight.
        on_result: called once for every submitted batch.
        device: "cuda:N".
        graphs: whether to record CUDA graphs.
        api: the device, if not the real one.
    """

    def __init__(
        self,
        streams: int,
        on_result: OnResult = lambda result: None,
        device: str = "cuda:0",
        graphs: bool = True,
        api: CudaApi | None = None,
    ) -> None:
        self._device = device
        self._api = api or TorchCuda(device)
        self._graphs = graphs
        self._unrecordable: set[LoadedModel] = set()
        super().__init__(streams, on_result)

    @property
    def device(self) -> DeviceInfo:
        return probe_device(self._device)

    def gauges(self) -> dict[str, float]:
        return gpu_state(self._device)

    def _open_stream(self, stream: int) -> _CudaStream:
        return _CudaStream(self._api, self._graphs, self._unrecordable)

    def _build(self, model: ServedModel) -> Forward:
        try:
            return self._api.build(model)
        except Exception as error:
            failure = plain_error(error)
        # Outside the handler, where the frames of what failed are gone and their tensors with them.
        if isinstance(failure, MemoryError):
            self._api.empty_cache()
        raise failure


@dataclass(slots=True, eq=False)
class _Recorded:
    """A graph with the device memory that it reads its inputs from."""

    graph: CudaGraph
    inputs: list[Tensor]


@dataclass(slots=True, eq=False)
class _Kept:
    """What one stream keeps for one model; buffers are as large as the largest batch so far.

    Attributes:
        staged: pinned inputs, one buffer for each.
        inputs: inputs on the device.
        pool: memory that all graphs share.
        landed: pinned outputs, by their place.
        graphs: by priority and batch size.
    """

    staged: list[Tensor]
    inputs: list[Tensor]
    pool: Any
    landed: dict[int, Tensor] = field(default_factory=dict)
    graphs: dict[tuple[int, int], _Recorded] = field(default_factory=dict)


class _CudaStream:
    """One stream: its two CUDA streams and what it keeps for each model."""

    def __init__(self, api: CudaApi, graphs: bool, unrecordable: set[LoadedModel]) -> None:
        api.enter_thread()
        self._api = api
        self._graphs = graphs
        self._unrecordable = unrecordable
        # Two for one stream of ours: the device lets kernels of a stream of high priority go before those of other streams,
        # and a CUDA stream's priority is fixed when it is made.
        self._streams = tuple(api.make_stream(priority) for priority in PRIORITIES)
        self._events = tuple(api.make_event(blocking=True) for _ in range(4))
        self._clock = DeviceClock(api, self._streams[0])
        self._kept: dict[LoadedModel, _Kept] = {}
        self._host = HostStream()

    def run(self, model: LoadedModel, batch: Batch, dispatch_ms: float) -> tuple[list[Item], Phases]:
        """Copy in, execute, copy out."""
        served, items = model.served, batch.inputs
        if served.on_host:
            with self._api.on(self._streams[batch.priority]):  # for what it does on the device by itself
                return self._host.run(model, batch, dispatch_ms)
        found: dict[int, Item] = {}
        times: list[list[float]] = []
        for group in groups_of(served, items):
            own = [items[place] for place in group]
            landed = self._run(model, own, batch.priority)
            found |= zip(group, rows_of([host_array(one) for one in landed], served, own))
            times.append(self._clock.times(self._events, dispatch_ms, now_ms()))
        (started, copied, *_), (*_, executed, finished) = times[0], times[-1]
        rows = [found[place] for place in range(len(items))]
        return rows, Phases(dispatch_ms, started, copied, copied, executed, finished)

    def prepare(self, model: LoadedModel, batch_size: int) -> None:
        """Run the batch size on both CUDA streams, and record it where that gives the same answers."""
        served = model.served
        if served.on_host:
            self._host.prepare(model, batch_size)
            return
        rng = np.random.default_rng(0)
        first, other = ([served.example(rng) for _ in range(batch_size)] for _ in range(2))
        for priority in PRIORITIES:
            # Libraries set themselves up in the first runs on a stream, which a capture would not survive.
            for group in groups_of(served, other):
                expected = [one.clone() for one in self._run(model, [other[place] for place in group], priority)]
                self._run(model, [first[0]] * len(group), priority)
            known = model in self._unrecordable or (priority, batch_size) in self._kept[model].graphs
            if self._graphs and not known and not served.exact:
                self._record(model, priority, other, expected)

    def forget(self, model: LoadedModel) -> None:
        """Free the model's buffers and graphs; torch keeps their memory for the next model."""
        self._kept.pop(model, None)
        self._host.forget(model)
        self._unrecordable.discard(model)

    def _run(self, model: LoadedModel, items: list[Item], priority: int) -> list[Tensor]:
        """Run one batch to its end and return the pinned memory that holds its outputs until the next one.

        Raises:
            MemoryError: out of memory; what torch kept for later was given back, so that a smaller batch may fit.
        """
        stream = self._streams[priority]
        try:
            self._clock.keep()  # while the stream is idle
            landed = self._launch(model, items, priority)
            self._events[-1].synchronize()
            return landed
        except Exception as error:
            failure = plain_error(error)
        finally:
            # After a failure, what was launched still reads and writes the buffers, which the next batch will use. After
            # a success this returns at once.
            with contextlib.suppress(Exception):
                self._api.synchronize(stream)
        # Outside the handler, where the frames of what failed are gone and their tensors with them.
        if isinstance(failure, MemoryError):
            self._api.empty_cache()
        raise failure

    def _launch(self, model: LoadedModel, items: list[Item], priority: int) -> list[Tensor]:
        """Start one batch; return the pinned memory that holds its outputs once the last event has passed."""
        api, stream, count, served = self._api, self._streams[priority], len(items), model.served
        started, copied, executed, finished = self._events
        # Nothing here waits for the device: each call only puts work behind what the stream already has.
        kept = self._room(model, count)
        specs = [spec.sized(served.size_of(items[0])) for spec in served.inputs] if served.exact else served.padded
        staged = [_part(one, count, spec.shape) for one, spec in zip(kept.staged, specs)]
        copy_inputs(items, [host_view(one) for one in staged], served)
        recorded = None if model in self._unrecordable else kept.graphs.get((priority, count))
        if recorded is None:
            on_device = [_part(one, count, spec.shape) for one, spec in zip(kept.inputs, specs)]
        else:
            on_device = recorded.inputs
        with api.on(stream):
            started.record(stream)
            for target, source in zip(on_device, staged):
                api.copy(target, source)
            copied.record(stream)
            if recorded is None:
                outputs = _as_tuple(model.forward(*on_device))
            else:
                recorded.graph.replay()
                outputs = recorded.graph.outputs
            executed.record(stream)
            landed = [self._landing(kept, place, output) for place, output in enumerate(outputs)]
            for target, source in zip(landed, outputs):
                api.copy(target, source)
            finished.record(stream)
        return landed

    def _record(self, model: LoadedModel, priority: int, check: list[Item], expected: list[Tensor]) -> None:
        """Capture one batch size; its inputs on the device are not those of `check`, so that baked-in answers show."""
        kept, key = self._kept[model], (priority, len(check))
        on_device = [one[: len(check)] for one in kept.inputs]
        stream = self._streams[priority]
        try:
            graph = self._api.capture(stream, lambda: _as_tuple(model.forward(*on_device)), kept.pool)
            kept.graphs[key] = _Recorded(graph, on_device)
            if not alike(self._run(model, check, priority), expected):
                raise ValueError("the recorded graph answers differently from the model")
        except Exception as error:  # whatever the model does that a capture does not allow; it runs as it did before
            # All of it: one model is either fast on every stream and at every size, or on none.
            kept.graphs.clear()
            reason = str(plain_error(error)).strip().split("\n")[0]
            if model not in self._unrecordable:
                log.warning("model %r runs without CUDA graphs: %s", model.served.name, reason)
            self._unrecordable.add(model)

    def _room(self, model: LoadedModel, size: int) -> _Kept:
        """Return what is kept for a model, its input buffers large enough."""
        kept = self._kept.get(model)
        if kept is not None and len(kept.staged[0]) >= size:
            return kept
        buffers = [((size, *spec.shape), TORCH_DTYPES[spec.datatype]) for spec in model.served.padded]
        with self._api.on(self._streams[0]):
            staged = [self._api.pinned(*one) for one in buffers]
            inputs = [self._api.buffer(*one) for one in buffers]
        if kept is None:
            kept = self._kept[model] = _Kept(staged, inputs, self._api.make_pool())
        else:
            kept.staged, kept.inputs = staged, inputs
        return kept

    def _landing(self, kept: _Kept, place: int, output: Tensor) -> Tensor:
        """Return pinned memory for an output."""
        size, *shape = output.shape
        landed = kept.landed.get(place)
        fits = landed is not None and landed.shape[1:] == output.shape[1:] and landed.dtype == output.dtype
        if landed is None or not fits or len(landed) < size:
            landed = kept.landed[place] = self._api.pinned((size, *shape), output.dtype)
        return landed[:size]


def _part(buffer: Tensor, count: int, shape: tuple[int, ...]) -> Tensor:
    """The first items of a buffer, or as much of its memory as items of a smaller shape take."""
    if buffer.shape[1:] == shape:
        return buffer[:count]
    return buffer.view(-1)[: count * math.prod(shape)].view(count, *shape)


def _as_tuple(outputs: Any) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)


class DeviceClock:
    """Puts times of events on the clock of results, by an event whose time on the host is known.

    Args:
        api: the device.
        stream: where the anchor is recorded; idle whenever `keep` is called.
    """

    def __init__(self, api: CudaApi, stream: Any) -> None:
        self._api = api
        self._stream = stream
        self._anchor: CudaEvent | None = None
        self._host_ms = -math.inf
        self._gap_ms = math.inf
        self._tried_ms = -math.inf

    def keep(self) -> None:
        """Anchor the clock again if that is due."""
        tried_ms = now_ms()
        if tried_ms - self._tried_ms < ANCHOR_AGE_MS:
            return
        self._gap_ms += 2 * DRIFT * (tried_ms - self._tried_ms)
        self._tried_ms = tried_ms
        for _ in range(ANCHOR_TRIES):
            event = self._api.make_event(blocking=False)
            before_ms = now_ms()
            event.record(self._stream)
            event.synchronize()
            after_ms = now_ms()
            # The device passed the event in between, so the narrowest gap tells the most. On a busy machine that may
            # still be the old anchor's, though it has grown with its age.
            if after_ms - before_ms < self._gap_ms:
                self._gap_ms = after_ms - before_ms
                self._anchor, self._host_ms = event, (before_ms + after_ms) / 2

    def times(self, events: Sequence[CudaEvent], floor_ms: float, ceiling_ms: float) -> list[float]:
        """Return when the events passed, in their order: never decreasing, and within what the host knows for sure."""
        assert self._anchor is not None, "keep the clock first"
        times = []
        for event in events:
            floor_ms = min(max(self._host_ms + self._anchor.elapsed_time(event), floor_ms), ceiling_ms)
            times.append(floor_ms)
        return times

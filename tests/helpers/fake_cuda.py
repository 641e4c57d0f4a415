"""A CUDA device that is none: it runs on the CPU, keeps real time, and fails a test that breaks CUDA's rules.

Outputs arrive in pinned memory only when an event behind their copy has been waited for, and are garbage until then; a
pinned source that changes before its copy has ended is an error, as is work on no stream, on another thread's stream, or a
wait within a capture.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from serving.executors.cuda_api import CudaGraph
from serving.models.served import Forward, ServedModel

EPOCH_MS = 5e6  # the device's clock is not the host's
_here = threading.local()


def capturing() -> bool:
    """Whether the calling thread records a graph."""
    return getattr(_here, "capturing", False)


def replaying() -> bool:
    """Whether the calling thread replays a graph."""
    return getattr(_here, "replaying", False)


def wait_for_device() -> None:
    """What a model does that reads a number of the device."""
    if capturing():
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSome advice.\nMore of it.")


class FakeStream:
    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.thread = threading.get_ident()
        self.pending: list[Callable[[], None]] = []
        self.done = 0

    def drain(self, upto: int | None = None) -> None:
        wait_for_device()
        while self.pending and (upto is None or self.done < upto):
            self.pending.pop(0)()
            self.done += 1


class FakeEvent:
    def __init__(self, blocking: bool) -> None:
        self.blocking = blocking
        self.stream: FakeStream | None = None

    def record(self, stream: FakeStream) -> None:
        assert not capturing(), "an event within a capture"
        assert stream.thread == threading.get_ident(), "another thread's stream"
        self.stream, self.position = stream, stream.done + len(stream.pending)
        self.ms = time.perf_counter() * 1e3 - EPOCH_MS

    def synchronize(self) -> None:
        assert self.stream is not None, "waits for an event that was never recorded"
        self.stream.drain(self.position)

    def elapsed_time(self, end_event: FakeEvent) -> float:
        for event in (self, end_event):
            assert event.stream is not None and event.stream.done >= event.position, "the event has not passed"
        return end_event.ms - self.ms


class FakePool:
    """Memory that graphs share."""


class FakeCuda:
    """See the module. `ran` holds (priority, batch size, whether replayed) of every forward, in order."""

    def __init__(self) -> None:
        self.ran: list[tuple[int, int, bool]] = []
        self.captures: list[tuple[int, int]] = []
        self.emptied = 0
        self.allocations: list[weakref.ref[Any]] = []
        # By address, while it lives: another tensor may have the address later.
        self._pinned: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def enter_thread(self) -> None:
        _here.stream = None

    def build(self, model: ServedModel) -> Forward:
        forward = model.build("cpu")

        def launched(*batch: Any) -> Any:
            stream = self._current()
            if not capturing():
                self.ran.append((stream.priority, len(batch[0]), replaying()))
            if not model.on_host:
                assert not any(map(self._is_pinned, batch)), "executes on the host's memory"
            return forward(*batch)

        return launched

    def make_stream(self, priority: int) -> FakeStream:
        return FakeStream(priority)

    def make_event(self, blocking: bool) -> FakeEvent:
        return FakeEvent(blocking)

    @contextmanager
    def on(self, stream: FakeStream) -> Iterator[None]:
        before, _here.stream = _here.stream, stream
        try:
            yield
        finally:
            _here.stream = before

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        made = self.buffer(shape, dtype)
        self._pinned[made.untyped_storage().data_ptr()] = made
        return made

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        assert not capturing()
        made = torch.empty(shape, dtype=dtype)
        self.allocations.append(weakref.ref(made))
        return made

    def copy(self, target: Tensor, source: Tensor) -> None:
        stream = self._current()
        then = source.clone()
        assert target.shape == source.shape and target.dtype == source.dtype
        if self._is_pinned(source):
            assert not self._is_pinned(target)
            target.copy_(source)

            def end() -> None:
                assert torch.equal(source.nan_to_num(), then.nan_to_num()), "pinned inputs changed during their copy"
        else:
            assert self._is_pinned(target), "a copy to pageable memory waits"
            target.fill_(99)

            def end() -> None:
                target.copy_(then)

        stream.pending.append(end)

    def synchronize(self, stream: FakeStream) -> None:
        stream.drain()

    def make_pool(self) -> FakePool:
        pool = FakePool()
        self.allocations.append(weakref.ref(pool))
        return pool

    def capture(self, stream: FakeStream, work: Callable[[], tuple[Tensor, ...]], pool: FakePool) -> CudaGraph:
        assert not stream.pending, "a capture on a stream that is not idle"
        _here.capturing = True
        try:
            with self.on(stream):
                outputs = tuple(one.clone().fill_(77) for one in work())  # nothing has run yet
        finally:
            _here.capturing = False
        self.captures.append((stream.priority, len(outputs[0])))

        def replay() -> None:
            assert self._current() is stream, "kernels have the priority of the stream that they were recorded on"
            _here.replaying = True
            try:
                for output, result in zip(outputs, work(), strict=True):
                    output.copy_(result)
            finally:
                _here.replaying = False

        return CudaGraph(replay, outputs)

    def empty_cache(self) -> None:
        self.emptied += 1

    def alive(self) -> int:
        """How many buffers and pools are still held."""
        return sum(ref() is not None for ref in self.allocations)

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.untyped_storage().data_ptr() in self._pinned

    def _current(self) -> FakeStream:
        stream = _here.stream
        assert stream is not None, "work on the default stream"
        assert stream.thread == threading.get_ident(), "another thread's stream"
        return stream

"""Runs batches on CPU threads: the embedded default, with models that really contend for cores, caches and memory."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import struct
import sys
import threading

import numpy as np
import torch
from torch import Tensor

from serving.executors.base import Batch, BatchResult, OnResult, error_line, failed_result, now_ms
from serving.executors.device import probe_device, usable_cores
from serving.executors.executor import Executor, LoadedModel
from serving.executors.time_slices import SliceTimer
from serving.models.served import DTYPES, Forward, ServedModel
from traces.machine import DeviceInfo
from traces.measurements import Phases

# Streams outnumber cores; behind them, the engine's own thread must still wake at once.
WORKER_NICENESS = 5
# A time slice that lasted this long may end when the kernel looks next (Linux from 6.12 on; longer elsewhere); see
# serving.executors.time_slices.
SLICE_MS = 0.5
# What it costs to hand a batch to a stream's thread and its result back: two wake-ups, and waits for Python's lock.
HANDOVER_MS = 0.2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class CpuExecutor(Executor):
    """One worker thread per stream, one intra-op thread each; stream k is pinned to the k-th core, counted around.

    Pinned, the batches on a core share it evenly and those on other cores leave it alone. Left to the system, three threads
    on two cores are spread by chance, and which of them runs at half speed cannot be foreseen.

    Two phases stand for the copies of a GPU: inputs are gathered in a staging buffer that is allocated beforehand (h2d),
    and outputs are copied out of the model's (d2h).

    Args:
        streams: how many batches may be in flight.
        on_result: called once for every submitted batch.
        handover_ms: a batch that takes less is run by the thread that asks (see `run_here`).
    """

    def __init__(
        self, streams: int, on_result: OnResult = lambda result: None, handover_ms: float = HANDOVER_MS
    ) -> None:
        _keep_memory()
        self._cores = _cores()
        self._slices = SliceTimer(self._cores, streams)
        self._handover_ms = handover_ms
        super().__init__(streams, on_result)
        self._here: _CpuStream | None = None

    @property
    def device(self) -> DeviceInfo:
        return probe_device("cpu")

    def run_here(self, stream: int, batch: Batch) -> BatchResult | None:
        """Run a batch that is shorter than its hand-over to a thread; see `Executor.run_here`.

        Only what runs without Python: such a graph cannot wait for anything, or end its thread. A model that turns out
        to take longer than it did alone goes back to the threads.
        """
        model, size = self._loaded.get(batch.model), len(batch.inputs)
        if model is None or self._closed or not model.served.releases_lock:
            return None
        expected = model.alone_ms.get(size, math.inf)
        if expected >= self._handover_ms:
            return None
        if self._here is None:
            torch.set_num_threads(1)  # the calling thread's own
            self._here = _CpuStream(np.zeros(1, np.uint8))
        dispatch_ms = now_ms()
        try:
            outputs, phases = self._here.run(model, batch, dispatch_ms)
        except Exception as error:  # a model's own error ends its batch, and no more
            return failed_result(batch, stream, dispatch_ms, error_line(error))
        took = min(phases.total_ms, 5 * self._handover_ms)  # once preempted is not slow
        model.alone_ms[size] = expected + 0.1 * (took - expected)
        return BatchResult(batch.batch_id, stream, phases, outputs)

    def _open_stream(self, stream: int) -> _CpuStream:
        # All of this is of the calling thread. What the system does not offer or allow costs predictability only.
        torch.set_num_threads(1)
        thread = threading.get_native_id()
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setaffinity(thread, {self._cores[stream % len(self._cores)]})
        with contextlib.suppress(AttributeError, OSError):
            nice = os.getpriority(os.PRIO_PROCESS, thread) + WORKER_NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, nice)
            _take_short_slices(thread, nice)
        return _CpuStream(self._slices.running[stream : stream + 1])

    def close(self, timeout_s: float = 10.0) -> None:
        super().close(timeout_s)
        self._slices.stop()

    def _build(self, model: ServedModel) -> Forward:
        return model.build("cpu")


def _cores() -> list[int]:
    """Cores to pin streams to; where affinity is unknown, their number only matters."""
    try:
        return sorted(os.sched_getaffinity(0))[: usable_cores()]
    except AttributeError:  # not on macOS and Windows
        return list(range(usable_cores()))


def _keep_memory() -> None:
    """Ask the C library to keep freed memory (mallopt(3), glibc only).

    Activations are allocated and freed in each batch. Given back to the kernel and faulted in again page by page, they cost
    some models a third of their time, and more on some threads than on others.
    """
    with contextlib.suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
        library.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes


def _take_short_slices(thread: int, nice: int) -> None:
    """Ask the kernel for time slices of `SLICE_MS` (sched_setattr(2), struct sched_attr of 48 bytes)."""
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, int(SLICE_MS * 1e6), 0, 0)
    ctypes.CDLL(None, use_errno=True).syscall(number, thread, attributes, 0)


class _CpuStream:
    """One stream's staging buffers, one per model, as large as the largest batch so far, and views of them, one per size.

    Args:
        running: (1,) uint8, 1 while a batch runs here.
    """

    def __init__(self, running: np.ndarray) -> None:
        self._running = running
        self._staging: dict[LoadedModel, dict[int, tuple[Tensor, np.ndarray]]] = {}

    def run(self, model: LoadedModel, batch: Batch, dispatch_ms: float) -> tuple[list[np.ndarray], Phases]:
        """Copy in, execute, copy out."""
        self._running[0] = 1
        try:
            staged, rows = self._staged(model, len(batch.inputs))
            start_ms = now_ms()
            copy_inputs(batch.inputs, rows, model.served.name)
            copied_ms = now_ms()
            output = model.forward(staged)
            executed_ms = now_ms()
            outputs = list(output.numpy().copy())
            return outputs, Phases(dispatch_ms, start_ms, copied_ms, copied_ms, executed_ms, now_ms())
        finally:
            self._running[0] = 0

    def prepare(self, model: LoadedModel, batch_size: int) -> None:
        """Allocate the staging buffer."""
        self._staged(model, batch_size)

    def forget(self, model: LoadedModel) -> None:
        """Free the model's staging buffer."""
        self._staging.pop(model, None)

    def _staged(self, model: LoadedModel, size: int) -> tuple[Tensor, np.ndarray]:
        views = self._staging.setdefault(model, {})
        view = views.get(size)
        if view is None:
            largest = max(views, default=0)
            if size > largest:
                served = model.served
                views.clear()
                buffer = torch.zeros((size, *served.input_shape), dtype=DTYPES[served.input_dtype])
            else:
                buffer = views[largest][0][:size]
            view = views[size] = buffer, buffer.numpy()
        return view


def copy_inputs(inputs: list[np.ndarray], staged: np.ndarray, name: str) -> None:
    """Copy one array per request into the rows of `staged`.

    Raises:
        ValueError: an input has another shape, or a type that does not convert safely enough (float to integer).
    """
    item = staged.shape[1:]
    for k, values in enumerate(inputs):
        if values.shape != item:
            raise ValueError(f"input of shape {values.shape}; model {name!r} takes {item}")
        try:
            np.copyto(staged[k], values, casting="same_kind")
        except TypeError:
            raise ValueError(f"input of type {values.dtype}; model {name!r} takes {staged.dtype}") from None

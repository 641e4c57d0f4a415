"""Runs batches on CPU threads: the embedded default, with models that really contend for cores, caches and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
import threading

import numpy as np
import torch
from torch import Tensor

from serving.executors.base import Batch, BatchResult, OnResult
from serving.executors.core_turns import Beat
from serving.executors.device import probe_device, usable_cores
from serving.executors.threaded import LoadedModel, ThreadedExecutor, blank_result, failed_result, now_ms, one_line
from serving.models.served import DTYPES, Forward, ServedModel
from traces.machine import DeviceInfo

# Streams outnumber cores; behind them, the engine's own thread must still wake at once.
WORKER_NICENESS = 5
# A turn that lasted this long may end when the kernel looks next (Linux from 6.12 on; longer elsewhere); see
# serving.executors.core_turns.
SLICE_MS = 0.5
# What it costs to hand a batch to a stream's thread and its result back: two wake-ups, and waits for Python's lock.
HANDOVER_MS = 0.2
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}


class CpuExecutor(ThreadedExecutor):
    """One worker thread a stream, one intra-op thread each; stream k is pinned to the k-th core, counted around.

    Pinned, the batches on a core share it evenly and those on other cores leave it alone. Left to the system, three threads
    on two cores are spread by chance, and which of them runs at half speed cannot be foreseen.

    The copies of a GPU have their like here: inputs are gathered in a staging buffer that was allocated before (h2d),
    outputs are copied out of the model's (d2h).
    """

    def __init__(self, streams: int = 4, on_result: OnResult = lambda result: None) -> None:
        _keep_memory()
        self._cores = _cores()
        self._beat = Beat(self._cores, streams)
        super().__init__(streams, on_result)
        self._here: _CpuStream | None = None

    @property
    def device(self) -> DeviceInfo:
        """The CPU; see `Executor.device`."""
        return probe_device("cpu")

    def run_here(self, stream: int, batch: Batch) -> BatchResult | None:
        """Run a batch that is shorter than its hand-over; see `Executor.run_here`.

        Only what runs without Python: such a graph cannot wait for anything, or end its thread. A model that turns out
        to take longer than it did alone goes back to the threads.
        """
        model, size = self._loaded.get(batch.model), len(batch.inputs)
        if model is None or self._closed or not model.served.releases_lock:
            return None
        expected = model.alone_ms.get(size, HANDOVER_MS)
        if expected >= HANDOVER_MS:
            return None
        if self._here is None:
            torch.set_num_threads(1)  # the calling thread's own
            self._here = _CpuStream(np.zeros(1, np.uint8))
        result = blank_result(batch, stream, now_ms())
        try:
            self._here.run(model, batch, result)
        except Exception as error:  # a model's own error ends its batch, and no more
            return failed_result(batch, stream, result.dispatch_ms, one_line(error))
        took = min(result.d2h_end_ms - result.dispatch_ms, 5 * HANDOVER_MS)  # once preempted is not slow
        model.alone_ms[size] = expected + 0.1 * (took - expected)
        return result

    def _open_stream(self, stream: int) -> _CpuStream:
        # All are the calling thread's own. What is not to be had (another system, no right) costs predictability only.
        torch.set_num_threads(1)
        thread = threading.get_native_id()
        with contextlib.suppress(AttributeError, OSError):
            os.sched_setaffinity(thread, {self._cores[stream % len(self._cores)]})
        with contextlib.suppress(AttributeError, OSError):
            nice = os.getpriority(os.PRIO_PROCESS, thread) + WORKER_NICENESS
            os.setpriority(os.PRIO_PROCESS, thread, nice)
            _take_short_turns(thread, nice)
        return _CpuStream(self._beat.running[stream : stream + 1])

    def close(self, timeout_s: float = 10.0) -> None:
        """End the workers as `Executor.close` says, then what keeps their turns short."""
        super().close(timeout_s)
        self._beat.stop()

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


def _take_short_turns(thread: int, nice: int) -> None:
    """Ask the kernel for turns of `SLICE_MS` (sched_setattr(2), struct sched_attr of 48 bytes)."""
    number = _SCHED_SETATTR.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return
    attributes = struct.pack("=IIQiIQQQ", 48, 0, 0, nice, 0, int(SLICE_MS * 1e6), 0, 0)
    ctypes.CDLL(None, use_errno=True).syscall(number, thread, attributes, 0)


class _CpuStream:
    """One stream's staging buffers, one a model, as large as the largest batch so far, and views of them, one a size.

    Args:
        running: (1,) uint8, 1 while a batch runs here.
    """

    def __init__(self, running: np.ndarray) -> None:
        self._running = running
        self._staging: dict[LoadedModel, dict[int, tuple[Tensor, np.ndarray]]] = {}

    def run(self, model: LoadedModel, batch: Batch, result: BatchResult) -> None:
        """Copy in, execute, copy out."""
        self._running[0] = 1
        try:
            self._run(model, batch, result)
        finally:
            self._running[0] = 0

    def _run(self, model: LoadedModel, batch: Batch, result: BatchResult) -> None:
        staged, rows = self._staged(model, len(batch.inputs))
        result.h2d_start_ms = now_ms()
        copy_inputs(batch.inputs, rows, model.served.name)
        result.h2d_end_ms = result.exec_start_ms = now_ms()
        output = model.forward(staged)
        result.exec_end_ms = now_ms()
        result.outputs = list(output.numpy().copy())
        result.d2h_end_ms = now_ms()

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
    """Copy one array a request into the rows of `staged`.

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

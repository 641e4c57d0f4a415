"""Runs batches on CPU threads: the embedded default, with models that really contend for cores, caches and memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import struct
import sys
import threading
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from serving.executors.base import Batch, OnResult, now_ms
from serving.executors.device import probe_device, usable_cores
from serving.executors.executor import Executor, LoadedModel
from serving.executors.staging import copy_inputs, groups_of, rows_of
from serving.executors.time_slices import SliceTimer
from serving.models.served import TORCH_DTYPES, Forward, ServedModel, host_array, host_view
from serving.models.tensors import Item
from traces.machine import DeviceInfo
from traces.measurements import Phases

# Streams outnumber cores; behind them, the engine's own thread must still wake at once.
WORKER_NICENESS = 5
# A time slice that lasted this long may end when the kernel looks next (Linux from 6.12 on; longer elsewhere); see
# serving.executors.time_slices.
SLICE_MS = 0.5
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
    """

    tries_aside = True

    def __init__(self, streams: int, on_result: OnResult = lambda result: None) -> None:
        _keep_memory()
        self._cores = _cores()
        self._slices = SliceTimer(self._cores, streams)
        super().__init__(streams, on_result)

    @property
    def device(self) -> DeviceInfo:
        return probe_device("cpu")

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


class _Slab(NamedTuple):
    """The inputs of one batch size: as the model takes them, and as arrays over the same memory."""

    given: list[Any]
    rows: list[np.ndarray]


class HostStream:
    """Runs models on the host: staging buffers, as large as the largest batch so far, and views of them, one per size."""

    def __init__(self) -> None:
        self._staging: dict[LoadedModel, dict[int, _Slab]] = {}

    def run(self, model: LoadedModel, batch: Batch, dispatch_ms: float) -> tuple[list[Item], Phases]:
        """Copy in, execute, copy out."""
        served, items = model.served, batch.inputs
        if served.exact:
            return self._run_exact(model, items, dispatch_ms)
        slab = self._staged(model, len(items))
        start_ms = now_ms()
        copy_inputs(items, slab.rows, served)
        copied_ms = now_ms()
        outputs = _on_host(model.forward(*slab.given))
        executed_ms = now_ms()
        rows = rows_of(outputs, served, items)
        return rows, Phases(dispatch_ms, start_ms, copied_ms, copied_ms, executed_ms, now_ms())

    def _run_exact(self, model: LoadedModel, items: list[Item], dispatch_ms: float) -> tuple[list[Item], Phases]:
        """Run items that must not be padded, those of one size together."""
        served, start_ms = model.served, now_ms()
        found: dict[int, Item] = {}
        copied_ms = executed_ms = start_ms
        for group in groups_of(served, items):
            own = [items[place] for place in group]
            slab = _slab(served, len(own), served.size_of(own[0]))
            copy_inputs(own, slab.rows, served)
            copied_ms = now_ms() if copied_ms == start_ms else copied_ms
            outputs = _on_host(model.forward(*slab.given))
            executed_ms = now_ms()
            found |= zip(group, rows_of(outputs, served, own))
        rows = [found[place] for place in range(len(items))]
        return rows, Phases(dispatch_ms, start_ms, copied_ms, copied_ms, executed_ms, now_ms())

    def prepare(self, model: LoadedModel, batch_size: int) -> None:
        """Allocate the staging buffer."""
        self._staged(model, batch_size)

    def forget(self, model: LoadedModel) -> None:
        """Free the model's staging buffer."""
        self._staging.pop(model, None)

    def _staged(self, model: LoadedModel, size: int) -> _Slab:
        views = self._staging.setdefault(model, {})
        view = views.get(size)
        if view is None:
            largest = max(views, default=0)
            if size > largest:
                views.clear()
                view = _slab(model.served, size, model.served.bucket)
            else:
                whole = views[largest]
                view = _Slab([one[:size] for one in whole.given], [one[:size] for one in whole.rows])
            views[size] = view
        return view


class _CpuStream(HostStream):
    """One stream of the CPU.

    Args:
        running: (1,) uint8, 1 while a batch runs here.
    """

    def __init__(self, running: np.ndarray) -> None:
        super().__init__()
        self._running = running

    def run(self, model: LoadedModel, batch: Batch, dispatch_ms: float) -> tuple[list[Item], Phases]:
        """Run a batch, and say so meanwhile."""
        self._running[0] = 1
        try:
            return super().run(model, batch, dispatch_ms)
        finally:
            self._running[0] = 0


def _slab(model: ServedModel, count: int, size: int | None) -> _Slab:
    """Buffers for a number of items of a size."""
    shapes = [(count, *spec.sized(size).shape) for spec in model.inputs]
    if model.on_host:
        rows = [np.zeros(shape, spec.dtype) for spec, shape in zip(model.inputs, shapes)]
        return _Slab(list(rows), rows)
    given = [torch.zeros(shape, dtype=TORCH_DTYPES[spec.datatype]) for spec, shape in zip(model.inputs, shapes)]
    return _Slab(given, [host_view(one) for one in given])


def _on_host(outputs: Any) -> list[Any]:
    """What a forward returned, as arrays, or lists of one array per item."""
    if isinstance(outputs, Tensor):
        return [host_array(outputs)]
    return [one if isinstance(one, list) else host_array(one) for one in outputs]

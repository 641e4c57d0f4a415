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

from serving.device import probe_device, usable_cores
from serving.executor import Batch, BatchResult, OnResult
from serving.models.served import DTYPES, Forward, ServedModel
from serving.turns import Beat
from serving.workers import LoadedModel, ThreadedExecutor, now_ms
from traces.machine import DeviceInfo

# Streams outnumber cores; behind them, the engine's own thread must still wake at once.
WORKER_NICENESS = 5
# A turn that lasted this long may end when the kernel looks next (Linux from 6.12 on; longer elsewhere); see serving.turns.
SLICE_MS = 0.5
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

    @property
    def device(self) -> DeviceInfo:
        """The CPU; see `Executor.device`."""
        return probe_device("cpu")

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
    """One stream's staging buffers, one a model, as large as the largest batch so far.

    Args:
        running: (1,) uint8, 1 while a batch runs here.
    """

    def __init__(self, running: np.ndarray) -> None:
        self._running = running
        self._staging: dict[LoadedModel, Tensor] = {}

    def run(self, model: LoadedModel, batch: Batch, result: BatchResult) -> None:
        """Copy in, execute, copy out."""
        self._running[0] = 1
        try:
            self._run(model, batch, result)
        finally:
            self._running[0] = 0

    def _run(self, model: LoadedModel, batch: Batch, result: BatchResult) -> None:
        staged = self._staged(model, len(batch.inputs))
        result.h2d_start_ms = now_ms()
        copy_inputs(batch.inputs, staged.numpy(), model.served.name)
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

    def _staged(self, model: LoadedModel, size: int) -> Tensor:
        buffer = self._staging.get(model)
        if buffer is None or len(buffer) < size:
            served = model.served
            buffer = torch.zeros((size, *served.input_shape), dtype=DTYPES[served.input_dtype])
            self._staging[model] = buffer
        return buffer[:size]


def copy_inputs(inputs: list[np.ndarray], staged: np.ndarray, name: str) -> None:
    """Copy one array a request into the rows of `staged`.

    Raises:
        ValueError: an input has another shape, or a type that does not convert safely enough (float to integer).
    """
    for row, values in zip(staged, inputs, strict=True):
        if values.shape != row.shape:
            raise ValueError(f"input of shape {values.shape}; model {name!r} takes {row.shape}")
        try:
            np.copyto(row, values, casting="same_kind")
        except TypeError:
            raise ValueError(f"input of type {values.dtype}; model {name!r} takes {row.dtype}") from None

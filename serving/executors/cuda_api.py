"""A narrow interface to CUDA: all that the executor asks of torch.cuda, so that a test can stand in for the device."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from serving.models.served import Forward, ServedModel

# Beside torch's own words; the libraries allocate their workspaces themselves.
_OUT_OF_MEMORY = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class CudaEvent(Protocol):
    """A mark in a stream's work, with the time at which the device passed it."""

    def record(self, stream: Any) -> None:
        """Put the mark behind all that the stream has been given; it may be put again when it was passed."""

    def synchronize(self) -> None:
        """Wait, without Python's lock, until the device has passed the mark."""

    def elapsed_time(self, end_event: Any) -> float:
        """Return the ms from this mark to `end_event`, both passed; single precision, so for short spans."""


@dataclass(slots=True, eq=False)
class CudaGraph:
    """Recorded work: `replay` launches it on the current stream, and `outputs` hold its results then."""

    replay: Callable[[], None]
    outputs: tuple[Tensor, ...]


class CudaApi(Protocol):
    """One CUDA device, as the executor uses it; streams, pools and tensors are handed back as they came."""

    def enter_thread(self) -> None:
        """Make this the device of the calling thread."""

    def build(self, model: ServedModel) -> Forward:
        """Make a model's inference function on the device and wait until its weights are there."""

    def make_stream(self, priority: int) -> Any:
        """Return a stream whose kernels go first (priority 0, high) or last (1, low)."""

    def make_event(self, blocking: bool) -> CudaEvent:
        """Return a timed event; waiting for it sleeps if `blocking`, else spins: a few tens of microseconds sooner."""

    def on(self, stream: Any) -> AbstractContextManager[Any]:
        """Make this the stream of what the calling thread launches."""

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return page-locked host memory, which copies reach without waiting."""

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Return device memory."""

    def copy(self, target: Tensor, source: Tensor) -> None:
        """Launch a copy on the current stream; neither side may be touched until it has ended."""

    def synchronize(self, stream: Any) -> None:
        """Wait until a stream has done all that it was given."""

    def make_pool(self) -> Any:
        """Return a memory pool, for graphs that never run at the same time."""

    def capture(self, stream: Any, work: Callable[[], tuple[Tensor, ...]], pool: Any) -> CudaGraph:
        """Record what `work` launches on an idle stream, without running it.

        Raises:
            Exception: the work waits for the device, or does something else that cannot be recorded.
        """

    def empty_cache(self) -> None:
        """Give memory that torch keeps for later back to the device; never fails."""


class TorchCuda:
    """The real device.

    Args:
        device: "cuda:N".
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        # At most one capture at a time, and the cache is not emptied during one: that would break the recording.
        self._recording = threading.Lock()

    def enter_thread(self) -> None:
        torch.cuda.set_device(self._device)

    def build(self, model: ServedModel) -> Forward:
        # A compiled model is compared with the eager one, more closely than TF32 convolutions agree with each other.
        with torch.cuda.device(self._device), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            forward = model.build(str(self._device))
            # Weights were copied on this thread's stream, for which the workers' streams do not wait. Not the whole device:
            # that fails, and breaks the recording, while a worker records a graph.
            torch.cuda.current_stream(self._device).synchronize()
        return forward

    def make_stream(self, priority: int) -> torch.cuda.Stream:
        low, high = torch.cuda.Stream.priority_range()  # type: ignore[call-arg] # the lower goes first
        return torch.cuda.Stream(self._device, priority=low if priority else high)

    def make_event(self, blocking: bool) -> CudaEvent:
        return torch.cuda.Event(enable_timing=True, blocking=blocking)

    def on(self, stream: torch.cuda.Stream) -> AbstractContextManager[Any]:
        return torch.cuda.stream(stream)

    def pinned(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, pin_memory=True)

    def buffer(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self._device)

    def copy(self, target: Tensor, source: Tensor) -> None:
        target.copy_(source, non_blocking=True)

    def synchronize(self, stream: torch.cuda.Stream) -> None:
        stream.synchronize()

    def make_pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def capture(self, stream: torch.cuda.Stream, work: Callable[[], tuple[Tensor, ...]], pool: Any) -> CudaGraph:
        # Not by torch.cuda.graph: it stalls the whole device, and after one failed capture every later one fails in it
        # (it empties the cache, which torch before 2.14 refuses from then on).
        graph = torch.cuda.CUDAGraph()
        with self._recording, torch.cuda.stream(stream):
            stream.synchronize()
            # Other threads go on using the device meanwhile.
            graph.capture_begin(pool=pool, capture_error_mode="thread_local")
            try:
                outputs = work()
            except BaseException:
                with contextlib.suppress(Exception):  # that the capture is broken is known; the cause is worth more
                    graph.capture_end()
                # Where the capture is broken, `capture_end` of torch before 2.12 leaves the allocator believing that it
                # goes on, and from then on it never gives cached memory back. Where it did not, this is refused.
                with contextlib.suppress(Exception):
                    torch._C._cuda_endAllocateToPool(self._device.index or 0, pool)
                raise
            graph.capture_end()
        return CudaGraph(graph.replay, outputs)

    def empty_cache(self) -> None:
        with self._recording, contextlib.suppress(Exception):
            torch.cuda.empty_cache()


def plain_error(error: Exception) -> Exception:
    """Return what to report in place of an error that CUDA may have caused.

    Returns:
        MemoryError where the device or the host ran out of memory, however deep in the text that is said; RuntimeError
        with the line that names the fault, for a CUDA error with its lines of advice; else the error itself.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    for line in lines:
        if any(sign in line for sign in _OUT_OF_MEMORY):
            return MemoryError(line if "out of memory" in line else f"out of memory: {line}")
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return MemoryError(f"out of memory: {lines[0] if lines else type(error).__name__}")
    for line in lines[:-1]:
        if "CUDA error" in line:
            return RuntimeError(line)
    return error

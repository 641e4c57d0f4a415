"""What runs batches: the interface that the engine and the profiler drive, whatever the device."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from serving.models.served import ServedModel
from traces.errors import InputError
from traces.machine import DeviceInfo
from traces.measurements import Phases


@dataclass(slots=True)
class Batch:
    """Requests of one model that run together.

    Attributes:
        batch_id: the caller's number, handed back in the result.
        model: name of a loaded model.
        priority: 0 (high) or 1 (low).
        inputs: one array per request, of the model's input_shape, without batch dimension.
    """

    batch_id: int
    model: str
    priority: int
    inputs: list[np.ndarray]


@dataclass(slots=True)
class BatchResult:
    """How a batch ended: outputs or an error, and when each phase began and ended.

    Attributes:
        batch_id: the batch's number.
        stream: the stream that ran it.
        phases: on the clock of `time.perf_counter` in ms; those that a failed batch never reached have the time of its
            failure.
        outputs: one array per request, without batch dimension; None after an error.
        error: one line, or None.
    """

    batch_id: int
    stream: int
    phases: Phases
    outputs: list[np.ndarray] | None = None
    error: str | None = None


OnResult = Callable[[BatchResult], None]


class Executor(ABC):
    """K streams of one device, each with at most one batch in flight.

    Every submitted batch has exactly one result, error or not, given to `on_result` on a worker thread; its stream is
    idle by then, so that `on_result` may submit the next batch itself.

    Args:
        streams: how many batches may be in flight.
        on_result: called once for every submitted batch. What it raises is logged and goes no further.
    """

    streams: int

    def __init__(self, streams: int, on_result: OnResult) -> None:
        if streams < 1:
            raise InputError(f"streams is {streams}; it must be at least 1")
        self.streams = streams
        self.on_result = on_result

    @property
    @abstractmethod
    def device(self) -> DeviceInfo:
        """The device; its peaks are measured on first use (under a second), so ask before there is load."""

    def gauges(self) -> dict[str, float]:
        """What the device tells about itself, by name; nothing unless it has such gauges. See `device.gpu_state`."""
        return {}

    @property
    @abstractmethod
    def models(self) -> dict[str, ServedModel]:
        """The loaded models by name (a copy)."""

    @abstractmethod
    def load(self, model: ServedModel) -> None:
        """Make a model ready to run; takes as long as its compilation.

        Raises:
            ValueError: a model of this name is loaded.
        """

    @abstractmethod
    def unload(self, name: str) -> None:
        """Forget a model at once; its batches in flight end as they would have.

        Raises:
            ValueError: no such model.
        """

    @abstractmethod
    def rename(self, name: str, new: str) -> None:
        """Give a loaded model another name, in place of the model that had it, which is forgotten as by `unload`.

        Raises:
            ValueError: no such model.
        """

    @abstractmethod
    def warm_up(self, name: str, batch_sizes: Iterable[int]) -> None:
        """Run every batch size on every stream, one after the other, and wait for it; no result is reported.

        Raises:
            ValueError: no such model.
            RuntimeError: the model fails.
        """

    @abstractmethod
    def time_alone(self, name: str, batch_size: int, repeats: int) -> list[BatchResult]:
        """Run one batch size `repeats` times on the last stream and wait for it; nothing is given to `on_result`.

        It runs between that stream's batches, so the times are those of the model alone only while nothing else runs.

        Raises:
            ValueError: no such model.
            RuntimeError: the model fails.
        """

    @abstractmethod
    def submit(self, stream: int, batch: Batch) -> None:
        """Start a batch on an idle stream, without waiting.

        Raises:
            ValueError: the stream is not idle or does not exist, the model is not loaded, the batch is empty, or the
                executor is closed. Such a batch has no result.
        """

    def run_here(self, stream: int, batch: Batch) -> BatchResult | None:
        """Run a batch in the calling thread where that is shorter than handing it to another one; None where it is not.

        The stream is only named in the result, which is not given to `on_result`.
        """
        return None

    @abstractmethod
    def idle(self, stream: int) -> bool:
        """Whether the stream has no batch in flight."""

    @abstractmethod
    def close(self, timeout_s: float = 10.0) -> None:
        """Refuse new batches, wait for those in flight, then fail what is left; every batch has its one result."""

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

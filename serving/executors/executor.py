"""What runs batches: worker threads, one per stream, that answer each batch once and survive whatever a model raises.

The executors differ in how one batch runs on one stream (`StreamRunner`).
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import logging
import sys
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from queue import SimpleQueue
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from serving.executors.base import Batch, BatchResult, OnResult, failed_result, now_ms
from serving.models.processes.own_process import OwnProcessForward
from serving.models.served import Forward, ServedModel
from serving.models.tensors import Item
from serving.models.users_code import error_line
from traces.errors import InputError
from traces.machine import DeviceInfo
from traces.measurements import Phases

log = logging.getLogger(__name__)
Result = TypeVar("Result")

# A worker needs Python's lock at once, several times a batch, while the answers of the batch before are written; by default
# another thread may keep it for 5 ms. Below this, threads that both run Python spend too much time on switching.
SWITCH_INTERVAL_S = 0.00005
_PR_SET_TIMERSLACK = 29
_TIMER_SLACK_NS = 1000  # for the timer of that interval, which by default may be late by as much again


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        served: the model.
        forward: its inference function on the device.
    """

    served: ServedModel
    forward: Forward


class StreamRunner(Protocol):
    """Runs batches on one stream; made and used on that stream's worker thread only."""

    def run(self, model: LoadedModel, batch: Batch, dispatch_ms: float) -> tuple[list[Item], Phases]:
        """Run one batch to its end; returns its outputs, one per request, and its phases."""

    def prepare(self, model: LoadedModel, batch_size: int) -> None:
        """Do once what makes this batch size fast later."""

    def forget(self, model: LoadedModel) -> None:
        """Free what was kept for a model."""


@dataclass(slots=True, eq=False)
class _Submitted:
    """A batch from `submit` to its result; `answered` is guarded by the executor's lock."""

    stream: int
    model: LoadedModel
    batch: Batch
    dispatch_ms: float
    answered: bool = False


class _Job(NamedTuple):
    """What a worker does, and what it does instead where that fails, with the error in one line."""

    run: Callable[[StreamRunner], None]
    fail: Callable[[str], None]


@dataclass(slots=True, eq=False)
class _Worker:
    """A stream's thread and its inbox."""

    stream: int
    inbox: SimpleQueue[_Job | None] = field(default_factory=SimpleQueue)
    thread: threading.Thread | None = None
    busy_with: _Submitted | None = None


class Executor(ABC):
    """K streams of one device, each a worker thread with at most one batch in flight.

    Every submitted batch has exactly one result, error or not, given to `on_result` on a worker thread; its stream is
    idle by then, so that `on_result` may submit the next batch itself. Methods that name a model raise ValueError when it
    is not loaded.

    Args:
        streams: how many batches may be in flight.
        on_result: called once for every submitted batch. What it raises is logged and goes no further.

    Attributes:
        tries_aside: whether a thread of its own, pinned as that of the last stream, tries what is not served yet.
    """

    tries_aside = False

    def __init__(self, streams: int, on_result: OnResult) -> None:
        if streams < 1:
            raise InputError(f"streams is {streams}; it must be at least 1")
        self.streams = streams
        self.on_result = on_result
        _hand_over_quickly()
        self._lock = threading.Lock()
        self._loaded: dict[str, LoadedModel] = {}
        self._closed = False
        self._workers = [_Worker(stream) for stream in range(streams)]
        if self.tries_aside:
            self._workers.append(_Worker(streams - 1))
        for worker in self._workers:
            self._start(worker)
        # A thread inside a forward when the interpreter ends would abort the process. The weak reference lets an
        # executor that was not closed be collected all the same.
        weak_close = weakref.WeakMethod(self.close)
        self._at_exit = lambda: (close := weak_close()) and close()
        atexit.register(self._at_exit)

    # What the devices differ in.

    @property
    @abstractmethod
    def device(self) -> DeviceInfo:
        """The device; its peaks are measured on first use (under a second), so ask before there is load."""

    def gauges(self) -> dict[str, float]:
        """What the device says about itself, by name; nothing unless it has such gauges. See `device.gpu_state`."""
        return {}

    @abstractmethod
    def _open_stream(self, stream: int) -> StreamRunner:
        """Make the stream's runner; called on its worker thread."""

    @abstractmethod
    def _build(self, model: ServedModel) -> Forward:
        """Make the model's inference function on the device."""

    # Models.

    @property
    def models(self) -> dict[str, ServedModel]:
        """The loaded models by name (a copy)."""
        with self._lock:
            return {name: model.served for name, model in self._loaded.items()}

    def load(self, model: ServedModel) -> None:
        """Make a model ready to run; takes as long as its compilation.

        Raises:
            ValueError: a model of this name is loaded.
        """
        if model.name in self.models:
            raise ValueError(f"model {model.name!r} is loaded; unload it first")
        loaded = LoadedModel(model, self._build(model))
        if isinstance(loaded.forward, OwnProcessForward):
            loaded.forward.start(len(self._workers))
        with self._lock:
            if self._loaded.setdefault(model.name, loaded) is not loaded:
                raise ValueError(f"model {model.name!r} is loaded; unload it first")

    def unload(self, name: str) -> None:
        """Forget a model at once; its batches in flight end as they would have."""
        with self._lock:
            model = self._model(name)
            del self._loaded[name]
        self._forget(model)

    def rename(self, name: str, new: str) -> None:
        """Give a loaded model another name, in place of the model that had it, which is forgotten as by `unload`."""
        with self._lock:
            model, before = self._model(name), self._loaded.get(new)
            del self._loaded[name]
            model.served = replace(model.served, name=new)
            self._loaded[new] = model
        if before is not None:
            self._forget(before)

    def _forget(self, model: LoadedModel) -> None:
        for worker in self._workers:  # behind the batch in flight, which keeps its own hold on the model
            self._post(worker, lambda runner: runner.forget(model))

    def free_memory(self) -> None:
        """Free what models that were unloaded leave behind, once the streams have forgotten them. Blocks for a moment."""
        with contextlib.suppress(TimeoutError):  # a long batch, which will be freed with the next one
            for worker in self._workers:
                self._post(worker, lambda runner: None).result(1.0)
        gc.collect()  # graphs hold themselves
        with contextlib.suppress(
            AttributeError
        ):  # glibc keeps what it is given back, except when it is asked (malloc_trim(3))
            ctypes.CDLL(None).malloc_trim(0)

    def warm_up(self, name: str, batch_sizes: Iterable[int], serving: bool = False) -> None:
        """Run every batch size on every stream, one after the other, and wait for it; no result is reported.

        Args:
            name: of the model.
            batch_sizes: to run.
            serving: whether others are served, who would wait for it; the streams are left alone then where that is possible.

        Raises:
            RuntimeError: the model fails.
        """
        for size in batch_sizes:
            model, batch = self._example(name, size, 0)

            def task(runner: StreamRunner, model: LoadedModel = model, batch: Batch = batch) -> None:
                runner.prepare(model, len(batch.inputs))
                for _ in range(2):
                    runner.run(model, batch, now_ms())

            for worker in self._workers[-1:] if serving and self.tries_aside else self._workers:
                self._wait_for(worker, task, batch)

    def time_alone(self, name: str, batch_size: int, repeats: int) -> list[BatchResult]:
        """Run one batch size `repeats` times and wait for it; nothing is given to `on_result`.

        The times are those of the model alone only while nothing else runs.

        Raises:
            RuntimeError: the model fails.
        """
        model, batch = self._example(name, batch_size, 1)
        worker, results = self._workers[-1], []
        for _ in range(repeats):  # one task per run, so that a batch of the engine waits for one at most
            outputs, phases = self._wait_for(worker, lambda runner: runner.run(model, batch, now_ms()), batch)
            results.append(BatchResult(batch.batch_id, worker.stream, phases, outputs))
        return results

    def _example(self, name: str, size: int, priority: int) -> tuple[LoadedModel, Batch]:
        with self._lock:
            model = self._model(name)
        return model, Batch(-1, name, priority, _examples(model.served, size))

    def _wait_for(self, worker: _Worker, task: Callable[[StreamRunner], Result], batch: Batch) -> Result:
        try:
            return self._post(worker, task).result()
        except RuntimeError as error:
            raise RuntimeError(f"model {batch.model!r} fails on a batch of {len(batch.inputs)}: {error}") from None

    def _post(self, worker: _Worker, task: Callable[[StreamRunner], Result]) -> Future[Result]:
        future: Future[Result] = Future()
        worker.inbox.put(
            _Job(
                lambda runner: future.set_result(task(runner)),
                lambda message: future.set_exception(RuntimeError(message)),
            )
        )
        return future

    def _model(self, name: str) -> LoadedModel:
        if name not in self._loaded:
            raise ValueError(f"model {name!r} is not loaded; loaded are: {', '.join(self._loaded) or 'none'}")
        return self._loaded[name]

    # Batches.

    def submit(self, stream: int, batch: Batch) -> None:
        """Start a batch on an idle stream, without waiting.

        Raises:
            ValueError: the stream is not idle or does not exist, the batch is empty, or the executor is closed. Such a
                batch has no result.
        """
        dispatch_ms = now_ms()
        if not 0 <= stream < self.streams:
            raise ValueError(f"no stream {stream}; there are {self.streams}")
        if not batch.inputs:
            raise ValueError(f"batch {batch.batch_id} is empty")
        worker = self._workers[stream]
        with self._lock:
            if self._closed:
                raise ValueError("the executor is closed")
            if worker.busy_with is not None:
                raise ValueError(f"stream {stream} is busy with batch {worker.busy_with.batch.batch_id}")
            submitted = worker.busy_with = _Submitted(stream, self._model(batch.model), batch, dispatch_ms)
        worker.inbox.put(_Job(partial(self._run, submitted), partial(self._fail, submitted)))

    def __enter__(self) -> Executor:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self, timeout_s: float = 10.0) -> None:
        """Refuse new batches, wait for those in flight, then fail what is left; every batch has its one result."""
        with self._lock:
            first, self._closed = not self._closed, True
        if first:
            for worker in self._workers:
                worker.inbox.put(None)
        end_s = time.perf_counter() + timeout_s
        for worker in self._workers:
            thread = worker.thread
            if thread is not None and thread is not threading.current_thread():
                thread.join(max(0.0, end_s - time.perf_counter()))
            if worker.busy_with is not None:
                self._fail(worker.busy_with, f"the executor closed and the batch had not ended in {timeout_s:g} s")
        for model in self._loaded.values():
            if isinstance(model.forward, OwnProcessForward):
                model.forward.close()
        atexit.unregister(self._at_exit)

    def _start(self, worker: _Worker) -> None:
        name = f"stream-{worker.stream}"
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        worker.thread.start()

    def _work(self, worker: _Worker) -> None:
        """Do the jobs of an inbox, up to a None."""
        runner: StreamRunner | None = None
        while (job := worker.inbox.get()) is not None:
            try:
                runner = runner or self._open_stream(worker.stream)
                job.run(runner)
            except BaseException as error:  # whatever a model raises, SystemExit too, ends its batch and no thread
                job.fail(error_line(error))
            del job  # held on to, the batch's inputs would live until the next one comes

    def _run(self, submitted: _Submitted, runner: StreamRunner) -> None:
        batch = submitted.batch
        outputs, phases = runner.run(submitted.model, batch, submitted.dispatch_ms)
        self._answer(submitted, BatchResult(batch.batch_id, submitted.stream, phases, outputs))

    def _fail(self, submitted: _Submitted, error: str) -> None:
        self._answer(submitted, failed_result(submitted.batch, submitted.stream, submitted.dispatch_ms, error))

    def _answer(self, submitted: _Submitted, result: BatchResult) -> None:
        """Report a batch unless it was reported before; its stream is idle from here on."""
        # Two threads may come here with one batch: its worker, and `close`, which gave it up.
        with self._lock:
            if submitted.answered:
                return
            submitted.answered = True
            self._workers[submitted.stream].busy_with = None
        try:
            self.on_result(result)
        except Exception:
            log.exception("on_result failed for batch %d", result.batch_id)


def _hand_over_quickly() -> None:
    """Let threads wait less long for Python's lock: the interval of all, and the timers (prctl(2)) of this and its children."""
    sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
    with contextlib.suppress(AttributeError, OSError):  # Linux only
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _TIMER_SLACK_NS, 0, 0, 0)


def _examples(model: ServedModel, size: int) -> list[Item]:
    """Items of a batch: all alike, but for a model that runs items of different sizes one after the other."""
    rng = np.random.default_rng(0)
    return [model.example(rng) for _ in range(size)] if model.exact else [model.example(rng)] * size

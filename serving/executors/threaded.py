"""Worker threads, one per stream: run batches, answer each exactly once, survive their own death.

The two executors differ in how one batch runs on one stream (`StreamRunner`); everything else is here.
"""

from __future__ import annotations

import atexit
import logging
import sys
import threading
import time
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Protocol

import numpy as np

from serving.executors.base import Batch, BatchResult, Executor, OnResult
from serving.models.served import Forward, ServedModel
from traces.measurements import Phases

log = logging.getLogger(__name__)

# A worker that comes out of a forward wants Python's lock at once; by default another thread may keep it for 5 ms.
SWITCH_INTERVAL_S = 0.0005


@dataclass(slots=True, eq=False)
class LoadedModel:
    """A model that is ready to run.

    Attributes:
        served: the model.
        forward: its inference function on the device.
        alone_ms: by batch size, the shortest time that a batch took which ran alone.
    """

    served: ServedModel
    forward: Forward
    alone_ms: dict[int, float] = field(default_factory=dict)

    def ran_alone(self, size: int, phases: Phases) -> None:
        """Note how long a batch took that ran alone."""
        took = phases.d2h_end_ms - phases.h2d_start_ms
        self.alone_ms[size] = min(took, self.alone_ms.get(size, took))


class StreamRunner(Protocol):
    """Runs batches on one stream; made and used on that stream's worker thread only."""

    def run(self, model: LoadedModel, batch: Batch, dispatch_ms: float) -> tuple[list[np.ndarray], Phases]:
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


_Task = Callable[[StreamRunner], None]
_Job = _Submitted | tuple[_Task, "Future[None]"] | None


@dataclass(slots=True, eq=False)
class _Worker:
    """A stream's inbox, which outlives the thread that empties it."""

    stream: int
    inbox: SimpleQueue[_Job] = field(default_factory=SimpleQueue)
    thread: threading.Thread | None = None
    busy_with: _Submitted | None = None


def now_ms() -> float:
    """Return the clock of all results: `time.perf_counter` in milliseconds."""
    return time.perf_counter() * 1e3


class ThreadedExecutor(Executor):
    """An executor with one worker thread per stream."""

    def __init__(self, streams: int, on_result: OnResult) -> None:
        super().__init__(streams, on_result)
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL_S))
        self._lock = threading.Lock()
        self._loaded: dict[str, LoadedModel] = {}
        self._closed = False
        self._workers = [_Worker(stream) for stream in range(streams)]
        for worker in self._workers:
            self._start(worker)
        # A thread inside a forward when the interpreter ends would abort the process. The weak reference lets an
        # executor that nobody closed be collected all the same.
        weak_close = weakref.WeakMethod(self.close)
        self._at_exit = lambda: (close := weak_close()) and close()
        atexit.register(self._at_exit)

    @abstractmethod
    def _open_stream(self, stream: int) -> StreamRunner:
        """Make the stream's runner; called on its worker thread."""

    @abstractmethod
    def _build(self, model: ServedModel) -> Forward:
        """Make the model's inference function on the device."""

    @property
    def models(self) -> dict[str, ServedModel]:
        with self._lock:
            return {name: model.served for name, model in self._loaded.items()}

    def load(self, model: ServedModel) -> None:
        if model.name in self.models:
            raise ValueError(f"model {model.name!r} is loaded; unload it first")
        loaded = LoadedModel(model, self._build(model))
        with self._lock:
            if self._loaded.setdefault(model.name, loaded) is not loaded:
                raise ValueError(f"model {model.name!r} is loaded; unload it first")

    def unload(self, name: str) -> None:
        with self._lock:
            model = self._model(name)
            del self._loaded[name]
        self._forget(model)

    def rename(self, name: str, new: str) -> None:
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

    def warm_up(self, name: str, batch_sizes: Iterable[int]) -> None:
        model = self._loaded_model(name)
        for size in batch_sizes:
            batch = Batch(-1, name, 0, [model.served.example(np.random.default_rng(0))] * size)

            def task(runner: StreamRunner, batch: Batch = batch) -> None:
                runner.prepare(model, len(batch.inputs))
                for _ in range(2):
                    self._run_alone(runner, model, batch, now_ms())

            for worker in self._workers:
                self._wait_for(worker, task, batch)

    def time_alone(self, name: str, batch_size: int, repeats: int) -> list[BatchResult]:
        model = self._loaded_model(name)
        batch = Batch(-1, name, 1, [model.served.example(np.random.default_rng(0))] * batch_size)
        worker = self._workers[-1]
        results: list[BatchResult] = []
        for _ in range(repeats):  # one task per run, so that a batch of the engine waits for one at most
            dispatch_ms = now_ms()

            def task(runner: StreamRunner, dispatch_ms: float = dispatch_ms) -> None:
                outputs, phases = self._run_alone(runner, model, batch, dispatch_ms)
                results.append(BatchResult(batch.batch_id, worker.stream, phases, outputs))

            self._wait_for(worker, task, batch)
        return results

    def _run_alone(
        self, runner: StreamRunner, model: LoadedModel, batch: Batch, dispatch_ms: float
    ) -> tuple[list[np.ndarray], Phases]:
        outputs, phases = runner.run(model, batch, dispatch_ms)
        model.ran_alone(len(outputs), phases)
        return outputs, phases

    def _wait_for(self, worker: _Worker, task: _Task, batch: Batch) -> None:
        try:
            self._post(worker, task).result()
        except Exception as error:
            words = f"model {batch.model!r} fails on a batch of {len(batch.inputs)}: {one_line(error)}"
            raise RuntimeError(words) from error

    def submit(self, stream: int, batch: Batch) -> None:
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
        if worker.thread is None or not worker.thread.is_alive():
            self._start(worker)
        worker.inbox.put(submitted)

    def idle(self, stream: int) -> bool:
        return self._workers[stream].busy_with is None

    def close(self, timeout_s: float = 10.0) -> None:
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
        atexit.unregister(self._at_exit)

    def _loaded_model(self, name: str) -> LoadedModel:
        with self._lock:
            return self._model(name)

    def _model(self, name: str) -> LoadedModel:
        if name not in self._loaded:
            raise ValueError(f"model {name!r} is not loaded; loaded are: {', '.join(self._loaded) or 'none'}")
        return self._loaded[name]

    def _post(self, worker: _Worker, task: _Task) -> Future[None]:
        future: Future[None] = Future()
        worker.inbox.put((task, future))
        return future

    def _start(self, worker: _Worker) -> None:
        name = f"stream-{worker.stream}"
        worker.thread = threading.Thread(target=self._work, args=(worker,), name=name, daemon=True)
        worker.thread.start()

    def _work(self, worker: _Worker) -> None:
        """Empty the inbox until told to stop; when the thread dies of a batch, another takes its place."""
        runner: StreamRunner | None = None
        job: _Job = None
        try:
            while (job := worker.inbox.get()) is not None:
                if isinstance(job, _Submitted):
                    try:
                        runner = runner or self._open_stream(worker.stream)
                        self._answer(job, self._result(runner, job))
                    except Exception as error:  # a model's own error ends its batch, not its stream
                        self._fail(job, one_line(error))
                else:
                    task, future = job
                    try:
                        runner = runner or self._open_stream(worker.stream)
                        task(runner)
                        future.set_result(None)
                    except Exception as error:
                        future.set_exception(error)
                job = None  # held on to, the batch's inputs would live until the next one comes
        except BaseException as error:  # SystemExit and its like, raised by a model or sent to the thread
            log.error("worker thread of stream %d died: %s", worker.stream, one_line(error))
            self._bury(worker, job, error)

    def _result(self, runner: StreamRunner, job: _Submitted) -> BatchResult:
        outputs, phases = runner.run(job.model, job.batch, job.dispatch_ms)
        return BatchResult(job.batch.batch_id, job.stream, phases, outputs)

    def _bury(self, worker: _Worker, job: _Job, error: BaseException) -> None:
        """Start the next thread, then answer what the dead one had in hand."""
        with self._lock:
            closed = self._closed
        if not closed:
            self._start(worker)
        message = f"the worker thread died: {one_line(error)}"
        if isinstance(job, _Submitted):
            self._fail(job, message)
        elif job is not None and not job[1].done():
            job[1].set_exception(RuntimeError(message))

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


def failed_result(batch: Batch, stream: int, dispatch_ms: float, error: str) -> BatchResult:
    """The result of a batch that failed now."""
    return BatchResult(batch.batch_id, stream, Phases(dispatch_ms, *(now_ms(),) * 5), error=error)


def one_line(error: BaseException) -> str:
    """What an error says, in one line."""
    # The last line of a TorchScript error is the original one; a traceback through the graph is above it.
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"

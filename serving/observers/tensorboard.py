"""TensorBoard scalars of the live server, under the tags that training and the simulator use (agents.evaluation.metric)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents.evaluation import metric
from agents.evaluation.summary import summarise
from serving.engine.engine import Engine
from serving.engine.request import BatchRecord, RequestResult, result_table
from serving.observers.output import Output
from traces.errors import InputError

GPU = "gpu/{gauge}"

# What TensorBoard's "custom scalars" shows; the first screen answers whether deadlines are met.
LAYOUT = {
    "Are deadlines met?": {
        "violation rate": ["Multiline", [metric.VIOLATION_HIGH, metric.VIOLATION_LOW]],
        "requests per second: offered, in time": ["Multiline", [metric.OFFERED_RPS, metric.GOODPUT_RPS]],
        "latency p99 (ms)": ["Multiline", [metric.LATENCY_HIGH_P99_MS, metric.LATENCY_LOW_P99_MS]],
    },
    "Where does the time go?": {
        "queueing (ms)": ["Multiline", [metric.QUEUE_P50_MS, metric.QUEUE_P99_MS]],
        "queued requests, busy streams": ["Multiline", [metric.QUEUED, metric.IN_FLIGHT]],
        "batch size": ["Multiline", [metric.BATCH_SIZE_MEAN]],
    },
    "Is the scheduler well?": {
        "actual over predicted time": ["Multiline", [metric.PREDICTION_RATIO]],
        "decision (us)": ["Multiline", [metric.DECISION_P50_US, metric.DECISION_P99_US]],
        "decisions by the fallback": ["Multiline", [metric.FALLBACKS]],
        "fairness between models": ["Multiline", [metric.FAIRNESS_MODELS]],
    },
}


class TensorBoardWriter(Output):
    """Observes an engine, and writes what happened since the last time at each `write`.

    Args:
        logdir: folder to write.
        engine: to observe.
        settings: of the run, shown as text.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, logdir: Path | str, engine: Engine, settings: dict[str, object]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed with --logdir

        super().__init__(f"TensorBoard in {logdir}")
        self.engine = engine
        self._results: list[RequestResult] = []
        self._ratios: list[float] = []
        self._decisions = engine.guard.decisions
        self._since = time.perf_counter()
        self._step = 0
        try:
            self._writer = SummaryWriter(str(logdir))
        except OSError as error:
            raise InputError(f"--logdir {logdir}: {error.strerror}; it must be a folder") from None
        self._writer.add_custom_scalars(LAYOUT)
        rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def request_ended(self, result: RequestResult) -> None:
        """Keep it until the next write, without its output."""
        self._results.append(replace(result, outputs=None))

    def batch_ended(self, batch: BatchRecord) -> None:
        """Keep how far its prediction was off."""
        if batch.error is None and batch.predicted_ms > 0:
            self._ratios.append(batch.phases.total_ms / batch.predicted_ms)

    def save(self) -> Callable[[], None] | None:
        self.write()
        return None

    def write(self) -> None:
        """Write one point of each scalar."""
        now = time.perf_counter()
        results, self._results = self._results, []
        ratios, self._ratios = self._ratios, []
        guard = self.engine.guard
        decisions = guard.decisions_since(self._decisions)
        self._decisions = guard.decisions
        values = summarise(result_table(results), (now - self._since) * 1e3, decisions)
        if not results:  # a rate over nothing is not a good rate
            for tag in (*metric.VIOLATION, metric.VIOLATION_ALL, metric.DROP_RATE, metric.FAIRNESS_MODELS):
                values.pop(tag)
        self._since = now
        values[metric.QUEUED] = self.engine.queued
        values[metric.IN_FLIGHT] = self.engine.in_flight
        values[metric.FALLBACKS] = guard.fallbacks
        if ratios:
            values[metric.PREDICTION_RATIO] = float(np.median(ratios))
        values |= {GPU.format(gauge=name): value for name, value in self.engine.executor.gauges().items()}
        self._step += 1
        with self.written():
            for tag, value in values.items():
                if np.isfinite(value):
                    self._writer.add_scalar(tag, value, self._step)
            self._writer.flush()

    def close(self) -> None:
        """Write the last point and close the file."""
        self.write()
        with self.written():
            self._writer.close()

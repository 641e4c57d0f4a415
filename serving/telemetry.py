"""TensorBoard scalars of the live server, under the tags that training and the simulator use (agents.tags)."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np

from agents import tags
from agents.summary import summarise
from serving.engine import Engine
from serving.logs import OnceLog
from serving.replay import table_of
from serving.request import BatchRecord, Observer, Outcome
from traces.errors import InputError

GPU = "gpu/{gauge}"

# What TensorBoard's "custom scalars" shows; the first screen answers whether deadlines are met.
LAYOUT = {
    "Are deadlines met?": {
        "violation rate": ["Multiline", [tags.VIOLATION_HIGH, tags.VIOLATION_LOW]],
        "requests per second: offered, in time": ["Multiline", [tags.OFFERED_RPS, tags.GOODPUT_RPS]],
        "latency p99 (ms)": ["Multiline", [tags.LATENCY_HIGH_P99_MS, tags.LATENCY_LOW_P99_MS]],
    },
    "Where does the time go?": {
        "queueing (ms)": ["Multiline", [tags.QUEUE_P50_MS, tags.QUEUE_P99_MS]],
        "queued requests, busy streams": ["Multiline", [tags.QUEUED, tags.IN_FLIGHT]],
        "batch size": ["Multiline", [tags.BATCH_SIZE_MEAN]],
    },
    "Is the scheduler well?": {
        "actual over predicted time": ["Multiline", [tags.PREDICTION_RATIO]],
        "decision (us)": ["Multiline", [tags.DECISION_P50_US, tags.DECISION_P99_US]],
        "decisions by the fallback": ["Multiline", [tags.FALLBACKS]],
        "fairness between models": ["Multiline", [tags.FAIRNESS_MODELS]],
    },
}


class Telemetry(Observer):
    """Observes an engine, and writes what happened since the last time at each ``write``.

    Args:
        logdir: folder to write. engine: to observe. settings: of the run, shown as text.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(self, logdir: Path | str, engine: Engine, settings: dict[str, object]) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import, and only needed with --logdir

        self.engine = engine
        self._outcomes: list[Outcome] = []
        self._ratios: list[float] = []
        self._decisions = engine.guard.decisions
        self._since = time.perf_counter()
        self._step = 0
        self._once = OnceLog(f"TensorBoard in {logdir}")
        try:
            self._writer = SummaryWriter(str(logdir))
        except OSError as error:
            raise InputError(f"--logdir {logdir}: {error.strerror}; a folder is wanted") from None
        self._writer.add_custom_scalars(LAYOUT)
        rows = "\n".join(f"| {key} | {value} |" for key, value in settings.items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}")

    def request_ended(self, outcome: Outcome) -> None:
        """Keep it until the next write, without its output."""
        self._outcomes.append(replace(outcome, output=None))

    def batch_ended(self, batch: BatchRecord) -> None:
        """Keep how far its prediction was off."""
        if batch.error is None and batch.predicted_ms > 0:
            self._ratios.append((batch.d2h_end_ms - batch.dispatch_ms) / batch.predicted_ms)

    def write(self) -> None:
        """Write one point of each scalar."""
        now = time.perf_counter()
        outcomes, self._outcomes = self._outcomes, []
        ratios, self._ratios = self._ratios, []
        guard = self.engine.guard
        new = min(guard.decisions - self._decisions, len(guard.decision_us))
        decisions = list(guard.decision_us)[len(guard.decision_us) - new :] if new else []
        self._decisions = guard.decisions
        values = summarise(table_of(outcomes), (now - self._since) * 1e3, decisions)
        if not outcomes:  # a rate over nothing is not a good rate
            for tag in (*tags.VIOLATION, tags.VIOLATION_ALL, tags.DROP_RATE, tags.FAIRNESS_MODELS):
                values.pop(tag)
        self._since = now
        values[tags.QUEUED] = self.engine.queued
        values[tags.IN_FLIGHT] = self.engine.in_flight
        values[tags.FALLBACKS] = guard.fallbacks
        if ratios:
            values[tags.PREDICTION_RATIO] = float(np.median(ratios))
        values |= {GPU.format(gauge=name): value for name, value in self.engine.executor.gauges().items()}
        self._step += 1
        try:
            for tag, value in values.items():
                if np.isfinite(value):
                    self._writer.add_scalar(tag, value, self._step)
            self._writer.flush()
        except Exception as error:  # the writer hands on whatever its thread met, a full disk above all
            self._once.failure(error)
        else:
            self._once.success()

    def close(self) -> None:
        """Write the last point and close the file."""
        self.write()
        try:
            self._writer.close()
        except Exception as error:
            self._once.failure(error)

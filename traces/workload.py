"""Workloads: what arrives when, for which model, how urgent, and by when it must be answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from traces.errors import InputError
from traces.files import atomic_path
from traces.recorded import TimedRows
from traces.tables import Chunk

HIGH, LOW = 0, 1
PRIORITIES = ("high", "low")
HIGH_WEIGHT = 5.0  # what a violation of high priority counts where nothing else is said; one of low priority counts 1
DAY_MS = 86_400_000.0
COLUMNS = ("arrival_ms", "model", "priority", "deadline_ms")


@dataclass(frozen=True, eq=False)
class Workload(TimedRows):
    """Requests of one run, sorted by arrival. All arrays have length R, one entry per request.

    Attributes:
        arrival_ms: float64 (R,), from the start of the run, non-decreasing, not negative.
        model: int32 (R,), index into `models`.
        priority: int8 (R,), 0 = high, 1 = low.
        deadline_ms: float64 (R,), relative to the arrival, positive.
        models: names of the models; may name some that no request asks for.
        name: what the workload is called in reports.

    Raises:
        InputError: an array has another length or shape, or a value breaks the rules above.
    """

    arrival_ms: np.ndarray
    model: np.ndarray
    priority: np.ndarray
    deadline_ms: np.ndarray
    models: tuple[str, ...]
    name: str = "workload"

    def __post_init__(self) -> None:
        self._set_arrays({"arrival_ms": np.float64, "model": np.int32, "priority": np.int8, "deadline_ms": np.float64})
        object.__setattr__(self, "models", tuple(self.models))
        if len(set(self.models)) != len(self.models):
            raise InputError(f"workload {self.name!r}: model names repeat: {list(self.models)}")
        last = len(self.models) - 1
        self._refuse((self.model < 0) | (self.model > last), "model", f"expected from 0 to {last}")
        self._refuse((self.priority < 0) | (self.priority > 1), "priority", "expected 0 (high) or 1 (low)")
        bad = ~np.isfinite(self.deadline_ms) | (self.deadline_ms <= 0)
        self._refuse(bad, "deadline_ms", "expected finite, above 0")

    def describe(self) -> str:
        """A few lines for people: size, rate, shares of models and priorities, deadlines."""
        lines = [
            f"{self.name}: {len(self)} requests in {self.duration_ms / 1e3:.3f} s ({self.rate_rps:.2f} requests/s)"
        ]
        if len(self):
            lines.append(f"  high priority {100 * float(np.mean(self.priority == HIGH)):.1f} %")
            for index, model in enumerate(self.models):
                mine = self.model == index
                if mine.any():
                    low, high = self.deadline_ms[mine].min(), self.deadline_ms[mine].max()
                    share = 100 * float(np.mean(mine))
                    lines.append(f"  {model}: {share:.1f} %, deadlines {low:.3g} to {high:.3g} ms")
        return "\n".join(lines)

    def save(self, path: Path | str) -> None:
        """Write .parquet, .csv or .csv.gz, whole or not at all; floats survive exactly."""
        path = Path(path)
        frame = pd.DataFrame(
            {
                "arrival_ms": self.arrival_ms,
                "model": pd.Categorical.from_codes(self.model.astype(np.int64), pd.Index(self.models)),
                "priority": pd.Categorical.from_codes(self.priority.astype(np.int64), pd.Index(PRIORITIES)),
                "deadline_ms": self.deadline_ms,
            }
        )
        if not path.name.endswith((".parquet", ".csv", ".csv.gz")):
            raise InputError(f"{path}: a workload is saved as .parquet, .csv or .csv.gz")
        with atomic_path(path) as temporary:
            if path.suffix == ".parquet":
                frame.to_parquet(temporary, compression="zstd", index=False)
            else:
                frame.to_csv(temporary, index=False, compression="gzip" if path.suffix == ".gz" else None)

    @classmethod
    def load(cls, path: Path | str, models: Sequence[str] | None = None, name: str | None = None) -> Workload:
        """Read a workload file (.parquet, .csv, .csv.gz) with the columns of `COLUMNS`; times become ms from its start.

        Args:
            path: the file; rows may be in any order.
            models: the known models, which fix the indices; a file that names another is refused. None takes the
                models from the file (in their stored order in Parquet, sorted by name in CSV).
            name: name of the workload; None takes the file's.

        Raises:
            InputError: the file is missing, a column is missing, or a value is wrong (with its line or row).
        """
        path = Path(path)
        chunk = Chunk.of_parquet(path, COLUMNS) if path.suffix == ".parquet" else Chunk.joined(path, COLUMNS)
        labels, priority = chunk.rows["model"], chunk.rows["priority"].astype(str)
        arrival, deadline = chunk.arrivals_ms("arrival_ms"), chunk.milliseconds("deadline_ms")
        start = float(arrival.min(initial=np.inf))
        if DAY_MS <= start < np.inf:  # a slice of a longer record, or stamps since 1970: that was no idle time
            arrival = arrival - start
        kinds = labels.cat.categories if isinstance(labels.dtype, pd.CategoricalDtype) else labels
        if isinstance(kinds.dtype, pd.StringDtype):
            nameless = (labels.isna() | (labels == "")).to_numpy()
        else:  # a column of Parquet may hold anything
            nameless = np.array([not isinstance(label, str) or label == "" for label in labels], bool)
        chunk.fail(nameless, "model", "expected the name of a model")
        chunk.fail(~priority.isin(PRIORITIES).to_numpy(), "priority", "expected 'high' or 'low'")
        chunk.fail(deadline <= 0, "deadline_ms", "must be above 0")
        stored = labels.cat.categories if isinstance(labels.dtype, pd.CategoricalDtype) else sorted(set(labels))
        known = tuple(models) if models is not None else tuple(map(str, stored))
        chunk.fail(~labels.isin(known).to_numpy(), "model", f"expected one of {', '.join(known)}")
        number = pd.Categorical(labels, categories=list(known)).codes
        level = np.where((priority == "high").to_numpy(), HIGH, LOW)
        order = np.argsort(arrival, kind="stable")
        title = name or path.name.split(".")[0]
        return cls(arrival[order], number[order], level[order], deadline[order], known, title)


@dataclass(frozen=True)
class WorkloadConfig:
    """How models, priorities and deadlines are laid over arrivals.

    Attributes:
        model_share: share of each model in the requests, by name, in any unit (normalised); a model that is left out
            gets none. None gives all models the same share.
        high_fraction: probability that a request is of high priority, in [0, 1].
        deadline_factor_high: deadline of a high-priority request over the model's solo latency at batch size 1.
        deadline_factor_low: the same for low priority.
        min_deadline_ms: no deadline is shorter than this.
    """

    model_share: dict[str, float] | None = None
    high_fraction: float = 0.3
    deadline_factor_high: float = 4.0
    deadline_factor_low: float = 10.0
    min_deadline_ms: float = 0.0


def make_workload(
    arrival_ms: np.ndarray,
    models: Sequence[str],
    solo_ms: np.ndarray,
    config: WorkloadConfig,
    rng: np.random.Generator,
    name: str = "workload",
) -> Workload:
    """Give every arrival a model, a priority and a deadline, each drawn independently.

    Two numbers are drawn for every arrival whatever the configuration, so that workloads that differ in one setting
    share all other randomness.

    Args:
        arrival_ms: (R,) sorted, from 0.
        models: M names.
        solo_ms: (M,) solo latency at batch size 1 (both copies and execution), ms.
        config: shares, fractions and deadline factors.
        rng: source of randomness.
        name: name of the workload.

    Raises:
        InputError: a setting is out of range, or `model_share` names an unknown model.
    """
    share = _shares(models, config.model_share)
    solo = np.asarray(solo_ms, dtype=np.float64)
    if solo.shape != (len(models),) or not np.all(np.isfinite(solo) & (solo > 0)):
        raise InputError(f"solo_ms: {solo.tolist()}; expected one positive latency for each of {len(models)} models")
    if not 0 <= config.high_fraction <= 1:
        raise InputError(f"high_fraction: {config.high_fraction}; must be from 0 to 1")
    for field in ("deadline_factor_high", "deadline_factor_low"):
        if not (np.isfinite(getattr(config, field)) and getattr(config, field) > 0):
            raise InputError(f"{field}: {getattr(config, field)}; must be above 0")
    draws = rng.random((len(arrival_ms), 2))
    # The last edge is 1, above every draw; side="right" never picks a model whose share is 0.
    edges = np.cumsum(share)
    edges[-1] = 1.0
    model = np.searchsorted(edges, draws[:, 0], side="right")
    model = np.minimum(model, np.flatnonzero(share)[-1]).astype(np.int32)
    priority = np.where(draws[:, 1] < config.high_fraction, HIGH, LOW).astype(np.int8)
    factor = np.where(priority == HIGH, config.deadline_factor_high, config.deadline_factor_low)
    deadline = np.maximum(factor * solo[model], config.min_deadline_ms)
    return Workload(np.asarray(arrival_ms, dtype=np.float64), model, priority, deadline, tuple(models), name)


def _shares(models: Sequence[str], model_share: dict[str, float] | None) -> np.ndarray:
    if not models:
        raise InputError("models: none given; expected at least one")
    if model_share is None:
        return np.full(len(models), 1.0 / len(models))
    unknown = [model for model in model_share if model not in models]
    if unknown:
        raise InputError(f"model_share: unknown model {unknown[0]!r}; known are {', '.join(models)}")
    share = np.array([model_share.get(model, 0.0) for model in models], dtype=np.float64)
    if not np.all(np.isfinite(share) & (share >= 0)) or share.sum() <= 0:
        raise InputError(f"model_share: {model_share}; expected shares of at least 0 with a sum above 0")
    return share / share.sum()

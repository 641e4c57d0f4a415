"""What a trace format is, and how the rows that it reads become `Arrivals`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from traces.errors import InputError
from traces.recorded import Arrivals
from traces.tables import header_of

MAX_ARRIVALS = 200_000_000
# Stamps count as recorded in steps when at least this share of the arrivals has the stamp of the one before it.
STEPPED_SHARE = 0.01
# Stamps since 1970 in s (2001 to 2033), ms, us and ns: from, to, unit in ms. As times from a start they would be years.
SINCE_1970 = ((1e9, 2e9, 1e3), (1e11, 1e14, 1.0), (1e14, 1e17, 1e-3), (1e17, np.inf, 1e-6))


@dataclass(frozen=True)
class Rows:
    """Some rows of a trace, in any order.

    Attributes:
        time_ms: (n,) time of each arrival, or start of each step.
        count: (n,) arrivals in each step, where a format records counts; None: each row is one arrival.
        step_ms: length of a step.
    """

    time_ms: np.ndarray
    count: np.ndarray | None = None
    step_ms: float = 0.0


@dataclass(frozen=True)
class TraceFormat:
    """A trace format: one file of this folder, and one line of the registry.

    Attributes:
        name: what users call it.
        matches: tells from the path and the first line of the file whether it is in this format.
        read: yields the rows, in chunks, in any order; raises InputError `file:line: ...` for a malformed line.
        usual_rps: least and greatest mean rate at which a file in which nothing but the format tells the unit of the stamps is
            believed to have the format's; beyond, a user must name the format.
        step_ms: step that stamps may be rounded to, in which case arrivals are spread over it; 0: they are exact.
    """

    name: str
    matches: Callable[[Path, str], bool]
    read: Callable[[Path], Iterator[Rows]]
    step_ms: float = 0.0
    usual_rps: tuple[float, float] = (0.0, np.inf)


def columns_of(line: str) -> set[str]:
    """Names in a CSV header."""
    return set(header_of(line))


def stamps_ms(stamps: np.ndarray, unit_ms: float) -> np.ndarray:
    """Stamps in a format's unit as ms; those since 1970 show their unit by their size, whatever the format's is."""
    least = stamps.min(initial=np.inf)
    for low, high, since_1970_ms in SINCE_1970:
        if low <= least < high:
            return stamps * since_1970_ms
    return stamps * unit_ms


def assemble(trace: TraceFormat, path: Path, name: str, seed: int) -> Arrivals:
    """Read a file and make sorted `Arrivals` of it, from the first stamp on; see `load_arrivals`."""
    rng = np.random.default_rng(seed)
    parts, total, resolution_ms, first_ms = [], 0.0, 0.0, np.inf
    for rows in trace.read(path):
        total += float(len(rows.time_ms) if rows.count is None else rows.count.sum())
        if total > MAX_ARRIVALS:
            raise InputError(f"{path}: more than {MAX_ARRIVALS} arrivals; keep fewer rows of the file")
        times = rows.time_ms if rows.count is None else np.repeat(rows.time_ms, rows.count)
        first_ms = min(first_ms, times.min(initial=np.inf))
        # Nothing is drawn where there is nothing to spread: the seed then means the same for every format.
        parts.append(times + rng.random(len(times)) * rows.step_ms if rows.step_ms else times)
        resolution_ms = max(resolution_ms, rows.step_ms)
    if not np.isfinite(first_ms):
        raise InputError(f"{path}: holds no arrival")
    # A slice of a recording and stamps since 1970 begin at 0, too: what comes before the first stamp is no idle time.
    times = np.sort(np.concatenate(parts)) - first_ms
    if trace.step_ms:
        times, resolution_ms = spread_steps(times, trace.step_ms, rng)
    return Arrivals(times, name, resolution_ms)


def spread_steps(times_ms: np.ndarray, step_ms: float, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Spread arrivals that were stamped with the start of a step uniformly over that step.

    A file may have a finer step than its format: the 10th percentile of the gaps between different stamps, since jitter
    makes some gaps a little longer and idle times make some much longer. No arrival passes the next stamp.

    Args:
        times_ms: sorted stamps.
        step_ms: the format's step.
        rng: source of randomness.

    Returns:
        The sorted times, and the step in ms: 0, with the times as they were, when the stamps hardly ever repeat.
    """
    stamps, place, count = np.unique(times_ms, return_inverse=True, return_counts=True)
    if np.sum(count - 1) < STEPPED_SHARE * len(times_ms):
        return times_ms, 0.0
    gaps = np.diff(stamps)
    if len(gaps):
        step_ms = min(step_ms, float(np.quantile(gaps, 0.1, method="lower")))
    room = np.minimum(np.append(gaps, step_ms), step_ms * 1.05)
    return np.sort(times_ms + rng.random(len(times_ms)) * room[place]), step_ms

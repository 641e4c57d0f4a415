"""The scheduler's predictor under shifts, and what it costs: parts of benchmarks.predictor."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from benchmarks.interference.coruns import folds
from envs.profiles.profile import Profile
from envs.profiles.replay import Log, MeasuredReplay, Replayed
from envs.scheduling.candidates import action_of
from envs.scheduling.forecast import predict_finishes, refresh_forecast
from envs.scheduling.jit import njit
from envs.scheduling.operations import clear, complete, dispatch, enqueue
from envs.scheduling.predictor import advance
from envs.scheduling.state import LOW, make_state
from traces.measurements import Measurements

WINDOW = 25  # batches over which an error is averaged
AFTER = 200  # batches judged after a shift
SLOWER = 1.5
LONGEST_WARM_UP = 1500  # batches before a shift
SETTLED = 50  # watched batches after a shift from which coverage counts
RECOVERED = 1.2  # error over steady error at which the predictor has recovered


class Shift(NamedTuple):
    """What happened after a shift, over all times at which it was tried.

    Attributes:
        name: the shift.
        recovery: batches until the error was back.
        curve: error over steady error by batches since the shift.
        figures: what a table shows: recovery, the error without the shift, and coverage of the 90 and 95 % quantiles once
            recovered, over all batches and over those concerned (which has no promise: quantiles are by number of co-runners).
    """

    name: str
    recovery: int
    curve: np.ndarray
    figures: dict[str, float]


def split(measurements: Measurements, group: np.ndarray) -> tuple[Measurements, np.ndarray, np.ndarray]:
    """Split a campaign, whose batches are of co-location sets ``group`` (N,), by run into training and test.

    Returns:
        The training runs and all solo runs; (N,) batches of test runs; (N,) those of them whose set no training run has.
    """
    frame = measurements.batches
    run = frame["run"].to_numpy().astype(np.int64)
    test = (folds(run, 2) == 0) & (frame["kind"] != "solo").to_numpy()
    train = Measurements(measurements.machine, frame[~test].reset_index(drop=True))
    return train, test, test & ~np.isin(group, group[~test])


def shifts(profile: Profile, streams: int, log: Log, times: int) -> list[Shift]:
    """Try each shift at some times in the test runs.

    The device slows down: all times are 1.5 times as long from then on. A new model: the predictor never learned from it
    before. Other batch sizes: before, it learned from the two smallest only.

    Args:
        profile: what the scheduler knows, its prior fitted to training runs.
        streams: K.
        log: batches of the test runs.
        times: how often each shift is tried.
    """
    starts = np.flatnonzero(np.concatenate(([True], np.diff(log.run) != 0)))
    n = len(log)
    cuts = [int(starts[np.searchsorted(starts, n * (i + 1) // (times + 2))]) for i in range(times)]
    cuts = [c for c in cuts if n - c > AFTER + WINDOW]
    new = int(np.argmax(np.bincount(log.model, minlength=len(profile.models))))
    cases = {
        f"device {SLOWER:g} x slower": (SLOWER, np.ones(n, bool)),
        f"new model ({profile.models[new]})": (1.0, log.model == new),
        "other batch sizes": (1.0, log.size >= 2),
    }
    return [_try(name, profile, streams, log, cuts, *case) for name, case in cases.items() if cuts]


def _try(
    name: str, profile: Profile, streams: int, log: Log, cuts: list[int], factor: float, watched: np.ndarray
) -> Shift:
    """Try one shift: times are longer by a factor or, where that is 1, nothing was learned of the watched batches before."""
    steady_errors, shifted_errors, covered, covered_watched = [], [], [], []
    for cut in cuts:
        before = np.arange(max(0, cut - LONGEST_WARM_UP), cut)
        # Enough batches that those watched among them fill the span that is judged.
        share = max(float(watched[cut:].mean()), 1e-3)
        after = np.arange(cut, min(len(log), cut + int((AFTER + WINDOW) / share * 1.1)))
        pick = watched[after]
        warm, blank = MeasuredReplay(profile, streams), MeasuredReplay(profile, streams)
        warm.run(log.take(before))
        blank.run(log.take(before), watched[before] if factor == 1.0 else None)
        steady, shifted = warm.run(log.take(after)), blank.run(log.take(after).slower(factor))
        steady_errors.append(_errors(steady)[pick][: AFTER + WINDOW])
        shifted_errors.append(_errors(shifted)[pick][: AFTER + WINDOW])
        within = shifted.total_ms[:, None] <= shifted.predicted_ms[:, None] * shifted.scale[:, 1:]
        settled = np.cumsum(pick) > SETTLED
        covered.append(within[settled])
        covered_watched.append(within[settled & pick])
    length = min(len(e) for e in steady_errors)
    base, ours = (np.mean([e[:length] for e in tried], axis=0) for tried in (steady_errors, shifted_errors))
    window = np.ones(WINDOW) / WINDOW
    curve = np.convolve(ours, window, "valid") / np.convolve(base, window, "valid")
    recovery = next(iter(np.flatnonzero(curve <= RECOVERED).tolist()), length)
    shares = [100.0 * np.concatenate(part).mean(axis=0) for part in (covered, covered_watched)]
    names = ("coverage 90", "coverage 95", "coverage 90, new", "coverage 95, new")
    figures = {"recovery, batches": recovery, "steady error, %": float(100.0 * base.mean())}
    return Shift(name, recovery, curve, figures | dict(zip(names, np.concatenate(shares).tolist(), strict=True)))


def _errors(replayed: Replayed) -> np.ndarray:
    return np.abs(replayed.known_ms / replayed.exec_ms - 1.0)


@njit
def _live(st, tb, n, n_models):
    """Dispatch and complete n batches over all streams, one after the other; every batch is predicted and learned from."""
    n_sizes = tb.size.shape[0]
    streams = st.stream.shape[1]
    t = st.scheduler[0].now
    for i in range(n):
        k = i % streams
        if st.stream[0, k].busy == 1:
            t += 1.0 + 0.1 * (i % 7)
            complete(st, tb, 0, t, k, t - st.stream[0, k].start)
            st.scheduler[0].n_ended = 0
        m = i % n_models
        b = i // n_models % n_sizes
        for _ in range(tb.size[b]):
            enqueue(st, tb, 0, t, LOW, m, i, np.inf)
        advance(st, tb, 0, t)
        st.scheduler[0].next_stream = k
        refresh_forecast(st, tb, 0)
        predict_finishes(st, tb, 0, m, b)
        dispatch(st, tb, 0, action_of(tb, n_models, LOW, m, b))


def update_cost_us(profile: Profile, streams: int, batches: int = 20_000) -> float:
    """Time of one batch's prediction and update in us, queue and bookkeeping included: best of 5 compiled loops.

    Nothing is allocated: envs.scheduling.jit compiles without Numba's runtime, so code that allocates does not compile at all.
    """
    tables = profile.tables()
    n_models = len(profile.models)
    state = make_state(1, n_models, tables.size, streams, int(tables.size[-1]) + 1)
    clear(state, tables, 0)
    _live(state, tables, 2 * streams, n_models)
    best = np.inf
    for _ in range(5):
        start = time.perf_counter()
        _live(state, tables, batches, n_models)
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / batches

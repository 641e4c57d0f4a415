"""Measured batches fed through the scheduling state: what the scheduler's own predictor would have said, batch by batch.

Each batch is dispatched and completed at its measured times on its measured stream; the predictor learns as it would
live (predict, then update). Two predictions are kept: that of the dispatch, which cannot know what is dispatched later, and
that for the measured schedule of the co-runners, which is what an interference model alone answers for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from envs.profiles.profile import Profile
from envs.profiles.segments import model_and_size
from envs.scheduling.candidates import action_of
from envs.scheduling.operations import clear, complete, dispatch, enqueue, fail
from envs.scheduling.predictor import OVERDUE_SHARE, advance
from envs.scheduling.state import LOW, QUANTILES, Tables, make_state
from traces.errors import InputError
from traces.measurements import PHASES, Measurements

FAR = 1e6  # work in solo times: a batch that is known to run on does not end


@dataclass(frozen=True)
class Log:
    """N batches in order of dispatch, with times in ms on one clock.

    Attributes:
        row: (N,) row in the campaign. run: (N,) scenario. stream: (N,). model: (N,) index. size: (N,) index of the batch size.
        dispatch: (N,) begin: (N,) end: (N,) execution. finish: (N,) copy back done.
    """

    row: np.ndarray
    run: np.ndarray
    stream: np.ndarray
    model: np.ndarray
    size: np.ndarray
    dispatch: np.ndarray
    begin: np.ndarray
    end: np.ndarray
    finish: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, at: np.ndarray) -> Log:
        """The batches of ``at``: a mask or indices."""
        return Log(**{name: getattr(self, name)[at] for name in self.__dataclass_fields__})

    def slower(self, factor: float) -> Log:
        """The same batches on a device that takes ``factor`` times as long for everything."""
        origin = self.dispatch.min() if len(self) else 0.0
        times = ("dispatch", "begin", "end", "finish")
        return replace(self, **{name: origin + factor * (getattr(self, name) - origin) for name in times})


@dataclass(frozen=True)
class Replayed:
    """What was predicted and what was measured, for N batches in order of dispatch.

    Attributes:
        total_ms: (N,) measured from dispatch to finish. predicted_ms: (N,) predicted at dispatch.
        exec_ms: (N,) measured execution. known_ms: (N,) predicted for the measured schedule of the co-runners.
        scale: (N, Q) calibrated quantiles of total over predicted at dispatch. n_corunners: (N,) batches in flight at dispatch.
    """

    total_ms: np.ndarray
    predicted_ms: np.ndarray
    exec_ms: np.ndarray
    known_ms: np.ndarray
    scale: np.ndarray
    n_corunners: np.ndarray

    def take(self, at: np.ndarray) -> Replayed:
        """The batches of ``at``: a mask or indices."""
        return Replayed(**{name: getattr(self, name)[at] for name in self.__dataclass_fields__})

    def coverage(self, level: float) -> float:
        """Share of batches that finished within the quantile of ``level`` (one of envs.scheduling.state.QUANTILES)."""
        if level not in QUANTILES:
            raise InputError(f"quantile {level}: expected one of {', '.join(map(str, QUANTILES))}")
        return float(np.mean(self.total_ms <= self.predicted_ms * self.scale[:, QUANTILES.index(level)]))


def log_of(measurements: Measurements) -> Log:
    """The batches of a campaign as a log.

    Raises:
        InputError: a batch size that machine.json does not list.
    """
    frame = measurements.batches
    model, size = model_and_size(measurements)
    run = frame["run"].to_numpy()
    late = _laid_out(run, frame["dispatch_ms"].to_numpy(), frame["d2h_end_ms"].to_numpy())
    order = np.argsort(frame["dispatch_ms"].to_numpy() + late, kind="stable")
    phases = {name: (frame[name].to_numpy() + late)[order] for name in PHASES}
    return Log(
        row=order,
        run=run[order],
        stream=frame["stream"].to_numpy()[order].astype(np.int64),
        model=model[order],
        size=size[order],
        dispatch=phases["dispatch_ms"],
        begin=phases["exec_start_ms"],
        end=phases["exec_end_ms"],
        finish=phases["d2h_end_ms"],
    )


def _laid_out(run: np.ndarray, start: np.ndarray, end: np.ndarray) -> np.ndarray:
    """Delay (N,) that puts each run after the one before: runs share the device, but not always a clock."""
    names, which = np.unique(run, return_inverse=True)
    first, last = np.full(len(names), np.inf), np.full(len(names), -np.inf)
    np.minimum.at(first, which, start)
    np.maximum.at(last, which, end)
    delay = np.zeros(len(names))
    free = -np.inf
    for i in np.lexsort((names, first)):
        delay[i] = max(free + 1e-3 - first[i], 0.0)
        free = last[i] + delay[i]
    return delay[which]


class MeasuredReplay:
    """One scheduler that lives through a log.

    Args:
        profile: what the scheduler is told. streams: number of streams.
        learn: whether the predictor adapts; without it the prior answers for all.
    """

    def __init__(self, profile: Profile, streams: int, learn: bool = True) -> None:
        self.tables: Tables = profile.tables()
        if not learn:
            # No forgetting factor and no quantile rate: envs.scheduling.learning.learn leaves all as it is.
            self.tables.device["forgetting"] = self.tables.device["quantile_rate"] = 0.0
        self.n_models = len(profile.models)
        self.streams = streams
        self.state = make_state(1, self.n_models, self.tables.size, streams, int(self.tables.size[-1]) + 1)
        clear(self.state, self.tables, 0)

    def run(self, log: Log, unlearned: np.ndarray | None = None) -> Replayed:
        """Feed the batches of a log.

        Args:
            log: batches; their times start anew at the scheduler's present.
            unlearned: (N,) batches that are co-runners but teach nothing (they end as failed).
        """
        st, tb = self.state, self.tables
        env, stream = st.scheduler[0], st.stream[0]
        n = len(log)
        shift = float(env.now) + 1.0 - (log.dispatch.min() if n else 0.0)
        out = Replayed(
            total_ms=log.finish - log.dispatch,
            predicted_ms=np.zeros(n),
            exec_ms=log.end - log.begin,
            known_ms=np.zeros(n),
            scale=np.zeros((n, len(QUANTILES))),
            n_corunners=np.zeros(n, np.int64),
        )
        # Ends before beginnings where both fall on one time: the stream is free then.
        events = sorted([(log.finish[i], 0, i) for i in range(n)] + [(log.dispatch[i], 1, i) for i in range(n)])
        flying: dict[int, _Flight] = {}
        for when, begins, i in events:
            t = when + shift
            self._advance(t, flying)
            k = int(log.stream[i])
            if begins:
                m, b = int(log.model[i]), int(log.size[i])
                for _ in range(int(tb.size[b])):
                    enqueue(st, tb, 0, t, LOW, m, i, np.inf)
                env.next_stream = k
                dispatch(st, tb, 0, action_of(tb, self.n_models, LOW, m, b))
                out.predicted_ms[i] = stream[k].predicted
                out.n_corunners[i] = stream[k].n_corunners
                out.scale[i] = st.scale[0, stream[k].n_corunners]
                flying[k] = _Flight(log.begin[i] + shift, log.end[i] + shift, float(stream[k].solo))
            else:
                out.known_ms[i] = flying.pop(k).predicted_ms()
                if unlearned is not None and unlearned[i]:
                    fail(st, tb, 0, t, k)
                else:
                    complete(st, tb, 0, t, k, log.end[i] - log.begin[i])
                env.n_ended = 0
        return out

    def _advance(self, t: float, flying: dict[int, _Flight]) -> None:
        """Advance to time t with what is known: who is still in flight, and since when each executes."""
        st = self.state
        now = float(st.scheduler[0].now)
        if t <= now:
            return
        stream = st.stream[0]
        before, owed = {}, {}
        for k, flight in flying.items():
            before[k], owed[k] = float(stream[k].left), float(stream[k].join_cost)
            stream[k].left = FAR
            stream[k].wait = max(flight.begin - now, 0.0)
        advance(st, self.tables, 0, t)
        for k, flight in flying.items():
            owes = float(stream[k].join_cost) - owed[k]
            done = FAR + owes - float(stream[k].left)
            stream[k].left = max(before[k] + owes - done, OVERDUE_SHARE * stream[k].solo)
            flight.solo += owes  # batches join right after an event, their dispatch
            flight.progress(now, t, done)


class _Flight:
    """A batch in flight: the work that the predictor thinks was done, and when that reaches its solo time."""

    def __init__(self, begin: float, end: float, solo: float) -> None:
        self.begin, self.end, self.solo = begin, end, solo
        self.work = self.elapsed = 0.0
        self.slow = 1.0
        self.done_at = -1.0

    def progress(self, since: float, until: float, done: float) -> None:
        """Between two events ``done`` ms of solo work were done; what lies after the measured end is left out."""
        span = until - max(since, self.begin)
        if span <= 0.0 or done <= 0.0:
            return
        executed = min(until, self.end) - max(since, self.begin)
        if executed <= 0.0:
            return
        self.slow = span / done
        if self.done_at < 0.0 and self.work + executed / self.slow >= self.solo:
            self.done_at = self.elapsed + (self.solo - self.work) * self.slow
        self.work += executed / self.slow
        self.elapsed += executed

    def predicted_ms(self) -> float:
        """Predicted execution time under the measured schedule."""
        return self.done_at if self.done_at >= 0.0 else self.elapsed + (self.solo - self.work) * self.slow

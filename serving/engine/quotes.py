"""Quotes of the live engine: `envs.scheduling.quote` on its state, learning from the requests that it ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from envs.scheduling.jit import bind
from envs.scheduling.quote import ROW, Calibration, Question, learn_quote, make_calibration, quote
from envs.scheduling.state import HIGH, OUTCOMES, QUANTILES
from serving.engine.compiled import ENV
from serving.engine.request import Observer, RequestResult
from serving.engine.scheduler import LiveScheduler

LEARNED_RPS = 200.0  # requests per second that are quoted on arrival and learned from, at most: each costs 5 us
RATE_MS = 1000.0  # over which their rate is measured
LEARNED = ("met", "late", "dropped")  # the other outcomes say nothing of the schedule


class Quote(NamedTuple):
    """What a request could expect if it were offered now.

    Attributes:
        probability: of being in time.
        finish_ms: predicted time from now to its end, by quantile: 0.5, 0.9 and 0.95, for the case that it is executed.
    """

    probability: float
    finish_ms: dict[float, float]


class Quotes(Observer):
    """Quotes requests, and learns from how some of them end.

    Args:
        scheduler: of the engine.
        order: of the policy in force, as in `agents.policies.base.PolicyKind`.
        now_ms: the engine's clock.
    """

    of_model = True

    def __init__(self, scheduler: LiveScheduler, order: Callable[[], int], now_ms: Callable[[], float]) -> None:
        self._scheduler = scheduler
        self._order = order
        self._now_ms = now_ms
        self._models = scheduler.profile.models
        self._calibration = make_calibration(1, len(self._models))
        self._rows: dict[int, np.ndarray] = {}
        self._row = np.zeros(ROW)
        self._share, self._arrived, self._since_ms = 1, 0, 0.0
        example = (self._calibration, ENV)
        question = Question(0.0, HIGH, 0, 0.0, 0)
        self._quote = bind(quote, scheduler.state, scheduler.tables, *example, question, self._row)
        self._learn = bind(learn_quote, *example, self._row, 0, 0.0)

    def quote(self, model: str, priority: int, deadline_ms: float) -> Quote:
        """What a request that arrived now could expect; nothing is offered.

        Args:
            model: name of a served model.
            priority: 0 (high) or 1 (low).
            deadline_ms: from now.

        Raises:
            KeyError: no such model.
        """
        now = self._now_ms()
        probability, predicted = self._ask(now, self._scheduler.index[model], priority, now + deadline_ms)
        # Each is learned by itself, and one may have overtaken the next.
        scale = np.maximum.accumulate(self._calibration.scale[ENV, priority])
        return Quote(probability, {level: predicted * float(factor) for level, factor in zip(QUANTILES, scale)})

    def arrives(self, result: RequestResult, model: int) -> None:
        """Quote a request on its arrival, before it is in a queue, to learn from its end; of many, one in so many."""
        self._arrived += 1
        if (passed_ms := result.offered_ms - self._since_ms) >= RATE_MS:
            self._share = max(math.ceil(1e3 * self._arrived / passed_ms / LEARNED_RPS), 1)
            self._arrived, self._since_ms = 0, result.offered_ms
        if result.id % self._share:
            return
        self._ask(result.offered_ms, model, result.priority, result.deadline_ms)
        self._rows[result.id] = self._row.copy()

    def request_ended(self, result: RequestResult) -> None:
        """Learn from its end."""
        row = self._rows.pop(result.id, None)
        if row is not None and result.outcome in LEARNED:
            ended_at = result.finish_ms if result.answered else np.inf
            self._learn(self._calibration, ENV, row, OUTCOMES.index(result.outcome), float(ended_at))

    def _ask(self, now: float, model: int, priority: int, deadline: float) -> tuple[float, float]:
        scheduler = self._scheduler
        if scheduler.profile.models is not self._models:
            self._change_models()
        question = Question(now, priority, model, float(deadline), self._order())
        return self._quote(scheduler.state, scheduler.tables, self._calibration, ENV, question, self._row)

    def _change_models(self) -> None:
        """The engine serves other models: what was learned of each goes with its name."""
        old, self._models = self._models, self._scheduler.profile.models
        kept = [(new, old.index(name)) for new, name in enumerate(self._models) if name in old]
        fresh: Calibration = make_calibration(1, len(self._models))
        for field, before, after in zip(Calibration._fields, self._calibration, fresh):
            if field in ("offset", "known"):
                for new, was in kept:
                    after[:, :, new] = before[:, :, was]
            else:
                after[...] = before
        self._calibration = fresh
        self._rows.clear()  # their models have other indices now

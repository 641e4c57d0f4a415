"""A policy that cannot take the server down: what it fails to decide, Strait decides."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from itertools import islice

import numpy as np

from agents.learned.names import SERVED, resolve
from agents.policies.base import Policy
from envs.scheduling.state import SchedState, Tables
from serving.engine.scheduler import LiveScheduler

log = logging.getLogger(__name__)

OVERRUN_DECAY = 0.9
OVERRUN_LIMIT = 4.0  # six overruns in a row reach it, or more than four in ten for a while
FAULT_LIMIT = 3
KEEP_DECISIONS = 100_000


class GuardedPolicy:
    """Asks a policy, times it, and checks its answer.

    A decision that raises, is not a valid candidate or DEFER, or names a wake time that is not a number, is taken by the
    fallback instead. After `FAULT_LIMIT` of these, or when decisions overrun the budget again and again, the fallback
    replaces the policy for good.

    Args:
        policy: the policy to ask.
        scheduler: what it decides on.
        budget_ms: time that a decision may take.

    Attributes:
        fallback: the policy that is asked instead.
        decisions: decisions taken.
        fallbacks: of these, by the fallback.
        overruns: of these, over the budget.
        replaced: why the policy was replaced; None while it is in force.
        decision_us: (recent) duration of each decision in microseconds.
        on_decision: called after each decision of the policy (not of the fallback), before its effect, with the policy and
            what it decided on; outside of the time that is measured.
    """

    def __init__(self, policy: Policy, scheduler: LiveScheduler, budget_ms: float) -> None:
        self.policy = policy
        self.fallback = resolve("strait", profile=SERVED)[0]
        self.budget_ns = int(budget_ms * 1e6)
        self.decisions = 0
        self.fallbacks = 0
        self.overruns = 0
        self.replaced: str | None = None
        self.decision_us: deque[float] = deque(maxlen=KEEP_DECISIONS)
        self.on_decision: Callable[[Policy, SchedState, Tables], None] | None = None
        self._faults = 0
        self._pressure = 0.0
        self._scheduler = scheduler
        self.bind()

    def bind(self) -> None:
        """Look up what is decided on: models were added or removed, or another policy sees other tables."""
        self._state, self._tables = self._scheduler.state, self._scheduler.tables
        self._defer = self._scheduler.defer_action

    def install(self, policy: Policy) -> None:
        """Ask another policy from now on, with a clean record."""
        self.policy = policy
        self.replaced = None
        self._faults = 0
        self._pressure = 0.0

    @property
    def name(self) -> str:
        """Name of the policy in force."""
        return self.policy.name if self.replaced is None else self.fallback.name

    @property
    def order(self) -> int:
        """Which queued requests the policy in force serves before another, see `agents.policies.base.PolicyKind`."""
        return (self.policy if self.replaced is None else self.fallback).kind.order

    @property
    def drop(self) -> float:
        """Scale of solo latency at which the policy in force gives requests up; 0 never."""
        return float(self.policy.drop if self.replaced is None else self.fallback.drop)

    def decisions_since(self, count: int) -> list[float]:
        """Durations in microseconds of the decisions after the first `count`, as far as they are kept."""
        new = min(self.decisions - count, len(self.decision_us))
        return [*islice(reversed(self.decision_us), new)][::-1]

    def decide(self) -> tuple[int, float]:
        """Action and wake time (absolute ms, inf for none); always a valid one."""
        begin = time.perf_counter_ns()
        fault = ""
        action, wake = self._defer, math.inf
        if self.replaced is None:
            try:
                chosen, when = self.policy.decide(self._state, self._tables)
                fault = self._fault(chosen, when)
                if not fault:
                    action, wake = int(chosen), float(when)
            except Exception as error:  # a policy is foreign code; whatever it raises must not stop the server
                fault = f"it raised {type(error).__name__}: {error}"
        if fault or self.replaced is not None:
            self.fallbacks += 1
            action, wake = self.fallback.decide(self._state, self._tables)
        spent = time.perf_counter_ns() - begin
        self.decisions += 1
        self.decision_us.append(spent / 1e3)
        if fault:
            self._on_fault(fault)
        elif self.replaced is None:
            if self.on_decision is not None:
                self.on_decision(self.policy, self._state, self._tables)
            self._on_time(spent)
        return action, wake

    def _fault(self, action: object, wake: object) -> str:
        if not isinstance(action, (int, np.integer)) or not 0 <= action <= self._defer:
            return f"action {action!r} is outside 0..{self._defer}"
        if not isinstance(wake, (int, float)) or math.isnan(wake):
            return f"wake time {wake!r} is not a number"
        if action != self._defer and not self._scheduler.valid(int(action)):
            return f"action {action} cannot be dispatched now"
        return ""

    def _on_fault(self, fault: str) -> None:
        self._faults += 1
        log.warning("policy %s failed (%d of %d): %s", self.policy.name, self._faults, FAULT_LIMIT, fault)
        if self._faults >= FAULT_LIMIT:
            self._replace(fault)

    def _on_time(self, spent_ns: int) -> None:
        over = spent_ns > self.budget_ns
        self.overruns += over
        self._pressure = OVERRUN_DECAY * self._pressure + over
        if self._pressure > OVERRUN_LIMIT:
            self._replace(f"decisions take longer than {self.budget_ns / 1e6:g} ms again and again")

    def _replace(self, reason: str) -> None:
        self.replaced = reason
        log.error("policy %s is replaced by %s: %s", self.policy.name, self.fallback.name, reason)

"""Trials of the look-ahead: actions taken in copies of the worlds, which meet the same arrivals, device and noise."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from agents.evaluation.clairvoyant import WorldRows, copy_world, world_rows
from agents.policies.base import Policy, call_compiled
from envs.scheduling.jit import njit
from envs.scheduling.state import HIGH, MET, WAITING
from envs.simulation.events import step, violation_cost
from envs.simulation.worlds import Worlds


@njit
def _clear(world, env, now):
    """Forget how requests of world e with deadlines after ``now`` ended; returns the first of these."""
    first = 0
    while first < world.episode[env].n and world.request[env, first].deadline <= now:
        first += 1
    for i in range(first, world.episode[env].n):
        world.request[env, i].outcome = WAITING
    return first


class Trials(NamedTuple):
    """What is tried out, and what came of it.

    Attributes:
        here: rows of the worlds, as ``world_rows`` gives them.
        there: rows of their twins.
        tried: (N, K) actions; those below 0 are not tried.
        usual: (N,) the usual actions.
        wakes: (N,) times until which a deferral lasts.
        tau_ms: time constant of the discount, ms.
        emphasis: see ``Twins``.
        gains: (N, K) output.
    """

    here: WorldRows
    there: WorldRows
    tried: np.ndarray
    usual: np.ndarray
    wakes: np.ndarray
    tau_ms: float
    emphasis: float
    gains: np.ndarray


@njit
def _return(choose, memory, params, sim, env, action, wake, tau_ms, emphasis):
    """Return of world e when ``action`` is taken and the policy decides for 3 tau from then on.

    Each request that is not met counts, discounted by how far its deadline lies ahead: at the time of its end it would seem a
    gain to be late later.
    """
    state, tables, world = sim.state, sim.tables, sim.world
    high_weight = state.scheduler[env].high_weight
    began = state.scheduler[env].now
    first = _clear(world, env, began)
    step(sim, env, action, wake)
    while world.episode[env].done == 0 and state.scheduler[env].now < began + 3.0 * tau_ms:
        then, then_wake = choose(state, tables, memory, env, params)
        step(sim, env, then, then_wake)
    total = 0.0
    for i in range(first, world.episode[env].n):
        r = world.request[env, i]
        if r.arrival > began + 3.0 * tau_ms:
            break
        if began < r.deadline <= began + 3.0 * tau_ms and r.outcome != MET:
            cost = violation_cost(high_weight, r.priority) * (emphasis if r.priority == HIGH else 1.0)
            total -= cost * math.exp((began - r.deadline) / tau_ms)
    return total


@njit
def _gains(choose, memory, params, sim, trials, lo, hi):
    """See ``Twins.gains``; for worlds lo..hi-1."""
    for env in range(lo, hi):
        usual = np.nan
        for i in range(trials.tried.shape[1]):
            trials.gains[env, i] = np.nan
            if trials.tried[env, i] < 0:
                continue
            # The usual action first, the others after it: one loop, so that the world is compiled once.
            for own in range(1 if np.isnan(usual) else 0, -1, -1):
                copy_world(trials.here, env, trials.there, env)
                action = trials.usual[env] if own == 1 else trials.tried[env, i]
                value = _return(
                    choose, memory, params, sim, env, action, trials.wakes[env], trials.tau_ms, trials.emphasis
                )
                if own == 1:
                    usual = value
                else:
                    trials.gains[env, i] = value - usual


class Twins:
    """Copies of a batch's worlds to try actions in.

    Args:
        worlds: the worlds, with autoreset.
        threads: over which the worlds are spread.
        tau_ms: time constant of the discount, ms; a trial lasts three of them.
        emphasis: factor on what a violation of high priority costs, over what it costs in rewards.
    """

    def __init__(self, worlds: Worlds, threads: int, tau_ms: float, emphasis: float) -> None:
        self.worlds = worlds
        self.tau_ms = tau_ms
        self.emphasis = emphasis
        self.twins = Worlds(worlds.config, worlds.n, autoreset=False, profile=worlds.profile)
        self.parts = [(worlds.n * i // threads, worlds.n * (i + 1) // threads) for i in range(threads)]
        self.pool = ThreadPoolExecutor(threads)

    def began(self, which: np.ndarray) -> None:
        """Begin the episodes that the worlds where ``which`` (N,) is set have just begun."""
        self.twins.reset(self.worlds.seeds, which)

    def gains(self, tried: np.ndarray, usual: np.ndarray, policy: Policy) -> np.ndarray:
        """Gain of each action (N, K) that is tried over the usual one (N,), by discounted cost of violations.

        ``policy`` decides after the action, in the twins. Actions below 0 are not tried; their gain is nan.
        """
        sim = self.twins.sim
        gains = np.zeros(tried.shape)
        wakes = self.worlds.sim.state.scheduler["now"] + self.worlds.sim.world.rules["defer_ms"]
        here, there = world_rows(self.worlds.sim), world_rows(sim)
        trials = Trials(here, there, tried, usual, wakes, self.tau_ms, self.emphasis, gains)

        def part(lo: int, hi: int) -> None:
            call_compiled(_gains, policy.kind.choose, policy.memory, policy.vector, sim.arrays, trials, lo, hi)

        list(self.pool.map(lambda bounds: part(*bounds), self.parts))
        return gains

    def close(self) -> None:
        """Stop the threads."""
        self.pool.shutdown()

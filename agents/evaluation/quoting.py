"""Quotes judged in simulation: each arrival is quoted before it is offered, and learned from once it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from agents.evaluation.rollout import prepare
from agents.policies.base import Policy, call_compiled
from envs.scheduling.jit import inlined, njit
from envs.scheduling.learning import N_QUANTILES
from envs.scheduling.quote import ROW, Question, learn_quote, make_calibration, quote
from envs.scheduling.state import MET
from envs.simulation.events import ARRIVAL, act, begin, collect, needs_decision, next_event, run_event
from envs.simulation.simulator import Simulator
from traces.workload import Workload


@njit
def _play_quoted(choose, memory, params, sim, calibration, order, rows, quoted, lo, hi):
    """Run an episode in worlds lo..hi-1; ``quoted`` (N, R, 1 + len(QUANTILES)) receives what ``quote`` said of each request."""
    state, tables, world = sim.state, sim.tables, sim.world
    for env in range(lo, hi):
        episode = world.episode[env]
        own = state.scheduler[env]
        begin(sim, env, world.episode[env].seed)
        while episode.done == 0:
            ready = needs_decision(sim, env)
            _learn_ended(state, calibration, rows, env)
            if own.n_ended > 0:
                collect(sim, env)
            if ready:
                action, wake = choose(state, tables, memory, env, params)
                act(sim, env, action, wake)
                continue
            t, kind = next_event(state, world, env)
            if kind == ARRIVAL:
                i = episode.next
                r = world.request[env, i]
                question = Question(t, r.priority, r.model, r.deadline, order)
                quoted[env, i, 0], predicted = quote(state, tables, calibration, env, question, rows[env, i])
                for q in range(N_QUANTILES):
                    quoted[env, i, 1 + q] = predicted * calibration.scale[env, r.priority, q]
            run_event(sim, env)
        _learn_ended(state, calibration, rows, env)
        if own.n_ended > 0:
            collect(sim, env)


@inlined
def _learn_ended(state, calibration, rows, env):
    """Learn from the requests that ended and were not collected yet."""
    own = state.scheduler[env]
    for i in range(own.n_ended):
        ended = state.ended[env, i]
        learn_quote(calibration, env, rows[env, ended.id], ended.outcome, np.inf if ended.batch < 0 else own.now)


class Quoted(NamedTuple):
    """The requests of runs whose arrivals were quoted, one after the other (R,).

    Attributes:
        probability: quoted, of being in time.
        predicted_ms: quoted time to the end by quantile, (R, len(QUANTILES)).
        in_time: what came of it.
        latency_ms: time to the end; inf where the request was never executed.
        priority: 0 or 1.
    """

    probability: np.ndarray
    predicted_ms: np.ndarray
    in_time: np.ndarray
    latency_ms: np.ndarray
    priority: np.ndarray


def run_quoted(sim: Simulator, policy: Policy, workloads: Sequence[Workload], seeds: Sequence[int]) -> Quoted:
    """As ``agents.evaluation.rollout.run``, every arrival quoted, each world learning from its own outcomes."""
    prepare(sim, policy, workloads, seeds)
    n_requests = sim.world.request.shape[1]
    calibration = make_calibration(sim.n, len(sim.profile.models))
    rows = np.zeros((sim.n, n_requests, ROW))
    said = np.zeros((sim.n, n_requests, 1 + N_QUANTILES))
    args = (sim.arrays, calibration, policy.kind.order, rows, said, 0, sim.n)
    call_compiled(_play_quoted, policy.kind.choose, policy.memory, policy.vector, *args)
    there = np.arange(n_requests) < sim.world.episode["n"][:, None]
    requests, said = sim.world.request[there], said[there]
    executed = requests["batch"] >= 0
    latency_ms = np.where(executed, requests["finish"] - requests["arrival"], np.inf)
    return Quoted(said[:, 0], said[:, 1:], requests["outcome"] == MET, latency_ms, requests["priority"])

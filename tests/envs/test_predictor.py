"""The interference predictor: bounds, learning, overdue batches, calibrated quantiles, and finish times by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agents.evaluation.rollout import request_table, run
from agents.policies.registry import make_policy
from envs.profiles.profile import synthetic_profile
from envs.scheduling import predictor
from envs.scheduling.candidates import action_of
from envs.scheduling.learning import ASYMMETRY, BIAS_RATE, HUBER_BOUND, LEAST_CALIBRATED, learn, set_core_slowdowns
from envs.scheduling.operations import clear, complete, dispatch, enqueue
from envs.scheduling.predictor import (
    CORE,
    EPS,
    FINISH,
    LEFT,
    MAX_SLOWDOWN,
    OVERDUE_SHARE,
    POST,
    WAIT,
    advance,
    follow,
    integrate,
)
from envs.scheduling.state import (
    N_FEATURES,
    QUANTILES,
    SchedState,
    Tables,
    make_state,
)
from envs.simulation.simulator import Simulator
from traces.workload import Workload

STREAMS = 4


def make(
    cores: float = 2.0, forgetting: float = 1.0, seed: int = 0, log_slowdown_rate: float = 0.0
) -> tuple[SchedState, Tables]:
    """One cleared scheduler of a made-up profile."""
    tables = synthetic_profile(cores=cores, seed=seed).tables()
    tables.device[0].forgetting = forgetting
    tables.device[0].log_slowdown_rate = log_slowdown_rate
    tables.quantile[:] = 1.0
    state = make_state(1, tables.solo.shape[1], tables.size, STREAMS, 64)
    clear(state, tables, 0)
    return state, tables


def start(state: SchedState, tables: Tables, t: float, m: int, b: int) -> int:
    """Dispatch (m, b) at time t; returns the stream."""
    for _ in range(int(tables.size[b])):
        enqueue(state, tables, 0, t, 1, m, 0, 1e9)
    return int(dispatch(state, tables, 0, action_of(tables, tables.solo.shape[1], 1, m, b)))


def core_of(tables: Tables, i: int) -> int:
    """Core of the i-th job when job i runs on stream i, counted around."""
    cores = int(tables.device[0].cores)
    return i % STREAMS % cores if cores else i % STREAMS


def put(
    state: SchedState, tables: Tables, j: int, model: int, size: int, wait: float, left: float, post: float
) -> None:
    """A batch in scratch column j, on its core."""
    follow(state, tables, 0, j, model, size)
    for row, value in ((WAIT, wait), (LEFT, left), (POST, post), (CORE, core_of(tables, j))):
        state.scratch[0, row, j] = value


def slow_finish(state: SchedState, tables: Tables, jobs: list[tuple[int, int, float, float, float]]) -> list[float]:
    """Finish times of (model, size index, wait, left, post) in the plainest Python, straight from the definition."""
    wait = [j[2] for j in jobs]
    left = [j[3] for j in jobs]
    finish = [np.inf] * len(jobs)
    w, t = state.weight[0], 0.0
    turn = tables.device[0].time_slice_ms

    def core(i: int) -> int:
        return core_of(tables, i)

    demand = [tables.demand[0, j[0], j[1]] for j in jobs]
    while any(x > 0 for x in left):
        running = [i for i in range(len(jobs)) if left[i] > 0 and wait[i] <= 0]
        on = {c: [i for i in running if core(i) == c] for c in {core(i) for i in running}}
        slow = {}
        for i in running:
            others = [np.mean([demand[j] for j in on[c]], axis=0) for c in on if c != core(i)]
            x = np.zeros(N_FEATURES)
            predictor.features(len(on[core(i)]), len(others), *demand[i], *sum(others, np.zeros(3)), x)
            bracket = min(max(1.0 + state.bias[0, jobs[i][0], jobs[i][1]] + w @ x, 1.0), MAX_SLOWDOWN)
            slow[i] = (
                bracket
                * len(on[core(i)])
                * np.exp(state.scheduler[0].log_slowdown + state.stream[0, core(i)].core_log_slowdown)
            )
        ahead = [left[i] * slow[i] for i in running] + [
            wait[i] for i in range(len(jobs)) if left[i] > 0 and wait[i] > 0
        ]
        step = min(ahead)
        t += step
        for i in range(len(jobs)):
            if i in slow:
                left[i] -= step / slow[i]
                if left[i] < EPS:
                    left[i], finish[i] = 0.0, t + jobs[i][4]
            elif left[i] > 0:
                wait[i] = wait[i] - step if wait[i] - step >= EPS else 0.0
                mates = [j for j in range(len(jobs)) if j != i and left[j] > 0 and wait[j] <= 0 and core(j) == core(i)]
                if wait[i] == 0.0 and mates:  # it joins them: half a turn is taken from an even share
                    share = min(turn / 2, left[i]) / (1 + len(mates))
                    for j in mates:
                        left[j] += share
                        left[i] -= share
    return finish


@pytest.mark.parametrize("cores", [0.0, 1.0, 2.0])
def test_finish_times_are_those_of_the_definition(cores: float) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        state, tables = make(cores, seed=int(rng.integers(5)))
        state.weight[0] = rng.normal(0.0, 0.5, N_FEATURES)
        state.bias[0] = rng.normal(0.0, 0.2, state.bias.shape[1:])
        state.scheduler["log_slowdown"] = rng.normal(0.0, 0.2)
        state.stream["core_log_slowdown"] = rng.normal(0.0, 0.1, state.stream.shape)
        set_core_slowdowns(state, 0)
        tables.device[0].time_slice_ms = rng.choice([0.0, 1.0, 6.0])
        n = int(rng.integers(1, STREAMS + 2))
        jobs = [
            (
                int(rng.integers(tables.solo.shape[1])),
                int(rng.integers(len(tables.size))),
                float(rng.choice([0.0, rng.uniform(0, 5)])),
                float(rng.uniform(0.1, 20)),
                float(rng.uniform(0, 1)),
            )
            for _ in range(n)
        ]
        for i, (m, b, wait, left, post) in enumerate(jobs):
            put(state, tables, i, m, b, wait, left, post)
        integrate(state, tables, 0, n, np.inf, False)
        assert np.allclose(state.scratch[0, FINISH, :n], slow_finish(state, tables, jobs), rtol=1e-9, atol=1e-6)


def test_nothing_is_faster_than_alone() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        state, tables = make()
        state.weight[0] = rng.normal(-1.0, 1.0, N_FEATURES)
        state.bias[0] = -0.5
        lefts = rng.uniform(0.5, 10.0, 3)
        for i in range(3):
            put(state, tables, i, i, 0, 0.0, lefts[i], 0.0)
        integrate(state, tables, 0, 3, np.inf, False)
        assert np.all(state.scratch[0, FINISH, :3] >= lefts - 1e-9)
        assert np.all(state.scratch[0, FINISH, :3] <= 2 * MAX_SLOWDOWN * lefts.sum()), "two share a core"


def test_horizon_stops_what_has_not_ended() -> None:
    state, tables = make(cores=0.0)
    state.weight[0] = 0.0
    for i, left in enumerate((1.0, 9.0)):
        put(state, tables, i, i, 0, 0.0, left, 0.0)
    integrate(state, tables, 0, 2, 4.0, False)
    assert state.scratch[0, FINISH, 0] == pytest.approx(1.0) and state.scratch[0, FINISH, 1] == np.inf
    assert state.scratch[0, predictor.LEFT, 1] == pytest.approx(5.0)


def test_learning_recovers_the_true_weights() -> None:
    state, tables = make()
    state.weight[0] = 0.0
    state.cov[0] = 10.0 * np.eye(N_FEATURES)
    rng = np.random.default_rng(2)
    true = np.array([0.5, 0.1, 0.2, 0.3, 0.4, 0.1, 0.2, 0.15, 0.25, 0.3])
    s = state.stream[0, 0]
    for _ in range(3000):
        # The bias of the model would explain a share of the rest: it is held at 0 here.
        state.bias[0] = 0.0
        x = rng.uniform(0.0, 1.0, N_FEATURES)
        s.work, s.shared_work, s.solo, s.model, s.predicted = 2.0, 3.0, 2.0, 0, 0.0
        state.feature_sum[0, 0] = x * s.shared_work
        learn(state, tables, 0, 0, s.solo * 1.5 * (1.0 + true @ x + rng.normal(0.0, 0.02)), 1.0)
    assert np.allclose(state.weight[0], true, atol=0.02)
    assert np.all(np.linalg.eigvalsh((state.cov[0] + state.cov[0].T) / 2) > 0)


def test_straggler_moves_the_weights_no_more_than_a_bounded_error() -> None:
    moved = []
    for slowdown in (2.0, 15.0):  # of both, the same error is believed
        state, tables = make()
        state.weight[0] = 0.0
        state.n_learned[0] = 1000.0
        s = state.stream[0, 0]
        s.work, s.shared_work, s.solo, s.model, s.size_index, s.predicted = 1.0, 1.0, 1.0, 0, 0, 0.0
        state.feature_sum[0, 0] = 0.5
        learn(state, tables, 0, 0, slowdown, 1.0)
        moved.append(state.weight[0].copy())
        assert state.bias[0, 0, 0] == pytest.approx(HUBER_BOUND * (1.0 - ASYMMETRY) * BIAS_RATE)
        assert state.bias[0, 0, 1] == 0.0, "another size is not concerned"
    assert np.allclose(*moved)


@pytest.mark.parametrize("slowdown", [0.2, 0.7, 1.5, 5.0, 12.0])
def test_speed_follows_a_device_that_slows_down_and_tells_it_from_interference(slowdown: float) -> None:
    state, tables = make(log_slowdown_rate=0.2)
    weight = state.weight[0].copy()
    s = state.stream[0, 0]
    for i in range(200):
        s.work, s.shared_work, s.solo, s.model, s.size_index, s.predicted = 1.0, 1.0, 1.0, i % 6, i % 4, 0.0
        state.feature_sum[0, 0] = 0.0
        learn(state, tables, 0, 0, slowdown, 1.0)
    assert np.exp(state.scheduler[0].log_slowdown) == pytest.approx(slowdown, rel=0.1)
    assert np.array_equal(state.weight[0], weight), "nothing ran beside these batches"


@pytest.mark.parametrize("cores", [0.0, 2.0])
def test_a_slow_core_is_told_from_the_other(cores: float) -> None:
    """Batches on core 1 take 1.3 times as long, those on core 0 what was foretold; a GPU has no cores to tell apart."""
    state, tables = make(cores=cores, log_slowdown_rate=0.02)
    for i in range(60):
        s = state.stream[0, i % 2]
        assert s.core == i % 2
        s.work, s.shared_work, s.solo, s.model, s.size_index, s.predicted = 1.0, 1.0, 1.0, i % 6, i % 4, 0.0
        state.feature_sum[0, i % 2] = 0.0
        learn(state, tables, 0, i % 2, 1.3 if i % 2 else 1.0, 1.0)
    pace = state.stream[0].core_log_slowdown
    if cores:
        assert pace[1] > 0.02 > pace[0] and np.all(pace[2:] == 0.0)
    else:
        assert np.all(pace == 0.0)


def test_who_joins_a_core_has_the_first_turn_in_truth_as_it_is_told() -> None:
    made = synthetic_profile(1, cores=1.0)
    free = np.full_like(made.solo_ms, 1e-9)
    profile = replace(
        made,
        time_slice_ms=1.0,
        solo_ms=np.full_like(free, 10.0),
        h2d_ms=free,
        d2h_ms=free,
        dispatch_ms=0.0,
        residual=np.zeros(1),
    )
    zero = np.zeros(2, np.int32)
    workload = Workload(np.array([0.0, 4.0]), zero, zero.astype(np.int8), np.full(2, 1e6), profile.models)
    sim = Simulator(profile, 1, 2)
    run(sim, make_policy("fifo", drop=0.0), [workload], [0])
    # At 4 ms the first has 6 ms left, the second 10; of half a turn each of the two would have had a half.
    first = 4.0 + 2.0 * (6.0 + 0.25)
    np.testing.assert_allclose(request_table(sim)["finish_ms"], [first, 20.0], atol=1e-6)
    state, tables = make_state(1, 1, np.array(profile.batch_sizes), 2, 64), profile.tables()
    clear(state, tables, 0)
    start(state, tables, 0.0, 0, 0)
    advance(state, tables, 0, 4.0)
    start(state, tables, 4.0, 0, 0)
    np.testing.assert_allclose(state.stream[0].finish, [first, 20.0], atol=1e-6)
    advance(state, tables, 0, first)
    complete(state, tables, 0, first, 0, first)
    complete(state, tables, 0, 20.0, 1, 16.0)
    np.testing.assert_allclose(state.bias, 0.0, atol=1e-6)  # both took what was foretold


def test_calibration_waits_while_the_speed_is_learned() -> None:
    moves = []
    for since in (0.0, 0.1, 5.0):
        state, tables = make()
        s = state.stream[0, 0]
        s.work, s.solo, s.predicted, s.n_corunners, s.log_slowdown = 0.0, 1.0, 10.0, 1, -since
        learn(state, tables, 0, 0, 1.0, 20.0)
        moves.append(state.scale[0, 1, 1] - 1.0)
    assert moves[1] == pytest.approx(moves[0] / np.e)
    assert moves[2] == pytest.approx(moves[0] * LEAST_CALIBRATED), "it never stops"


def test_overdue_batch_keeps_a_share_of_its_work() -> None:
    state, tables = make()
    k = start(state, tables, 0.0, 0, 0)
    solo = tables.solo[0, 0, 0]
    advance(state, tables, 0, 50.0 * solo)
    assert state.stream[0, k].left == pytest.approx(OVERDUE_SHARE * solo)
    assert state.stream[0, k].busy == 1


def test_batch_alone_is_predicted_at_its_solo_latency() -> None:
    state, tables = make()
    k = start(state, tables, 0.0, 2, 1)
    expected = tables.device[0].dispatch_ms + tables.h2d[0, 2, 1] + tables.solo[0, 2, 1] + tables.d2h[0, 2, 1]
    assert state.stream[0, k].predicted == pytest.approx(expected)
    assert state.stream[0, k].finish == pytest.approx(expected)


def test_quantiles_cover_what_they_promise() -> None:
    """Ratios of actual to predicted time that shift half-way: coverage holds in the long run, before and after."""
    state, tables = make()
    rng = np.random.default_rng(3)
    covered = []
    n = 20_000
    s = state.stream[0, 0]
    for i in range(n):
        s.work, s.solo, s.predicted, s.n_corunners = 0.0, 1.0, 10.0, 1
        ratio = np.exp(0.2 * rng.standard_normal()) * (1.0 if i < n // 2 else 1.5)
        covered.append(ratio <= state.scale[0, 1])
        learn(state, tables, 0, 0, 1.0, 10.0 * ratio)
    for half in (covered[: n // 2], covered[n // 2 :]):
        assert np.allclose(np.mean(half, axis=0), QUANTILES, atol=0.015)
    assert np.all(np.diff(state.scale[0, 1]) > 0)
    assert np.all(state.scale[0, 0] == 1.0), "another number of co-runners must not move"


def test_completion_learns_from_what_was_measured() -> None:
    state, tables = make()
    before = state.weight[0].copy()
    first, second = start(state, tables, 0.0, 0, 0), start(state, tables, 0.0, 1, 0)
    predicted = state.stream[0, first].predicted
    complete(state, tables, 0, 2.0 * predicted, first, 2.0 * tables.solo[0, 0, 0])
    assert not np.array_equal(state.weight[0], before)
    assert state.scale[0, 0, 0] > 1.0, "it took longer than predicted: quantiles rise"
    assert state.stream[0, second].busy == 1


def test_clear_returns_to_the_prior() -> None:
    state, tables = make()
    state.weight[0] = 7.0
    state.bias[0] = 1.0
    state.scale[0] = 3.0
    clear(state, tables, 0)
    assert np.array_equal(state.weight[0], tables.weight[0]) and np.array_equal(state.cov[0], tables.cov[0])
    assert np.all(state.bias[0] == 0.0) and np.all(state.scale[0] == 1.0)

"""Quotes: pure, true on average, and better than the mean; and the policy's order of service is counted."""

from __future__ import annotations

import numpy as np
import pytest

from agents.evaluation.quoting import Quoted, run_quoted
from agents.evaluation.rollout import run
from agents.evaluation.suites import workload_for
from agents.policies.registry import make_policy
from benchmarks.decision_latency import busy_simulator, fill
from benchmarks.quotes import judge
from envs.profiles.profile import Profile
from envs.scheduling.operations import clear, enqueue
from envs.scheduling.quote import BY_ARRIVAL, BY_DEADLINE, BY_PRIORITY, ROW, Question, make_calibration, quote
from envs.scheduling.state import HIGH, LOW
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.workload import WorkloadConfig

PROFILE = Profile.load("gpu-v100")


def predicted_ms(sim: Simulator, priority: int, order: int, deadline: float = 1000.0, model: int = 0) -> float:
    calibration = make_calibration(1, len(PROFILE.models))
    question = Question(0.0, priority, model, deadline, order)
    return quote(sim.state, sim.tables, calibration, 0, question, np.zeros(ROW))[1]


def simulator_with_queue(priority: int, deadline: float, n: int = 64, model: int = 1) -> Simulator:
    sim = busy_simulator(PROFILE)
    clear(sim.state, sim.tables, 0)
    for i in range(n):
        enqueue(sim.state, sim.tables, 0, 0.0, priority, model, i, deadline)
    return sim


def quoted_run(kind: str, load: float, seed: int, requests: int = 20_000) -> tuple[Quoted, Simulator]:
    rate = load * measure_capacity(PROFILE)
    workload = workload_for(kind, rate, 1e3 * requests / rate, PROFILE, WorkloadConfig(), seed)
    sim = Simulator(PROFILE, n_requests=len(workload))
    return run_quoted(sim, make_policy("strait"), [workload], [seed]), sim


def test_a_quote_changes_nothing_that_a_decision_depends_on() -> None:
    asked, silent = busy_simulator(PROFILE), busy_simulator(PROFILE)
    calibration = make_calibration(1, len(PROFILE.models))
    policy = make_policy("strait")
    for seed in range(30):
        for sim in (asked, silent):
            fill(sim.state, sim.tables, np.uint64(seed), 40, 3)
        before = [np.array(array) for array in asked.state]
        now = float(asked.state.scheduler["now"][0])
        question = Question(now, seed % 2, seed % len(PROFILE.models), now + 20.0, BY_PRIORITY)
        quote(asked.state, asked.tables, calibration, 0, question, np.zeros(ROW))
        for name, array, old in zip(asked.state._fields, asked.state, before):
            if name == "scheduler":  # whether the scratch holds a candidate is no part of the state
                array, old = array.copy(), old.copy()
                array["cached_model"] = old["cached_model"] = -1
            if name != "scratch":
                assert np.array_equal(array, old), name
        assert policy.decide(asked.state, asked.tables) == policy.decide(silent.state, silent.tables)


def test_a_run_with_quotes_is_the_run_without_them() -> None:
    _, quoted = quoted_run("bursty", 1.0, 3, 3000)
    n = int(quoted.world.episode[0].n)
    rate = measure_capacity(PROFILE)
    workload = workload_for("bursty", rate, 1e3 * 3000 / rate, PROFILE, WorkloadConfig(), 3)
    plain = Simulator(PROFILE, n_requests=n)
    run(plain, make_policy("strait"), [workload], [3])
    for name in ("start", "finish", "outcome", "batch"):
        np.testing.assert_array_equal(plain.world.request[0, :n][name], quoted.world.request[0, :n][name])


@pytest.mark.parametrize(
    ("queued", "asked", "order", "waits"),
    [
        (HIGH, LOW, BY_PRIORITY, True),
        (LOW, HIGH, BY_PRIORITY, False),
        (LOW, HIGH, BY_ARRIVAL, True),
        (LOW, HIGH, BY_DEADLINE, True),
    ],
)
def test_what_is_ahead_follows_the_order_of_the_policy(queued: int, asked: int, order: int, waits: bool) -> None:
    alone = predicted_ms(simulator_with_queue(queued, 500.0, 0), asked, order)
    behind = predicted_ms(simulator_with_queue(queued, 500.0), asked, order)
    assert (behind > 1.5 * alone) == waits


def test_by_deadline_only_what_is_due_earlier_is_ahead() -> None:
    sim = simulator_with_queue(LOW, 500.0)
    assert predicted_ms(sim, LOW, BY_DEADLINE, 400.0) < predicted_ms(sim, LOW, BY_DEADLINE, 600.0)


def test_a_deadline_shorter_than_the_model_itself_is_never_met() -> None:
    sim = simulator_with_queue(LOW, 500.0, 0)
    calibration = make_calibration(1, len(PROFILE.models))
    assert quote(sim.state, sim.tables, calibration, 0, Question(0.0, HIGH, 0, 0.01, 0), np.zeros(ROW))[0] == 0.0


@pytest.mark.parametrize("load", [0.6, 0.9, 1.1])
def test_the_share_in_time_is_what_was_quoted(load: float) -> None:
    # Twelve runs together: of one, the rarer bins differ by chance.
    judged = judge(Quoted(*map(np.concatenate, zip(*(quoted_run("poisson", load, seed)[0] for seed in range(1, 13))))))
    assert judged["worst_points"] <= 3.0
    assert judged["brier"] < judged["brier_of_mean"]
    for level, share in judged["within"].items():
        assert abs(100 * share - float(level[1:])) < 2.5


def test_in_bursts_quotes_tell_late_from_in_time() -> None:
    judged = judge(quoted_run("bursty", 1.0, 2)[0])
    assert judged["worst_points"] <= 6.0
    assert judged["brier"] < 0.6 * judged["brier_of_mean"]


@pytest.mark.parametrize(("too_high", "passes"), [(0.0, True), (0.06, False)])
def test_a_perfect_forecast_passes_and_one_that_promises_too_much_does_not(too_high: float, passes: bool) -> None:
    rng = np.random.default_rng(7)
    chance = rng.uniform(0.0, 1.0, 40_000)
    in_time = rng.random(len(chance)) < chance - too_high
    nothing = np.full((len(chance), 3), np.inf)
    judged = judge(Quoted(chance, nothing, in_time, chance, np.zeros(len(chance), int)))
    assert (judged["worst_points"] <= 3.0) == passes
    assert (judged["over_chance"] < 2.0) == passes


def test_a_bin_that_chance_decides_is_not_judged() -> None:
    chance = np.repeat([0.05, 0.55], [4000, 60])
    in_time = np.arange(len(chance)) % 20 == 0  # right for the first, far off for the second
    judged = judge(Quoted(chance, np.full((len(chance), 3), np.inf), in_time, chance, np.zeros(len(chance), int)))
    assert [one["judged"] for one in judged["bins"].values()] == [True, False]
    assert judged["worst_points"] < 0.1 and judged["over_chance"] > 2.0


def test_of_a_few_requests_nothing_is_said() -> None:
    chance = np.array([0.2, 0.5])
    judged = judge(Quoted(chance, np.full((2, 3), np.inf), np.array([True, False]), chance, np.zeros(2, int)))
    assert judged["judged_share"] == 0.0 and judged["worst_points"] is None and judged["over_chance"] is None

"""The clairvoyant reference: exact on small instances, never worse than its base policy on large ones."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from agents.evaluation.clairvoyant import (
    SmallConfig,
    copy_world,
    distance_digest,
    distances,
    search,
    small_instance,
    solve,
    world_rows,
)
from agents.evaluation.rollout import run
from agents.evaluation.suites import workload_for
from agents.learned.names import resolve
from agents.policies.registry import make_policy
from envs.profiles.profile import Profile, synthetic_profile
from envs.scheduling.candidates import valid
from envs.simulation.simulator import Simulator
from traces.workload import Workload, WorkloadConfig

PROFILE = synthetic_profile(3, seed=1)
SMALL = SmallConfig(instances=6, requests=6)


def exhaustive(sim: Simulator, workload: Workload) -> float:
    """Least cost by replaying every sequence of decisions from the start, with no bound and no copy of a world."""
    best = np.inf
    open_ends: list[tuple[int, ...]] = [()]
    sim.world.rules["drop_scale"] = 1.0
    sim.load([workload])
    while open_ends:
        taken = open_ends.pop()
        sim.begin([0])
        for action in taken:
            sim.step(np.array([action]), np.array([np.inf]))
        if sim.done[0]:
            best = min(best, -float(sim.world.episode[0].ret))
            continue
        defer = sim.n_actions - 1
        open_ends += [(*taken, a) for a in range(defer + 1) if a == defer or valid(sim.state, sim.tables, 0, a)]
    return best


@pytest.mark.parametrize("seed", range(3))
def test_branch_and_bound_finds_what_exhaustion_finds(seed: int) -> None:
    few, workload = small_instance(
        PROFILE, SmallConfig(requests=3, models=2, window_share=0.1, factors=(1.3, 2.0)), seed
    )
    settings = {"n_streams": 1, "n_requests": 3, "queue_places": 4, "noise": False}
    cost, proven = solve(Simulator(few, 20, **settings), workload)  # type: ignore[arg-type]
    assert proven
    assert cost == pytest.approx(exhaustive(Simulator(few, 1, **settings), workload))  # type: ignore[arg-type]


def test_no_policy_without_timers_beats_the_optimum() -> None:
    frame = distances(PROFILE, ("fifo", "edf", "strait"), SMALL, progress=False)
    assert frame.attrs["unproven"] == 0
    assert len(frame) == 3 * SMALL.instances
    assert (frame["distance"] >= -1e-9).all()
    digest = distance_digest(frame)
    assert set(digest) == {"fifo", "edf", "strait"}
    assert set(digest["edf"]) == {"weighted", "optimum", "distance", "at_optimum_pct"}


def test_policies_take_the_parameters_of_the_profile_that_is_named() -> None:
    config = SmallConfig(instances=12, requests=5)
    profile = Profile.load("gpu-v100")
    frames = {name: distances(profile, ("symphony",), config, name, progress=False) for name in ("cpu2", "gpu-v100")}
    for name, frame in frames.items():
        for _, row in frame.iterrows():
            few, workload = small_instance(profile, config, int(row["instance"]))
            policy, _ = resolve("symphony", profile=name)
            sim = Simulator(few, 1, config.streams, config.requests, 16, noise=False)
            run(sim, policy, [workload], [0])
            high = workload.priority == 0
            cost = -100 * float(sim.world.episode[0].ret) / float(5.0 * high.sum() + (~high).sum())
            assert row["weighted"] == pytest.approx(cost)
    assert not frames["cpu2"]["weighted"].equals(frames["gpu-v100"]["weighted"])


def test_a_search_that_hits_its_limit_says_so() -> None:
    few, workload = small_instance(PROFILE, SmallConfig(window_share=0.05, factors=(1.2, 2.0)), 0)
    sim = Simulator(few, 60, 2, 9, 16, noise=False)
    assert solve(sim, workload, limit=5)[1] is False


def test_a_copied_world_goes_the_same_way() -> None:
    sim = Simulator(PROFILE, 2, 3)
    workload = workload_for("poisson", 250.0, 300.0, PROFILE, WorkloadConfig(), 2)
    sim.load([workload])
    sim.begin([5, 6])
    policy = make_policy("strait", 2)
    for _ in range(20):
        action, wake = policy.decide(sim.state, sim.tables, 0)
        sim.step(np.array([action, 0]), np.array([wake, np.inf]))
    rows = world_rows(sim, policy.memory)
    copy_world(rows, 0, rows, 1)
    for _ in itertools.takewhile(lambda _: not sim.done[0], itertools.count()):
        answers = [policy.decide(sim.state, sim.tables, e) for e in range(2)]
        assert answers[0] == answers[1]
        sim.step(np.array([a for a, _ in answers]), np.array([w for _, w in answers]))
    assert sim.world.episode[0].ret == sim.world.episode[1].ret


@pytest.mark.parametrize("seed", range(2))
def test_search_is_never_worse_than_its_base_policy(seed: int) -> None:
    profile = Profile.load("cpu2")
    workload = workload_for("bursty", 400.0, 500.0, profile, WorkloadConfig(), seed)
    sim = Simulator(profile, 2, 4, len(workload))
    base = make_policy("strait", 2)
    run(sim, base, [workload], [seed, seed])
    alone = -float(sim.world.episode[0].ret)
    found = search(sim, base, workload, seed)
    assert found <= alone
    assert found == -float(sim.world.episode[0].ret)
    assert sim.state.count[0].sum() == len(workload)

"""Routing as an environment: it is the simulated cluster, request by request."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_sb3_env

from agents.evaluation.statistics import violations
from agents.evaluation.suites import workload_for
from agents.learned.names import resolve
from agents.routing.env import RoutingEnv
from agents.routing.registry import router
from agents.routing.simulate import ClusterConfig, run_cluster
from envs.cluster.ledger import Routed
from envs.profiles.profile import Profile
from envs.scheduling import rng
from envs.scheduling.state import LOW
from traces.errors import InputError
from traces.workload import WorkloadConfig

CLUSTER = ClusterConfig(accelerators=3, slow_share=0.4, answer_delay_ms=5.0)


def test_it_passes_both_checkers_and_is_made_by_its_id() -> None:
    env = gym.make("agents.routing:Strait/Routing-v0", duration_ms=300.0).unwrapped
    check_env(env, skip_render_check=True)
    check_sb3_env(env)


@pytest.mark.parametrize("name", ["quote", "power_of_two"])
def test_an_agent_that_does_what_a_router_does_has_its_violations(name: str) -> None:
    env = RoutingEnv(cluster=CLUSTER, duration_ms=1000.0, high_weight=7.0)
    _, info = env.reset(seed=3)
    route, seed = router(name).route, info["seed"]
    over, reward, rates = False, 0.0, {}
    while not over:
        at = env._at
        arrival = env.cluster.arrival[at]
        request = Routed(*(arrival[field].item() for field in ("time", "priority", "model", "deadline")))
        with np.errstate(over="ignore"):
            draw = np.uint64(rng.mix(np.uint64(seed), at))
        action = route(env.cluster.ledger, env.cluster.profile, int(arrival["door"]), request, draw)
        _, gained, over, _, rates = env.step(np.int64(action))
        reward += gained
    profile = Profile.load(env.config.profile)
    rate = info["load"] * env._capacity_rps
    workload = workload_for("bursty", rate, 1000.0, profile, WorkloadConfig(), info["workload_seed"])
    ran = run_cluster(profile, CLUSTER, resolve("strait", 3, profile="gpu-a100")[0], router(name), workload, seed)
    np.testing.assert_array_equal(env.cluster.arrival["replica"], ran.cluster.arrival["replica"])
    violated, total = violations(ran.count)
    assert total.sum() == len(workload) and reward == -(7.0 * violated[0] + violated[1])
    assert list(rates.values()) == pytest.approx((violated / total).tolist())


def test_a_door_that_sends_all_and_hears_at_once_finds_no_work_of_others() -> None:
    env = RoutingEnv(cluster=ClusterConfig(accelerators=2), load=(1.5, 1.5), duration_ms=500.0)
    env.reset(seed=1)
    ledger = env.cluster.ledger
    over, told = False, 0
    while not over:
        _, _, over, _, _ = env.step(np.int64(env._at % 2))
        assert ledger.beside.max() == 0
        told += int(ledger.count[0, :, LOW].any() and ledger.replica["busy"].any())
    assert told > 50


def test_what_is_not_a_replica_and_a_step_behind_the_end_are_refused() -> None:
    env = RoutingEnv(cluster=CLUSTER, duration_ms=100.0)
    with pytest.raises(InputError, match="reset"):
        env.step(np.int64(0))
    env.reset(seed=0)
    with pytest.raises(InputError, match="changes what a scheduler is told"):
        RoutingEnv(policy="strait:static")
    with pytest.raises(InputError, match="from 0 to 2"):
        env.step(np.int64(3))

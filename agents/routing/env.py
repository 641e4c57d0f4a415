"""Routing as an environment: each step sends one request of a cluster to a replica.

The cluster is that of ``agents.routing.simulate``, so an agent that does what a registered router does has that router's
violations, request by request. What is observed is what a live router knows: its ledger, not the replicas.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
import numpy as np

from agents.evaluation import metric
from agents.evaluation.statistics import violations
from agents.evaluation.suites import check_workload, workload_for
from agents.policies.base import bind_loop
from agents.routing.simulate import ClusterConfig, cluster_policy, no_room, open_cluster, run_to_arrival
from envs.cluster.cluster import send_to
from envs.cluster.foretell import chance, factor, plain_and_growth_ms, work_ms
from envs.cluster.ledger import Routed
from envs.profiles.profile import Profile
from envs.scheduling.jit import njit
from envs.scheduling.state import LOW
from envs.simulation.capacity import measure_capacity
from traces.errors import InputError
from traces.settings import check_settings
from traces.workload import HIGH_WEIGHT, WorkloadConfig

# Times in mean solo latencies of the models.
REQUEST_FEATURES = ("low_priority", "slack", "solo_latency")
LOW_PRIORITY, SLACK, SOLO_LATENCY = range(len(REQUEST_FEATURES))
REPLICA_FEATURES = ("chance_in_time", "foretold_time", "growth_of_work", "work", "log_slowness")
CHANCE_IN_TIME, FORETOLD_TIME, GROWTH_OF_WORK, WORK, LOG_SLOWNESS = range(len(REPLICA_FEATURES))
N_REQUEST, N_REPLICA = len(REQUEST_FEATURES), len(REPLICA_FEATURES)
MOST = 100.0  # of any feature


@dataclass(frozen=True)
class RoutingEnvConfig:
    """What is routed, and to what.

    Attributes:
        cluster: the replicas.
        profile: of each.
        policy: decides on each replica.
        workload: kind of arrivals, as ``agents.evaluate --workloads`` takes it.
        load: offered load over the capacity of all replicas; drawn evenly for each episode.
        duration_ms: of an episode's arrivals.
        high_weight: reward lost for a violation of high priority; one of low priority loses 1.

    Raises:
        InputError: a setting is out of range.
    """

    cluster: ClusterConfig = field(default_factory=lambda: ClusterConfig(accelerators=8))
    profile: str = "gpu-a100"
    policy: str = "strait"
    workload: str = "bursty"
    load: tuple[float, float] = (0.8, 1.2)
    duration_ms: float = 2000.0
    high_weight: float = HIGH_WEIGHT

    def __post_init__(self) -> None:
        check_settings(self, "", above={"load": 0, "duration_ms": 0, "high_weight": 0})


@njit
def _observe(ledger, tables, door, request, out):
    """Write the features of the request, then those of each replica, in the order of the names above."""
    unit_ms = tables.device[0].unit_ms
    out[LOW_PRIORITY] = request.priority
    out[SLACK] = (request.deadline - request.now) / unit_ms
    out[SOLO_LATENCY] = tables.solo[0, request.model, 0] / unit_ms
    for replica in range(ledger.replica.shape[1]):
        at = N_REQUEST + replica * N_REPLICA
        plain, growth = plain_and_growth_ms(ledger, tables, door, replica, request)
        foretold = plain * factor(ledger, door, replica, request.priority)
        out[at + CHANCE_IN_TIME] = chance(ledger, door, request, foretold)
        out[at + FORETOLD_TIME] = foretold / unit_ms
        out[at + GROWTH_OF_WORK] = growth / unit_ms
        out[at + WORK] = work_ms(ledger, tables, door, replica, LOW, request.now) / unit_ms
        out[at + LOG_SLOWNESS] = ledger.replica[door, replica].log_told


class RoutingEnv(gym.Env[np.ndarray, np.int64]):
    """Observations are float32 (3 + 5 N,), in the order of `names`, actions the index of a replica. One step per request.

    The reward of a step is minus the weight of what was violated since the last one, the last step's of all that is left.

    Args:
        config: settings; None: those of `overrides` and the defaults.
        overrides: settings by name.

    Raises:
        InputError: unknown profile, policy or workload.
    """

    metadata: dict[str, Any] = {"render_modes": []}

    def __init__(self, config: RoutingEnvConfig | None = None, **overrides: Any) -> None:
        self.config = config or RoutingEnvConfig(**overrides)
        self._profile = Profile.load(self.config.profile)
        check_workload(self.config.workload, self._profile)
        self._policy = cluster_policy(self.config.policy, self.config.profile, self._profile)
        n = self.config.cluster.accelerators
        self.names = (*REQUEST_FEATURES, *(f"{name}/{i}" for i in range(n) for name in REPLICA_FEATURES))
        self.observation_space = gym.spaces.Box(-MOST, MOST, (len(self.names),), np.float32)
        self.action_space = gym.spaces.Discrete(n)
        streams = self.config.cluster.streams
        self._capacity_rps = measure_capacity(self._profile, streams) * self.config.cluster.capacity()
        self._at = -1

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Draw the arrivals, and run up to the first."""
        super().reset(seed=seed)
        config = self.config
        load = float(self.np_random.uniform(*config.load))
        drawn, noise = (int(one) for one in self.np_random.integers(2**31, size=2))
        workload = workload_for(
            config.workload, load * self._capacity_rps, config.duration_ms, self._profile, WorkloadConfig(), drawn
        )
        self.sim, self.cluster = open_cluster(self._profile, config.cluster, self._policy, workload, noise)
        self._args = (self._policy.kind.choose, self._policy.memory, self._policy.vector, self.sim.arrays, self.cluster)
        self._run = bind_loop(run_to_arrival, *self._args, 0)
        self._lost = 0.0
        self._at = 0
        return self._observation(), {"load": load, "workload_seed": drawn, "seed": noise}

    def step(self, action: np.int64) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """Send the request that has come to a replica, and run up to the next.

        Raises:
            InputError: no such replica, the episode is over, or the replica was sent many times its share.
        """
        if self._at < 0 or self._at == len(self.cluster.arrival):
            raise InputError("the episode is over; call reset()")
        if not self.action_space.contains(action):
            raise InputError(f"action {action}: expected a replica from 0 to {self.config.cluster.accelerators - 1}")
        if not send_to(self.sim.arrays, self.cluster, self._at, int(action)):
            raise InputError(f"the agent {no_room(self.sim)}")
        self._at += 1
        observation = self._observation()
        violated, total = violations(self.sim.state.count.sum(axis=0))
        lost = float(self.config.high_weight * violated[0] + violated[1])
        reward, self._lost = self._lost - lost, lost
        over = self._at == len(self.cluster.arrival)
        rates = dict(zip(metric.VIOLATION, (violated / np.maximum(total, 1)).tolist())) if over else {}
        return observation, reward, over, False, rates

    def _observation(self) -> np.ndarray:
        """Run up to the next arrival, and what is known then; zeros at the end."""
        self._run(*self._args, self._at)
        out = np.zeros(len(self.names))
        if self._at < len(self.cluster.arrival):
            arrival = self.cluster.arrival[self._at]
            place = (
                float(arrival["time"]),
                int(arrival["priority"]),
                int(arrival["model"]),
                float(arrival["deadline"]),
            )
            _observe(self.cluster.ledger, self.cluster.profile, int(arrival["door"]), Routed(*place), out)
        return np.clip(out, -MOST, MOST).astype(np.float32)

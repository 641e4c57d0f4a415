"""N simulated worlds as one object: the arrays, and the compiled loops over them.

Environments, evaluation and benchmarks all stand on this class; there is no second copy of the dynamics.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from envs.profiles.profile import Profile
from envs.profiles.truth import Truth
from envs.scheduling.jit import njit
from envs.scheduling.observation import observation_size
from envs.scheduling.state import GRACE_MS, SchedState, Tables, make_state, n_actions
from envs.simulation.events import begin, run_to_decision, step
from envs.simulation.records import SimArrays, World, make_world
from traces.errors import InputError
from traces.workload import Workload


@njit
def step_range(sim, lo, hi, actions, wakes):
    """Carry out one decision in each world lo..hi-1 that is not done."""
    world = sim.world
    for env in range(lo, hi):
        if world.episode[env].done == 0:
            step(sim, env, actions[env], wakes[env])


@njit
def begin_range(sim, lo, hi, seeds):
    """Begin an episode in each world lo..hi-1 on the arrivals it holds, and run to its first decision."""
    for env in range(lo, hi):
        begin(sim, env, seeds[env])
        run_to_decision(sim, env)


class Simulator:
    """A batch of simulated worlds.

    Args:
        profile: models and device.
        n: number of worlds.
        n_streams: streams K of each.
        n_requests: room for arrivals of one episode; longer workloads raise InputError.
        queue_places: places of each queue.
        noise: whether the truth draws residuals and stragglers.
        tables: what the schedulers are told; by default what the profile says.
        truth: what the device does; by default what the profile says, a violation of high priority costing 5, of low 1.
    """

    def __init__(
        self,
        profile: Profile,
        n: int = 1,
        n_streams: int = 4,
        n_requests: int = 4096,
        queue_places: int = 128,
        noise: bool = True,
        tables: Tables | None = None,
        truth: Truth | None = None,
    ) -> None:
        self.profile = profile
        self.n = n
        self.n_streams = n_streams
        self.tables = tables if tables is not None else profile.tables()
        self.truth = truth if truth is not None else profile.truth(n_streams, noise=noise)
        self.state: SchedState = make_state(n, len(profile.models), self.tables.size, n_streams, queue_places)
        self.world: World = make_world(n, n_streams, n_requests, len(profile.models))
        self.n_actions = n_actions(self.state, self.tables)
        self.obs_size = observation_size(self.n_actions - 1)

    @property
    def arrays(self) -> SimArrays:
        """What compiled code takes."""
        return SimArrays(self.state, self.tables, self.world, self.truth)

    def load(self, workloads: Sequence[Workload]) -> None:
        """Give each world its arrivals; with fewer workloads than worlds they repeat in turn.

        Raises:
            InputError: a workload's model is unknown to the profile, or it is longer than the room for requests.
        """
        for env in range(self.n):
            workload = workloads[env % len(workloads)]
            index = np.array([self.profile.index(model) for model in workload.models], np.int32)
            count = len(workload.arrival_ms)
            request = self.world.request[env]
            if count > len(request):
                raise InputError(
                    f"workload {workload.name!r} has {count} requests, the simulator has room for {len(request)}; "
                    "use a shorter window or a larger n_requests"
                )
            request["arrival"][:count] = workload.arrival_ms
            request["deadline"][:count] = workload.arrival_ms + workload.deadline_ms
            request["model"][:count] = index[workload.model] if count else 0
            request["priority"][:count] = workload.priority
            self.world.episode["n"][env] = count

    def end_as_served(self, workload: Workload, grace_ms: float = GRACE_MS) -> None:
        """Drop what is queued as a live engine does: once it is late by the grace, not before that for want of arrivals.

        Args:
            workload: the requests. grace_ms: see ``serving.config.EngineConfig``.
        """
        self.world.rules["end_ms"] = grace_ms + workload.deadline_ms.max(initial=0.0)
        self.world.rules["grace_ms"] = grace_ms

    def limit_memory(self, models: int, load_ms: float, spread: bool = False) -> None:
        """Let the device's memory hold so many models at once (0: all); a request for another waits until that is loaded.

        Args:
            models: how many. load_ms: how long it takes to load one.
            spread: whether the worlds begin with different ones, so that together they hold all; else all with the first.
        """
        self.world.memory["room"] = models if models < len(self.profile.models) else 0
        self.world.memory["load_ms"] = load_ms
        n_models = len(self.profile.models)
        self.world.memory["first"] = np.arange(self.n) * n_models // self.n if spread else 0

    def begin(self, seeds: Sequence[int] | np.ndarray) -> None:
        """Begin an episode in every world on the arrivals loaded. One seed a world: (n,)."""
        begin_range(self.arrays, 0, self.n, np.asarray(seeds, np.uint64))

    def step(self, actions: np.ndarray, wakes: np.ndarray) -> None:
        """One decision in every world that is not done: actions (n,) int64, wake times (n,) absolute ms."""
        step_range(self.arrays, 0, self.n, actions, wakes)

    @property
    def done(self) -> np.ndarray:
        """(n,) bool: which worlds are done."""
        return self.world.episode["done"] == 1

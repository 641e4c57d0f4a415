"""A batch of training worlds: settings to arrays, and the reset and step that all environments share.

``DualPriorityVectorEnv``, ``DualPriorityEnv`` (the batch of one) and ``SB3VecEnv`` are views of this class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import numpy as np

from envs.profiles.profile import Profile
from envs.scheduling import rng
from envs.scheduling.jit import bind
from envs.scheduling.rates import deferral_ms
from envs.simulation.capacity import make_generator, measure_capacity
from envs.simulation.config import EnvConfig, served_profile
from envs.simulation.randomise import make_randomiser
from envs.simulation.recording import load_workload, make_recording, no_recording
from envs.simulation.simulator import Simulator
from envs.simulation.step import NO_ACTIONS, NO_BEGINS, Begins, EpisodeSource, advance_range, make_step_output
from traces.errors import InputError
from traces.workload import Workload

PARTS = 4  # of the worlds for each thread; a thread takes as many of all as it gets round to


def world_seed(seed: int) -> np.uint64:
    """Seed of a world's first episode from a user's seed: neighbouring seeds give unrelated worlds."""
    with np.errstate(over="ignore"):
        return np.uint64(rng.mix(np.uint64(seed % 2**64), 0))


class Worlds:
    """N training worlds with their buffers.

    Observations and masks alternate between two buffers: what a step returned stays valid until the step after next, which
    is what stable-baselines3 needs to store it without a copy.

    Args:
        config: settings.
        n: number of worlds.
        autoreset: whether a world that ends begins its next episode in the same step.
        threads: threads over which the worlds are spread.
        profile: in place of the profile that the settings name.
        workload: in place of the recorded workload that the settings name.

    Attributes:
        capacity_rps: measured capacity, which loads refer to.
        obs: (N, O) float32, present observation. masks: (N, A) bool, present valid actions. Alternating buffers.
        out: outcome of the last step.

    Raises:
        InputError: a setting, the profile or the workload is malformed.
    """

    def __init__(
        self,
        config: EnvConfig,
        n: int = 1,
        autoreset: bool = True,
        threads: int = 1,
        profile: Profile | None = None,
        workload: Workload | None = None,
    ) -> None:
        if n < 1 or threads < 1:
            raise InputError(f"{n} worlds on {threads} threads; must be at least 1 of each")
        self.config = config
        self.n = n
        self.autoreset = autoreset
        self.profile = profile or served_profile(config)
        self.capacity_rps = measure_capacity(self.profile, config.streams, config.model_share, config.noise)
        self._set_source(config, workload)
        truth = self.profile.truth(config.streams, config.noise)
        randomiser, truth = make_randomiser(truth, config, n)
        room = config.n_requests or self._room()
        self.sim = Simulator(self.profile, n, config.streams, room, config.queue_places, truth=truth)
        self._source = EpisodeSource(self.generator, self.recording, randomiser)
        self.sim.tables.device["max_batches_per_core"] = config.max_batches_per_core
        self.sim.tables.device["mixed_batches"] = config.mixed_batches
        defer_ms = float(deferral_ms(self.sim.tables, 0, config.defer))
        self.sim.world.rules[:] = (config.drop, defer_ms, config.end_ms, np.inf)
        self.sim.limit_memory(config.models_in_memory, config.load_ms)
        self.out = make_step_output(n, self.sim.obs_size, self.sim.n_actions)
        # What alternates with it: all else of both is the same.
        self._other = self.out._replace(obs=self.out.obs.copy(), masks=self.out.masks.copy())
        n_parts = min(n, PARTS * threads) if threads > 1 else 1
        self._parts = [(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts)]
        self._helpers = threads - 1
        self._make_ready()

    def _make_ready(self) -> None:
        self._pool = ThreadPoolExecutor(max(self._helpers, 1))
        self._advance = bind(advance_range, *self._advance_arguments(0, self.n, NO_ACTIONS))

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: all but the threads and the machine code, which a copy has of its own."""
        return {name: value for name, value in vars(self).items() if name not in ("_pool", "_advance")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._make_ready()

    def _set_source(self, config: EnvConfig, workload: Workload | None) -> None:
        """Where arrivals come from: windows of a workload, or the generator."""
        self.generator = make_generator(self.profile, config, self.capacity_rps, self.n)
        self.recording = no_recording()
        if workload is None and config.workload is not None:
            workload = load_workload(config, self.profile)
        if workload is not None:
            if len(workload) == 0:
                raise InputError(f"workload {workload.name!r} holds no request")
            load = config.load
            rate = None if load is None else (load[0] * self.capacity_rps, load[1] * self.capacity_rps)
            self.recording = make_recording(workload, self.profile, rate, config.duration_ms)
        elif config.load is None:
            raise InputError("load: None needs a recorded workload; expected a number or a pair (low, high)")

    def _room(self) -> int:
        """Requests that an episode may hold. Generated bursts and recorded ones can exceed the mean."""
        if len(self.recording.arrival) and self.config.load is None:
            return len(self.recording.arrival)
        assert self.config.load is not None
        mean = self.config.load[1] * self.capacity_rps * self.config.duration_ms[1] / 1e3
        room = math.ceil(2.0 * mean + 8.0 * math.sqrt(mean)) + 16
        return min(room, len(self.recording.arrival)) if len(self.recording.arrival) else room

    def _advance_arguments(self, lo: int, hi: int, actions: np.ndarray, begins: Begins = NO_BEGINS) -> tuple:
        return (self.sim.arrays, self._source, self.out, lo, hi, actions, begins, self.autoreset)

    def reset(self, seeds: np.ndarray, which: np.ndarray | None = None) -> None:
        """Begin an episode in each world where ``which`` (N,) is set (all if None), with ``seeds`` (N,) uint64."""
        self._flip()
        self._begin(seeds, np.ones(self.n, bool) if which is None else np.ascontiguousarray(which, bool))

    def _begin(self, seeds: np.ndarray, which: np.ndarray) -> None:
        seeds = np.ascontiguousarray(seeds, np.uint64)
        self._advance(*self._advance_arguments(0, self.n, NO_ACTIONS, Begins(which, seeds)))
        for array in (self.out.reward, self.out.dt, self.out.done, self.out.invalid):
            array[which] = 0

    def refresh(self) -> None:
        """Observe worlds that somebody else has played; those that have ended begin their next episode."""
        self._flip()
        self._begin(self.next_seeds(), self.sim.world.episode["done"] == 1)

    def begin_ended(self, actions: np.ndarray) -> None:
        """As ``step``, but a world whose episode ended in the last step begins its next one, whatever its action is."""
        ended = self.out.done.copy()
        self.step(np.where(ended, self.sim.n_actions - 1, actions) if ended.any() else actions)
        if ended.any():
            self._begin(self.next_seeds(), ended)

    def step(self, actions: np.ndarray) -> None:
        """One decision in every world: ``actions`` (N,), any integer dtype. Results are in ``obs``, ``masks``, ``out``."""
        actions = np.ascontiguousarray(actions, np.int64)
        if actions.shape != (self.n,):
            raise ValueError(f"actions have shape {actions.shape}, expected {(self.n,)}")
        self._flip()
        parts = iter(self._parts)
        helpers = [self._pool.submit(self._advance_parts, parts, actions) for _ in range(self._helpers)]
        self._advance_parts(parts, actions)
        for helper in helpers:
            # Whoever has not begun by now finds nothing left to do: it is not waited for.
            if not helper.cancel():
                helper.result()

    def _advance_parts(self, parts: Iterator[tuple[int, int]], actions: np.ndarray) -> None:
        """Take parts that no other thread has taken until none is left."""
        for lo, hi in parts:
            self._advance(*self._advance_arguments(lo, hi, actions))

    def _flip(self) -> None:
        self.out, self._other = self._other, self.out

    @property
    def obs(self) -> np.ndarray:
        """(N, O) float32, present observations."""
        return self.out.obs

    @property
    def masks(self) -> np.ndarray:
        """(N, A) bool, present valid actions."""
        return self.out.masks

    @property
    def seeds(self) -> np.ndarray:
        """(N,) uint64: seeds of the episodes under way."""
        return np.asarray(self.sim.world.episode["seed"])

    def next_seeds(self) -> np.ndarray:
        """(N,) uint64: seeds of the episodes that follow those under way."""
        with np.errstate(over="ignore"):
            return np.array([rng.mix(s, rng.NEXT_EPISODE) for s in self.seeds], np.uint64)

    def _arrays(self) -> dict[str, np.ndarray]:
        groups: dict[str, Any] = {
            "state": self.sim.state,
            "world": self.sim.world,
            "truth": self.sim.truth,
            "out": self.out,
        }
        arrays = {f"{group}.{f}": getattr(tup, f) for group, tup in groups.items() for f in tup._fields}
        return arrays | {"obs": self.obs, "masks": self.masks}

    def state_dict(self) -> dict[str, np.ndarray]:
        """Everything that the future of the batch depends on, as copies: for ``load_state_dict`` or ``np.savez``."""
        arrays = {key: array.copy() for key, array in self._arrays().items()}
        return arrays | {"config": np.array(json.dumps(asdict(self.config), sort_keys=True))}

    def load_state_dict(self, arrays: dict[str, np.ndarray]) -> None:
        """Go on from where ``state_dict`` was taken.

        Raises:
            InputError: the arrays are of a batch with other settings or another size. Nothing is changed then.
        """
        mine = self.state_dict()
        for key, value in mine.items():
            if key not in arrays:
                raise InputError(f"state of a batch lacks {key!r}; was it written by state_dict?")
            got = np.asarray(arrays[key])
            if key == "config" and str(got) != str(value):
                raise InputError("state of a batch with other settings; load it into one that was made with the same")
            if key != "config" and (got.shape != value.shape or got.dtype != value.dtype):
                raise InputError(f"state of a batch: {key!r} is {got.dtype}{got.shape}, not {value.dtype}{value.shape}")
        for key, array in self._arrays().items():
            array[...] = arrays[key]

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown()

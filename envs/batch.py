"""A batch of training worlds: settings to arrays, and the two compiled loops (reset, step) that all environments share.

``DualPriorityVectorEnv``, ``DualPriorityEnv`` (the batch of one) and ``SB3VecEnv`` are views of this class.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, NamedTuple

import numpy as np

from envs.capacity import make_generator, measure_capacity
from envs.config import EnvConfig, load_profile
from envs.generate import generate
from envs.jit import bind, inlined, njit
from envs.observation import observe
from envs.profile import Profile
from envs.randomise import draw_device, draw_streams, make_randomiser
from envs.recording import cut, load_workload, make_recording, no_recording
from envs.rng import mix
from envs.scheduler import mask as write_mask
from envs.scheduler import valid
from envs.simulator import Simulator
from envs.state import OUTCOMES, TURNS
from envs.world import act, begin, run_to_decision
from traces.errors import InputError
from traces.workload import Workload

PARTS = 4  # of the worlds for each thread; a thread takes as many of all as it gets round to
NO_ACTIONS, NO_SEEDS, NOT_FRESH = np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, bool)


class Outcome(NamedTuple):
    """What a step gives beside observation and mask. One row for each of N worlds.

    Attributes:
        reward: (N,) minus the weights of the violations since the last decision.
        dt: (N,) ms between this decision and the next (or the end).
        done: (N,) bool, the episode ended. invalid: (N,) bool, the action was not valid and counted as DEFER.
        final_obs: (N, O) last observation of the episode that ended last. The rows below are written with it:
        final_ret: (N,) its undiscounted return. final_steps: (N,) its decisions. final_ms: (N,) its length.
        final_count: (N, 2, 6) its requests by priority and outcome.
    """

    reward: np.ndarray
    dt: np.ndarray
    done: np.ndarray
    invalid: np.ndarray
    final_obs: np.ndarray
    final_ret: np.ndarray
    final_steps: np.ndarray
    final_ms: np.ndarray
    final_count: np.ndarray


@njit
def begin_episode(st, w, tb, tr, gen, rec, rnd, e, seed):
    """Draw world e's arrivals and device, and put it at its start; ``run_to_decision`` follows."""
    if rnd.solo.shape[0] > 0:
        draw_device(tr, rnd, e, seed)
    if rec.arrival.shape[0] > 0:
        cut(w, rec, e, seed)
    else:
        generate(w, tb, gen, e, seed)
    begin(st, w, tb, e, seed)
    # Streams that an episode does not have are never free: the scheduler cannot tell them from a smaller device.
    st.env[e].n_free = draw_streams(rnd, st.stream.shape[1], seed)


@inlined
def note_outcome(st, w, out, e, before):
    """Write what the decision of world e, taken at time ``before``, led to. Returns whether the episode ended."""
    x = w.env[e]
    x.ret += x.reward
    out.reward[e] = x.reward
    out.dt[e] = st.env[e].now - before
    done = x.done == 1
    out.done[e] = done
    if done:
        out.final_ret[e] = x.ret
        out.final_steps[e] = x.steps
        out.final_ms[e] = st.env[e].now
        for p in range(2):
            for o in range(out.final_count.shape[2]):
                out.final_count[e, p, o] = st.count[e, p, o]
    return done


@njit
def advance_range(st, w, tb, tr, gen, rec, rnd, out, lo, hi, actions, autoreset, seeds, which, obs, masks):
    """One decision in each world lo..hi-1; with ``autoreset``, worlds that end begin their next episode at once.

    The seed of the next episode follows from the last. Without ``autoreset`` a world that ended shows its last
    observation. With ``which`` (one a world; empty otherwise) no decision is made: the worlds where it is set begin an
    episode, and all are observed. One function does both, since each would compile the whole world for itself.
    """
    acts = which.shape[0] == 0
    for e in range(lo, hi):
        before = st.env[e].now
        runs = True
        if acts:
            action = actions[e]
            out.invalid[e] = action != masks.shape[1] - 1 and not valid(st, tb, e, action)
            act(st, w, tb, tr, e, action, before + w.options[e, 1])
        elif which[e]:
            begin_episode(st, w, tb, tr, gen, rec, rnd, e, seeds[e])
        else:
            runs = False
        unnoted = acts
        # Once more where an episode ended and the next begins: a loop, so that the world is compiled in one place.
        while True:
            if runs:
                run_to_decision(st, w, tb, tr, e)
            observe(st, tb, e, obs[e])
            if not unnoted:
                break
            unnoted = False
            done = note_outcome(st, w, out, e, before)
            if not (done and autoreset):
                break
            for i in range(obs.shape[1]):
                out.final_obs[e, i] = obs[e, i]
            begin_episode(st, w, tb, tr, gen, rec, rnd, e, mix(w.env[e].seed, 7))
        write_mask(st, tb, e, masks[e])


def world_seed(seed: int) -> np.uint64:
    """Seed of a world's first episode from a user's seed: neighbouring seeds give unrelated worlds."""
    with np.errstate(over="ignore"):
        return np.uint64(mix(np.uint64(seed % 2**64), 0))


class Batch:
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
            raise InputError(f"{n} worlds on {threads} threads: at least 1 of each is wanted")
        self.config = config
        self.n = n
        self.autoreset = autoreset
        self.profile = profile or load_profile(config)
        self.capacity_rps = measure_capacity(self.profile, config.streams, config.model_share, config.noise)
        self._set_source(config, workload)
        self.sim = Simulator(
            self.profile,
            n,
            config.streams,
            config.n_requests or self._room(),
            config.queue_places,
            config.weights,
            config.noise,
        )
        self.randomiser, self.truth = make_randomiser(self.sim.truth, config.randomise, config.streams, n)
        self.sim.truth = self.truth
        self.sim.tables.device[:, TURNS] = config.turns
        self.sim.world.options[:] = (config.drop, config.defer_ms, config.end_ms)
        n_actions, size = self.sim.n_actions, self.sim.obs_size
        self._pairs = [(np.zeros((n, size), np.float32), np.zeros((n, n_actions), bool)) for _ in range(2)]
        self._turn = 0
        self.obs, self.masks = self._pairs[0]
        self.out = Outcome(
            reward=np.zeros(n),
            dt=np.zeros(n),
            done=np.zeros(n, bool),
            invalid=np.zeros(n, bool),
            final_obs=np.zeros((n, size), np.float32),
            final_ret=np.zeros(n),
            final_steps=np.zeros(n, np.int64),
            final_ms=np.zeros(n),
            final_count=np.zeros((n, 2, len(OUTCOMES)), np.int64),
        )
        n_parts = min(n, PARTS * threads) if threads > 1 else 1
        self._parts = [(n * i // n_parts, n * (i + 1) // n_parts) for i in range(n_parts)]
        self._helpers = threads - 1
        self._pool = ThreadPoolExecutor(max(self._helpers, 1))
        self._world = (self.sim.state, self.sim.world, self.sim.tables, self.truth)
        self._advance = bind(advance_range, *self._advance_arguments(0, n, np.zeros(n, np.int64)))

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
            raise InputError("load: None needs a recorded workload; a number or a pair (low, high) is wanted")

    def _room(self) -> int:
        """Requests that an episode may hold. Generated bursts and recorded ones can exceed the mean."""
        if len(self.recording.arrival) and self.config.load is None:
            return len(self.recording.arrival)
        assert self.config.load is not None
        mean = self.config.load[1] * self.capacity_rps * self.config.duration_ms[1] / 1e3
        room = math.ceil(2.0 * mean + 8.0 * math.sqrt(mean)) + 16
        return min(room, len(self.recording.arrival)) if len(self.recording.arrival) else room

    def _advance_arguments(
        self, lo: int, hi: int, actions: np.ndarray, seeds: np.ndarray = NO_SEEDS, which: np.ndarray = NOT_FRESH
    ) -> tuple:
        obs, masks = self._pairs[self._turn]
        source = (self.generator, self.recording, self.randomiser)
        return (*self._world, *source, self.out, lo, hi, actions, self.autoreset, seeds, which, obs, masks)

    def reset(self, seeds: np.ndarray, which: np.ndarray | None = None) -> None:
        """Begin an episode in each world where ``which`` (N,) is set (all if None), with ``seeds`` (N,) uint64."""
        which = np.ones(self.n, bool) if which is None else np.ascontiguousarray(which, bool)
        self._flip()
        seeds = np.ascontiguousarray(seeds, np.uint64)
        self._advance(*self._advance_arguments(0, self.n, NO_ACTIONS, seeds, which))

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
        self._turn = 1 - self._turn
        self.obs, self.masks = self._pairs[self._turn]

    @property
    def seeds(self) -> np.ndarray:
        """(N,) uint64: seeds of the episodes under way."""
        return np.asarray(self.sim.world.env["seed"])

    def next_seeds(self) -> np.ndarray:
        """(N,) uint64: seeds of the episodes that follow those under way."""
        with np.errstate(over="ignore"):
            return np.array([mix(s, 7) for s in self.seeds], np.uint64)

    def violations(self, index: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Violation rates (n, 2) by priority and requests (n, 2) of the episodes that ended last in worlds ``index``.

        A request violates when it ended in any way but in time. nan where a priority had no request.
        """
        count = self.out.final_count[index]
        total = count.sum(axis=2)
        with np.errstate(invalid="ignore", divide="ignore"):
            return 1.0 - count[:, :, 1] / total, total

    def _arrays(self) -> dict[str, np.ndarray]:
        groups: dict[str, Any] = {
            "state": self.sim.state,
            "world": self.sim.world,
            "truth": self.truth,
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

"""The compiled loop over training worlds: one decision in each, or the start of an episode.

``envs.simulation.worlds`` steps with it, and ``envs.simulation.capacity`` measures with it, so that the world is compiled
once for both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.scheduling import rng
from envs.scheduling.candidates import mask as write_mask
from envs.scheduling.candidates import valid
from envs.scheduling.jit import inlined, njit
from envs.scheduling.observation import observe
from envs.scheduling.state import OUTCOMES
from envs.simulation.events import act, begin, run_to_decision
from envs.simulation.generate import Generator, generate
from envs.simulation.randomise import Randomiser, draw_device, draw_high_weight, draw_streams
from envs.simulation.recording import Recording, cut

NO_ACTIONS = np.zeros(0, np.int64)


class EpisodeSource(NamedTuple):
    """Where the worlds' episodes come from.

    Attributes:
        generator: arrivals that are drawn, where there is no recording.
        recording: arrivals that windows are cut from.
        randomiser: how far each episode's device strays.
    """

    generator: Generator
    recording: Recording
    randomiser: Randomiser


class Begins(NamedTuple):
    """Which worlds begin an episode, (N,) bool, and their seeds, (N,) uint64; both empty where a decision is made instead."""

    which: np.ndarray
    seeds: np.ndarray


NO_BEGINS = Begins(np.zeros(0, bool), np.zeros(0, np.uint64))


class StepOutput(NamedTuple):
    """What a step gives. One row for each of N worlds.

    Attributes:
        obs: (N, O) float32, observations.
        masks: (N, A) bool, valid actions.
        reward: (N,) minus the cost of the violations since the last decision.
        dt: (N,) ms between this decision and the next (or the end).
        done: (N,) bool, the episode ended.
        invalid: (N,) bool, the action was not valid and counted as DEFER.
        final_obs: (N, O) last observation of the episode that ended last. The rows below are written with it:
        final_ret: (N,) its undiscounted return.
        final_steps: (N,) its decisions.
        final_ms: (N,) its length.
        final_count: (N, 2, 6) its requests by priority and outcome.
    """

    obs: np.ndarray
    masks: np.ndarray
    reward: np.ndarray
    dt: np.ndarray
    done: np.ndarray
    invalid: np.ndarray
    final_obs: np.ndarray
    final_ret: np.ndarray
    final_steps: np.ndarray
    final_ms: np.ndarray
    final_count: np.ndarray


def make_step_output(n: int, obs_size: int, n_actions: int) -> StepOutput:
    """Allocate the output of n worlds with observations of ``obs_size`` and so many actions."""
    return StepOutput(
        obs=np.zeros((n, obs_size), np.float32),
        masks=np.zeros((n, n_actions), bool),
        reward=np.zeros(n),
        dt=np.zeros(n),
        done=np.zeros(n, bool),
        invalid=np.zeros(n, bool),
        final_obs=np.zeros((n, obs_size), np.float32),
        final_ret=np.zeros(n),
        final_steps=np.zeros(n, np.int64),
        final_ms=np.zeros(n),
        final_count=np.zeros((n, 2, len(OUTCOMES)), np.int64),
    )


@njit
def begin_episode(sim, source, env, seed):
    """Draw world e's arrivals and device, and put it at its start; ``run_to_decision`` follows."""
    state, tables, world, truth = sim.state, sim.tables, sim.world, sim.truth
    generator, recording, randomiser = source
    if randomiser.solo.shape[0] > 0:
        draw_device(truth, randomiser, env, seed)
    if recording.arrival.shape[0] > 0:
        cut(world, recording, env, seed)
    else:
        generate(world, tables, generator, env, seed)
    begin(sim, env, seed)
    state.scheduler[env].high_weight = draw_high_weight(randomiser, seed)
    # Streams that an episode does not have are never free: the scheduler cannot tell them from a smaller device.
    state.scheduler[env].n_free = draw_streams(randomiser, state.stream.shape[1], seed)


@inlined
def write_step_output(state, world, out, env, before):
    """Write what the decision of world e, taken at time ``before``, led to. Returns whether the episode ended."""
    episode = world.episode[env]
    episode.ret += episode.reward
    out.reward[env] = episode.reward
    out.dt[env] = state.scheduler[env].now - before
    done = episode.done == 1
    out.done[env] = done
    if done:
        out.final_ret[env] = episode.ret
        out.final_steps[env] = episode.steps
        out.final_ms[env] = state.scheduler[env].now
        for priority in range(2):
            for o in range(out.final_count.shape[2]):
                out.final_count[env, priority, o] = state.count[env, priority, o]
    return done


@njit
def advance_range(sim, source, out, lo, hi, actions, begins, autoreset):
    """One decision in each world lo..hi-1; with ``autoreset``, worlds that end begin their next episode at once.

    The seed of the next episode follows from the last. Without ``autoreset`` a world that ended shows its last observation.
    With ``begins`` no decision is made: the worlds that it names begin an episode, and all are observed. One function does
    both, since each would compile the whole world for itself.
    """
    state, tables, world = sim.state, sim.tables, sim.world
    acts = begins.which.shape[0] == 0
    for env in range(lo, hi):
        before = state.scheduler[env].now
        runs = True
        if acts:
            action = actions[env]
            out.invalid[env] = action != out.masks.shape[1] - 1 and not valid(state, tables, env, action)
            act(sim, env, action, before + world.rules[env].defer_ms)
        elif begins.which[env]:
            begin_episode(sim, source, env, begins.seeds[env])
        else:
            runs = False
        unnoted = acts
        # Once more where an episode ended and the next begins: a loop, so that the world is compiled in one place.
        while True:
            if runs:
                run_to_decision(sim, env)
            observe(state, tables, env, out.obs[env])
            if not unnoted:
                break
            unnoted = False
            done = write_step_output(state, world, out, env, before)
            if not (done and autoreset):
                break
            for i in range(out.obs.shape[1]):
                out.final_obs[env, i] = out.obs[env, i]
            begin_episode(sim, source, env, rng.mix(world.episode[env].seed, rng.NEXT_EPISODE))
        write_mask(state, tables, env, out.masks[env])

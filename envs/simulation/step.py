"""The compiled loop over training worlds: one decision in each, or the start of an episode.

``envs.simulation.worlds`` steps with it, and ``envs.simulation.capacity`` measures with it, so that the world is compiled
once for both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.scheduling import rng
from envs.scheduling.jit import inlined, njit
from envs.scheduling.observation import observe
from envs.scheduling.operations import mask as write_mask
from envs.scheduling.operations import valid
from envs.scheduling.state import OUTCOMES
from envs.simulation.events import act, begin, run_to_decision
from envs.simulation.generate import generate
from envs.simulation.randomise import draw_device, draw_streams
from envs.simulation.recording import cut

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


def make_step_output(n: int, obs_size: int) -> Outcome:
    """Allocate the outcome of n worlds with observations of ``obs_size``."""
    return Outcome(
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
def begin_episode(state, world, tables, truth, generator, recording, randomiser, env, seed):
    """Draw world e's arrivals and device, and put it at its start; ``run_to_decision`` follows."""
    if randomiser.solo.shape[0] > 0:
        draw_device(truth, randomiser, env, seed)
    if recording.arrival.shape[0] > 0:
        cut(world, recording, env, seed)
    else:
        generate(world, tables, generator, env, seed)
    begin(state, world, tables, truth, env, seed)
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
def advance_range(
    state,
    world,
    tables,
    truth,
    generator,
    recording,
    randomiser,
    out,
    lo,
    hi,
    actions,
    autoreset,
    seeds,
    which,
    obs,
    masks,
):
    """One decision in each world lo..hi-1; with ``autoreset``, worlds that end begin their next episode at once.

    The seed of the next episode follows from the last. Without ``autoreset`` a world that ended shows its last
    observation. With ``which`` (one a world; empty otherwise) no decision is made: the worlds where it is set begin an
    episode, and all are observed. One function does both, since each would compile the whole world for itself.
    """
    acts = which.shape[0] == 0
    for env in range(lo, hi):
        before = state.scheduler[env].now
        runs = True
        if acts:
            action = actions[env]
            out.invalid[env] = action != masks.shape[1] - 1 and not valid(state, tables, env, action)
            act(state, world, tables, truth, env, action, before + world.rules[env].defer_ms)
        elif which[env]:
            begin_episode(state, world, tables, truth, generator, recording, randomiser, env, seeds[env])
        else:
            runs = False
        unnoted = acts
        # Once more where an episode ended and the next begins: a loop, so that the world is compiled in one place.
        while True:
            if runs:
                run_to_decision(state, world, tables, truth, env)
            observe(state, tables, env, obs[env])
            if not unnoted:
                break
            unnoted = False
            done = write_step_output(state, world, out, env, before)
            if not (done and autoreset):
                break
            for i in range(obs.shape[1]):
                out.final_obs[env, i] = obs[env, i]
            begin_episode(
                state,
                world,
                tables,
                truth,
                generator,
                recording,
                randomiser,
                env,
                rng.mix(world.episode[env].seed, rng.NEXT_EPISODE),
            )
        write_mask(state, tables, env, masks[env])

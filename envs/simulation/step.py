"""The compiled loop over training worlds: one decision in each, or the start of an episode.

``envs.simulation.worlds`` steps with it, and ``envs.simulation.capacity`` measures with it, so that the world is compiled
once for both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.scheduling.jit import inlined, njit
from envs.scheduling.observation import observe
from envs.scheduling.operations import mask as write_mask
from envs.scheduling.operations import valid
from envs.scheduling.rng import mix
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


def make_outcome(n: int, obs_size: int) -> Outcome:
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
def begin_episode(st, w, tb, tr, gen, rec, rnd, e, seed):
    """Draw world e's arrivals and device, and put it at its start; ``run_to_decision`` follows."""
    if rnd.solo.shape[0] > 0:
        draw_device(tr, rnd, e, seed)
    if rec.arrival.shape[0] > 0:
        cut(w, rec, e, seed)
    else:
        generate(w, tb, gen, e, seed)
    begin(st, w, tb, tr, e, seed)
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

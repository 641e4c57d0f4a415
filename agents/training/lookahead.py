"""Second part of the warm start: what an action other than Strait's would have gained, tried out in a copy of the world.

From a state that a world stands in, some actions are taken in its twin (same seed: same arrivals, device and noise), and
Strait decides from there on for a while. The violations that this saves, over those after Strait's own action, are one sample
of the action's advantage (rollout after Bertsekas, Tsitsiklis and Wu, 1997). All but the action is shared, so a sample varies
far less than the return that PPO learns from. What a sample saw of the future is not in the observation, so that the network
learns the mean over futures; ``CandidateNet.strait_bonus`` is then how much more an action must promise before it is preferred.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from agents.evaluation.clairvoyant import copy_world, world_rows
from agents.learned.network import MASKED, CandidateNet, CandidatePolicy
from agents.policies.base import Policy, call_compiled
from envs.sb3 import SB3VecEnv
from envs.scheduling.jit import njit
from envs.scheduling.state import MET, WAITING
from envs.simulation.events import step
from envs.simulation.worlds import Worlds
from traces.settings import check_settings

SCALE = 0.5  # factor on gains that makes them about 1 in size
FLATTENED = 0.1  # factor on the logits that actions to try are drawn by


@dataclass(frozen=True)
class LookAheadConfig:
    """Settings of the look-ahead.

    Attributes:
        rounds: times that samples are taken and learned from; 0: none. Strait acts in the first, in half of the worlds after.
        steps: decisions of each world a round.
        share: share of decisions at which actions are tried. tries: actions tried there.
        tau_ms: time constant of the discount by deadlines, ms; a trial lasts three of them.
        epochs: passes over all samples a round.
        batch_size: states a gradient step.
        learning_rate: of Adam, falling linearly to a twentieth over a round.
        temperature: gain, in violations of low priority, that makes an action e times as likely.
        defer_cost: gain that deferring must promise beyond what any action must.
        high_weight: what a violation of high priority counts in gains, one of low priority being 1; more than in rewards, so
            that low priority is not served at the cost of high.
    """

    rounds: int = 3
    steps: int = 600
    share: float = 0.5
    tries: int = 4
    tau_ms: float = 100.0
    epochs: int = 8
    batch_size: int = 1024
    learning_rate: float = 3e-3
    temperature: float = 0.1
    defer_cost: float = 1.0
    high_weight: float = 7.0

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("steps", "tries", "epochs", "batch_size"), 1) | {"rounds": 0, "defer_cost": 0}
        above = dict.fromkeys(("share", "tau_ms", "learning_rate", "temperature", "high_weight"), 0)
        check_settings(self, "look_ahead.", whole, above, {"share": 1})


@njit
def _clear(world, env, now):
    """Forget how requests of world e with deadlines after ``now`` ended; returns the first of these."""
    first = 0
    while first < world.episode[env].n and world.request[env, first].deadline <= now:
        first += 1
    for i in range(first, world.episode[env].n):
        world.request[env, i].outcome = WAITING
    return first


class Trials(NamedTuple):
    """What is tried out, and what came of it.

    Attributes:
        here: rows of the worlds, as ``world_rows`` gives them.
        there: rows of their twins.
        tried: (N, K) actions; those below 0 are not tried.
        own: (N,) the reference's own actions.
        wakes: (N,) times until which a deferral lasts.
        tau: time constant of the discount, ms.
        gains: (N, K) output.
    """

    here: tuple[np.ndarray, ...]
    there: tuple[np.ndarray, ...]
    tried: np.ndarray
    own: np.ndarray
    wakes: np.ndarray
    tau: float
    gains: np.ndarray


@njit
def _return(choose, memory, params, sim, env, action, wake, tau):
    """Return of world e when ``action`` is taken and the reference decides for 3 tau from then on.

    Each request that is not met counts, discounted by how far its deadline lies ahead: at the time of its end it would seem a
    gain to be late later.
    """
    state, tables, world, truth = sim.state, sim.tables, sim.world, sim.truth
    g = env % truth.solo.shape[0]
    began = state.scheduler[env].now
    first = _clear(world, env, began)
    step(sim, env, action, wake)
    while world.episode[env].done == 0 and state.scheduler[env].now < began + 3.0 * tau:
        then, then_wake = choose(state, tables, memory, env, params)
        step(sim, env, then, then_wake)
    total = 0.0
    for i in range(first, world.episode[env].n):
        r = world.request[env, i]
        if r.arrival > began + 3.0 * tau:
            break
        if began < r.deadline <= began + 3.0 * tau and r.outcome != MET:
            total -= truth.weight[g, r.priority] * math.exp((began - r.deadline) / tau)
    return total


@njit
def _gains(choose, memory, params, sim, trials, lo, hi):
    """See ``Twins.gains``; for worlds lo..hi-1."""
    for env in range(lo, hi):
        usual = np.nan
        for i in range(trials.tried.shape[1]):
            trials.gains[env, i] = np.nan
            if trials.tried[env, i] < 0:
                continue
            # The reference's own action first, the others after it: one loop, so that the world is compiled once.
            for own in range(1 if np.isnan(usual) else 0, -1, -1):
                copy_world(trials.here, env, trials.there, env)
                action = trials.own[env] if own == 1 else trials.tried[env, i]
                value = _return(choose, memory, params, sim, env, action, trials.wakes[env], trials.tau)
                if own == 1:
                    usual = value
                else:
                    trials.gains[env, i] = value - usual


class Twins:
    """Copies of a batch's worlds to try actions in.

    Args:
        worlds: the worlds, with autoreset. reference: who decides after the action, ready for ``worlds.n`` schedulers.
        threads: over which the worlds are spread.
        high_weight: what a violation of high priority counts, one of low priority being 1.
    """

    def __init__(self, worlds: Worlds, reference: Policy, threads: int, high_weight: float) -> None:
        self.worlds = worlds
        self.reference = reference
        config = replace(worlds.config, weights=(high_weight, 1.0))
        self.twins = Worlds(config, worlds.n, autoreset=False, profile=worlds.profile)
        self.memory = np.zeros_like(reference.memory)
        self.parts = [(worlds.n * i // threads, worlds.n * (i + 1) // threads) for i in range(threads)]
        self.pool = ThreadPoolExecutor(threads)

    def began(self, which: np.ndarray) -> None:
        """Begin the episodes that the worlds where ``which`` (N,) is set have just begun."""
        self.twins.reset(self.worlds.seeds, which)

    def gains(self, tried: np.ndarray, own: np.ndarray, tau_ms: float) -> np.ndarray:
        """Gain of each action (N, K) that is tried over the reference's own (N,), by discounted weight of violations.

        Actions below 0 are not tried; their gain is nan.
        """
        sim, policy = self.twins.sim, self.reference
        gains = np.zeros(tried.shape)
        wakes = self.worlds.sim.state.scheduler["now"] + self.worlds.config.defer_ms
        # What the reference remembers of a world is copied with it.
        here = (*world_rows(self.worlds.sim), policy.memory.view(np.uint8))
        there = (*world_rows(sim), self.memory.view(np.uint8))
        trials = Trials(here, there, tried, own, wakes, tau_ms, gains)

        def part(lo: int, hi: int) -> None:
            call_compiled(_gains, policy.kind.choose, self.memory, policy.vector, sim.arrays, trials, lo, hi)

        list(self.pool.map(lambda bounds: part(*bounds), self.parts))
        return gains

    def close(self) -> None:
        """Stop the threads."""
        self.pool.shutdown()


@dataclass
class Samples:
    """States in which actions were tried, one row each: observations (float16), Strait's action, those tried, their gains."""

    obs: np.ndarray
    own: np.ndarray
    tried: np.ndarray
    gains: np.ndarray


def _propose(logits: np.ndarray, own: np.ndarray, tries: int, rng: np.random.Generator) -> np.ndarray:
    """Actions to try (N, tries), drawn without repetition by their probability, never Strait's own; -1 where none is left."""
    # The largest are such a draw (Gumbel top-k). What is hardly ever preferred is tried now and then all the same.
    key = FLATTENED * logits + rng.gumbel(size=logits.shape)
    key[logits <= MASKED / 2] = -np.inf
    key[np.arange(len(own)), own] = -np.inf
    tried = np.argsort(-key, axis=1)[:, :tries]
    return np.where(np.isfinite(np.take_along_axis(key, tried, 1)), tried, -1).astype(np.int64)


def _sample(
    policy: CandidatePolicy,
    env: SB3VecEnv,
    twins: Twins,
    teacher: Policy,
    c: LookAheadConfig,
    first: bool,
    another: Callable[[], bool],
) -> Samples:
    """Take ``c.steps`` decisions in each world, trying actions on the way; fewer where ``another`` says no after one."""
    worlds, n = env.env.worlds, env.num_envs
    rng = np.random.default_rng(np.random.randint(2**31))
    parts: list[tuple[np.ndarray, ...]] = []
    learner = np.zeros(n, bool) if first else np.arange(n) % 2 == 1
    for _ in range(c.steps):
        own = teacher.actions(worlds.sim.state, worlds.sim.tables)
        with torch.no_grad():
            logits = policy.net(torch.as_tensor(worlds.obs))[0].numpy()
        tried = _propose(logits, own, c.tries, rng)
        tried[rng.random(n) >= c.share] = -1
        rows = tried[:, 0] >= 0
        gains = twins.gains(tried, own, c.tau_ms)
        parts.append((worlds.obs[rows].astype(np.float16), own[rows], tried[rows], gains[rows]))
        teacher.forget(env.step(np.where(learner, logits.argmax(1), own))[2])
        if not another():
            break
    return Samples(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _fit(net: CandidateNet, samples: list[Samples], c: LookAheadConfig) -> None:
    """Let differences of the net's logits be the gains, by least squares."""
    optimizer = torch.optim.Adam(net.parameters(), lr=c.learning_rate)
    starts = np.cumsum([0] + [len(s.own) for s in samples])
    total = max(c.epochs * int(starts[-1]), 1)
    seen = 0
    for _ in range(c.epochs):
        order = np.random.permutation(starts[-1])
        for begin in range(0, len(order), c.batch_size):
            index = np.sort(order[begin : begin + c.batch_size])
            parts = [
                (s, index[(index >= a) & (index < a + len(s.own))] - a) for s, a in zip(samples, starts, strict=False)
            ]
            obs = torch.as_tensor(np.concatenate([s.obs[i] for s, i in parts]).astype(np.float32))
            own = torch.as_tensor(np.concatenate([s.own[i] for s, i in parts]))
            tried = np.concatenate([s.tried[i] for s, i in parts])
            gains = np.concatenate([s.gains[i] for s, i in parts])
            known = torch.as_tensor(tried >= 0)
            logits = net(obs)[0]
            more = logits.gather(1, torch.as_tensor(np.maximum(tried, 0))) - logits.gather(1, own[:, None])
            error = (more - SCALE * torch.as_tensor(np.nan_to_num(gains)).float()) ** 2
            for group in optimizer.param_groups:
                group["lr"] = c.learning_rate * (1.0 - 0.95 * seen / total)
            optimizer.zero_grad()
            ((error * known).sum() / known.sum().clamp(min=1)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            seen += len(index)


def _rescale(source: CandidateNet, target: CandidateNet, factor: float, defer_bias: float) -> None:
    """Take over weights: logits times ``factor``, then ``defer_bias`` added to DEFER's; the target keeps its bonus."""
    weights = source.state_dict()
    for layer in ("score", "defer_out"):
        for part in ("weight", "bias"):
            weights[f"{layer}.{part}"] = weights[f"{layer}.{part}"] * factor
    weights["defer_out.bias"] = weights["defer_out.bias"] + defer_bias
    target.load_state_dict(weights | {"strait_bonus": target.strait_bonus.clone()})


def _adopt(net: CandidateNet, fitted: CandidateNet, c: LookAheadConfig) -> None:
    """Take over the fitted weights, gains divided by the temperature."""
    _rescale(fitted, net, 1.0 / (SCALE * c.temperature), -c.defer_cost / c.temperature)


def _gains_of(net: CandidateNet, c: LookAheadConfig) -> CandidateNet:
    """A network that says what gains ``net`` believes in: the inverse of ``_adopt``."""
    fitted = copy.deepcopy(net)
    fitted.strait_bonus.zero_()
    _rescale(net, fitted, SCALE * c.temperature, SCALE * c.defer_cost)
    return fitted


def look_ahead(
    policy: CandidatePolicy,
    env: SB3VecEnv,
    teacher: Policy,
    c: LookAheadConfig,
    threads: int,
    enough: Callable[[], bool] = lambda: False,
    progress: bool = False,
) -> int:
    """Teach ``policy`` what actions would gain over Strait's; its input normalisation is set. Returns the decisions taken.

    Args:
        policy: learner; what it already prefers is where learning begins.
        env: worlds under way, whose observations are marked (agents.training.strait_bonus).
        teacher: Strait, ready for ``env.num_envs`` schedulers. c: settings. threads: to try actions on.
        enough: asked after each decision whether to sample no more; what was sampled until then is learned from.
        progress: show a progress bar.
    """
    twins = Twins(env.env.worlds, teacher, threads, c.high_weight)
    env.began = twins.began
    twins.began(np.ones(env.num_envs, bool))
    fitted = _gains_of(policy.net, c)
    samples: list[Samples] = []
    decided = 0

    def another() -> bool:
        nonlocal decided
        decided += env.num_envs
        bar.update()
        return not enough()

    with tqdm(total=c.rounds * c.steps, desc="look ahead", unit="decision", disable=not progress) as bar:
        for i in range(c.rounds):
            samples.append(_sample(policy, env, twins, teacher, c, i == 0, another))
            _fit(fitted, samples, c)
            _adopt(policy.net, fitted, c)
            if enough():
                break
    env.began = None
    twins.close()
    return decided

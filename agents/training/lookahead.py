"""Second part of the warm start: what an action other than the usual one would have gained, tried in a copy of the world.

From a state that a world stands in, some actions are taken in its twin (same seed: same arrivals, device and noise), and a
policy decides from there on for a while. The violations that this saves, over those after that policy's own action, are one
sample of the action's advantage (rollout after Bertsekas, Tsitsiklis and Wu, 1997). All but the action is shared, so a sample
varies far less than the return that PPO learns from. What a sample saw of the future is not in the observation, so that the
network learns the mean over futures; how much more an action must promise before it is preferred
(``CandidateNet.strait_bonus``) is chosen on held-out workloads. First Strait goes on in the twins; in later rounds the network
itself does (policy iteration).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from agents.evaluation.twins import Twins
from agents.learned.network import MASKED, CandidateNet, CandidatePolicy, weights_of
from agents.learned.policy import policy_in
from agents.policies.base import Policy
from agents.training.checkpoint import random_arrays, set_random
from agents.training.samples import Samples
from agents.training.warm_start import actions_of
from envs.mixed import TrainingEnv, convert_actions
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY, WORTH
from envs.simulation.worlds import Worlds
from traces.settings import check_settings

SCALE = 0.5  # factor on gains that makes them about 1 in size
MOST_GAIN = 10.0  # in violations of low priority; gains beyond are those of futures that came to differ by chance
BY_WORTH = 1.5  # weight of a candidate's worth in the draw of actions to try
BY_PREFERENCE = 3.0  # how much likelier the draw is what the learner prefers


@dataclass(frozen=True)
class LookAheadConfig:
    """Settings of the look-ahead.

    Attributes:
        rounds: times that samples are taken and learned from; 0: none. Strait acts in the first, in half of the worlds after.
        time_share: share of a run's time (``TrainConfig.budget_s``) after which no more samples are taken.
        iterations: rounds after those in which the network acts and goes on in the twins.
        steps: decisions of each world a round.
        share: share of decisions at which actions are tried.
        tries: actions tried there.
        tau: time constant of the discount by deadlines, mean solo latencies, if ``tau_requests`` makes it no longer; a trial
            lasts three of them.
        tau_requests: requests that the device can answer meanwhile, at least. A batch delays what is behind it until the
            backlog is gone, which takes the more of its time the fewer a device runs at once.
        epochs: passes over all samples a round.
        batch_size: states a gradient step.
        learning_rate: of Adam, falling linearly to a twentieth over a round.
        temperature: gain, in violations of low priority, that makes an action e times as likely.
        margins: gains that an action must promise before it is preferred to Strait's: of these, the one is taken with which the
            network does best on held-out workloads.
        emphasis: factor on what a violation of high priority costs in gains, over what it costs in rewards: above 1, fewer
            of high are violated than the weights alone would have it.
    """

    rounds: int = 3
    time_share: float = 0.5
    iterations: int = 0
    steps: int = 600
    share: float = 0.5
    tries: int = 3
    tau: float = 4.0
    tau_requests: float = 0.0
    epochs: int = 8
    batch_size: int = 1024
    learning_rate: float = 3e-3
    temperature: float = 0.25
    margins: tuple[float, ...] = (0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
    emphasis: float = 1.0

    def __post_init__(self) -> None:
        whole = dict.fromkeys(("steps", "tries", "epochs", "batch_size"), 1)
        whole |= {"rounds": 0, "iterations": 0}
        object.__setattr__(self, "margins", tuple(self.margins))
        above = dict.fromkeys(("share", "time_share", "tau", "learning_rate", "temperature", "emphasis", "margins"), 0)
        check_settings(self, "look_ahead.", whole | {"tau_requests": 0}, above, {"share": 1, "time_share": 1})


def _propose(
    obs: np.ndarray, logits: np.ndarray, usual: np.ndarray, tries: int, rng: np.random.Generator
) -> np.ndarray:
    """Actions to try (N, tries), drawn without repetition, never the usual one; -1 where none is left.

    Likelier are candidates that are worth much for what they cost, and what the learner prefers: there it must not be wrong.
    """
    n = len(usual)
    worth = obs[:, :-N_SUMMARY].reshape(n, -1, N_CANDIDATE)[:, :, WORTH]
    # DEFER as a candidate that is worth some more than usual.
    key = BY_WORTH * np.concatenate((worth, np.ones((n, 1))), 1)
    key[np.arange(n), logits.argmax(1)] += BY_PREFERENCE
    key += rng.gumbel(size=logits.shape)  # the largest are then such a draw (Gumbel top-k)
    key[logits <= MASKED / 2] = -np.inf
    key[np.arange(n), usual] = -np.inf
    tried = np.argsort(-key, axis=1)[:, :tries]
    return np.where(np.isfinite(np.take_along_axis(key, tried, 1)), tried, -1).astype(np.int64)


def tau_ms(worlds: Worlds, c: LookAheadConfig) -> float:
    """Time constant of the discount in these worlds, ms."""
    unit_ms = float(worlds.sim.tables.device["unit_ms"][0])
    return max(c.tau * unit_ms, 1e3 * c.tau_requests / worlds.capacity_rps)


class Practice:
    """Worlds to learn in, their twins, and who decides in them.

    Args:
        policy: learner.
        env: worlds under way, whose observations are marked (agents.training.ppo.strait_bonus).
        strait: for each part of ``env``, Strait with the parameters that the marks are made with.
        threads: to try actions on.
        c: settings.
        rng: draws the actions to try.
    """

    def __init__(
        self,
        policy: CandidatePolicy,
        env: TrainingEnv,
        strait: Sequence[Policy],
        threads: int,
        c: LookAheadConfig,
        rng: np.random.Generator,
    ) -> None:
        self.policy = policy
        self.env = env
        self.strait = strait
        self.c = c
        self.rng = rng
        self.deciding = list(strait)
        self.twins = [Twins(part.env.worlds, threads, tau_ms(part.env.worlds, c), c.emphasis) for part in env.parts]
        for part, twins in zip(env.parts, self.twins, strict=True):
            part.began = twins.began
            twins.began(np.ones(part.num_envs, bool))

    def let_learner_decide(self) -> None:
        """From now on the network, as it is, decides in the twins."""
        weights = weights_of(self.policy)
        for i, (part, strait) in enumerate(zip(self.env.parts, self.strait, strict=True)):
            self.deciding[i] = policy_in(part.env.worlds.config, weights, strait.vector, part.num_envs)

    def decide(self, learner_acts: np.ndarray) -> Samples:
        """Take a decision in each world, trying actions on the way.

        The learner acts in the worlds where ``learner_acts`` (N,) is set, who decides in the twins in the others.
        """
        env, c = self.env, self.c
        usual = actions_of(self.deciding, env)
        with torch.no_grad():
            logits = self.policy.net(torch.as_tensor(env.obs))[0].numpy()
        tried = _propose(env.obs, logits, usual, c.tries, self.rng)
        tried[self.rng.random(env.num_envs) >= c.share] = -1
        rows = tried[:, 0] >= 0
        gains = np.full(tried.shape, np.nan)
        n_actions = env.masks.shape[1]
        for part, at, twins, deciding in zip(env.parts, env.rows, self.twins, self.deciding, strict=True):
            own_n = part.env.worlds.sim.n_actions
            there, usual_there = (convert_actions(actions[at], n_actions, own_n) for actions in (tried, usual))
            gains[at] = twins.gains(there, usual_there, deciding)
        gains = np.clip(gains, -MOST_GAIN, MOST_GAIN)
        samples = Samples.of(env.obs[rows], usual[rows], tried[rows], gains[rows])
        env.step(np.where(learner_acts, logits.argmax(1), usual))
        return samples

    def close(self) -> None:
        """Stop the twins."""
        for part, twins in zip(self.env.parts, self.twins, strict=True):
            part.began = None
            twins.close()


def _fit(
    net: CandidateNet, samples: Samples, n_candidates: int, c: LookAheadConfig, interrupted: Callable[[], bool]
) -> bool:
    """Let differences of the net's logits be the gains, by least squares; False: interrupted before it was done."""
    optimizer = torch.optim.Adam(net.parameters(), lr=c.learning_rate)
    total = max(c.epochs * len(samples.usual), 1)
    seen = 0
    for _ in range(c.epochs):
        order = np.random.permutation(len(samples.usual))
        for begin in range(0, len(order), c.batch_size):
            if interrupted():
                return False
            index = np.sort(order[begin : begin + c.batch_size])
            tried = samples.tried[index]
            known = torch.as_tensor(tried >= 0)
            gains = torch.as_tensor(np.nan_to_num(samples.gains[index])).float()
            logits = net(torch.as_tensor(samples.observations(index, n_candidates)))[0]
            usual = torch.as_tensor(samples.usual[index])
            more = logits.gather(1, torch.as_tensor(np.maximum(tried, 0))) - logits.gather(1, usual[:, None])
            error = (more - SCALE * gains) ** 2
            for group in optimizer.param_groups:
                group["lr"] = c.learning_rate * (1.0 - 0.95 * seen / total)
            optimizer.zero_grad()
            ((error * known).sum() / known.sum().clamp(min=1)).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            seen += len(index)
    return True


def _rescale(source: CandidateNet, target: CandidateNet, factor: float) -> None:
    """Take over weights, logits times ``factor``; the target keeps its bonus."""
    weights = source.state_dict()
    for layer in ("score", "defer_out"):
        for part in ("weight", "bias"):
            weights[f"{layer}.{part}"] = weights[f"{layer}.{part}"] * factor
    target.load_state_dict(weights | {"strait_bonus": target.strait_bonus.clone()})


def _adopt(net: CandidateNet, fitted: CandidateNet, c: LookAheadConfig) -> None:
    """Take over the fitted weights, gains divided by the temperature."""
    _rescale(fitted, net, 1.0 / (SCALE * c.temperature))


def _gains_of(net: CandidateNet, c: LookAheadConfig) -> CandidateNet:
    """A network that says what gains ``net`` believes in: the inverse of ``_adopt``."""
    fitted = copy.deepcopy(net)
    fitted.strait_bonus.zero_()
    _rescale(net, fitted, SCALE * c.temperature)
    return fitted


def choose_margin(net: CandidateNet, c: LookAheadConfig, loss: Callable[[CandidateNet], float]) -> float:
    """Let ``net`` ask for the margin with which ``loss`` of it is least; returns that loss."""
    losses = []
    for margin in c.margins:
        net.strait_bonus.fill_(margin / c.temperature)
        losses.append(loss(net))
    net.strait_bonus.fill_(c.margins[int(np.argmin(losses))] / c.temperature)
    return min(losses)


@dataclass
class Progress:
    """How far a look-ahead is. With the worlds, the network and the random generators it is all that one goes on from.

    Attributes:
        round: the round under way. step: decisions of each world taken in it.
        seen: samples of all rounds.
        rng: draws the actions to try.
    """

    round: int = 0
    step: int = 0
    seen: list[Samples] = field(default_factory=list)
    rng: np.random.Generator = field(default_factory=lambda: np.random.default_rng(np.random.randint(2**31)))

    def state(self) -> dict[str, Any]:
        """All but the samples, as numbers and strings."""
        return {"round": self.round, "step": self.step, "rng": self.rng.bit_generator.state}

    @classmethod
    def resumed(cls, state: Mapping[str, Any], samples: Mapping[str, np.ndarray]) -> Progress:
        """From what ``state`` gave, and the samples' arrays."""
        rng = np.random.default_rng()
        rng.bit_generator.state = state["rng"]
        seen = [Samples.of_arrays(samples)] if samples else []
        return cls(int(state["round"]), int(state["step"]), seen, rng)

    def joined(self) -> Samples:
        """What was seen so far, in one."""
        if len(self.seen) > 1:
            self.seen = [Samples.joined(self.seen)]
        return self.seen[0]


def look_ahead(
    policy: CandidatePolicy,
    env: TrainingEnv,
    strait: Sequence[Policy],
    c: LookAheadConfig,
    threads: int,
    at: Progress,
    enough: Callable[[], bool] = lambda: False,
    interrupted: Callable[[], bool] = lambda: False,
    sampled: Callable[[], None] = lambda: None,
    progress: bool = False,
) -> bool:
    """Teach ``policy``, whose input normalisation is set, what actions would gain over the usual ones.

    Args:
        policy: learner; what it already prefers is where learning begins.
        env, strait, c, threads: see ``Practice``.
        at: where to begin; kept up to date.
        enough: asked after each decision whether to sample no more; what was sampled until then is learned from.
        interrupted: asked before each decision and gradient step whether to stop there.
        sampled: called after each round's samples were taken, before they are learned from.
        progress: show a progress bar.

    Returns:
        Whether it was completed; False: it was interrupted, and goes on from ``at`` as if nothing had been.
    """
    practice = Practice(policy, env, strait, threads, c, at.rng)
    try:
        with tqdm(
            initial=at.round * c.steps + at.step,
            total=(c.rounds + c.iterations) * c.steps,
            desc="look ahead",
            unit="decision",
            disable=not progress,
        ) as bar:
            while at.round < c.rounds + c.iterations:
                acts = np.zeros(env.num_envs, bool) if at.round == 0 else np.arange(env.num_envs) % 2 == 1
                if at.round >= c.rounds:
                    practice.let_learner_decide()
                    acts[:] = True
                while at.step < c.steps and not (at.step and enough()):
                    if interrupted():
                        return False
                    at.seen.append(practice.decide(acts))
                    at.step += 1
                    bar.update()
                sampled()
                random = random_arrays()
                fitted = _gains_of(policy.net, c)
                if not _fit(fitted, at.joined(), env.masks.shape[1] - 1, c, interrupted):
                    set_random(random)
                    return False
                _adopt(policy.net, fitted, c)
                at.round, at.step = at.round + 1, 0
                if enough():
                    break
    finally:
        practice.close()
    return True

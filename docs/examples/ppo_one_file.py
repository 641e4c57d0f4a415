"""PPO on the environment in one file, to read from top to bottom, to copy and to change.

The clipped objective of Schulman et al. 2017 with generalised advantage estimation. Three things differ from PPO on games:

1. Most actions are not valid at most times: their logits are masked, when acting and when learning.
2. Decisions are not equally far apart, so rewards are discounted by the time that passed, not by the number of steps.
3. All dispatches share one network, which scores each by its own features and those of the system: what is learned about one
   model's batches holds for the others'.

It starts from nothing; ``train.py`` starts from Strait, and is judged against it.

    python docs/examples/ppo_one_file.py --env Strait/DualPriority-v2 --total_steps 1000000
"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributions import Categorical
from torch.utils.tensorboard import SummaryWriter

import envs  # noqa: F401 (registers the environments)
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY
from envs.scheduling.state import HIGH, LOW, MET


@dataclass
class Args:
    """Settings; each is a flag of its name."""

    env: str = "Strait/DualPriority-v2"
    """id of the environment"""
    seed: int = 1
    """of the environments, the network and the minibatches"""
    total_steps: int = 1_000_000
    """decisions in all worlds together"""
    num_envs: int = 64
    """worlds side by side"""
    num_steps: int = 128
    """decisions in each world between two updates"""
    epochs: int = 4
    """passes over the decisions of an update"""
    minibatches: int = 8
    """parts of each pass"""
    learning_rate: float = 1e-3
    """of Adam at the start; falls to 0"""
    horizon_ms: float = 300.0
    """time in which the discount falls to 1/e"""
    gae_lambda: float = 0.95
    """of generalised advantage estimation"""
    clip: float = 0.2
    """largest change of a decision's probability ratio that is rewarded"""
    entropy: float = 0.003
    """weight of the entropy bonus"""
    value: float = 0.5
    """weight of the value loss"""
    max_grad_norm: float = 0.5
    """gradients are scaled down to this norm"""
    hidden: int = 64
    """width of each network"""
    logdir: str = "runs/ppo_one_file"
    """folder for TensorBoard and the network"""


def parse(argv: list[str] | None) -> Args:
    """The settings on a command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    defaults = Args()
    for field in fields(Args):
        default = getattr(defaults, field.name)
        parser.add_argument(f"--{field.name}", type=type(default), default=default)
    return Args(**vars(parser.parse_args(argv)))


def mlp(inputs: int, hidden: int, gain: float) -> nn.Sequential:
    """Two hidden layers and one output; orthogonal weights, the last ones scaled by ``gain``."""
    layers = [nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, 1)]
    for layer, scale in zip(layers, (2**0.5, 2**0.5, gain), strict=True):
        nn.init.orthogonal_(layer.weight, scale)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


class Agent(nn.Module):
    """Scores every action; values a state by its system features and the means over its valid dispatches."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.dispatch = mlp(N_CANDIDATE + N_SUMMARY, hidden, gain=0.01)
        self.defer = mlp(N_SUMMARY, hidden, gain=0.01)
        self.critic = mlp(N_CANDIDATE + N_SUMMARY, hidden, gain=1.0)

    def forward(self, observation: Tensor, mask: Tensor) -> tuple[Categorical, Tensor]:
        """The distribution over actions and the value (N,), from observations (N, O) and valid actions (N, A)."""
        system = observation[:, -N_SUMMARY:]
        candidates = observation[:, :-N_SUMMARY].unflatten(1, (-1, N_CANDIDATE))  # (N, A - 1, features)
        around = system[:, None].expand(-1, candidates.shape[1], -1)
        scores = self.dispatch(torch.cat([candidates, around], -1)).squeeze(-1)
        logits = torch.cat([scores, self.defer(system)], 1).masked_fill(~mask, -torch.inf)
        valid = mask[:, :-1].sum(1, keepdim=True).clamp(min=1)
        mean = candidates.sum(1) / valid  # features of what is not valid are 0
        return Categorical(logits=logits), self.critic(torch.cat([mean, system], -1)).squeeze(-1)


@dataclass
class Rollout:
    """Decisions of all worlds between two updates, (T, N, ...) each; ``value`` and ``discount`` as the names say."""

    observation: Tensor
    mask: Tensor
    action: Tensor
    log_probability: Tensor
    value: Tensor
    reward: Tensor
    discount: Tensor  # of what follows a decision: exp(-time that passed / horizon), 0 where the episode ended

    @classmethod
    def empty(cls, steps: int, worlds: int, size: int, actions: int) -> Rollout:
        """Room for a rollout."""
        flat = [torch.zeros(steps, worlds) for _ in range(4)]
        return cls(
            torch.zeros(steps, worlds, size),
            torch.zeros(steps, worlds, actions, dtype=torch.bool),
            torch.zeros(steps, worlds, dtype=torch.int64),
            *flat,
        )

    def advantages(self, last_value: Tensor, gae_lambda: float) -> Tensor:
        """(T, N) by generalised advantage estimation, from the value (N,) of the state after the last decision."""
        advantage, result, following = torch.zeros_like(last_value), torch.zeros_like(self.reward), last_value
        for t in reversed(range(len(result))):
            error = self.reward[t] + self.discount[t] * following - self.value[t]
            advantage = error + self.discount[t] * gae_lambda * advantage
            result[t], following = advantage, self.value[t]
        return result


class Worlds:
    """The vector environment, with what it showed last as tensors, and how its requests ended."""

    def __init__(self, vector: VectorEnv, seed: int) -> None:
        self.vector = vector
        observation, info = vector.reset(seed=seed)
        self.observation, self.mask = torch.as_tensor(observation), torch.as_tensor(info["action_mask"])
        self.ended: list[np.ndarray] = []  # (2, 6) of each episode that ended: requests by priority and outcome
        self.returns: list[float] = []

    def step(self, action: Tensor, horizon_ms: float) -> tuple[Tensor, Tensor]:
        """Take actions (N,); returns rewards and discounts (N,)."""
        observation, reward, done, _, info = self.vector.step(action.numpy())
        if done.any():
            self.ended += list(info["final_info"]["outcomes"][done])
            self.returns += info["final_info"]["episode"]["r"][done].tolist()
        self.observation, self.mask = torch.as_tensor(observation), torch.as_tensor(info["action_mask"])
        discount = np.where(done, 0.0, np.exp(-info["dt_ms"] / horizon_ms))
        return torch.as_tensor(reward, dtype=torch.float32), torch.as_tensor(discount, dtype=torch.float32)


@torch.no_grad()
def collect(agent: Agent, worlds: Worlds, rollout: Rollout, horizon_ms: float) -> Tensor:
    """Fill a rollout; returns the value (N,) of the state after it."""
    for t in range(len(rollout.reward)):
        rollout.observation[t], rollout.mask[t] = worlds.observation, worlds.mask
        distribution, rollout.value[t] = agent(worlds.observation, worlds.mask)
        action = distribution.sample()
        rollout.action[t], rollout.log_probability[t] = action, distribution.log_prob(action)
        rollout.reward[t], rollout.discount[t] = worlds.step(action, horizon_ms)
    return agent(worlds.observation, worlds.mask)[1]


def update(
    agent: Agent, optimizer: torch.optim.Optimizer, rollout: Rollout, last: Tensor, args: Args
) -> dict[str, float]:
    """Learn from a rollout; returns what TensorBoard shows of it."""
    advantage = rollout.advantages(last, args.gae_lambda)
    target = (advantage + rollout.value).flatten()
    advantage, old = advantage.flatten(), rollout.log_probability.flatten()
    observation, mask, action = rollout.observation.flatten(0, 1), rollout.mask.flatten(0, 1), rollout.action.flatten()
    for _ in range(args.epochs):
        for part in torch.randperm(len(target)).chunk(args.minibatches):
            distribution, value = agent(observation[part], mask[part])
            log_ratio = distribution.log_prob(action[part]) - old[part]
            ratio = log_ratio.exp()
            gain = (advantage[part] - advantage[part].mean()) / (advantage[part].std() + 1e-8)
            policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - args.clip, 1 + args.clip)).mean()
            value_loss = 0.5 * (value - target[part]).square().mean()
            # Not Categorical.entropy: 0 * -inf of what is masked is to count as 0.
            entropy = -(distribution.probs * distribution.logits.clamp(min=-1e9)).sum(1).mean()
            loss = policy_loss + args.value * value_loss - args.entropy * entropy
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
    explained = 1 - (target - rollout.value.flatten()).var() / target.var().clamp(min=1e-9)
    with torch.no_grad():
        divergence = (ratio - 1 - log_ratio).mean()
    tags = ("policy_loss", "value_loss", "entropy", "approx_kl", "explained_variance")
    values = (policy_loss, value_loss, entropy, divergence, explained)
    return {f"train/{tag}": value.item() for tag, value in zip(tags, values, strict=True)}


def train(args: Args) -> dict[str, float]:
    """Train; returns the rates of the last update in which an episode ended, and the number of decisions."""
    torch.manual_seed(args.seed)
    vector = gym.make_vec(args.env, num_envs=args.num_envs, autoreset_mode=AutoresetMode.SAME_STEP)
    worlds, agent = Worlds(vector, args.seed), Agent(args.hidden)
    optimizer = torch.optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)
    rollout = Rollout.empty(args.num_steps, args.num_envs, worlds.observation.shape[1], worlds.mask.shape[1])
    writer = SummaryWriter(args.logdir)
    writer.add_text("settings", "\n".join(f"    {name}: {value}" for name, value in asdict(args).items()))
    updates, began, rates = max(args.total_steps // (args.num_steps * args.num_envs), 1), time.perf_counter(), {}
    for done in range(1, updates + 1):
        optimizer.param_groups[0]["lr"] = args.learning_rate * (1 - (done - 1) / updates)
        last_value = collect(agent, worlds, rollout, args.horizon_ms)
        shown = update(agent, optimizer, rollout, last_value, args)
        steps = done * args.num_steps * args.num_envs
        if worlds.ended:
            count = np.sum(worlds.ended, axis=0)
            violated = 1 - count[:, MET] / np.maximum(count.sum(axis=1), 1)
            rates = {"violation_rate/high": float(violated[HIGH]), "violation_rate/low": float(violated[LOW])}
            rates["episode/return"] = float(np.mean(worlds.returns))
            worlds.ended.clear(), worlds.returns.clear()
            print(f"{steps:>10,} decisions: high {violated[HIGH]:.2%}, low {violated[LOW]:.2%} violated", flush=True)
        for tag, number in (shown | rates | {"steps_per_s": steps / (time.perf_counter() - began)}).items():
            writer.add_scalar(tag, number, steps)
    writer.close()
    vector.close()
    save_file(agent.state_dict(), str(Path(args.logdir) / "agent.safetensors"))
    return rates | {"steps": float(steps)}


if __name__ == "__main__":
    train(parse(None))

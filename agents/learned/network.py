"""The learned policy's network: one small scorer shared by all candidates, a head for DEFER and a value head.

Only valid candidates are computed: their rows are gathered, scored together with an embedding of the summary, and
scattered back to logits. Nothing depends on the number of models or batch sizes, so a policy trained with one set of
models serves another. DEFER and the value read the summary and the mean and maximum over the candidates' embeddings
(after Zaheer et al., Deep Sets, 2017). ``agents.learned.policy`` evaluates the same weights without torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from agents.learned.forward import CHOSEN
from agents.policies.strait import StraitParams
from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY
from traces.errors import InputError

MASKED = -1e8  # logit of what is not valid; finite, so that the entropy has no 0 * inf
LAYERS = ("summary", "candidate", "context", "embed", "score", "defer", "defer_out", "value", "value_out")


class CandidateNet(nn.Module):
    """Logits of all actions and the value, from a batch of observations.

    Args:
        hidden: width of every layer.
        strait_bonus: what the logit of the action that is marked in the observation begins with
            (agents.training.ppo.strait_bonus).
        strait: values of Strait's parameters, whose choice is marked.
    """

    strait_bonus: Tensor
    strait: Tensor
    candidate_mean: Tensor
    candidate_std: Tensor
    summary_mean: Tensor
    summary_std: Tensor

    def __init__(self, hidden: int = 32, strait_bonus: float = 4.5, strait: Sequence[float] | None = None) -> None:
        super().__init__()
        self.hidden = hidden
        self.register_buffer("strait_bonus", torch.tensor([strait_bonus]))
        values = astuple(StraitParams()) if strait is None else strait
        self.register_buffer("strait", torch.tensor([float(v) for v in values]))
        self.register_buffer("candidate_mean", torch.zeros(N_CANDIDATE))
        self.register_buffer("candidate_std", torch.ones(N_CANDIDATE))
        self.register_buffer("summary_mean", torch.zeros(N_SUMMARY))
        self.register_buffer("summary_std", torch.ones(N_SUMMARY))
        self.summary = nn.Linear(N_SUMMARY, hidden)
        self.candidate = nn.Linear(N_CANDIDATE, hidden)
        self.context = nn.Linear(hidden, hidden, bias=False)
        self.embed = nn.Linear(hidden, hidden)
        self.score = nn.Linear(hidden, 1)
        self.defer = nn.Linear(3 * hidden, hidden)
        self.defer_out = nn.Linear(hidden, 1)
        self.value = nn.Linear(3 * hidden, hidden)
        self.value_out = nn.Linear(hidden, 1)
        for layer in (self.summary, self.candidate, self.context, self.embed, self.defer, self.value):
            nn.init.orthogonal_(layer.weight, 2**0.5)
        for layer, gain in ((self.score, 0.01), (self.defer_out, 0.01), (self.value_out, 0.01)):
            nn.init.orthogonal_(layer.weight, gain)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def set_normalisation(self, candidates: Tensor, summaries: Tensor) -> None:
        """Take mean and standard deviation of each feature from samples (R, N_CANDIDATE) and (N, N_SUMMARY).

        A feature that never varies keeps its value (standard deviation 1).
        """
        for name, sample in (("candidate", candidates), ("summary", summaries)):
            std = sample.std(0)
            # A rare flag must not become a spike: 0.1 is a tenth of the smallest range that a feature has.
            std = torch.where(std < 1e-6, torch.ones_like(std), std.clamp(min=0.1))
            getattr(self, f"{name}_mean").copy_(sample.mean(0))
            getattr(self, f"{name}_std").copy_(std)

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and value.

        Args:
            obs: (N, A * N_CANDIDATE + N_SUMMARY) observations, A candidates.

        Returns:
            Logits (N, A + 1), those of candidates that are not valid ``MASKED``, DEFER last; and values (N,).
        """
        n = obs.shape[0]
        rows = obs[:, :-N_SUMMARY].reshape(n, -1, N_CANDIDATE)
        valid = rows[:, :, 0] > 0.5
        chosen = rows[:, :, 0] > CHOSEN - 0.5
        flat = valid.flatten().nonzero().squeeze(1)
        owner = torch.div(flat, rows.shape[1], rounding_mode="floor")
        summary = (obs[:, -N_SUMMARY:] - self.summary_mean) / self.summary_std
        candidate = (rows.reshape(-1, N_CANDIDATE)[flat] - self.candidate_mean) / self.candidate_std
        u = torch.relu(self.summary(summary))
        z = torch.relu(self.candidate(candidate) + self.context(u)[owner])
        h = torch.relu(self.embed(z))
        logits = obs.new_full((n * (rows.shape[1]),), MASKED).scatter(0, flat, self.score(h).squeeze(1))
        # Embeddings are not negative, so that zeros are neutral in the maximum.
        count = valid.sum(1, keepdim=True).clamp(min=1)
        mean = h.new_zeros(n, self.hidden).index_add(0, owner, h) / count
        largest = h.new_zeros(n, self.hidden).scatter_reduce(0, owner[:, None].expand_as(h), h, "amax")
        pooled = torch.cat((u, mean, largest), 1)
        defer = self.defer_out(torch.relu(self.defer(pooled)))
        value = self.value_out(torch.relu(self.value(pooled))).squeeze(1)
        # Where no candidate is marked, Strait defers.
        chosen = torch.cat((chosen, ~chosen.any(1, keepdim=True)), 1)
        return torch.cat((logits.view(n, -1), defer), 1) + self.strait_bonus * chosen, value


class CandidatePolicy(MaskableActorCriticPolicy):
    """``CandidateNet`` as a policy of sb3-contrib's MaskablePPO.

    Args:
        observation_space: Box of ``envs.scheduling.observation`` shape. action_space: Discrete, one action per candidate
            and DEFER.
        lr_schedule: learning rate by progress. hidden, strait_bonus, strait: see ``CandidateNet``.
        kwargs: as the base class.
    """

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Discrete,
        lr_schedule: Schedule,
        hidden: int = 32,
        strait_bonus: float = 4.5,
        strait: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        self.settings: dict[str, Any] = {"hidden": hidden, "strait_bonus": strait_bonus, "strait": strait}
        expected = (int(action_space.n) - 1) * N_CANDIDATE + N_SUMMARY
        if observation_space.shape != (expected,):
            raise InputError(
                f"observation shape {observation_space.shape} does not fit {int(action_space.n)} actions: "
                f"expected ({expected},)"
            )
        super().__init__(observation_space, action_space, lr_schedule, **kwargs)

    def _build(self, lr_schedule: Schedule) -> None:
        self.net = CandidateNet(**self.settings)
        self.optimizer = self.optimizer_class(self.net.parameters(), lr=lr_schedule(1), **self.optimizer_kwargs)  # type: ignore[call-arg]

    def _get_constructor_parameters(self) -> dict[str, Any]:
        return super()._get_constructor_parameters() | self.settings

    def _logits(self, obs: Tensor, action_masks: np.ndarray | Tensor | None) -> tuple[Tensor, Tensor]:
        logits, value = self.net(obs)
        if action_masks is not None:
            allowed = torch.as_tensor(action_masks, device=obs.device).reshape(logits.shape).bool()
            logits = logits.masked_fill(~allowed, MASKED)
        return logits, value

    def forward(
        self, obs: Tensor, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Actions (N,), values (N, 1) and log probabilities (N,)."""
        logits, value = self._logits(obs, action_masks)
        log_p = torch.log_softmax(logits, 1)
        actions = logits.argmax(1) if deterministic else torch.multinomial(log_p.exp(), 1).squeeze(1)
        return actions, value[:, None], log_p.gather(1, actions[:, None]).squeeze(1)

    def evaluate_actions(
        self, obs: Tensor, actions: Tensor, action_masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Values (N, 1), log probabilities of the actions (N,) and entropies (N,)."""
        logits, value = self._logits(obs, action_masks)
        log_p = torch.log_softmax(logits, 1)
        entropy = -(log_p.exp() * log_p).sum(1)
        return value[:, None], log_p.gather(1, actions.long().reshape(-1, 1)).squeeze(1), entropy

    def get_distribution(  # type: ignore[override]
        self, obs: Tensor, action_masks: np.ndarray | None = None
    ) -> MaskableDistribution:
        """Distribution over actions."""
        logits, _ = self._logits(obs, action_masks)
        return self.action_dist.proba_distribution(action_logits=logits)

    def predict_values(self, obs: Tensor) -> Tensor:  # type: ignore[override]
        """Values (N, 1)."""
        return self.net(obs)[1][:, None]


def weights_of(policy: CandidatePolicy) -> dict[str, np.ndarray]:
    """The network's weights as arrays by name."""
    return {name: tensor.detach().cpu().numpy() for name, tensor in policy.net.state_dict().items()}

"""The trained policy as it is deployed: read from safetensors, evaluated without torch, wherever a heuristic runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.learned.forward import HEAD, STRAIT, aligned_zeros, choose, logits_of, memory_size, pack
from agents.learned.policy_file import read_policy
from agents.policies.base import Policy, PolicyKind
from envs.scheduling.state import SchedState, Tables
from envs.simulation.config import EnvConfig
from traces.errors import InputError

# Scratch is set aside for so many candidates (64 models with 4 batch sizes); memory that is not touched costs nothing.
MAX_CANDIDATES = 512


@dataclass(frozen=True)
class LearnedParams:
    """Parameters of a trained policy beside its weights.

    Attributes:
        defer: mean solo latencies after which a deferral ends, if no event ends it before; as in training.
        max_batches_per_core: batches that may share a core where it decides, as in training (0: no limit); beyond that
            Strait does.
        caution: factor on what an action must promise before it takes the place of Strait's, over what training chose.
    """

    defer: float = 0.3
    max_batches_per_core: int = 0
    caution: float = 1.0


KIND = PolicyKind("ppo", choose, LearnedParams, "this project: MaskablePPO, candidates scored one by one", adapts=True)


class LearnedPolicy(Policy):
    """Weights of a ``CandidateNet``, ready to decide for N schedulers; stands wherever a ``Policy`` does.

    Args:
        weights: arrays by name, as in the network's state dict.
        n: number of schedulers.
        drop: scale of solo latency at which a queued request is dropped as out of reach; None: 1.
        metadata: of the file that the weights came from.
        params: fields of ``LearnedParams``.
    """

    def __init__(
        self,
        weights: Mapping[str, np.ndarray],
        n: int = 1,
        drop: float | None = None,
        metadata: Mapping[str, Any] | None = None,
        **params: float,
    ) -> None:
        super().__init__(KIND, n, drop, **params)
        self.metadata = dict(metadata or {})
        self.hidden = int(np.shape(weights["summary.weight"])[0])
        self.vector = pack(weights, self.params.defer, self.params.max_batches_per_core, self.params.caution)
        self.reset(n)

    def correct(self, strait: np.ndarray) -> None:
        """Correct the Strait with these values of its parameters."""
        self.vector[STRAIT:HEAD] = strait

    def reset(self, n: int | None = None) -> None:
        """Forget everything; with n, be ready for that many schedulers."""
        self.memory = aligned_zeros(n or len(self.memory), memory_size(self.hidden, MAX_CANDIDATES))

    def check(self, state: SchedState, tables: Tables) -> None:
        """Raise InputError for more candidates than its memory has room for."""
        n = 2 * state.queue.shape[2] * len(tables.size)
        if n > MAX_CANDIDATES:
            raise InputError(
                f"policy 'ppo' decides among at most {MAX_CANDIDATES} candidates, not {n}; serve fewer models"
            )

    def logits(self, state: SchedState, tables: Tables, env: int = 0) -> np.ndarray:
        """(A,) logits of all actions in scheduler e now, DEFER last; -inf where not valid."""
        self.decide(state, tables, env)
        return logits_of(self.memory[env], self.hidden, 2 * state.queue.shape[2] * len(tables.size)).copy()


def policy_in(settings: EnvConfig, weights: Mapping[str, np.ndarray], strait: np.ndarray, n: int = 1) -> LearnedPolicy:
    """A network under training as it decides in worlds with these settings, for n schedulers.

    Args:
        settings: of the worlds. weights: arrays by name. strait: values of the parameters of the Strait that it corrects.
        n: number of schedulers.
    """
    rules = {"defer": settings.defer, "max_batches_per_core": settings.max_batches_per_core}
    policy = LearnedPolicy(weights, n, settings.drop, None, **rules)
    policy.correct(strait)
    return policy


def load_policy(path: str | Path, n: int = 1, **params: float) -> LearnedPolicy:
    """A trained policy from a file that ``train.py`` wrote.

    Args:
        path: safetensors file.
        n: number of schedulers.
        params: fields of ``LearnedParams`` that the file does not say.

    Raises:
        InputError: no such file, not safetensors, or written for another observation than this version makes.
    """
    file = read_policy(path)
    rules = {"defer": file.defer, "max_batches_per_core": file.max_batches_per_core}
    return LearnedPolicy(file.weights, n, file.drop, file.metadata, **rules, **params)

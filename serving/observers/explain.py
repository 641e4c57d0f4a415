"""Logs what a trained policy thought of each candidate, decision by decision (``serve.py --explain``)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from agents.learned.policy import LearnedPolicy
from agents.policies.base import Policy
from envs.scheduling.candidates import candidate_of
from envs.scheduling.state import PRIORITIES, SchedState, Tables
from traces.errors import InputError

log = logging.getLogger(__name__)

SHOWN = 3  # candidates per decision, the best ones


class DecisionLog:
    """Logs the scores of a trained policy after each of its decisions; see `GuardedPolicy.on_decision`.

    Args:
        models: names of the served models.
    """

    def __init__(self, models: Callable[[], tuple[str, ...]]) -> None:
        self._models = models

    def __call__(self, policy: Policy, state: SchedState, tables: Tables) -> None:
        """Log one line."""
        log.info(
            "decision: %s", describe_candidates(require_learned(policy).logits(state, tables), tables, self._models())
        )


def describe_candidates(logits: np.ndarray, tables: Tables, models: tuple[str, ...]) -> str:
    """One line: the best candidates with their probabilities, best first.

    Args:
        logits: (A,) of all actions, DEFER last; -inf where not valid.
        tables: with the batch sizes.
        models: names.
    """
    weight = np.exp(logits - np.max(logits))
    share = weight / weight.sum()
    words = []
    for action in np.argsort(-share, kind="stable")[:SHOWN]:
        if share[action] <= 0:
            break
        if action == len(logits) - 1:
            name = "defer"
        else:
            priority, model, size = candidate_of(tables, len(models), int(action))
            name = f"{PRIORITIES[priority]} {models[model]} x{tables.size[size]}"
        words.append(f"{name} {100 * share[action]:.1f} %")
    return ", ".join(words)


def require_learned(policy: Policy) -> LearnedPolicy:
    """The policy, if it is a trained one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(policy, LearnedPolicy):
        raise InputError("--explain: only a trained policy scores candidates; give --policy ppo or a .safetensors file")
    return policy

"""Logs what a trained policy thought of each candidate, decision by decision (``serve.py --explain``)."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np

from agents.learned.policy import LearnedPolicy
from envs.scheduling.operations import candidate_of
from envs.scheduling.state import PRIORITIES, SchedState, Tables
from traces.errors import InputError

log = logging.getLogger(__name__)

SHOWN = 3  # candidates a decision, the best ones


def explained(policy: LearnedPolicy, models: Callable[[], tuple[str, ...]]) -> LearnedPolicy:
    """Make a trained policy log its scores at each decision; it decides as before.

    Args:
        policy: it is changed.
        models: names of the served models.
    """
    plain = policy.decide

    def decide(state: SchedState, tables: Tables, env: int = 0) -> tuple[int, float]:
        action, wake = plain(state, tables, env)
        names = models()
        if len(names) == state.queue.shape[2]:  # else it is the warm-up, before there is an engine
            policy.decide = plain  # type: ignore[method-assign]
            try:
                log.info("decision: %s", describe(policy.logits(state, tables, env), tables, names))
            finally:
                policy.decide = decide  # type: ignore[method-assign]
        return action, wake

    policy.decide = decide  # type: ignore[method-assign]
    return policy


def describe(logits: np.ndarray, tables: Tables, models: tuple[str, ...]) -> str:
    """One line: the best candidates with their probabilities, best first.

    Args:
        logits: (A,) of all actions, DEFER last; -inf where not valid.
        tables: with the batch sizes. models: names.
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
            p, m, b = candidate_of(tables, len(models), int(action))
            name = f"{PRIORITIES[p]} {models[m]} x{tables.size[b]}"
        words.append(f"{name} {100 * share[action]:.1f} %")
    return ", ".join(words)


def require_learned(policy: object) -> LearnedPolicy:
    """The policy, if it is a trained one.

    Raises:
        InputError: it is not.
    """
    if not isinstance(policy, LearnedPolicy):
        raise InputError("--explain: only a trained policy scores candidates; give --policy ppo or a .safetensors file")
    return policy

"""What the look-ahead saw: states, the actions tried in them, and what these gained; small enough to keep all of a run's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from envs.scheduling.observation import N_CANDIDATE, N_SUMMARY, VALID, observation_size


@dataclass
class Samples:
    """S states in which actions were tried. Only valid candidates are kept, a fraction of an observation.

    Attributes:
        candidates: (R, N_CANDIDATE) float16, those of all states in turn. places: (R,) their actions.
        n_valid: (S,) how many of them each state has.
        summary: (S, N_SUMMARY) float16.
        usual: (S,) the usual action. tried: (S, K) those tried, -1 for none. gains: (S, K) theirs.
    """

    candidates: np.ndarray
    places: np.ndarray
    n_valid: np.ndarray
    summary: np.ndarray
    usual: np.ndarray
    tried: np.ndarray
    gains: np.ndarray

    @classmethod
    def of(cls, obs: np.ndarray, usual: np.ndarray, tried: np.ndarray, gains: np.ndarray) -> Samples:
        """From observations (S, O)."""
        rows = obs[:, :-N_SUMMARY].reshape(len(obs), (obs.shape[1] - N_SUMMARY) // N_CANDIDATE, N_CANDIDATE)
        owner, places = np.nonzero(rows[:, :, VALID])
        n_valid = np.bincount(owner, minlength=len(obs))
        half = np.float16
        summary = obs[:, -N_SUMMARY:].astype(half)
        return cls(rows[owner, places].astype(half), places.astype(np.int16), n_valid, summary, usual, tried, gains)

    @classmethod
    def joined(cls, parts: Sequence[Samples]) -> Samples:
        """All of them."""
        return cls(*(np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def arrays(self) -> dict[str, np.ndarray]:
        """The fields by name, for ``of_arrays``; the arrays themselves."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Samples:
        """What ``arrays`` gave."""
        return cls(**{f.name: np.asarray(arrays[f.name]) for f in fields(cls)})

    @cached_property
    def first(self) -> np.ndarray:
        """(S,) row of ``candidates`` at which each state's begin."""
        return np.cumsum(self.n_valid) - self.n_valid

    def observations(self, index: np.ndarray, n_candidates: int) -> np.ndarray:
        """(N, O) float32 observations of the states ``index`` (N,)."""
        n = self.n_valid[index]
        owner = np.repeat(np.arange(len(index)), n)
        source = np.arange(len(owner)) + np.repeat(self.first[index] - (np.cumsum(n) - n), n)
        obs = np.zeros((len(index), observation_size(n_candidates)), np.float32)
        obs[:, :-N_SUMMARY].reshape(len(index), n_candidates, N_CANDIDATE)[owner, self.places[source]] = (
            self.candidates[source]
        )
        obs[:, -N_SUMMARY:] = self.summary[index]
        return obs

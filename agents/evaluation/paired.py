"""Which of two policies is better: the same workloads and noise for both, at several loads.

Used while training to keep the best policy (agents.training.trainer), and to choose one to serve with
(agents.evaluation.choose); for reports see ``agents.evaluate``.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from agents.evaluation.rollout import finish
from agents.evaluation.statistics import violations, weighted_rate
from agents.policies.base import Policy
from envs.profiles.profile import Profile
from envs.scheduling.state import HIGH, LOW
from envs.simulation.config import EnvConfig
from envs.simulation.worlds import Worlds, world_seed
from traces.workload import Workload

FIRST_SEED = 1 << 40  # far from the seeds of training


@dataclass(frozen=True)
class Score:
    """Violations of one policy, one row a load and one column a workload.

    Attributes:
        high: (L, W) violation rate of high priority. low: (L, W) of low priority; nan where there was none.
        weighted: (L, W) share of violated weight (see ``PairedEvaluation``).
    """

    high: np.ndarray
    low: np.ndarray
    weighted: np.ndarray


class PairedEvaluation:
    """Held-out workloads at fixed loads, and the score of a reference policy on them.

    Args:
        config: settings of the environment; its ``load`` is replaced by each of ``loads``.
        profile: the profile that ``config`` names.
        reference: who to beat.
        loads: offered loads over measured capacity; None: the arrivals of ``workload`` at the rate that they have.
        workloads: number of workloads at each load.
        duration_ms: length of each.
        seed: of the first workload.
        workload: recorded arrivals that windows are cut from; None: they are generated.

    Attributes:
        reference: score of the reference policy.
    """

    def __init__(
        self,
        config: EnvConfig,
        profile: Profile,
        reference: Policy,
        loads: Sequence[float | None] = (0.8, 1.0, 1.2),
        workloads: int = 16,
        duration_ms: float = 4000.0,
        seed: int = FIRST_SEED,
        workload: Workload | None = None,
    ) -> None:
        self.loads = tuple(loads)
        self.n = workloads
        self._batches = [
            Worlds(
                replace(
                    config,
                    load=None if load is None else (load, load),
                    duration_ms=(duration_ms, duration_ms),
                    n_requests=None,
                ),
                workloads,
                autoreset=False,
                profile=profile,
                workload=workload,
            )
            for load in self.loads
        ]
        self._seeds = np.array([world_seed(seed + i) for i in range(workloads)], np.uint64)
        self.reference = self.score(reference)

    def score(self, policy: Policy) -> Score:
        """Run ``policy`` on all workloads; loads are spread over two threads."""
        policy.reset(self.n)
        with ThreadPoolExecutor(2) as pool:
            counts, weights = zip(*pool.map(lambda worlds: self._run(worlds, policy), self._batches), strict=True)
        violated, total = violations(np.array(counts))
        with np.errstate(invalid="ignore", divide="ignore"):
            rate = violated / total
        return Score(rate[..., HIGH], rate[..., LOW], weighted_rate(violated, total, np.array(weights)))

    def _run(self, worlds: Worlds, policy: Policy) -> tuple[np.ndarray, np.ndarray]:
        """Counts of all workloads by outcome, and what a high-priority request counts in each."""
        sim = worlds.sim
        sim.world.rules["drop_scale"] = policy.drop
        worlds.reset(self._seeds)
        memory = np.zeros_like(policy.memory)
        finish(policy, sim.arrays, memory, 0, self.n)
        return sim.state.count.copy(), sim.state.scheduler["high_weight"].copy()

    def paired(self, score: Score) -> np.ndarray:
        """(L, W) weighted violations of ``score`` minus the reference's."""
        return score.weighted - self.reference.weighted

    def difference(self, score: Score) -> tuple[np.ndarray, np.ndarray]:
        """Weighted violations of ``score`` minus the reference's, paired: mean (L,) and standard error (L,)."""
        paired = self.paired(score)
        return paired.mean(axis=1), paired.std(axis=1, ddof=1 if self.n > 1 else 0) / np.sqrt(self.n)

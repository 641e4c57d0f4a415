"""Which policy is best on a device and a load: ``python -m agents.choose --profile runs/mine/profile.json``.

Candidates are compared with Strait in simulation on the same arrivals and noise, in seconds; the best one is chosen if it is
better clear of zero. ``serve.py --policy auto`` does this when it starts, and again while it serves. Prints one JSON object as
its last line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass

from agents.evaluation.choose import choose_policy
from envs.profiles.profile import Profile
from envs.simulation.config import DEFAULT_PROFILE, MAX_STREAMS
from traces.command import run_command
from traces.settings import check_settings
from traces.workload import HIGH_WEIGHT, Workload

CANDIDATES = ("strait", "ppo")


@dataclass
class ChooseConfig:
    """What to compare, and on what.

    Attributes:
        profile: shipped profile by name, or a JSON file written by envs.fit.
        candidates: policies by name, or files of trained ones.
        workload: file of recorded arrivals (serve.py --record), whose windows are compared on; by default made ones at several
            loads.
        tuned_for: profile whose tuned parameters heuristics take; by default this one.
        streams: batches that may be in flight side by side.
        high_weight: what a high-priority request counts, a low-priority one being 1.
        seed: of arrivals and noise; the same seed chooses alike.
    """

    profile: str = DEFAULT_PROFILE
    candidates: tuple[str, ...] = CANDIDATES
    workload: str | None = None
    tuned_for: str | None = None
    streams: int = 4
    high_weight: float = HIGH_WEIGHT
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(
            self, "--", {"streams": 1}, {"high_weight": 0}, {"streams": MAX_STREAMS}, not_empty=["candidates"]
        )


def choose(config: ChooseConfig) -> None:
    """Compare, and print what was found.

    Raises:
        InputError: an unknown policy or profile, or a malformed file.
    """
    profile = Profile.load(config.profile)
    workload = None if config.workload is None else Workload.load(config.workload, profile.models)
    tuned_for = config.profile if config.tuned_for is None else config.tuned_for
    found = choose_policy(
        profile, config.candidates, config.streams, config.high_weight, tuned_for, workload, config.seed
    )
    print(found.describe())
    print(json.dumps(asdict(found)))


def main(argv: list[str] | None = None) -> int:
    """Run the command line."""
    return run_command(choose, ChooseConfig, argv, "python -m agents.choose", __doc__)


if __name__ == "__main__":
    sys.exit(main())

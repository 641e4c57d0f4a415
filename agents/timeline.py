"""A picture of one simulated episode under a policy: ``python -m agents.timeline --out timeline.png``."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from agents.evaluation.rollout import prepare
from agents.evaluation.suites import seen_models, workload_for
from agents.learned.names import resolve
from envs.drawing.timeline import draw_timeline, episode
from envs.drawing.trace_events import write_trace
from envs.profiles.profile import Profile
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.command import run_command
from traces.settings import check_settings
from traces.workload import WorkloadConfig


@dataclass
class TimelineConfig:
    """What to run, and what to draw of it.

    Attributes:
        out: picture to write, .png or .svg.
        policy: name, or path of a checkpoint.
        workload: poisson, bursty, diurnal, gamma, azure_llm_2023 or mooncake, or a trace file.
        load: offered load over measured capacity.
        duration_ms: length of the episode.
        window_ms: first and last time drawn.
        profile: shipped profile by name, or a JSON file written by envs.fit.
        streams: streams of the device.
        seed: of workload and noise.
        trace: file for the same timeline as Chrome trace JSON (open in ui.perfetto.dev); none by default.
    """

    out: str
    policy: str = "strait"
    workload: str = "bursty"
    load: float = 1.1
    duration_ms: float = 1000.0
    window_ms: tuple[float, float] = (440.0, 560.0)
    profile: str = "cpu2"
    streams: int = 4
    seed: int = 0
    trace: str | None = None

    def __post_init__(self) -> None:
        check_settings(self, "--", {"streams": 1, "window_ms": 0}, {"load": 0, "duration_ms": 0})


def run(config: TimelineConfig) -> None:
    """Simulate and draw.

    Raises:
        InputError: an unknown policy, workload or profile, or nothing to draw.
    """
    policy, change = resolve(config.policy, profile=config.profile)
    profile = Profile.load(config.profile)
    profile = profile.select(seen_models(profile))
    rate = config.load * measure_capacity(profile, config.streams)
    workload = workload_for(config.workload, rate, config.duration_ms, profile, WorkloadConfig(), config.seed)
    sim = Simulator(profile, 1, config.streams, max(len(workload), 1), tables=change(profile.tables()))
    prepare(sim, policy, [workload], [config.seed])
    requests, batches = episode(sim, policy.decide)
    title = f"{config.policy}, {config.workload} arrivals at load {config.load:g}, {profile.name} (simulated)"
    draw_timeline(requests, batches, config.out, config.window_ms, title)
    if config.trace is not None:
        write_trace(config.trace, requests, batches)
    print(f"{config.out}: {len(requests)} requests in {len(batches)} batches")


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run, TimelineConfig, argv, "python -m agents.timeline", __doc__)


if __name__ == "__main__":
    sys.exit(main())

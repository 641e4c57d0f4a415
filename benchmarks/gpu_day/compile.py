"""Compiles what the steps run on the CPU into the cache, in the order in which they need it."""

from __future__ import annotations

from agents.learned.names import SERVED, resolve
from agents.learned.policy_file import SHIPPED
from benchmarks.gpu_day.live import POLICIES, TRACE, WORLDS
from benchmarks.gpu_day.profile import STREAMS
from benchmarks.live.headline import LiveBenchmark
from benchmarks.live.runs import make_cells
from benchmarks.live.simulated import simulate
from envs import precompile
from envs.profiles.profile import Profile
from serving.engine.warmup import warm_up
from serving.profiling.calibrate import SHIPPED as PROFILE


def main() -> None:
    """Warm every policy up as a live engine does, simulate it as the steps do, and take one step of the environment."""
    profile = Profile.load(PROFILE)
    policies = [*POLICIES, *SHIPPED]
    for policy in policies:
        chosen, change = resolve(policy, profile=SERVED)
        warm_up(change(profile.tables()), STREAMS, [chosen])
    offered = make_cells(profile, [TRACE], 50.0, LiveBenchmark(policies=policies, loads=[1.0], duration=1.0))[0]
    for policy in policies:
        simulate(profile, profile, policy, offered, STREAMS, WORLDS)
    precompile.main()

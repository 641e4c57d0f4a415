"""Settings of an environment, one typed dataclass: the same names in Python, YAML and flags."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np

from envs.profiles.profile import Profile
from traces.errors import InputError
from traces.settings import check_settings, fits, read_settings
from traces.workload import HIGH_WEIGHT

Range = tuple[float, float]
DEFAULT_PROFILE = "gpu-a100"
MAX_STREAMS = 32  # beyond it the measurement of the capacity, whose time grows as their cube, takes minutes


@dataclass(frozen=True)
class RandomiseConfig:
    """How far the simulated device strays from what the scheduler is told, drawn anew for each episode.

    All zero by default: the device is then what the profile says, up to the measured residuals.

    Attributes:
        solo_error: standard deviation of the log of a factor on each model's execution time.
        device_error: the same for the device as a whole.
        slowdown_error: standard deviation of the log of a factor on every pair slowdown.
        min_streams: an episode has between so many and ``EnvConfig.streams`` streams; None: always all.
    """

    solo_error: float = 0.0
    device_error: float = 0.0
    slowdown_error: float = 0.0
    min_streams: int | None = None

    def __post_init__(self) -> None:
        check_settings(self, "randomise.", {"solo_error": 0, "device_error": 0, "slowdown_error": 0, "min_streams": 1})

    @property
    def changes_device(self) -> bool:
        """Whether each world has a device of its own."""
        return self.solo_error > 0 or self.device_error > 0 or self.slowdown_error > 0


@dataclass(frozen=True)
class EnvConfig:
    """Everything an environment needs to know. A range (low, high) is drawn from anew for each episode.

    Attributes:
        profile: path or name of a profile, or "synthetic:SEED".
        models: the models served, by name; empty: all of the profile.
        streams: streams K of the device.
        max_batches_per_core: batches that may share a core in turns; 0: as many as there are streams.
        mixed_batches: whether a batch of high priority may take low priority of its model along.
        load: offered load as a share of the capacity measured in simulation (envs.simulation.capacity). None leaves a
            workload's arrivals as recorded.
        burst: arrival rate in a burst over the mean rate; (1, 1) is a Poisson process.
        burst_share: share of time spent in bursts.
        burst_ms: mean length of a burst.
        high_fraction: share of high-priority requests.
        deadline_factor_high: relative deadline over the model's solo latency.
        deadline_factor_low: for low priority.
        duration_ms: time in which requests arrive.
        model_share: share of each model by name, any unit; None: equal.
        mix_spread: standard deviation of the log of a factor on each model's share, drawn for each episode.
        drop: a queued request is dropped when even this many times its solo latency is too late; 0 never drops.
        defer: mean solo latencies after which a deferral ends, if no event ends it before.
        end_ms: time after the last arrival until what still waits is dropped.
        high_weight: what a high-priority request counts, a low-priority one being 1, in the reward and to the scheduler.
        noise: whether batches draw measured residuals and stragglers.
        queue_places: places of each queue; a request that finds none is refused (dropped).
        models_in_memory: models that memory holds at once; 0: all. A request for another waits until it is loaded.
        load_ms: how long it takes to load one.
        n_requests: room for the arrivals of one episode; None: enough for load and duration.
        workload: recorded requests to draw windows from, in place of generated ones: a trace file in a known format
            (traces.formats), or "twin:NAME" or "trace:NAME" (traces.twin.known).
        randomise: domain randomisation of the device.

    Raises:
        InputError: a setting is out of range.
    """

    profile: str = DEFAULT_PROFILE
    models: tuple[str, ...] = ()
    streams: int = 4
    max_batches_per_core: int = 0
    mixed_batches: bool = True
    load: Range | None = (0.5, 1.3)
    burst: Range = (1.0, 4.0)
    burst_share: Range = (0.1, 0.3)
    burst_ms: Range = (50.0, 300.0)
    high_fraction: Range = (0.1, 0.5)
    deadline_factor_high: Range = (3.0, 6.0)
    deadline_factor_low: Range = (8.0, 16.0)
    duration_ms: Range = (1500.0, 2500.0)
    model_share: dict[str, float] | None = None
    mix_spread: float = 0.5
    drop: float = 1.0
    defer: float = 0.3
    end_ms: float = 2000.0
    high_weight: Range = (HIGH_WEIGHT, HIGH_WEIGHT)
    noise: bool = True
    queue_places: int = 128
    models_in_memory: int = 0
    load_ms: float = 100.0
    n_requests: int | None = None
    workload: str | None = None
    randomise: RandomiseConfig = field(default_factory=RandomiseConfig)

    def __post_init__(self) -> None:
        if isinstance(self.models, list):
            object.__setattr__(self, "models", tuple(self.models))
        for name in RANGES:
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, as_range(name, value))
        if isinstance(self.randomise, dict):
            object.__setattr__(self, "randomise", read_settings(RandomiseConfig, self.randomise, "randomise"))
        whole = {"streams": 1, "max_batches_per_core": 0, "queue_places": 1, "n_requests": 1, "models_in_memory": 0}
        numbers = {"drop": 0, "end_ms": 0, "mix_spread": 0, "load_ms": 0}
        check_settings(self, "", whole | numbers, {"defer": 0}, {"streams": MAX_STREAMS})
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value[0] <= value[1] <= most:
                raise InputError(f"{name}: {value}; must be low and high from {least:g} to {most:g}, ascending")
        for name in ("load", "duration_ms"):
            if (value := getattr(self, name)) is not None and value[1] <= 0:
                raise InputError(f"{name}: {value}; its high end must be above 0, or there are no requests")
        least_streams = self.randomise.min_streams
        if least_streams is not None and not 1 <= least_streams <= self.streams:
            raise InputError(f"randomise.min_streams: {least_streams}; must be from 1 to streams={self.streams}")


# Settings that are drawn from a range for each episode, and what each may be.
RANGES: dict[str, Range] = {
    "load": (0.0, 100.0),
    "burst": (1.0, 1e3),
    "burst_share": (0.0, 1.0),
    "burst_ms": (1e-3, 1e9),
    "high_fraction": (0.0, 1.0),
    "high_weight": (1e-3, 1e6),
    "deadline_factor_high": (1e-3, 1e9),
    "deadline_factor_low": (1e-3, 1e9),
    "duration_ms": (0.0, 1e9),
}


def as_range(name: str, value: Any) -> Range:
    """A pair (low, high) of a setting given as one number or as a pair."""
    values = value if isinstance(value, list | tuple | np.ndarray) else (value,)
    pair = tuple(float(v) for v in values) if all(fits(v, float) for v in values) else ()
    if len(pair) not in (1, 2) or not all(np.isfinite(pair)):
        raise InputError(f"{name}: {value!r}; expected a number or a pair (low, high)")
    return pair[0], pair[-1]


def make_config(config: EnvConfig | None, settings: dict[str, Any]) -> EnvConfig:
    """``config`` (or the defaults) with some settings replaced.

    Raises:
        InputError: there is no such setting, or its value is out of range.
    """
    known = {f.name for f in fields(EnvConfig)}
    for key in settings:
        if key not in known:
            raise InputError(f"environment has no setting {key!r}; it has {', '.join(sorted(known))}")
    return replace(config or EnvConfig(), **settings)


def served_profile(config: EnvConfig) -> Profile:
    """The profile that the settings name, with the models that they choose."""
    profile = Profile.load(config.profile)
    return profile.select(config.models) if config.models else profile

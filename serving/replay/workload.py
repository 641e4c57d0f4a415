"""What ``serve.py --replay`` offers: a recorded workload, or models, priorities and deadlines laid over arrivals."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np

from agents.evaluation.suites import SYNTHETIC, WORKLOADS, arrival_times
from envs.profiles.profile import Profile
from traces.errors import InputError
from traces.formats import Arrivals, is_trace_file, load_trace
from traces.twin.generator import parameters, twin, twin_names
from traces.twin.known import KNOWN, real_or_twin, title_of
from traces.workload import Workload, WorkloadConfig, make_workload

Source = Workload | Arrivals | str
DEFAULT_LOAD = 0.8  # of arrivals that have no rate of their own


def read_source(name: str, models: Sequence[str], seed: int = 0) -> Source:
    """Read what is to be replayed, as far as it can be without a profile.

    Args:
        name: a workload or trace file ("FORMAT:FILE" where its format is not plain), a name of
            ``agents.evaluation.suites.WORKLOADS``, or "twin:NAME".
        models: the served models; a workload file may ask for no others.
        seed: seeds what a trace file leaves open.

    Raises:
        InputError: no such file or name, a malformed line, or a workload that asks for a model that is not served.
    """
    if is_trace_file(name):
        return load_trace(name, models, seed)
    kind, _, twin_name = name.partition(":")
    if name not in WORKLOADS and not (kind == "twin" and twin_name in twin_names()):
        twins = ", ".join(f"twin:{known}" for known in twin_names())
        raise InputError(
            f"--replay: {name!r} is no file and no known workload; known are {', '.join(WORKLOADS)}, {twins}"
        )
    return name


def needs_load(source: Source) -> bool:
    """Whether the arrivals have no rate of their own."""
    return isinstance(source, str) and source in SYNTHETIC


def mix_of(source: Source) -> np.ndarray | None:
    """(M,) share of each served model in a workload file; None where the mix is laid out equal."""
    if not isinstance(source, Workload) or not len(source):
        return None
    return np.bincount(source.model, minlength=len(source.models)) / len(source)


def lay_out(
    source: Source, profile: Profile, rate_rps: float | None, duration_s: float, config: WorkloadConfig, seed: int
) -> Workload:
    """The workload to offer.

    Args:
        source: from ``read_source``.
        profile: of the served models.
        rate_rps: rate to stretch the arrivals to; None keeps their own.
        duration_s: length; a recording that is shorter is offered whole.
        config: how models, priorities and deadlines are laid over bare arrivals.
        seed: of whatever is drawn.

    Raises:
        InputError: nothing arrives in that time.
    """
    end_ms = duration_s * 1e3
    if isinstance(source, Workload):
        whole = source if rate_rps is None else source.rescaled(rate_rps)
        workload = whole.window(0.0, end_ms)
    else:
        name = source if isinstance(source, str) else source.name
        rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
        times = _times(source, rate_rps, end_ms, rng)
        workload = make_workload(times, profile.models, profile.solo_latency_ms, config, rng, title_of(name))
    if not len(workload):
        raise InputError(f"--replay: no request of {workload.name!r} arrives within {duration_s:g} s; raise --duration")
    return workload


def _times(source: Arrivals | str, rate_rps: float | None, end_ms: float, rng: np.random.Generator) -> np.ndarray:
    if not isinstance(source, str):
        whole = source if rate_rps is None else source.rescaled(rate_rps)
        return whole.window(0.0, end_ms).arrival_ms
    kind, _, name = source.partition(":")
    if kind == "twin":
        stretch = 1.0 if rate_rps is None else rate_rps / parameters(name).rate_rps
        return twin(name, end_ms * stretch, rng) / stretch
    if source in KNOWN and rate_rps is None:
        return real_or_twin(source, end_ms, rng).arrival_ms
    assert rate_rps is not None, "a made workload has the rate that it is asked for"
    return arrival_times(source, rate_rps, end_ms, rng)

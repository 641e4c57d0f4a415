"""Networks alone and side by side, as recorded graphs and as launches; a campaign that can be fitted at any moment."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from itertools import count
from typing import Any

import numpy as np

from benchmarks.gpu_day.networks import load_networks
from benchmarks.gpu_day.step import Context
from envs.profiles.fit import fit
from envs.profiles.profile import Profile
from serving.executors.executor import Executor
from serving.executors.factory import make_executor
from serving.models.served import ServedModel
from serving.profiler import Campaign, Scenario, plan
from serving.profiling.calibrate import machine_of
from traces.machine import ModelInfo
from traces.measurements import Measurements
from traces.workload import PRIORITIES

STREAMS = 4
SIZES = {"cpu": (1, 2, 4, 8), "cuda": (1, 2, 4, 8, 16, 32, 64)}
SAVE_EVERY_S = 15.0
CHUNK = 1200  # batches that are planned at a time
NEEDED = 40  # scenarios that are always played, whatever the time
PROFILE = "profile.json"


def with_graphs(context: Context) -> dict[str, Any]:
    """A campaign in which a GPU replays recorded graphs, and the profile that is fitted to it."""
    measurements = measure(context, graphs=True, until_s=0.8 * context.seconds)
    found = figures(measurements)
    context.save("result.json", found)  # in case the fit does not end in time
    begun = time.monotonic()
    fitted = fit(measurements, "gpu-day")
    fitted.save(context.folder / PROFILE)
    return found | {"fit_s": time.monotonic() - begun, "slowdown_p95": float(np.quantile(fitted.residual, 0.95))}


def with_launches(context: Context) -> dict[str, Any]:
    """A campaign in which every operation is launched for itself."""
    return figures(measure(context, graphs=False, until_s=0.9 * context.seconds))


def fitted_profile(context: Context) -> Profile | None:
    """The profile of the campaign with graphs, if it came that far."""
    path = context.of("profile", "profile") / PROFILE
    return Profile.load(str(path)) if path.is_file() else None


def measure(context: Context, graphs: bool, until_s: float) -> Measurements:
    """Play scenarios until so many seconds have passed since the start; what was measured is saved every few seconds.

    Raises:
        RuntimeError: a model failed.
    """
    models = load_networks(context.device, context.models)
    with closing(make_executor(context.device, STREAMS, graphs=graphs)) as executor:
        for model in models:
            executor.load(model)
        sizes = warm_sizes(context, executor, models, until_s / 2)
        described = [ModelInfo(**model.describe()) for model in models]
        machine = machine_of(executor, described, sizes, f"python -m benchmarks.gpu_day, graphs: {graphs}")
        campaign, folder = Campaign(executor, models, sizes[-1], seed=0), context.folder / "measurements"
        saved = time.monotonic()
        for run, (needed, scenario) in enumerate(scenarios(len(models), sizes)):
            now = time.monotonic()
            if now - context.begun > until_s and not needed:
                break
            if now - saved > SAVE_EVERY_S:
                campaign.measurements(machine).save(folder)
                saved = now
            campaign.play(run, scenario)
        measurements = campaign.measurements(machine)
        measurements.save(folder)
    return measurements


def warm_sizes(context: Context, executor: Executor, models: list[ServedModel], until_s: float) -> list[int]:
    """Warm up all models at ever larger batches; returns the sizes that they are ready for when the time is over."""
    ready: list[int] = []
    for size in SIZES[context.device.partition(":")[0]]:
        if ready and time.monotonic() - context.begun > until_s:
            break
        for model in models:
            executor.warm_up(model.name, [size])
        ready.append(size)
        print(f"{time.monotonic() - context.begun:.0f} s: ready for batches of {size}", flush=True)
    return ready


def scenarios(models: int, sizes: list[int]) -> Iterator[tuple[bool, Scenario]]:
    """Scenarios without end, and whether a profile cannot be fitted without one: each model alone, and some side by side."""
    for seed in count():
        rng = np.random.default_rng(seed)
        chunk = plan(rng, models, sizes, STREAMS, CHUNK, priorities=range(len(PRIORITIES)))
        alone = [scenario for scenario in chunk if len(scenario) == 1] if seed == 0 else []
        seen: set[tuple[int, int]] = set()
        for scenario in alone:
            [[step]] = scenario.values()
            if (step.model, step.size) not in seen:
                seen.add((step.model, step.size))
                yield True, scenario
        for place, scenario in enumerate(chunk):
            yield seed == 0 and place < NEEDED, scenario


def figures(measurements: Measurements) -> dict[str, Any]:
    """Milliseconds alone by model and batch size, with the best throughput, and how many batches were measured."""
    table = measurements.solo_table()
    total_ms = table["h2d_ms"] + table["exec_ms"] + table["d2h_ms"]
    found: dict[str, Any] = {"batches": len(measurements.batches)}
    for name, mine in table.assign(total_ms=total_ms).groupby("model", sort=False):
        by_size = {f"{int(size)}_ms": float(ms) for size, ms in zip(mine["batch_size"], mine["total_ms"])}
        found[str(name)] = by_size | {"best_rps": float((1e3 * mine["batch_size"] / mine["total_ms"]).max())}
    return found

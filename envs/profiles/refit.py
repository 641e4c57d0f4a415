"""A profile made truer by the log of a live run: what the log shows is taken over, and where it is thin the profile stays.

The truth's slowdowns are fitted as corrections to those of the profile, its noise and drift are those of the log, and the
scheduler's predictor starts from where it stands after it has lived through the log.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from envs.profiles.delays import measured_delays
from envs.profiles.fit import (
    core_drift_of,
    demands,
    drift_of,
    drift_period_ms,
    fit_truth,
    log_slowdown,
    quantiles,
    solo_arrays,
)
from envs.profiles.profile import Profile
from envs.profiles.replay import MeasuredReplay, log_of
from envs.profiles.segments import Segments, cores_of, cut, time_slice_of
from envs.profiles.truth import Truth
from traces.errors import InputError
from traces.measurements import PHASES, SCHEDULED, Measurements

MIN_BATCHES = 100  # fewer say nothing about noise
KNOT_MS = 25.0  # between knots of a measured speed
KEPT_MS = 120_000.0  # of a log's measured slowdown that a profile keeps
STOP_MS = 50.0  # a batch that takes this much longer than its neighbours shows that the machine stood still
SOLO_WEIGHT = 20  # batches that the solo runs of a model and size are worth


def joined(parts: Sequence[Measurements], shift_ms: Sequence[float] | None = None) -> Measurements:
    """Campaigns of one machine as one.

    Args:
        parts: campaigns.
        shift_ms: what is added to the times of the live batches of each; None: all are laid one after another.

    Raises:
        InputError: there is none, or their models differ.
    """
    if not parts:
        raise InputError("no measurements to join")
    machine = parts[-1].machine
    names = [model.name for model in machine.models]
    frames: list[pd.DataFrame] = []
    run = batch = 0
    end_ms = 0.0
    for number, part in enumerate(parts):
        if sorted(model.name for model in part.machine.models) != sorted(names):
            raise InputError(f"parts of a log serve different models; the last serves {', '.join(names)}")
        frame = part.batches.copy()
        frame["run"] += run
        frame["batch_id"] = np.arange(len(frame)) + batch
        times = [name for name in (*PHASES, *SCHEDULED) if name in frame]
        if shift_ms is None:
            frame[times] += end_ms
        else:
            frame.loc[frame["kind"] == "live", times] += shift_ms[number]
        run, batch = int(frame["run"].to_numpy().max(initial=run)) + 1, batch + len(frame)
        end_ms = float(frame["d2h_end_ms"].max()) + 1.0 if len(frame) else end_ms
        frames.append(frame)
    return Measurements(machine, pd.concat(frames, ignore_index=True))


def on_machine(base: Profile, measurements: Measurements) -> Profile:
    """The base profile with the measured models in place of its own: solo latencies are theirs, interference the base's.

    Interference of pairs is kept for models that the base knows by name; others interfere by their demands alone.

    Args:
        base: a shipped profile. measurements: solo runs of every model at every batch size.

    Raises:
        InputError: a model was never run alone at some size.
    """
    machine, frame = measurements.machine, measurements.batches
    h2d, solo, d2h = solo_arrays(measurements)
    solo = np.maximum(solo, np.finfo(float).eps)
    models = tuple(model.name for model in machine.models)
    dispatch = float(np.median(frame["h2d_start_ms"] - frame["dispatch_ms"]))
    return replace(
        base,
        models=models,
        batch_sizes=machine.batch_sizes,
        cores=float(cores_of(machine)),
        time_slice_ms=time_slice_of(machine),
        solo_ms=solo,
        h2d_ms=h2d,
        d2h_ms=d2h,
        demand=demands(measurements, solo),
        share=_shares(base, models, machine.batch_sizes),
        pair=_pairs(base, models, machine.batch_sizes),
        dispatch_ms=dispatch if dispatch > 0 else base.dispatch_ms,
        source=f"{machine.device.name}: solo latencies of {len(frame)} batches; interference from {base.name}",
    )


def _shares(base: Profile, models: tuple[str, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """(M, B) shares of the base where it knows model and size, else 1: the device is taken for the bottleneck."""
    out = np.ones((len(models), len(sizes)))
    for i, model in enumerate(models):
        for j, size in enumerate(sizes):
            if model in base.models and size in base.batch_sizes:
                out[i, j] = base.share[base.models.index(model), base.batch_sizes.index(size)]
    return out


def _pairs(base: Profile, models: tuple[str, ...], sizes: tuple[int, ...]) -> np.ndarray:
    """(M*B, M*B) log slowdowns of the base where it knows both models and sizes, else 0."""
    b = len(base.batch_sizes)
    at = np.array(
        [
            base.models.index(m) * b + base.batch_sizes.index(s) if m in base.models and s in base.batch_sizes else -1
            for m in models
            for s in sizes
        ]
    )
    pair = base.pair[np.ix_(at, at)].copy()
    pair[at < 0] = 0.0
    pair[:, at < 0] = 0.0
    return pair


def of_kind(measurements: Measurements, *kinds: str) -> Measurements:
    """The batches of some kinds."""
    keep = measurements.batches["kind"].isin(kinds)
    return Measurements(measurements.machine, measurements.batches[keep].reset_index(drop=True))


def residuals(profile: Profile, segments: Segments) -> np.ndarray:
    """Log of measured over modelled execution time of each batch (N,)."""
    work = segments.dt_ms * np.exp(-log_slowdown(segments, profile.count, profile.pair))
    solo_ms = profile.solo_ms.ravel()[segments.variant]
    return np.log(np.maximum(segments.over_batches(work), 1e-9) / solo_ms)


def with_noise(profile: Profile, log: Measurements, by_core: bool = False) -> Profile:
    """The profile with execution times, noise and drift as a log has them; its models must be those of the log, in order.

    What slows all batches alike, such as what the host takes from the device, stays in the middle of the residuals; what is
    a model's own goes into its execution times, as far as the log has batches of that size.

    Args:
        profile: to start from. log: batches.
        by_core: leave out of the noise what the batches on a core have in common, too: for a truth `with_measured_slowdown`.
    """
    if len(log.batches) < MIN_BATCHES:
        return profile
    segments = cut(log)
    residual = residuals(profile, segments)
    own = np.zeros(profile.solo_ms.size)
    for variant in np.unique(segments.variant):
        mine = residual[segments.variant == variant]
        own[variant] = (np.median(mine) - np.median(residual)) * len(mine) / (len(mine) + SOLO_WEIGHT)
    residual -= own[segments.variant]
    drift = drift_of(segments, residual)
    level = float(np.median(residual))
    spread = float(np.std(drift - level))
    shared = core_drift_of(segments, residual) if by_core else drift
    return replace(
        profile,
        solo_ms=profile.solo_ms * np.exp(own).reshape(profile.solo_ms.shape),
        residual=quantiles(residual - shared + level),
        drift_spread=spread,
        drift_knot_ms=drift_period_ms(segments, drift),
    )


def with_slowdowns(profile: Profile, log: Measurements) -> Profile:
    """The profile with slowdowns side by side as a log has them, where it has many; models as for `with_noise`."""
    if len(log.batches) < MIN_BATCHES:
        return profile
    count, pair, _ = fit_truth(cut(log), profile.solo_ms, profile.demand, base=(profile.count, profile.pair))
    return replace(profile, count=count, pair=pair)


def measured_log_slowdown(profile: Profile, log: Measurements, begin_ms: float, end_ms: float) -> np.ndarray:
    """How slow each core was over the time of a log: the factor on execution times that the batches there had in common.

    Args:
        profile: what batches should have taken. log: of one run; models as for `with_noise`.
        begin_ms: time of the first knot, on the log's clock. end_ms: of the last.

    Returns:
        (C, S) log of the factor over the profile's own middle, every `KNOT_MS`; S = 0 where the log says too little. C is 1
        where streams have no cores to share.
    """
    cores = cores_of(log.machine) or 1
    if len(log.batches) < MIN_BATCHES:
        return np.zeros((cores, 0))
    segments = cut(log)
    residual = residuals(profile, segments) - float(np.median(profile.residual))
    drift = core_drift_of(segments, residual) if cores > 1 else drift_of(segments, residual)
    end_of, middle_ms = segments.start_ms + segments.exec_ms, segments.start_ms + segments.exec_ms / 2
    order = np.argsort(middle_ms)
    stops = np.flatnonzero(segments.exec_ms * (1.0 - np.exp(drift - residual)) > STOP_MS)
    knots = np.arange(begin_ms, end_ms + KNOT_MS, KNOT_MS)
    out = np.zeros((cores, len(knots)))
    for core in range(cores):
        mine = order[segments.core[order] == core] if cores > 1 else order
        if len(mine):
            out[core] = np.interp(knots, middle_ms[mine], drift[mine])
        for i in stops:
            # Whoever began or ended meanwhile was not held up.
            low, high = segments.start_ms[i] + KNOT_MS, end_of[i] - KNOT_MS
            begins, ends = segments.start_ms[mine], end_of[mine]
            if not np.any(((begins > low) & (begins < high)) | ((ends > low) & (ends < high))):
                out[core, (knots >= segments.start_ms[i]) & (knots <= end_of[i])] = residual[i]
    return out


def with_log_slowdown(profile: Profile, log: Measurements) -> Profile:
    """The profile with the slowdown of each core over the last minutes of a log; its noise must be what is left beside that."""
    end_ms = float(log.batches["exec_end_ms"].max())
    begin_ms = max(float(log.batches["exec_start_ms"].min()), end_ms - KEPT_MS)
    log_slowdown = measured_log_slowdown(profile, log, begin_ms, end_ms)
    return replace(profile, log_slowdown=log_slowdown, drift_knot_ms=KNOT_MS) if log_slowdown.size else profile


def with_measured_slowdown(truth: Truth, measured: np.ndarray | None) -> Truth:
    """The truth of a device whose slowdown over time was measured, (C, S); drawn where it is None, or S is 0."""
    if measured is None or not measured.size:
        return truth
    device = truth.device.copy()
    device["drift_knot_ms"], device["drift_from_anywhere"] = KNOT_MS, 0.0
    streams = truth.count.shape[1] - 1
    return truth._replace(device=device, log_slowdown=measured[np.arange(streams) % len(measured)][None])


def refit(base: Profile, log: Measurements) -> Profile:
    """The profile as a log of live batches makes it.

    Args:
        base: to start from; its models and batch sizes must be those of the log, in order.
        log: batches of kind "live".

    Raises:
        InputError: models or batch sizes differ.
    """
    names = tuple(model.name for model in log.machine.models)
    if names != base.models or log.machine.batch_sizes != base.batch_sizes:
        raise InputError(f"the log serves {', '.join(names)}; the profile {base.name!r} has {', '.join(base.models)}")
    if len(log.batches) < MIN_BATCHES:
        return base
    # Without forgetting, recursive least squares weighs the whole log against what the prior is worth.
    replay = MeasuredReplay(replace(base, forgetting=1.0), log.machine.streams)
    replay.run(log_of(log))
    frame = log.batches
    told = replace(
        with_slowdowns(base, log),
        weight=replay.state.weight[0].copy(),
        dispatch_ms=float(np.median(frame["h2d_start_ms"] - frame["dispatch_ms"])),
        source=f"{base.source}; refitted to {len(frame)} live batches",
    )
    if (delays := measured_delays(log)) is not None:
        told = delays.put_into(told)
    return with_log_slowdown(with_noise(told, log, by_core=True), log)

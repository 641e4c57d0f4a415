"""How well interference is predicted, on unseen co-locations: ``python -m benchmarks.predictor``.

Four data sets (public A100 co-runs, V100 pairs and DISB workloads, our CPU campaign), the models of benchmarks.interference
compared, the scheduler's own predictor replayed over the campaign (predict, then update), its calibration, its recovery
after shifts, and its cost. The form of our model is chosen on folds of the training data each time. Public data that is
absent is skipped with a message, and its figures are null.
"""

from __future__ import annotations

import sys
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import pictures
from benchmarks.common.command import as_command
from benchmarks.common.tables import pivot_table
from benchmarks.common.timing import one_thread
from benchmarks.interference import a100, models, simulated
from benchmarks.interference.coruns import CoRuns, errors, finish, folds, start_only
from benchmarks.interference.cross_validation import adapt, cross_validate, repeat_gaps, repeats_of
from benchmarks.interference.loaders import campaign, disb, find, igniter_v100
from benchmarks.interference.online import Shift, shifts, split, update_cost_us
from envs.profiles import fit
from envs.profiles.profile import Profile
from envs.profiles.replay import Log, MeasuredReplay, log_of
from traces.measurements import Measurements

LOAD = 0.9  # of the simulated A100, at which its quantiles are judged
QUICK_MS, FULL_MS = 10_000.0, 60_000.0  # simulated for that
DATA = Path(__file__).resolve().parent.parent / "traces" / "data"


@dataclass
class PredictorBenchmark:
    """What to measure.

    Attributes:
        measurements: folder of the campaign.
        repeats: folder of a campaign on the same machine that plays each co-location several times, on more streams.
        data: folder of the public sets; by default $STRAIT_DATA or shared/data.
        figure: PNG to write.
        full: each pair of the A100 held out alone, and more rows in each fit (a quarter of an hour).
    """

    measurements: str = str(DATA / "cpu2")
    repeats: str = str(DATA / "cpu2-repeats")
    data: str | None = None
    figure: str | None = None
    full: bool = False


def slowdowns(data: CoRuns, boosting: bool, fold: np.ndarray) -> dict[str, np.ndarray]:
    """Slowdowns (S,) by model, each piece from a model that never saw its fold."""
    return {name: cross_validate(data, make, fold) for name, make in models(boosting=boosting).items()}


def judge(title: str, data: CoRuns, result: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Print and return the errors of execution times (N,) by model."""
    found = {name: errors(predicted, data.exec_ms) for name, predicted in result.items()}
    print(f"\n{title} (errors in %)\n{pivot_table(found)}")
    return found


def measure_public(config: PredictorBenchmark, boosting: bool) -> dict[str, dict[str, float | None]]:
    """Tables of the two public sets, one group left out at a time; their mean absolute errors, null where absent."""
    pairs = workloads = None
    if (folder := find("igniter_v100", config.data)) is None:
        print("skipped igniter_v100: not found; see --data")
    else:
        data = igniter_v100.load(folder)
        slow = slowdowns(data, boosting, data.group)
        result = {name: finish(data, s) for name, s in slow.items()}
        result["ours, online"] = adapt(data, result["ours"])
        pairs = judge(f"igniter_v100: {len(data.variant)} latencies, one model pair left out at a time", data, result)
    folder, glet = find("disb", config.data), find("glet", config.data)
    if folder is None or glet is None:
        print("skipped disb: disb or glet not found; see --data")
    else:
        data = disb.load(folder, glet)
        slow = slowdowns(data, boosting, data.group)
        title = f"disb: {len(data.variant)} latencies, one workload left out at a time; utilisations are of relatives"
        workloads = judge(title, data, {name: finish(data, s) for name, s in slow.items()})
    names = {"static": "ours", "online": "ours, online", "gpulet": "gpulet-linear", "ridge": "ridge", "solo": "solo"}
    return {
        data_set: {key: found[names[key]]["mape"] if found else None for key in keys}
        for data_set, found, keys in (("igniter_v100", pairs, names), ("disb", workloads, ("static", "gpulet")))
    }


def by_count(predicted: np.ndarray, data: CoRuns, which: np.ndarray) -> dict[int, dict[str, float]]:
    """Errors by number of co-runners (the most at one time)."""
    parts = {n: which & (data.n_corunners == n) for n in range(1, data.others.shape[1] + 1)}
    return {n: errors(predicted[at], data.exec_ms[at]) for n, at in parts.items() if at.sum() >= 10}


def measure_campaign(config: PredictorBenchmark, boosting: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tables of the CPU campaign: offline models, then the scheduler's predictor. Returns figures and what is drawn."""
    measurements = Measurements.load(config.measurements)
    streams = measurements.machine.streams
    data = campaign.load(measurements)
    co = data.beside_others
    slow = slowdowns(data, boosting, folds(data.group, 3))
    result = {name: finish(data, s) for name, s in slow.items()}
    result["ours, set at start"] = start_only(data, slow["ours"])
    train, test, unseen = split(measurements, data.group)
    profile = fit.fit(train, "training runs")
    log = log_of(measurements)
    held_out, which = unseen & co, dict.fromkeys(result, co)
    for name, learn in (("scheduler, prior only", False), ("scheduler, online", True)):
        online = MeasuredReplay(profile, streams, learn=learn).run(log)
        result[name], which[name] = np.zeros(len(co)), held_out
        result[name][log.row] = online.known_ms
    found = {name: errors(predicted[which[name]], data.exec_ms[which[name]]) for name, predicted in result.items()}
    counted = {name: by_count(predicted, data, which[name]) for name, predicted in result.items()}
    beside = {name: {f"{n} beside": e["mape"] for n, e in parts.items()} for name, parts in counted.items()}
    print(f"\nCPU campaign: {int(co.sum())} batches with co-runners; sets held out, finish times integrated")
    print(pivot_table({name: e | beside[name] for name, e in found.items()}))
    scored = held_out[log.row]
    at_dispatch = errors(online.predicted_ms[scored], online.total_ms[scored])
    print("at dispatch, when later dispatches are unknown (what deadlines are judged by), the scheduler's error is")
    print(pivot_table({"scheduler, online": at_dispatch}))
    test_log = log.take(test[log.row])
    cover = coverage(profile, streams, test_log)
    tried = shifts(profile, streams, test_log, 2)
    print(pivot_table({shift.name: shift.figures for shift in tried}))
    figures = {
        "online": found["scheduler, online"]["mape"],
        "static": found["ours"]["mape"],
        "gpulet": found["gpulet-linear"]["mape"],
        "coarse": found["ours, set at start"]["mape"],
        "p90": found["scheduler, online"]["p90"],
        "floor": repeatability(config, profile),
    }
    recovery = max((shift.recovery for shift in tried), default=None)
    drawn = {
        "data": data,
        "co": co,
        "result": result,
        "shifts": tried,
        "cost_us": partial(update_cost_us, profile, streams),
    }
    return {"cpu": figures, "recovery_batches": recovery, "coverage": cover}, drawn


def coverage(profile: Profile, streams: int, log: Log) -> dict[str, Any]:
    """Coverage in percent of the 90 and 95 % quantiles over all batches of runs that the prior never saw.

    All of them, since no one knows at dispatch which batches will get co-runners. The first quarter is left to learning.
    """
    steady = MeasuredReplay(profile, streams).run(log).take(np.arange(len(log)) > len(log) // 4)
    out = {str(round(100 * q)): 100.0 * steady.coverage(q) for q in (0.9, 0.95)}
    print(f"coverage of the 90 and 95 % quantiles: {out['90']:.1f}, {out['95']:.1f} % of {len(steady.total_ms)}")
    return out


def repeatability(config: PredictorBenchmark, profile: Profile) -> dict[str, Any] | None:
    """Table of the repeats campaign: the predictor's errors there, and those of the best possible prediction.

    Returns:
        Mean, 90th percentile and pairs of the floor, and means by co-runners of the floor and of the predictor.
    """
    if not Path(config.repeats).is_dir():
        print(f"skipped repeats: no folder {config.repeats}")
        return None
    measurements = Measurements.load(config.repeats)
    machine = measurements.machine
    if tuple(m.name for m in machine.models) != profile.models or machine.batch_sizes != profile.batch_sizes:
        print(f"skipped repeats: {config.repeats} has other models or batch sizes than {config.measurements}")
        return None
    data = campaign.load(measurements)
    co, known, log = data.beside_others, np.zeros(len(data.variant)), log_of(measurements)
    known[log.row] = MeasuredReplay(profile, machine.streams).run(log).known_ms
    gaps, at = repeat_gaps(repeats_of(measurements), np.log(data.exec_ms / known), co, data.start_ms)
    parts = {str(n): (gaps[data.n_corunners[at] == n], e) for n, e in by_count(known, data, co).items()}
    parts["all"] = gaps, errors(known[co], data.exec_ms[co])
    found = {
        n: {"floor": float(gap.mean()), "floor_p90": float(np.quantile(gap, 0.9)), "pairs": len(gap)}
        | {"error": e["mape"], "error_p90": e["p90"], "batches": e["n"]}
        for n, (gap, e) in parts.items()
        if len(gap)
    }
    print(f"\nrepeats: the same co-locations several times, {machine.streams} streams, none of them fitted (in %)")
    print(pivot_table({f"{n} co-runners": figures for n, figures in found.items()}))
    whole = found.pop("all", None)
    return whole and {
        "mean": whole["floor"],
        "p90": whole["floor_p90"],
        "pairs": whole["pairs"],
        "by_co_runners": {n: figures["floor"] for n, figures in found.items()},
        "online": whole["error"],
        "online_p90": whole["error_p90"],
        "online_by_co_runners": {n: figures["error"] for n, figures in found.items()},
    }


def measure_a100(folder: Path | None, studied: Future[dict[str, a100.Judged]] | None) -> dict[str, Any]:
    """Tables of the A100: models on unseen co-runs, and how the simulated device compares with the measured one."""
    if folder is None or studied is None:
        print("skipped abacus_a100: not found; see --data")
        return {"pair": None, "triple": None, "mig": None, "simulated": None}
    figures: dict[str, Any] = {}
    for name, judged in studied.result().items():
        chosen = ", ".join(f"{form} ({n} x)" for form, n in judged.chosen.items())
        print(f"\nA100, unseen {name}: {len(judged.measured_ms)} ends; form chosen: {chosen} (errors in %)")
        print(pivot_table(judged.errors))
        figures[name] = {model: found["mape"] for model, found in judged.errors.items()}
    figures["simulated"] = {name: errors(*ends)["mape"] for name, ends in simulated.whole_co_runs(folder).items()}
    print("\nA100, whole models side by side as the simulator ends them, against the measured medians (errors in %)")
    print(pivot_table({"simulated": figures["simulated"]}))
    return figures


def draw(data: CoRuns, co: np.ndarray, result: dict[str, np.ndarray], shifts: list[Shift]) -> Any:
    """The figure: predicted against measured, error by co-runners, recovery after shifts."""
    figure, [[left, middle, right]] = pictures.panels(1, 3, (12, 3.6))
    rows = np.flatnonzero(co)[:: max(int(co.sum()) // 1500, 1)]
    measured = data.exec_ms[rows]
    ours = result["ours"][rows]
    left.scatter(measured, data.batch_solo_ms[rows], s=4, alpha=0.3, label="solo", color="#bbbbbb")
    left.scatter(measured, ours, s=4, alpha=0.4, label="ours", color="#1f77b4")
    ends = [measured.min(), measured.max()]
    left.plot(ends, ends, color="black", lw=0.8)
    left.set(xscale="log", yscale="log", xlabel="measured execution (ms)", ylabel="predicted (ms)", title="unseen sets")
    left.legend(frameon=False, markerscale=3)
    for i, name in enumerate(("gpulet-linear", "ours, set at start", "ridge", "ours")):
        found = by_count(result[name], data, co)
        middle.bar(np.array(list(found)) + 0.2 * (i - 1.5), [e["mape"] for e in found.values()], 0.2, label=name)
    middle.set(xlabel="co-runners", ylabel="mean absolute error (%)", title="error by co-runners")
    middle.xaxis.get_major_locator().set_params(integer=True)
    middle.legend(frameon=False, fontsize=8)
    for shift in shifts:
        right.plot(shift.curve, label=shift.name)
    right.axhline(1.2, color="black", lw=0.8, ls="--", label="recovered")
    right.set(xlabel="batches after the shift", ylabel="error over steady error", title="recovery")
    right.legend(frameon=False, fontsize=8)
    return figure


def measure(config: PredictorBenchmark) -> dict[str, Any]:
    """Measure, print the tables, and write the picture where asked for."""
    boosting = find_spec("sklearn") is not None
    if not boosting:
        print("skipped boosting: it needs scikit-learn; pip install strait-rl[bench]")
    folder, effort = find("abacus_a100", config.data), a100.FULL if config.full else a100.QUICK
    # The longest part has a core of its own.
    with one_thread(), ProcessPoolExecutor(1, get_context("spawn")) as pool:
        studied = pool.submit(a100.study, folder, effort, boosting) if folder else None
        public = measure_public(config, boosting)
        campaign_figures, drawn = measure_campaign(config, boosting)
        profile = Profile.load("gpu-a100")
        print(f"\n{profile.name}, simulated under Strait at load {LOAD}")
        log = simulated.served_log(profile, LOAD, FULL_MS if config.full else QUICK_MS)
        campaign_figures["coverage"]["a100"] = coverage(profile, simulated.STREAMS, log)
        figures = {"a100": measure_a100(folder, studied)} | public | campaign_figures
    cost_us = drawn.pop("cost_us")()
    print(f"predict and update: {cost_us:.2f} us per batch, no allocation (compiled without a heap)")
    if config.figure is not None:
        pictures.save(draw(**drawn), config.figure)
        print(f"figure: {config.figure}")
    return figures | {"update_us": cost_us}


main = as_command(measure, PredictorBenchmark, "predictor", __doc__, tabulate=None)

if __name__ == "__main__":
    sys.exit(main())

"""How well interference is predicted, on unseen co-locations: ``python -m benchmarks.predictor``.

Three data sets (public V100 pairs, public DISB workloads, our CPU campaign), the models of benchmarks.interference side by
side, the scheduler's own predictor replayed over the campaign (predict, then update), its calibration, its recovery after
shifts, and its cost. Public data that is absent is skipped with a message, and its figures are null.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common.command import run_benchmark
from benchmarks.interference import forms, models
from benchmarks.interference.coruns import CoRuns, Errors, errors, finish, folds, from_measurements, start_only
from benchmarks.interference.cross_validation import adapt, cross_validate, noise_floor, repeat_gaps, repeats_of
from benchmarks.interference.model import OfflineModel
from benchmarks.interference.online import Shift, shifts, split, update_cost_us
from benchmarks.interference.ours import speed_so_far
from benchmarks.interference.public_data import find, load_disb, load_igniter
from envs.profiles import fit
from envs.profiles.profile import Profile
from envs.profiles.replay import Log, MeasuredReplay, Replayed, log_of
from traces.errors import InputError
from traces.measurements import Measurements

DATA = Path(__file__).resolve().parent.parent / "traces" / "data"


@dataclass
class PredictorBenchmark:
    """What to measure.

    Attributes:
        measurements: folder of the campaign.
        repeats: folder of a campaign on the same machine that plays each co-location several times, on more streams.
        data: folder of the public sets; by default $STRAIT_DATA or shared/data.
        full: 5 folds in the place of 3, and every shift at 5 times in the place of 2.
        figure: PNG to write.
        logdir: TensorBoard folder to write figures and numbers to.
    """

    measurements: str = str(DATA / "cpu2")
    repeats: str = str(DATA / "cpu2-repeats")
    data: str | None = None
    full: bool = False
    figure: str | None = None
    logdir: str | None = None


def row(name: str, e: Errors, more: str = "") -> str:
    return f"  {name:24s} {e.mape:6.2f} {e.p90:7.2f} {e.p99:7.2f} {e.under:7.2f} {e.over:7.2f}  {more}"


HEADER = f"  {'model':24s} {'MAPE':>6s} {'p90':>7s} {'p99':>7s} {'under':>7s} {'over':>7s}"


def has_boosting() -> bool:
    try:
        models((), boosting=True)["boosting"]()
    except InputError as error:
        print(f"skipped boosting: {error}")
        return False
    return True


def compare(data: CoRuns, make: dict[str, Callable[[], OfflineModel]], fold: np.ndarray) -> dict[str, np.ndarray]:
    """Slowdowns (S,) by model, each piece from a model that never saw its fold."""
    return {name: cross_validate(data, constructor, fold) for name, constructor in make.items()}


def public(config: PredictorBenchmark, boosting: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tables of the two public sets; their figures, null where absent."""
    pairs: dict[str, float | None] = dict.fromkeys(("static", "online", "gpulet", "solo"))
    open_set: dict[str, float | None] = dict.fromkeys(("static", "gpulet"))
    folder = find("igniter_v100", config.data)
    if folder is None:
        print("skipped igniter_v100: not found; see --data")
    else:
        data = load_igniter(folder)
        print(f"\nigniter_v100: {len(data.variant)} latencies, one model pair left out in turn (errors in %)\n{HEADER}")
        slow = compare(data, models((forms.duration_form, forms.throughput_form), boosting), data.group)
        result = {name: finish(data, s) for name, s in slow.items()}
        result["ours, online"] = adapt(data, result["ours"])
        for name, predicted in result.items():
            print(row(name, errors(predicted, data.exec_ms)))
        keys = {"static": "ours", "online": "ours, online", "gpulet": "gpulet-linear", "solo": "solo"}
        pairs = {key: errors(result[name], data.exec_ms).mape for key, name in keys.items()}
    folder, glet = find("disb", config.data), find("glet", config.data)
    if folder is None or glet is None:
        print("skipped disb: disb or glet not found; see --data")
    else:
        data = load_disb(folder, glet)
        print(
            f"\ndisb: {len(data.variant)} latencies, one workload left out in turn; utilisations are of relatives\n{HEADER}"
        )
        slow = compare(data, models((forms.open_form,), boosting), data.group)
        for name, s in slow.items():
            print(row(name, errors(finish(data, s), data.exec_ms)))
        open_set = {
            k: errors(finish(data, slow[n]), data.exec_ms).mape
            for k, n in (("static", "ours"), ("gpulet", "gpulet-linear"))
        }
    return pairs, open_set


def by_count(predicted: np.ndarray, data: CoRuns, which: np.ndarray) -> dict[int, Errors]:
    """Errors by number of co-runners (the most at one time)."""
    n_corunners = data.n_corunners
    counts = [n for n in range(1, data.others.shape[1] + 1) if (which & (n_corunners == n)).sum() >= 10]
    return {n: errors(predicted[which & (n_corunners == n)], data.exec_ms[which & (n_corunners == n)]) for n in counts}


def counts_text(predicted: np.ndarray, data: CoRuns, which: np.ndarray) -> str:
    return "  ".join(f"{n}: {e.mape:.1f}" for n, e in by_count(predicted, data, which).items())


def print_floor(data: CoRuns, co: np.ndarray) -> None:
    sets = data.group * (len(data.solo_ms) + 1) + data.variant
    print("  repeatability (difference of two like batches / sqrt 2), mean and median in %:")
    for label, key, which in (("same solo batch", data.variant, data.alone), ("same batch and co-runners", sets, co)):
        for seconds in (1.0, 5.0, 60.0):
            floor = noise_floor(data, key, which, seconds * 1e3)
            if floor is not None:
                print(f"    {label} within {seconds:.0f} s: {floor.mean:.1f}, {floor.median:.1f} ({floor.pairs} pairs)")


def campaign(config: PredictorBenchmark, boosting: bool) -> dict[str, Any]:
    """Tables of the CPU campaign: offline models, then the scheduler's predictor. Returns figures and what is drawn."""
    measurements = Measurements.load(config.measurements)
    _, solo, _ = fit.solo_arrays(measurements)
    data = from_measurements(measurements, solo, fit.demands(measurements, solo))
    co = ~data.alone & (data.n_corunners > 0)
    fold = folds(data.group, 5 if config.full else 3)
    print(f"\nCPU campaign: {int(co.sum())} batches with co-runners; sets held out, finish times integrated")
    print_floor(data, co)
    print(f"{HEADER}  by co-runners")
    slow = compare(data, models((forms.lanes_form,), boosting), fold)
    result = {name: finish(data, s) for name, s in slow.items()}
    residual = np.log(data.exec_ms / result["ours"])
    result["ours, device speed"] = finish(data, slow["ours"], speed_so_far(data, residual, 15, 3000.0))
    result["ours, set at start"] = start_only(data, slow["ours"])
    for name, predicted in result.items():
        print(row(name, errors(predicted[co], data.exec_ms[co]), counts_text(predicted, data, co)))
    train, test, tested = split(measurements, data.group)
    profile = fit.fit(train, "training runs")
    log = log_of(measurements)
    seen = test[log.row]
    scored = tested[log.row] & co[log.row]
    replays: dict[str, Replayed] = {}
    for name, learn in (("scheduler, online", True), ("scheduler, prior only", False)):
        replays[name] = MeasuredReplay(profile, measurements.machine.streams, learn=learn).run(log)
        known = np.zeros(len(co))
        known[log.row] = replays[name].known_ms
        which = np.zeros(len(co), bool)
        which[log.row[scored]] = True
        print(row(name, errors(known[which], data.exec_ms[which]), counts_text(known, data, which)))
    online = replays["scheduler, online"]
    live = errors(online.predicted_ms[scored], online.total_ms[scored])
    print(row("  at dispatch", live, "(later dispatches unknown; what deadlines are judged by)"))
    known = errors(online.known_ms[scored], online.exec_ms[scored])
    cover = coverage(profile, measurements.machine.streams, log.take(seen))
    found = shifts(profile, measurements.machine.streams, log, log.run * seen - ~seen, 5 if config.full else 2)
    for shift in found:
        after, own = (", ".join(f"{100 * c:.1f} %" for c in x) for x in (shift.coverage, shift.coverage_watched))
        print(
            f"  {shift.name}: back within 1.2 x the steady error of {shift.steady:.1f} % after {shift.recovery} batches; "
            f"coverage after that {after}, of what is new {own}"
        )
    floor = repeatability(config, profile)
    figures = {
        "cpu": {
            "online": known.mape,
            "static": errors(result["ours"][co], data.exec_ms[co]).mape,
            "gpulet": errors(result["gpulet-linear"][co], data.exec_ms[co]).mape,
            "coarse": errors(result["ours, set at start"][co], data.exec_ms[co]).mape,
            "p90": known.p90,
            "floor": floor,
        },
        "recovery_batches": max((s.recovery for s in found), default=None),
        "coverage": cover,
        "update_us": update_cost_us(profile, measurements.machine.streams),
    }
    print(f"  predict and update: {figures['update_us']:.2f} us a batch, no allocation (compiled without a heap)")
    drawn = {"data": data, "co": co, "result": result, "shifts": found}
    return {"figures": figures, "drawn": drawn}


def coverage(profile: Profile, streams: int, log: Log) -> dict[str, float]:
    """Coverage in percent of the 90 and 95 % quantiles over all batches of runs that the prior never saw.

    All of them: whether others are dispatched beside a batch later is not known when its finish is foretold, so batches
    must not be chosen by it. The first quarter is left to learning.
    """
    replayed = MeasuredReplay(profile, streams).run(log)
    steady = take(replayed, np.arange(len(log)) > len(log) // 4)
    out = {str(round(100 * q)): 100.0 * steady.coverage(q) for q in (0.9, 0.95)}
    print(f"  coverage of the 90 and 95 % quantiles: {out['90']:.1f}, {out['95']:.1f} % of {len(steady.total_ms)}")
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
    _, solo, _ = fit.solo_arrays(measurements)
    data = from_measurements(measurements, solo, fit.demands(measurements, solo))
    co = ~data.alone & (data.n_corunners > 0)
    log = log_of(measurements)
    known = np.zeros(len(co))
    known[log.row] = MeasuredReplay(profile, measurements.machine.streams).run(log).known_ms
    gaps, at = repeat_gaps(repeats_of(measurements), np.log(data.exec_ms / known), co)
    print(
        f"\nrepeats: the same co-locations several times, {measurements.machine.streams} streams, none of them fitted"
    )
    print(f"  {'co-runners':12s} {'floor':>6s} {'p90':>6s} {'pairs':>6s}   {'error':>6s} {'p90':>6s} {'batches':>7s}")
    floors, found = {}, by_count(known, data, co) | {0: errors(known[co], data.exec_ms[co])}
    for n, e in found.items():
        gap = gaps[data.n_corunners[at] == n] if n else gaps
        if len(gap):
            floors[n] = float(gap.mean())
            text = f"{gap.mean():6.2f} {np.quantile(gap, 0.9):6.2f} {len(gap):6d}   {e.mape:6.2f} {e.p90:6.2f} {e.n:7d}"
            print(f"  {n or 'all':<12} {text}")
    if 0 not in floors:
        return None
    return {
        "mean": floors.pop(0),
        "p90": float(np.quantile(gaps, 0.9)),
        "pairs": len(gaps),
        "by_co_runners": {str(n): value for n, value in floors.items()},
        "online": found[0].mape,
        "online_p90": found[0].p90,
        "online_by_co_runners": {str(n): e.mape for n, e in found.items() if n},
    }


def take(replayed: Replayed, at: np.ndarray) -> Replayed:
    return replace(replayed, **{name: getattr(replayed, name)[at] for name in Replayed.__dataclass_fields__})


def draw(data: CoRuns, co: np.ndarray, result: dict[str, np.ndarray], shifts: list[Shift]) -> Any:
    """The figure: predicted against measured, error by co-runners, recovery after shifts."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    rows = np.flatnonzero(co)[:: max(int(co.sum()) // 1500, 1)]
    solo, ours = data.solo[rows], result["ours, device speed"][rows]
    left.scatter(data.exec_ms[rows], solo, s=4, alpha=0.3, label="solo", color="#bbbbbb")
    left.scatter(data.exec_ms[rows], ours, s=4, alpha=0.4, label="ours", color="#1f77b4")
    ends = [float(data.exec_ms[rows].min()), float(data.exec_ms[rows].max())]
    left.plot(ends, ends, color="black", lw=0.8)
    left.set(xscale="log", yscale="log", xlabel="measured execution (ms)", ylabel="predicted (ms)", title="unseen sets")
    left.legend(frameon=False, markerscale=3)
    shown = ("gpulet-linear", "ours, set at start", "ridge", "ours, device speed")
    for i, name in enumerate(shown):
        found = by_count(result[name], data, co)
        at = np.array(list(found)) + 0.2 * (i - 1.5)
        middle.bar(at, [e.mape for e in found.values()], 0.2, label=name)
    middle.set(xlabel="co-runners", ylabel="mean absolute error (%)", title="error by co-runners")
    middle.xaxis.get_major_locator().set_params(integer=True)
    middle.legend(frameon=False, fontsize=8)
    for shift in shifts:
        right.plot(np.arange(len(shift.curve)), shift.curve, label=shift.name)
    right.axhline(1.2, color="black", lw=0.8, ls="--")
    right.set(xlabel="batches after the shift", ylabel="error over steady error", title="recovery", ylim=(0, None))
    right.legend(frameon=False, fontsize=8)
    return figure


def publish(config: PredictorBenchmark, figures: dict[str, Any], drawn: dict[str, Any]) -> None:
    """Write the PNG and the TensorBoard run, where asked for."""
    if config.figure is None and config.logdir is None:
        return
    figure = draw(**drawn)
    if config.figure is not None:
        from traces.files import atomic_path

        with atomic_path(config.figure) as path:
            figure.savefig(path, dpi=90)
        print(f"figure: {config.figure}")
    if config.logdir is not None:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from torch.utils.tensorboard import SummaryWriter

        FigureCanvasAgg(figure)
        with SummaryWriter(config.logdir) as writer:
            writer.add_figure("predictor/errors", figure)
            writer.add_text("predictor/config", json.dumps(asdict(config), indent=1))
            for key, value in flat(figures):
                writer.add_scalar(f"predictor/{key}", value)


def flat(figures: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Figures that there are, by their path in nested dictionaries."""
    for key, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{key}/{inner}", v) for inner, v in flat(value))
        elif value is not None:
            yield key, value


def measure(config: PredictorBenchmark) -> dict[str, Any]:
    """Measure, print the tables, and write the picture and the TensorBoard run where asked for."""
    boosting = has_boosting()
    pairs, open_set = public(config, boosting)
    measured = campaign(config, boosting)
    cpu = measured["figures"].pop("cpu")
    figures = {"igniter_v100": pairs, "cpu": cpu, "disb": open_set} | measured["figures"]
    publish(config, figures, measured["drawn"])
    return figures


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_benchmark(measure, PredictorBenchmark, argv, "predictor", __doc__)


if __name__ == "__main__":
    sys.exit(main())

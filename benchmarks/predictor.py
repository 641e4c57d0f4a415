"""How well interference is predicted, on unseen co-locations: ``python -m benchmarks.predictor``.

Three data sets (public V100 pairs, public DISB workloads, our CPU campaign), the models of benchmarks.interference side by
side, the scheduler's own predictor replayed over the campaign (predict, then update), its calibration, its recovery after
shifts, and its cost. Public data that is absent is skipped with a message, and its figures are null.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import pictures
from benchmarks.common.command import as_command
from benchmarks.common.tables import leaves, table
from benchmarks.interference import forms, models
from benchmarks.interference.coruns import CoRuns, Errors, errors, finish, folds, start_only
from benchmarks.interference.cross_validation import adapt, cross_validate, noise_floor, repeat_gaps, repeats_of
from benchmarks.interference.loaders import campaign, disb, find, igniter_v100
from benchmarks.interference.online import Shift, shifts, split, update_cost_us
from benchmarks.interference.ours import Form, speed_so_far
from envs.profiles import fit
from envs.profiles.profile import Profile
from envs.profiles.replay import Log, MeasuredReplay, log_of
from traces.errors import InputError
from traces.measurements import Measurements

DATA = Path(__file__).resolve().parent.parent / "traces" / "data"
HEADS = ("MAPE", "p90", "p99", "under", "over")


@dataclass
class PredictorBenchmark:
    """What to measure.

    Attributes:
        measurements: folder of the campaign.
        repeats: folder of a campaign on the same machine that plays each co-location several times, on more streams.
        data: folder of the public sets; by default $STRAIT_DATA or shared/data.
        full: 5 folds instead of 3, and every shift at 5 times instead of 2.
        figure: PNG to write.
        logdir: TensorBoard folder to write figures and numbers to.
    """

    measurements: str = str(DATA / "cpu2")
    repeats: str = str(DATA / "cpu2-repeats")
    data: str | None = None
    full: bool = False
    figure: str | None = None
    logdir: str | None = None


def cells(e: Errors) -> list[str]:
    """The errors as cells of a row, see `HEADS`."""
    return [f"{value:.2f}" for value in (e.mape, e.p90, e.p99, e.under, e.over)]


def has_boosting() -> bool:
    """Whether scikit-learn is installed; if not, says so."""
    try:
        models((), boosting=True)["boosting"]()
    except InputError as error:
        print(f"skipped boosting: {error}")
        return False
    return True


def slowdowns(data: CoRuns, own_forms: tuple[Form, ...], boosting: bool, fold: np.ndarray) -> dict[str, np.ndarray]:
    """Slowdowns (S,) by model, each piece from a model that never saw its fold."""
    return {name: cross_validate(data, make, fold) for name, make in models(own_forms, boosting).items()}


def public_set(
    title: str, data: CoRuns, own_forms: tuple[Form, ...], boosting: bool, online: bool = False
) -> dict[str, float]:
    """Table of a public set, one group left out at a time; returns the mean absolute error by model."""
    result = {name: finish(data, s) for name, s in slowdowns(data, own_forms, boosting, data.group).items()}
    if online:
        result["ours, online"] = adapt(data, result["ours"])
    found = {name: errors(predicted, data.exec_ms) for name, predicted in result.items()}
    print(f"\n{title} (errors in %)")
    print(table(("model", *HEADS), [(name, *cells(e)) for name, e in found.items()]))
    return {name: e.mape for name, e in found.items()}


def public(config: PredictorBenchmark, boosting: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tables of the two public sets; their figures, null where absent."""
    pairs = {"static": "ours", "online": "ours, online", "gpulet": "gpulet-linear", "solo": "solo"}
    workloads = {"static": "ours", "gpulet": "gpulet-linear"}
    found: list[dict[str, float]] = [{}, {}]
    if (folder := find("igniter_v100", config.data)) is None:
        print("skipped igniter_v100: not found; see --data")
    else:
        data = igniter_v100.load(folder)
        title = f"igniter_v100: {len(data.variant)} latencies, one model pair left out at a time"
        found[0] = public_set(title, data, (forms.duration_form, forms.throughput_form), boosting, online=True)
    folder, glet = find("disb", config.data), find("glet", config.data)
    if folder is None or glet is None:
        print("skipped disb: disb or glet not found; see --data")
    else:
        data = disb.load(folder, glet)
        title = f"disb: {len(data.variant)} latencies, one workload left out at a time; utilisations are of relatives"
        found[1] = public_set(title, data, (forms.open_form,), boosting)
    return tuple({k: mape.get(name) for k, name in keys.items()} for keys, mape in zip((pairs, workloads), found))  # type: ignore[return-value]


def by_count(predicted: np.ndarray, data: CoRuns, which: np.ndarray) -> dict[int, Errors]:
    """Errors by number of co-runners (the most at one time)."""
    parts = {n: which & (data.n_corunners == n) for n in range(1, data.others.shape[1] + 1)}
    return {n: errors(predicted[at], data.exec_ms[at]) for n, at in parts.items() if at.sum() >= 10}


def crowded(data: CoRuns) -> np.ndarray:
    """(N,) batches that ran beside others."""
    return ~data.alone & (data.n_corunners > 0)


def print_floor(data: CoRuns) -> None:
    """Table of the repeatability: the difference of two like batches over root two."""
    sets = data.group * (len(data.solo_ms) + 1) + data.variant
    rows = []
    for label, key, which in (
        ("same solo batch", data.variant, data.alone),
        ("same batch and co-runners", sets, crowded(data)),
    ):
        for seconds in (1.0, 5.0, 60.0):
            floor = noise_floor(data, key, which, seconds * 1e3)
            if floor is not None:
                rows.append((label, f"{seconds:.0f} s", f"{floor.mean:.1f}", f"{floor.median:.1f}", str(floor.pairs)))
    print(table(("repeatability of", "within", "mean %", "median %", "pairs"), rows))


def measure_campaign(config: PredictorBenchmark, boosting: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tables of the CPU campaign: offline models, then the scheduler's predictor. Returns figures and what is drawn."""
    measurements = Measurements.load(config.measurements)
    streams = measurements.machine.streams
    data = campaign.load(measurements)
    co = crowded(data)
    slow = slowdowns(data, (forms.cores_form,), boosting, folds(data.group, 5 if config.full else 3))
    result = {name: finish(data, s) for name, s in slow.items()}
    residual = np.log(data.exec_ms / result["ours"])
    result["ours, device speed"] = finish(data, slow["ours"], speed_so_far(data, residual, 15, 3000.0))
    result["ours, set at start"] = start_only(data, slow["ours"])
    train, test, unseen = split(measurements, data.group)
    profile = fit.fit(train, "training runs")
    log = log_of(measurements)
    scored = unseen[log.row] & co[log.row]
    held_out = np.zeros(len(co), bool)
    held_out[log.row[scored]] = True
    which = dict.fromkeys(result, co)
    for name, learn in (("scheduler, prior only", False), ("scheduler, online", True)):
        online = MeasuredReplay(profile, streams, learn=learn).run(log)
        result[name], which[name] = np.zeros(len(co)), held_out
        result[name][log.row] = online.known_ms
    found = {name: errors(predicted[which[name]], data.exec_ms[which[name]]) for name, predicted in result.items()}
    print(f"\nCPU campaign: {int(co.sum())} batches with co-runners; sets held out, finish times integrated")
    print_floor(data)
    print_campaign(found, {name: by_count(predicted, data, which[name]) for name, predicted in result.items()})
    at_dispatch = errors(online.predicted_ms[scored], online.total_ms[scored])
    print("total time at dispatch, when later dispatches are unknown (what deadlines are judged by):")
    print(table(("predictor", *HEADS), [("scheduler, online", *cells(at_dispatch))]))
    seen = test[log.row]
    cover = coverage(profile, streams, log.take(seen))
    tried = shifts(profile, streams, log, log.run * seen - ~seen, 5 if config.full else 2)
    print_shifts(tried)
    figures = {
        "online": found["scheduler, online"].mape,
        "static": found["ours"].mape,
        "gpulet": found["gpulet-linear"].mape,
        "coarse": found["ours, set at start"].mape,
        "p90": found["scheduler, online"].p90,
        "floor": repeatability(config, profile),
    }
    recovery = max((s.recovery for s in tried), default=None)
    cost_us = update_cost_us(profile, streams)
    print(f"predict and update: {cost_us:.2f} us per batch, no allocation (compiled without a heap)")
    drawn = {"data": data, "co": co, "result": result, "shifts": tried}
    return {"cpu": figures, "recovery_batches": recovery, "coverage": cover, "update_us": cost_us}, drawn


def print_campaign(found: dict[str, Errors], counted: dict[str, dict[int, Errors]]) -> None:
    """Table of the campaign: all errors of each model, and its mean absolute error by number of co-runners."""
    most = max(n for parts in counted.values() for n in parts)
    rows = [
        (name, *cells(e), *(f"{counted[name][n].mape:.1f}" if n in counted[name] else "-" for n in range(1, most + 1)))
        for name, e in found.items()
    ]
    print(table(("model", *HEADS, *(f"{n} beside" for n in range(1, most + 1))), rows))


def print_shifts(tried: list[Shift]) -> None:
    """Table of the recovery after shifts."""
    rows = [
        (s.name, str(s.recovery), f"{s.steady:.1f}", *(f"{100 * c:.1f}" for c in (*s.coverage, *s.coverage_watched)))
        for s in tried
    ]
    heads = ("shift", "batches to 1.2 x steady error", "steady error %", "coverage 90", "95", "of what is new 90", "95")
    print(table(heads, rows))


def coverage(profile: Profile, streams: int, log: Log) -> dict[str, float]:
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
    co, known, log = crowded(data), np.zeros(len(data.variant)), log_of(measurements)
    known[log.row] = MeasuredReplay(profile, machine.streams).run(log).known_ms
    gaps, at = repeat_gaps(repeats_of(measurements), np.log(data.exec_ms / known), co)
    found = {n: (gaps[data.n_corunners[at] == n], e) for n, e in by_count(known, data, co).items()}
    found = {n: (gap, e) for n, (gap, e) in found.items() if len(gap)}
    if not len(gaps):
        return None
    whole = errors(known[co], data.exec_ms[co])
    rows = [
        (label, *(f"{v:.2f}" for v in (gap.mean(), np.quantile(gap, 0.9))), str(len(gap)), *cells(e)[:2], str(e.n))
        for label, (gap, e) in [*((str(n), pair) for n, pair in found.items()), ("all", (gaps, whole))]
    ]
    print(f"\nrepeats: the same co-locations several times, {machine.streams} streams, none of them fitted")
    print(table(("co-runners", "floor %", "p90", "pairs", "error %", "p90", "batches"), rows))
    return {
        "mean": float(gaps.mean()),
        "p90": float(np.quantile(gaps, 0.9)),
        "pairs": len(gaps),
        "by_co_runners": {str(n): float(gap.mean()) for n, (gap, _) in found.items()},
        "online": whole.mape,
        "online_p90": whole.p90,
        "online_by_co_runners": {str(n): e.mape for n, (_, e) in found.items()},
    }


def draw(data: CoRuns, co: np.ndarray, result: dict[str, np.ndarray], shifts: list[Shift]) -> Any:
    """The figure: predicted against measured, error by co-runners, recovery after shifts."""
    figure, [[left, middle, right]] = pictures.panels(1, 3, (12, 3.6))
    rows = np.flatnonzero(co)[:: max(int(co.sum()) // 1500, 1)]
    measured = data.exec_ms[rows]
    ours = result["ours, device speed"][rows]
    left.scatter(measured, data.batch_solo_ms[rows], s=4, alpha=0.3, label="solo", color="#bbbbbb")
    left.scatter(measured, ours, s=4, alpha=0.4, label="ours", color="#1f77b4")
    left.axline((1.0, 1.0), (2.0, 2.0), color="black", lw=0.8)
    left.set(xscale="log", yscale="log", xlabel="measured execution (ms)", ylabel="predicted (ms)", title="unseen sets")
    left.legend(frameon=False, markerscale=3)
    for i, name in enumerate(("gpulet-linear", "ours, set at start", "ridge", "ours, device speed")):
        found = by_count(result[name], data, co)
        middle.bar(np.array(list(found)) + 0.2 * (i - 1.5), [e.mape for e in found.values()], 0.2, label=name)
    middle.set(xlabel="co-runners", ylabel="mean absolute error (%)", title="error by co-runners")
    middle.xaxis.get_major_locator().set_params(integer=True)
    middle.legend(frameon=False, fontsize=8)
    for shift in shifts:
        right.plot(shift.curve, label=shift.name)
    right.axhline(1.2, color="black", lw=0.8, ls="--", label="recovered")
    right.set(xlabel="batches after the shift", ylabel="error over steady error", title="recovery")
    right.legend(frameon=False, fontsize=8)
    return figure


def publish(config: PredictorBenchmark, figures: dict[str, Any], drawn: dict[str, Any]) -> None:
    """Write the PNG and the TensorBoard run, where asked for."""
    if config.figure is None and config.logdir is None:
        return
    figure = draw(**drawn)
    if config.figure is not None:
        pictures.save(figure, config.figure)
        print(f"figure: {config.figure}")
    if config.logdir is not None:
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(config.logdir) as writer:
            writer.add_figure("predictor/errors", figure)
            writer.add_text("predictor/config", json.dumps(asdict(config), indent=1))
            for path, value in leaves(figures):
                if value is not None:
                    writer.add_scalar("/".join(("predictor", *path)), value)


def measure(config: PredictorBenchmark) -> dict[str, Any]:
    """Measure, print the tables, and write the picture and the TensorBoard run where asked for."""
    boosting = has_boosting()
    pairs, workloads = public(config, boosting)
    measured, drawn = measure_campaign(config, boosting)
    figures = {"igniter_v100": pairs, "disb": workloads, **measured}
    publish(config, figures, drawn)
    return figures


main = as_command(measure, PredictorBenchmark, "predictor", __doc__)

if __name__ == "__main__":
    sys.exit(main())

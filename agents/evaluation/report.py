"""The report of an evaluation: Parquet with its config, Markdown with pictures, and the same in TensorBoard."""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from agents.evaluation import metric
from agents.evaluation.statistics import ablations, digest
from agents.evaluation.suites import Suite
from traces.files import atomic_path, atomic_write_text

PACKAGES = ("numba", "numpy", "pandas", "torch")
FRONT = ("strait", "ppo", "clairvoyant")  # drawn bold, before the others
DPI = 90
PRIORITY_TITLES = ("high priority", "low priority")


def write_report(frame: pd.DataFrame, suite: Suite, config: dict[str, Any], out: Path) -> Path:
    """Write an evaluation into a folder: results.parquet, report.md with its pictures, and TensorBoard event files.

    Args:
        frame: one row for each policy, workload, load and seed, as agents.evaluate makes them; ``attrs["capacity_rps"]``.
        suite: what was run. config: the resolved settings, saved beside the results.
        out: folder; made where it is missing.

    Returns:
        The path of report.md.
    """
    out.mkdir(parents=True, exist_ok=True)
    made = {
        "config": config,
        "command": " ".join(["python -m agents.evaluate", *sys.argv[1:]]),
        "capacity_rps": frame.attrs.get("capacity_rps"),
        "versions": {name: version(name) for name in PACKAGES},
    }
    table = pa.Table.from_pandas(frame, preserve_index=False)
    table = table.replace_schema_metadata(
        {**(table.schema.metadata or {}), b"strait.evaluate": json.dumps(made).encode()}
    )
    with atomic_path(out / "results.parquet") as temporary:
        pq.write_table(table, temporary, compression="zstd")
    atomic_write_text(out / "config.json", json.dumps(made, indent=1) + "\n")
    figures = draw(frame)
    for name, figure in figures.items():
        with atomic_path(out / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=DPI)
    atomic_write_text(out / "report.md", markdown(frame, suite, made, list(figures)))
    write_tensorboard(frame, figures, out / "tensorboard")
    for figure in figures.values():
        plt.close(figure)
    return out / "report.md"


def markdown(frame: pd.DataFrame, suite: Suite, made: dict[str, Any], figures: list[str]) -> str:
    """The report as text; pictures by name."""
    capacity = made["capacity_rps"]
    seeds = frame["seed"].nunique()
    lines = [
        f"# Evaluation: suite {suite.name}",
        "",
        f"Workloads {', '.join(map(str, frame['workload'].unique()))}; {seeds} seeds, the same for every policy; "
        f"{suite.duration_ms / 1e3:g} s each. Profile {made['config'].get('profile')}"
        + (f", measured capacity {capacity:.1f} requests/s." if capacity else "."),
        "Violation rates in percent; `weighted` counts a high-priority request five times; its difference from Strait is "
        "paired over workloads and seeds, with a bootstrap 95 % interval.",
        "",
        f"Made by `{made['command']}`.",
    ]
    result = digest(frame)
    for load in sorted(frame["load"].unique()):
        lines += [
            "",
            f"## Load {load:g}",
            "",
            "| policy | high % | low % | weighted % | minus Strait | goodput /s | p99 high ms | p99 low ms | Jain |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        rows = frame[frame["load"] == load]
        for policy in sorted(rows["policy"].unique(), key=lambda p: result[p][f"{load:g}"]["weighted"]):
            cell = result[policy][f"{load:g}"]
            mine = rows[rows["policy"] == policy]
            interval = cell.get("weighted_minus_strait")
            against = f"{interval[1]:+.2f} [{interval[0]:+.2f}, {interval[2]:+.2f}]" if interval else "-"
            p99 = [f"{mine[tag].mean():.1f}" for tag in (metric.LATENCY_HIGH_P99_MS, metric.LATENCY_LOW_P99_MS)]
            lines.append(
                f"| {policy} | {cell['high']:.2f} | {cell['low']:.2f} | {cell['weighted']:.2f} | {against} | "
                f"{cell['goodput']:.1f} | {p99[0]} | {p99[1]} | {cell['jain']:.3f} |"
            )
    if parts := ablations(frame):
        lines += ["", "## What each part of Strait earns", ""]
        for policy, (low, mean, high) in parts.items():
            verdict = "costs" if low > 0 else "gains" if high < 0 else "makes no clear difference:"
            lines.append(f"- `{policy}` {verdict} {mean:+.2f} points of weighted violations [{low:+.2f}, {high:+.2f}]")
    lines.append("")
    lines += [f"![{name.replace('_', ' ')}]({name}.png)\n" for name in figures]
    return "\n".join(lines)


def draw(frame: pd.DataFrame) -> dict[str, Figure]:
    """The pictures by name; those for which there is no data are left out."""
    whole = frame[~frame["policy"].str.contains(":")]
    names = sorted(whole["policy"].unique(), key=lambda p: (p not in FRONT, p))
    figures = {}
    if names:
        figures["violations"] = _violations(whole, names)
        figures["latency"] = _latency(whole, names)
        figures["fairness"] = _fairness(whole, names)
        figures["pareto"] = _pareto(whole, names)
    if parts := ablations(frame):
        figures["ablation"] = _ablation(parts)
    return figures


def _style(names: list[str], policy: str) -> dict[str, Any]:
    """Line and colour of a policy, the same in every picture."""
    at = names.index(policy)
    front = policy in FRONT
    return {
        "color": plt.get_cmap("tab20")(at % 20),
        "linewidth": 2.5 if front else 1.2,
        "marker": "o" if front else ".",
        "markersize": 5,
        "zorder": 3 if front else 2,
        "label": policy,
    }


def _figure(columns: int, width: float = 5.0, height: float = 4.2) -> tuple[Figure, list[Axes]]:
    figure, axes = plt.subplots(1, columns, figsize=(width * columns + 2, height), squeeze=False, layout="constrained")
    for axis in axes[0]:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes[0])


def _legend(figure: Figure, axis: Axes) -> None:
    figure.legend(*axis.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)


def _over_loads(axis: Axes, frame: pd.DataFrame, names: list[str], column: str, title: str) -> None:
    """One curve for each policy: the mean of a column by load."""
    for policy in names:
        by_load = frame[frame["policy"] == policy].groupby("load")[column].mean()
        axis.plot(by_load.index, by_load.to_numpy(), **_style(names, policy))
    axis.set(title=title, xlabel="offered load / capacity")


def _violations(frame: pd.DataFrame, names: list[str]) -> Figure:
    figure, axes = _figure(2)
    for axis, tag, title in zip(axes, metric.VIOLATION, PRIORITY_TITLES, strict=True):
        _over_loads(axis, frame, names, tag, title)
        axis.set(ylabel="violations", ylim=(0, None))
        axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    _legend(figure, axes[0])
    return figure


def _near_capacity(frame: pd.DataFrame) -> float:
    loads = np.array(sorted(frame["load"].unique()))
    return float(loads[np.argmin(np.abs(loads - 1.0))])


def _latency(frame: pd.DataFrame, names: list[str]) -> Figure:
    """Median to 99th percentile of answered requests near capacity, over workloads and seeds."""
    load = _near_capacity(frame)
    figure, axes = _figure(2, height=1.2 + 0.25 * len(names))
    for axis, (p50, p99), title in zip(axes, metric.LATENCY_MS, PRIORITY_TITLES, strict=True):
        for y, policy in enumerate(reversed(names)):
            rows = frame[(frame["policy"] == policy) & (frame["load"] == load)]
            color = _style(names, policy)["color"]
            axis.plot([rows[p50].mean(), rows[p99].mean()], [y, y], "-", color=color, linewidth=3, alpha=0.5)
            axis.plot(rows[p50], np.full(len(rows), y), "|", color=color)
            axis.plot(rows[p99], np.full(len(rows), y), ".", color=color, markersize=4)
        axis.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
        axis.set(title=f"{title}, load {load:g}", xlabel="latency (ms): median | to 99th percentile .", xlim=(0, None))
    return figure


def _fairness(frame: pd.DataFrame, names: list[str]) -> Figure:
    figure, axes = _figure(1, 6.0)
    _over_loads(axes[0], frame, names, metric.FAIRNESS_MODELS, "fairness over models")
    axes[0].set(ylabel="Jain's index of shares met")
    _legend(figure, axes[0])
    return figure


def _pareto(frame: pd.DataFrame, names: list[str]) -> Figure:
    load = _near_capacity(frame)
    figure, axes = _figure(1, 6.0)
    for policy in names:
        mine = frame[frame["policy"] == policy]
        over_loads = 100 * mine.groupby("load")[list(metric.VIOLATION)].mean()
        style = _style(names, policy)
        axes[0].plot(*over_loads.to_numpy().T, color=style["color"], linewidth=0.6, alpha=0.5)
        at = load if load in over_loads.index else over_loads.index[-1]
        high, low = over_loads.loc[at].to_numpy(float)
        axes[0].plot([high], [low], **(style | {"linestyle": "", "marker": "o", "markersize": 7}))
    axes[0].set(
        title=f"high against low priority (dot: load {load:g}, line: all loads)",
        xlabel="high-priority violations (%)",
        ylabel="low-priority violations (%)",
    )
    _legend(figure, axes[0])
    return figure


def _ablation(parts: dict[str, tuple[float, float, float]]) -> Figure:
    """Weighted violations with a part switched off minus those with it, over all workloads, loads and seeds."""
    figure, axes = _figure(1, 6.0, 1.2 + 0.4 * len(parts))
    low, mean, high = np.array(list(parts.values())).T
    y = np.arange(len(parts))[::-1]
    axes[0].barh(y, mean, xerr=[mean - low, high - mean], color="tab:blue", alpha=0.6, capsize=3)
    axes[0].set_yticks(y, list(parts))
    axes[0].axvline(0, color="black", linewidth=0.8)
    axes[0].set(title="Strait with a part switched off", xlabel="weighted violations lost (points)")
    return figure


def write_tensorboard(frame: pd.DataFrame, figures: dict[str, Figure], folder: Path) -> None:
    """One run a policy: the mean of every metric, with the load in percent as its step. The pictures are a run of their own."""
    from torch.utils.tensorboard import SummaryWriter

    metrics = [c for c in frame.columns if c not in ("policy", "workload", "load", "seed")]
    for policy, rows in frame.groupby("policy"):
        writer = SummaryWriter(str(folder / str(policy).replace(":", "_").replace("/", "_")))
        for load, values in rows.groupby("load")[metrics].mean().iterrows():
            for name, value in values.items():
                if np.isfinite(value):
                    writer.add_scalar(str(name), value, round(100 * float(str(load))))
        writer.close()
    writer = SummaryWriter(str(folder / "figures"))
    for name, figure in figures.items():
        writer.add_figure(name, figure, close=False)
    writer.close()

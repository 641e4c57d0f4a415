"""The whole idea in ten minutes: fit, learn, serve, compare, on real models (``make demo``).

Fits the interference predictor to the shipped measurements, measures the models' latencies and this machine's capacity, trains
PPO for two minutes in simulation, then replays one minute of arrivals against the real models under each policy, and prints
one table.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from agents.evaluation import metric
from agents.learned.names import SERVED, resolve
from agents.training.config import load_config
from agents.training.trainer import train
from envs.profiles.fit import fit
from envs.profiles.profile import Profile
from serving.models.builtin.registry import DEFAULT_MODELS
from serving.observers.recorder import Recorder
from serving.observers.timeline import TimelineWriter
from serving.replay.live_runs import Machine, capacity_rps, open_machine, run_live
from serving.replay.workload import lay_out, read_source
from traces.command import run_command
from traces.files import atomic_write_text
from traces.measurements import Measurements
from traces.workload import Workload, WorkloadConfig

CAMPAIGN = Path(__file__).resolve().parent.parent / "traces" / "data" / "cpu2"
LEARNED = "ppo"


@dataclass
class DemoConfig:
    """What the demo runs.

    Attributes:
        out: folder to write: profile, policy, TensorBoard, timelines, results.
        policies: policies to compare; "ppo" is the one that the demo trains.
        models: built-in names, or NAME=SOURCE.
        trace: arrivals: azure_llm_2023 (the real trace where it lies beside the project, else its fitted twin), or what
            serve.py --replay takes.
        load: offered load as a share of the measured capacity.
        duration: seconds of arrivals that each policy serves.
        train_s: seconds of training; 0 uses the policy that ships.
        high_fraction: share of high-priority requests.
        streams: batches in flight.
        device: auto, cpu, cuda or cuda:N.
        seed: of training and workload.
    """

    out: str = "runs/demo"
    policies: list[str] = field(default_factory=lambda: ["fifo", "edf", "strait", LEARNED])
    models: list[str] = field(default_factory=lambda: list(DEFAULT_MODELS))
    trace: str = "azure_llm_2023"
    load: float = 0.9
    duration: float = 60.0
    train_s: float = 120.0
    high_fraction: float = WorkloadConfig.high_fraction
    streams: int = 4
    device: str = "auto"
    seed: int = 0


def train_policy(config: DemoConfig, profile: Profile, out: Path, say: Any) -> str:
    """Train PPO on this machine's profile; returns the policy's file."""
    path = out / "profile.json"
    profile.save(path)
    say(f"training PPO for {config.train_s:g} s in simulation (TensorBoard: {out})")
    base = load_config("quick")
    settings = replace(
        base,
        budget_s=config.train_s,
        seed=config.seed,
        logdir=str(out),
        name=f"train-{time.strftime('%Y%m%d-%H%M%S')}",
        progress=sys.stderr.isatty(),
        tuned_for=SERVED,
        strait_tuned=False,
        env=replace(base.env, profile=str(path), models=(), streams=config.streams),
    )
    result = train(settings)
    if result.interrupted:
        raise KeyboardInterrupt
    say(
        f"trained on {result.n_timesteps:,} decisions; in simulation its weighted violations are "
        f"{100 * result.difference:+.2f} points from Strait's (standard error {100 * result.error:.2f})"
    )
    return str(result.policy)


def serve_all(
    config: DemoConfig, machine: Machine, workload: Workload, learned: str, out: Path, say: Any
) -> list[dict[str, Any]]:
    """Serve the workload under each policy in turn."""
    results = []
    for policy in config.policies:
        say(f"serving {len(workload)} requests in {config.duration:g} s under {policy}")
        watching: list[TimelineWriter | Recorder] = [TimelineWriter(out / f"timeline-{policy}.json")]
        if policy == LEARNED:
            watching.append(Recorder(out / "log", lambda: machine.info, lambda: machine.solo))
        result, _ = run_live(
            machine, learned if policy == LEARNED else policy, workload, out / f"serve-{policy}", watching
        )
        for observer in watching:
            observer.close()
        results.append(result | {"policy": policy})
    return results


def print_results(results: list[dict[str, Any]], console: Console) -> None:
    """The table."""
    table = Table(title="live, on this machine", title_justify="left")
    heads = ("policy", "violations high", "low", "p50", "p99", "in time", "decision p50", "p99", "offered", "ended as")
    for head in heads:
        table.add_column(head, justify="left" if head in ("policy", "ended as") else "right")
    for r in results:
        violations = [f"{100 * r[tag]:.2f} %" for tag in metric.VIOLATION]
        latencies = [f"{r[tag] or 0:.1f} ms" for tag in (metric.LATENCY_P50_MS, metric.LATENCY_P99_MS)]
        decisions = [f"{r.get(tag) or 0:.0f} us" for tag in (metric.DECISION_P50_US, metric.DECISION_P99_US)]
        ended = ", ".join(f"{count} {name}" for name, count in r["outcomes"].items() if count)
        in_time = f"{r[metric.GOODPUT_RPS]:.1f}/s"
        table.add_row(r["policy"], *violations, *latencies, in_time, *decisions, str(r["offered"]), ended)
    console.print(table)


def run_demo(config: DemoConfig) -> None:
    """Run the demo.

    Raises:
        InputError: an unknown policy, model or trace.
    """
    console = Console(width=150)
    began = time.monotonic()

    def say(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - began:5.0f} s[/dim]  {text}")

    out = Path(config.out)
    for policy in config.policies:
        if policy != LEARNED or config.train_s <= 0:
            resolve(policy)  # an unknown name is refused before anything runs
    source = read_source(config.trace, config.models, config.seed)
    out.mkdir(parents=True, exist_ok=True)
    measurements = Measurements.load(CAMPAIGN)
    base = fit(measurements, "demo")
    say(f"predictor fitted to {len(measurements.batches)} measured batches of {measurements.machine.device.name}")
    say("loading models and measuring their latencies on this machine")
    machine = open_machine(config.models, config.streams, config.device, base, config.seed)
    try:
        learned = LEARNED
        if LEARNED in config.policies and config.train_s > 0:
            learned = train_policy(config, machine.profile, out, say)
        capacity = capacity_rps(machine, seed=config.seed)
        say(f"this machine completes {capacity:.1f} requests/s when its queues are never empty")
        mix = WorkloadConfig(high_fraction=config.high_fraction)
        workload = lay_out(source, machine.profile, config.load * capacity, config.duration, mix, config.seed)
        say(f"offering {workload.describe().splitlines()[0]}, {config.load:g} of the capacity")
        results = serve_all(config, machine, workload, learned, out, say)
    finally:
        machine.close()
    print_results(results, console)
    if learned != LEARNED:
        console.print(
            "learn from what was served: "
            f"{Path(sys.executable)} train.py --from-log {out / 'log'} --running {learned} --logdir {out}",
            soft_wrap=True,
        )
    record = {
        "device": machine.executor.device.name,
        "capacity_rps": capacity,
        "load": config.load,
        "trace": workload.name,
        "seconds": time.monotonic() - began,
        "results": results,
    }
    atomic_write_text(out / "results.json", json.dumps(record, indent=1) + "\n")
    console.print(f"timelines (open in ui.perfetto.dev): {out / 'timeline-*.json'}")
    console.print(f"curves: {Path(sys.executable).parent / 'tensorboard'} --logdir {out}", soft_wrap=True)


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run_demo, DemoConfig, argv, "python -m serving.demo", __doc__)


if __name__ == "__main__":
    sys.exit(main())

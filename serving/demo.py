"""The whole idea in eight minutes: learn, compare, serve real models (``make demo``).

First the simulated A100, on which it matters most who runs beside whom: train PPO for half a minute, compare it with other
policies, draw a moment. Then this machine: fit the interference predictor to the shipped measurements, measure the models and
the capacity, train for this machine, and serve the same arrivals with real models under each policy, in short turns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from agents.evaluate import evaluate, suites
from agents.evaluation import metric
from agents.learned.names import SERVED, resolve
from agents.timeline import TimelineConfig
from agents.timeline import run as draw_timeline
from agents.training.config import EvaluationConfig, load_config
from agents.training.trainer import train
from envs.profiles.fit import fit
from serving.models.builtin.registry import DEFAULT_MODELS
from serving.observers.recorder import Recorder
from serving.observers.report import result_of
from serving.observers.timeline import TimelineWriter
from serving.replay.live_runs import Machine, capacity_rps, open_machine, run_live
from serving.replay.workload import lay_out, read_source
from traces.command import run_command
from traces.files import atomic_write_text
from traces.measurements import Measurements
from traces.settings import check_settings
from traces.workload import Workload, WorkloadConfig

CAMPAIGN = Path(__file__).resolve().parent.parent / "traces" / "data" / "cpu2"
LEARNED = "ppo"
A100 = "gpu-a100"
SIMULATED_LOAD = 1.0
PICTURE = "a100.png"
# An A100 answers ten times as many requests as two cores.
SHORT = EvaluationConfig(workloads=4, duration_ms=1500.0, confirm=8)


@dataclass
class DemoConfig:
    """What the demo runs.

    Attributes:
        out: folder to write: policies, pictures, TensorBoard, timelines, results.
        policies: to compare; "ppo" is what the demo trains, once for the A100 and once for this machine.
        models: built-in names, or NAME=SOURCE.
        trace: arrivals: azure_llm_2023 (the real trace where it lies beside the project, else its fitted twin), or what
            serve.py --replay takes.
        load: offered load as a share of the measured capacity.
        duration: seconds of arrivals that each policy serves.
        turns: parts of them; every policy serves one before the next one begins, so that a slow minute slows all alike.
        simulated_s: seconds of training for the simulated A100; 0 leaves that part out.
        train_s: seconds of training for this machine; 0 uses the policy that ships.
        high_fraction: share of high-priority requests.
        streams: batches in flight.
        device: auto, cpu, cuda or cuda:N.
        seed: of training and workload.
    """

    out: str = "runs/demo"
    policies: list[str] = field(default_factory=lambda: ["fifo", "edf", "triton", "clockwork", "strait", LEARNED])
    models: list[str] = field(default_factory=lambda: list(DEFAULT_MODELS))
    trace: str = "azure_llm_2023"
    load: float = 0.9
    duration: float = 40.0
    turns: int = 2
    simulated_s: float = 30.0
    train_s: float = 60.0
    high_fraction: float = WorkloadConfig.high_fraction
    streams: int = 4
    device: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, "--", {"turns": 1}, not_empty=["policies"])


class Demo:
    """The demo, part by part.

    Args:
        config: settings.
        console: to print on.
    """

    def __init__(self, config: DemoConfig, console: Console) -> None:
        self.config, self.console = config, console
        self.out = Path(config.out)
        self._begun = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    def say(self, text: str) -> None:
        """Print what happens now."""
        self.console.print(f"[dim]{self.seconds:5.0f} s[/dim]  {text}", soft_wrap=True)

    def train(self, profile: str, name: str, seconds: float, **settings: Any) -> str:
        """Train PPO on a profile, by name or file, in a run of this name; returns the policy's file.

        `settings` replace those of `TrainConfig`.
        """
        self.say(f"training PPO for {seconds:g} s in simulation (TensorBoard: {self.out})")
        base = load_config("quick")
        config = replace(
            base,
            budget_s=seconds,
            seed=self.config.seed,
            logdir=str(self.out),
            name=f"{name}-{time.strftime('%Y%m%d-%H%M%S')}",
            progress=sys.stderr.isatty(),
            env=replace(base.env, profile=profile, models=(), streams=self.config.streams),
            **settings,
        )
        result = train(config)
        if result.interrupted:
            raise KeyboardInterrupt
        self.say(
            f"trained on {result.n_timesteps:,} decisions; in simulation its weighted violations are "
            f"{100 * result.difference:+.2f} points from Strait's (standard error {100 * result.error:.2f})"
        )
        return str(result.policy)

    def simulate(self) -> list[dict[str, Any]]:
        """Train for the A100, compare, and draw a moment of what was learned."""
        self.say("on an A100, simulated as 65,929 measured co-runs of two and three models have it:")
        learned = self.train(A100, "train-a100", self.config.simulated_s, evaluation=SHORT)
        policies = [learned if policy == LEARNED else policy for policy in self.config.policies]
        suite = replace(suites()["quick"], policies=tuple(policies), loads=(SIMULATED_LOAD,))
        frame = evaluate(suite, A100, self.config.streams, progress=sys.stderr.isatty())
        results = frame.replace({"policy": {learned: LEARNED}}).groupby("policy", sort=False).mean(numeric_only=True)
        picture = self.out / PICTURE
        draw_timeline(TimelineConfig(str(picture), learned, load=SIMULATED_LOAD, profile=A100, seed=self.config.seed))
        rows = [{"policy": policy, **row} for policy, row in results.iterrows()]
        self.print("an A100, simulated, all of its capacity offered in bursts", rows)
        return rows

    def serve(self, machine: Machine, workload: Workload, learned: str) -> list[dict[str, Any]]:
        """Serve the workload under each policy, in turns."""
        config, parts = self.config, workload.slots(1e3 * self.config.duration / self.config.turns)
        recorder = Recorder(self.out / "log", lambda: machine.info, lambda: machine.solo)
        timelines = {policy: TimelineWriter(self.out / f"timeline-{policy}.json") for policy in config.policies}
        runs: dict[str, list[tuple[dict[str, Any], pd.DataFrame]]] = {policy: [] for policy in config.policies}
        for number, part in enumerate(parts):
            self.say(
                f"turn {number + 1} of {len(parts)}: {len(part)} requests under each of {', '.join(config.policies)}"
            )
            for policy in config.policies:
                watching = [timelines[policy]] if number == 0 else []
                kept = [recorder] if policy == LEARNED else []
                name = learned if policy == LEARNED else policy
                folder = self.out / f"serve-{policy}" / f"turn-{number + 1}"
                runs[policy].append(run_live(machine, name, part, folder, [*watching, *kept]))
        for observer in (*timelines.values(), recorder):
            observer.close()
        return [_merged(policy, one) for policy, one in runs.items()]

    def print(self, title: str, results: Sequence[dict[str, Any]]) -> None:
        """A table of policies."""
        table = Table(title=title, title_justify="left")
        for head in ("policy", "violations high", "low", "latency p50", "p99", "in time", "decision p50"):
            table.add_column(head, justify="left" if head == "policy" else "right")
        for r in results:
            violations = [f"{100 * r[tag]:.2f} %" for tag in metric.VIOLATION]
            latencies = [f"{r[tag] or 0:.1f} ms" for tag in (metric.LATENCY_P50_MS, metric.LATENCY_P99_MS)]
            decision = r.get(metric.DECISION_P50_US)
            in_time = f"{r[metric.GOODPUT_RPS]:.1f}/s"
            table.add_row(
                r["policy"], *violations, *latencies, in_time, "" if decision is None else f"{decision:.0f} us"
            )
        self.console.print(table)


def _merged(policy: str, runs: Sequence[tuple[dict[str, Any], pd.DataFrame]]) -> dict[str, Any]:
    """The result of all turns of a policy; of decision times, the median of the turns."""
    results = [result for result, _ in runs]
    merged = result_of(pd.concat([table for _, table in runs], ignore_index=True), {"policy": policy}, [])
    for tag in (metric.DECISION_P50_US, metric.DECISION_P99_US):
        merged[tag] = float(np.median([result[tag] for result in results]))
    # Each turn has a clock of its own.
    merged[metric.GOODPUT_RPS] = float(np.mean([result[metric.GOODPUT_RPS] for result in results]))
    return merged


def run_demo(config: DemoConfig) -> None:
    """Run the demo.

    Raises:
        InputError: an unknown policy, model or trace.
    """
    demo = Demo(config, Console(width=150))
    for policy in config.policies:
        if policy != LEARNED or config.train_s <= 0:
            resolve(policy)  # an unknown name is refused before anything runs
    source = read_source(config.trace, config.models, config.seed)
    demo.out.mkdir(parents=True, exist_ok=True)
    simulated = demo.simulate() if config.simulated_s > 0 else []
    measurements = Measurements.load(CAMPAIGN)
    base = fit(measurements, "demo")
    demo.say(f"predictor fitted to {len(measurements.batches)} measured batches of {measurements.machine.device.name}")
    demo.say("loading models and measuring their latencies on this machine")
    machine = open_machine(config.models, config.streams, config.device, base, config.seed)
    try:
        learned = LEARNED
        if LEARNED in config.policies and config.train_s > 0:
            profile = demo.out / "profile.json"
            machine.profile.save(profile)
            # Live, high priority comes first.
            ahead = replace(load_config("quick").look_ahead, emphasis=load_config("live").look_ahead.emphasis)
            settings = {"tuned_for": SERVED, "strait_tuned": False, "look_ahead": ahead}
            learned = demo.train(str(profile), "train", config.train_s, **settings)
        capacity = capacity_rps(machine, seed=config.seed)
        demo.say(f"this machine completes {capacity:.1f} requests/s when its queues are never empty")
        mix = WorkloadConfig(high_fraction=config.high_fraction)
        workload = lay_out(source, machine.profile, config.load * capacity, config.duration, mix, config.seed)
        demo.say(f"offering {workload.describe().splitlines()[0]}, {config.load:g} of the capacity")
        results = demo.serve(machine, workload, learned)
    finally:
        machine.close()
    demo.print("this machine, live, real models", results)
    record = {
        "device": machine.executor.device.name,
        "capacity_rps": capacity,
        "load": config.load,
        "trace": workload.name,
        "seconds": demo.seconds,
        "simulated": simulated,
        "results": results,
    }
    atomic_write_text(demo.out / "results.json", json.dumps(record, indent=1) + "\n")
    for text in _next_steps(config, learned):
        demo.console.print(text, soft_wrap=True)


def _next_steps(config: DemoConfig, learned: str) -> list[str]:
    """What to look at, and what to run."""
    python, out = Path(sys.executable), Path(config.out)
    lines = [f"a moment on the A100: {out / PICTURE}"] if config.simulated_s > 0 else []
    if LEARNED in config.policies:
        lines.append(
            f"see what was served on the status page, http://127.0.0.1:8080: {python} -m serving.replay --view {out / 'log'}"
        )
    if learned != LEARNED:
        lines.append(
            f"learn from what was served: {python} train.py --from-log {out / 'log'} --running {learned} --logdir {out}"
        )
    return [
        *lines,
        f"timelines (open in ui.perfetto.dev): {out / 'timeline-*.json'}",
        f"curves: {python.parent / 'tensorboard'} --logdir {out}",
    ]


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run_demo, DemoConfig, argv, "python -m serving.demo", __doc__)


if __name__ == "__main__":
    sys.exit(main())

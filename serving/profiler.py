"""Measures models on the device at hand: ``python -m serving.profiler --out DIR``.

Solo runs of every model at every batch size, and co-location runs of 2 to K streams, each stream a short random sequence of
batches with random gaps, so that the co-running set changes while batches run. Both kinds are interleaved in random order,
so that drift of the machine can be seen and removed. Writes a campaign folder (traces.measurements) that ``envs.fit`` turns
into a profile.
"""

from __future__ import annotations

import shlex
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
import pandas as pd
from tqdm import tqdm

from serving.executors.base import Batch, BatchResult, now_ms
from serving.executors.executor import Executor
from serving.executors.factory import make_executor
from serving.models.builtin.registry import BUILTIN
from serving.models.listing import initial_entries
from serving.models.load import load_buckets
from serving.models.served import ServedModel
from serving.profiling.calibrate import machine_of
from traces.command import run_command
from traces.errors import InputError
from traces.files import make_folder
from traces.machine import MachineInfo, ModelInfo
from traces.measurements import PHASES, Measurements
from traces.workload import LOW

BATCHES_PER_STREAM = 4
QUICK_BATCHES = 900


@dataclass
class ProfilerConfig:
    """What to measure.

    Attributes:
        out: folder to write.
        device: auto, cpu or cuda.
        streams: streams of the executor, and the most batches side by side.
        models: as serve.py takes them: built-in names, NAME=SOURCE, or folders and YAML files that list models; all built-in
            models by default.
        batch_sizes: ascending.
        batches: batches to measure in all, solo and co-located.
        repeats: how often each co-location is played, in random order; 2 or more show how well it can be predicted at all.
        quick: a campaign of about a minute in place of a full one.
        seed: of the scenarios.
    """

    out: str
    device: str = "auto"
    streams: int = 4
    models: list[str] = field(default_factory=lambda: list(BUILTIN))
    batch_sizes: list[int] = field(default_factory=lambda: [1, 2, 4, 8])
    batches: int = 6000
    repeats: int = 1
    quick: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """One batch of a scenario: wait ``gap_ms`` after the stream's last batch, then run."""

    gap_ms: float
    model: int
    size: int
    priority: int = LOW


Scenario = dict[int, list[Step]]  # what each stream runs, by stream


def plan(
    rng: np.random.Generator,
    n_models: int,
    sizes: list[int],
    streams: int,
    batches: int,
    times: int = 1,
    priorities: Sequence[int] = (LOW,),
) -> list[Scenario]:
    """Scenarios of about ``batches`` batches in random order, each co-location ``times`` times.

    Every model runs solo at every size at least 5 times. Batches side by side have one of the ``priorities``.
    """
    pairs = [(m, s) for m in range(n_models) for s in sizes]
    repeats = max(5, batches // (6 * len(pairs)))
    # Solo runs take the streams in turn: a thread's memory and core may make it faster than another.
    scenarios: list[Scenario] = [{i % streams: [Step(0.0, m, s)]} for m, s in pairs for i in range(repeats)]
    left = batches - len(scenarios)
    while left > 0 and streams > 1:
        width = int(rng.integers(2, streams + 1))
        scenario = {}
        for stream in rng.permutation(streams)[:width].tolist():
            picks = rng.integers(len(pairs), size=BATCHES_PER_STREAM)
            gaps = np.where(rng.random(BATCHES_PER_STREAM) < 0.5, 0.0, rng.exponential(6.0, BATCHES_PER_STREAM))
            gaps[0] = rng.uniform(0.0, 15.0)
            ranks = (
                rng.choice(priorities, BATCHES_PER_STREAM).tolist()
                if len(priorities) > 1
                else [*priorities] * BATCHES_PER_STREAM
            )
            scenario[stream] = [Step(float(g), *pairs[int(p)], r) for g, p, r in zip(gaps, picks, ranks, strict=True)]
        scenarios += [scenario] * times
        left -= width * BATCHES_PER_STREAM * times
    order = rng.permutation(len(scenarios))
    return [scenarios[i] for i in order]


class Campaign:
    """Plays scenarios on an executor and keeps the phases of every batch.

    Args:
        executor: with the models loaded; its ``on_result`` is taken over.
        models: in the order of their indices.
        largest: largest batch size.
        seed: of the inputs.
    """

    def __init__(self, executor: Executor, models: list[ServedModel], largest: int, seed: int) -> None:
        self.executor = executor
        self.models = models
        rng = np.random.default_rng(seed)
        self.inputs = [[model.example(rng) for _ in range(largest)] for model in models]
        self.rows: list[tuple] = []
        self._results: SimpleQueue[BatchResult] = SimpleQueue()
        self._batches = 0
        self._start_ms = now_ms()
        executor.on_result = self._results.put

    def play(self, run: int, scenario: Scenario) -> None:
        """Run one scenario to its end.

        Raises:
            InputError: a model failed.
        """
        kind = "solo" if sum(map(len, scenario.values())) == 1 else "colocation"
        waiting = {stream: deque(steps) for stream, steps in scenario.items()}
        running: dict[int, Step] = {}
        start = now_ms()
        due = {stream: start + steps[0].gap_ms for stream, steps in scenario.items()}
        while due or running:
            now = now_ms()
            for stream in [stream for stream, time_ms in due.items() if time_ms <= now]:
                step = running[stream] = waiting[stream].popleft()
                inputs = self.inputs[step.model][: step.size]
                self.executor.submit(stream, Batch(self._batches, self.models[step.model].name, step.priority, inputs))
                self._batches += 1
                del due[stream]
            wait_s = max(min(due.values()) - now_ms(), 0.0) / 1e3 if due else 60.0
            try:
                result = self._results.get(timeout=wait_s)
            except Empty:
                continue
            if result.error is not None:
                model = self.models[running[result.stream].model].name
                raise InputError(f"model {model!r} fails: {result.error}")
            stream, step = result.stream, running.pop(result.stream)
            name, phases = self.models[step.model].name, result.phases.since(self._start_ms)
            self.rows.append((run, kind, result.batch_id, stream, step.priority, name, step.size, *phases))
            if waiting[stream]:
                due[stream] = now_ms() + waiting[stream][0].gap_ms

    def measurements(self, machine: MachineInfo) -> Measurements:
        """What was measured so far, on this machine."""
        columns = ["run", "kind", "batch_id", "stream", "priority", "model", "batch_size", *PHASES]
        return Measurements(machine, pd.DataFrame(self.rows, columns=columns))


def profile_device(config: ProfilerConfig, command: str, progress: bool = True) -> Measurements:
    """Measure as configured.

    Raises:
        InputError: a model cannot be loaded, or a setting is out of range.
    """
    sizes = list(config.batch_sizes)
    if not sizes or sizes != sorted(set(sizes)) or sizes[0] < 1:
        raise InputError(f"--batch_sizes: {sizes}; they must be ascending, from at least 1")
    if config.repeats < 1:
        raise InputError(f"--repeats: {config.repeats}; it must be at least 1")
    models = [one for entry in initial_entries(config.models).values() for one in load_buckets(entry.spec)]
    executor = make_executor(config.device, config.streams)
    try:
        machine = machine_of(executor, [ModelInfo(**model.describe()) for model in models], sizes, command)
        for model in models:
            executor.load(model)
            executor.warm_up(model.name, sizes)
        rng = np.random.default_rng(config.seed)
        count = QUICK_BATCHES if config.quick else config.batches
        scenarios = plan(rng, len(models), sizes, config.streams, count, config.repeats)
        campaign = Campaign(executor, models, sizes[-1], config.seed)
        for run, scenario in enumerate(tqdm(scenarios, unit="run", desc="profiling", disable=not progress)):
            campaign.play(run, scenario)
    finally:
        executor.close()
    return campaign.measurements(machine)


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status. The folder stays empty unless the campaign ends."""
    command = shlex.join(["python", "-m", "serving.profiler", *(sys.argv[1:] if argv is None else argv)])

    def run(config: ProfilerConfig) -> None:
        make_folder(config.out, "--out")  # told before anything is measured
        measurements = profile_device(config, command, sys.stderr.isatty())
        measurements.save(config.out)
        print(measurements.describe())

    return run_command(run, ProfilerConfig, argv, "python -m serving.profiler", __doc__)


if __name__ == "__main__":
    sys.exit(main())

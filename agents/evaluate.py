"""Judging policies alike: the same traces and the same noise for each, paired differences, bootstrap intervals.

``python -m agents.evaluate --suite quick --json`` prints one JSON line; without ``--json`` it also writes Parquet, a report
in Markdown with pictures, and TensorBoard scalars into a run folder.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from agents.evaluation import clairvoyant, metric
from agents.evaluation.rollout import request_table, run
from agents.evaluation.statistics import ablations, digest, weighted_rate
from agents.evaluation.suites import Suite, check_workload, workload_for
from agents.evaluation.summary import summarise
from agents.learned.names import ABLATIONS, resolve
from agents.learned.policy_file import CHECKPOINT
from agents.policies.registry import kinds, make_policy
from envs.profiles.profile import Profile
from envs.simulation.capacity import measure_capacity
from envs.simulation.simulator import Simulator
from traces.command import run_command
from traces.errors import InputError
from traces.files import atomic_write_text, make_folder
from traces.settings import check_settings
from traces.worker_pool import results, worker_pool
from traces.workload import Workload

QUICK_LOADS = (0.5, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2, 1.3)
HELDOUT_LOADS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)
REAL = ("azure_llm_2023", "mooncake")


def suites() -> dict[str, Suite]:
    """The suites by name."""
    learned = ("ppo",) if CHECKPOINT.is_file() else ()
    everyone = (*sorted(kinds()), *learned)
    rivals = ("strait", *learned)
    held_out = Suite("heldout", rivals, (*REAL, "gamma", "diurnal"), HELDOUT_LOADS, 10, 20_000.0)
    known = (
        Suite("quick", everyone, ("bursty",), QUICK_LOADS, 10, 5_000.0),
        Suite("full", everyone + ABLATIONS, ("poisson", "bursty", "diurnal", *REAL), QUICK_LOADS, 20, 20_000.0),
        Suite("ablation", ("strait", *ABLATIONS), ("poisson", "bursty"), QUICK_LOADS, 10, 10_000.0),
        held_out,
        replace(held_out, name="unseen", workloads=("bursty", *REAL), models=("unet", "mixer", "lstm", "bert")),
        Suite("large", (*everyone, clairvoyant.NAME), ("bursty",), (0.8, 0.9, 1.0, 1.1, 1.2), 5, 2_000.0),
        Suite("small", everyone, (), (), clairvoyant.SmallConfig().instances),
    )
    return {suite.name: suite for suite in known}


@dataclass(frozen=True)
class Group:
    """One policy on one workload at all loads and seeds: what one process runs, for a policy compiles once a process."""

    profile: str
    policy: str
    workload: str
    capacity_rps: float
    streams: int
    suite: Suite


def make_groups(suite: Suite, profile: str, capacity_rps: float, streams: int) -> list[Group]:
    """The groups of a suite. The slowest begin first, so that no core waits for one of them at the end."""
    groups = []
    for policy, workload in product(suite.policies, suite.workloads):
        # The search takes seconds an episode: one group for each load, for more cores and a bar that moves.
        parts = [replace(suite, loads=(load,)) for load in suite.loads] if policy == clairvoyant.NAME else [suite]
        groups += [Group(profile, policy, workload, capacity_rps, streams, part) for part in parts]
    return sorted(groups, key=lambda g: not g.policy.startswith((clairvoyant.NAME, "ppo", "strait", "/")))


def make_workloads(group: Group, profile: Profile) -> list[Workload]:
    """The workloads of a group, one for each load and seed; the same whatever the policy."""
    suite = group.suite
    return [
        workload_for(group.workload, load * group.capacity_rps, suite.duration_ms, profile, suite.workload, seed)
        for load, seed in product(suite.loads, range(suite.seeds))
    ]


def episodes(
    group: Group, profile: Profile, workloads: list[Workload]
) -> Iterator[tuple[tuple[float, int], Simulator, int]]:
    """Run all episodes of a group: (load, seed), the simulator that holds the episode, and its world there."""
    suite = group.suite
    cells = list(product(suite.loads, range(suite.seeds)))
    room = max(1, *(len(w) for w in workloads))
    if group.policy == clairvoyant.NAME:
        base, _ = resolve("strait", 2, profile=group.profile)
        sim = Simulator(profile, 2, group.streams, room)
        sim.limit_memory(suite.models_in_memory, suite.load_ms)
        for (load, seed), workload in zip(cells, workloads, strict=True):
            clairvoyant.search(sim, base, workload, seed)
            yield (load, seed), sim, 0
        return
    policy, change = resolve(group.policy, len(workloads), profile=group.profile)
    sim = Simulator(profile, len(workloads), group.streams, room, tables=change(profile.tables()))
    sim.limit_memory(suite.models_in_memory, suite.load_ms)
    run(sim, policy, workloads, [seed for _, seed in cells])
    for e, cell in enumerate(cells):
        yield cell, sim, e


def run_group(group: Group) -> pd.DataFrame:
    """Results of a group, one row for each load and seed."""
    suite = group.suite
    profile = suite.select(Profile.load(group.profile))
    workloads = make_workloads(group, profile)
    rows = []
    for (load, seed), sim, e in episodes(group, profile, workloads):
        labels = {"policy": group.policy, "workload": group.workload, "load": load, "seed": seed}
        rows.append(labels | result_of(sim, e, suite.duration_ms))
    return with_weighted(pd.DataFrame(rows))


def result_of(sim: Simulator, env: int, duration_ms: float | None = None) -> dict[str, Any]:
    """What came out of a world's episode."""
    table = request_table(sim, env)
    row: dict[str, Any] = summarise(table, duration_ms)
    row["n_high"] = int((table["priority"] == 0).sum())
    row["n_low"] = int((table["priority"] == 1).sum())
    row["decisions"] = int(sim.world.episode[env].steps)
    return row


def with_weighted(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of ``result_of`` with their weighted rate."""
    total = frame[["n_high", "n_low"]].to_numpy()
    frame["weighted"] = weighted_rate(frame[list(metric.VIOLATION)].to_numpy() * total, total)
    return frame


def evaluate(
    suite: Suite,
    profile: str = "cpu2",
    streams: int = 4,
    workers: int | None = None,
    progress: bool = True,
    cluster: str | None = None,
) -> pd.DataFrame:
    """Run a suite on all cores, or on a cluster.

    One row for each policy, workload, load and seed; the capacity is in its ``attrs``.

    Raises:
        InputError: an unknown profile, policy or workload.
    """
    loaded = suite.select(Profile.load(profile))
    for policy in suite.policies:
        if policy != clairvoyant.NAME:
            resolve(policy)  # an unknown name is told before anything runs
    for workload in suite.workloads:
        check_workload(workload, loaded)
    with worker_pool(workers, cluster) as pool:
        # A worker measures the capacity while this process compiles what all policies share, where that is not cached yet.
        measured = pool.submit(measure_capacity, loaded, streams)
        none = np.empty(0)
        run(Simulator(loaded, 1, streams), make_policy("fifo"), [Workload(none, none, none, none, loaded.models)], [0])
        capacity = measured.result()
        waiting = [pool.submit(run_group, group) for group in make_groups(suite, profile, capacity, streams)]
        frames = results(waiting, "run", f"suite {suite.name}", progress)
    result = pd.concat(frames, ignore_index=True)
    result.attrs["capacity_rps"] = capacity
    return result


@dataclass
class EvaluateConfig:
    """What to evaluate.

    Attributes:
        suite: quick, full, ablation, heldout, unseen (models), large (beside the clairvoyant search) or small (beside the
            exact optimum).
        policies: names or checkpoint paths to run instead of the suite's.
        workloads: workloads to run instead of the suite's, by name, or trace files in any known format; a file of a workload
            brings its own models, priorities and deadlines.
        loads: loads (over measured capacity) to run instead of the suite's.
        seeds: number of seeds instead of the suite's.
        profile: shipped profile by name, or a JSON file written by envs.fit.
        streams: streams of the device.
        models_in_memory: models that memory holds at once; 0: all. A request for another waits until it is loaded.
        load_ms: how long it takes to load one.
        workers: processes; all cores by default.
        cluster: run on Ray in place of processes: local, auto or ray://HOST:PORT; needs strait-rl[ray].
        out: folder for Parquet, report and TensorBoard.
        json: print the JSON line only, write nothing.
    """

    suite: str = "quick"
    policies: list[str] | None = None
    workloads: list[str] | None = None
    loads: list[float] | None = None
    seeds: int | None = None
    profile: str = "cpu2"
    streams: int = 4
    models_in_memory: int = 0
    load_ms: float = 100.0
    workers: int | None = None
    cluster: str | None = None
    out: str = "runs/evaluate"
    json: bool = False

    def __post_init__(self) -> None:
        above = {"loads": 0}
        least = {"seeds": 1, "streams": 1, "workers": 1, "models_in_memory": 0, "load_ms": 0}
        check_settings(self, "--", least, above, not_empty=["policies", "workloads"])


def chosen_suite(config: EvaluateConfig) -> Suite:
    """The suite that the settings name, with what they change of it.

    Raises:
        InputError: there is no such suite, or it does not have what the settings change.
    """
    known = suites()
    if config.suite not in known:
        raise InputError(f"--suite: unknown suite {config.suite!r}; known: {', '.join(known)}")
    not_small = ("workloads", "loads", "models_in_memory", "load_ms", "streams", "workers", "cluster")
    given = [name for name in not_small if getattr(config, name) != getattr(EvaluateConfig, name)]
    if config.suite == "small" and given:
        flags = ", ".join(f"--{name}" for name in given)
        raise InputError(
            f"{flags}: suite small has instances of its own, on streams of its own, all models in memory, and runs in this "
            "process; use another suite"
        )
    changes: dict[str, Any] = {
        k: tuple(v) for k in ("policies", "workloads", "loads") if (v := getattr(config, k)) is not None
    } | {k: getattr(config, k) for k in ("models_in_memory", "load_ms")}
    return replace(known[config.suite], **changes | ({} if config.seeds is None else {"seeds": config.seeds}))


def run_small(suite: Suite, config: EvaluateConfig) -> dict[str, Any]:
    """Distances to the exact optimum on small instances."""
    profile = suite.select(Profile.load(config.profile))
    small = clairvoyant.SmallConfig(instances=suite.seeds)
    frame = clairvoyant.distances(profile, suite.policies, small, config.profile, progress=sys.stderr.isatty())
    return {
        "suite": suite.name,
        "instances": suite.seeds,
        "unproven": frame.attrs["unproven"],
        "policies": clairvoyant.distance_digest(frame),
    }


def run_suite(suite: Suite, config: EvaluateConfig) -> dict[str, Any]:
    """Rates by policy and load; unless told otherwise, with a report in the folder ``out``."""
    frame = evaluate(suite, config.profile, config.streams, config.workers, sys.stderr.isatty(), config.cluster)
    result: dict[str, Any] = {"suite": suite.name, "loads": list(suite.loads), "policies": digest(frame)}
    if parts := ablations(frame):
        result["ablations"] = {part: [round(v, 3) for v in interval] for part, interval in parts.items()}
    if not config.json:
        from agents.evaluation.report import write_report

        print(f"report: {write_report(frame, suite, asdict(config), Path(config.out))}")
    return result


def run_command_line(config: EvaluateConfig) -> None:
    """Run what the settings ask for; the JSON line comes last."""
    suite = chosen_suite(config)
    if not config.json:
        make_folder(config.out, "--out")  # told before anything runs
    result = (run_small if suite.name == "small" else run_suite)(suite, config)
    if not config.json:
        atomic_write_text(Path(config.out) / "result.json", json.dumps(result) + "\n")
    print(json.dumps(result))


def main(argv: list[str] | None = None) -> int:
    """Command line. Returns the exit status."""
    return run_command(run_command_line, EvaluateConfig, argv, "python -m agents.evaluate", __doc__)


if __name__ == "__main__":
    sys.exit(main())

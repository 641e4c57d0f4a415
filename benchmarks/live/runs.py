"""Live runs of several policies on the same requests: the basis of benchmarks.live and benchmarks.sim_to_live."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import pandas as pd

from agents.learned.names import resolve
from agents.learned.policy_file import SHIPPED
from envs.profiles.profile import Profile
from serving.models.builtin.registry import DEFAULT_MODELS
from serving.observers.overhead import OverheadMeter
from serving.replay.live_runs import Machine, run_live
from serving.replay.workload import lay_out, read_source
from traces.errors import InputError
from traces.settings import check_settings
from traces.workload import Workload, WorkloadConfig

Say = Callable[[str], None]


@dataclass
class LiveSettings:
    """What live benchmarks have in common.

    Attributes:
        out: folder of the results.
        policies: to compare, by name or policy.safetensors; a trained one that does not ship is left out.
        loads: offered loads over the measured capacity.
        duration: seconds of arrivals of each run; long enough for the trace's slow changes of rate to show.
        repetitions: runs of each policy, trace and load.
        models: built-in names, or NAME=SOURCE.
        streams: batches in flight.
        device: auto, cpu, cuda or cuda:N.
        high_fraction: share of high-priority requests.
        seed: of the first repetition's requests.

    Raises:
        InputError: a setting is out of range, or there is no such policy.
    """

    out: str = "runs/live"
    policies: list[str] = field(default_factory=lambda: ["fifo", "edf", "clockwork", "triton", "strait", *SHIPPED])
    loads: list[float] = field(default_factory=lambda: [0.9, 1.0, 1.1])
    duration: float = 20.0
    repetitions: int = 3
    models: list[str] = field(default_factory=lambda: list(DEFAULT_MODELS))
    streams: int = 4
    device: str = "auto"
    high_fraction: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        check_settings(self, "--", above={"duration": 0, "repetitions": 0})
        if not self.loads or min(self.loads) <= 0:
            raise InputError(f"--loads: {self.loads}; expected one or more numbers above 0")
        self.policies = [p for p in dict.fromkeys(self.policies) if p not in SHIPPED or SHIPPED[p].is_file()]
        for name in self.policies:
            resolve(name)


@dataclass(frozen=True)
class Offered:
    """Requests of one cell: the same for all policies.

    Attributes:
        trace: name of the arrivals.
        load: over the measured capacity.
        repetition: number of the repetition, which seeds the workload.
        workload: the requests, or those of one slot.
    """

    trace: str
    load: float
    repetition: int
    workload: Workload


@dataclass
class LiveRun:
    """One policy live on a cell.

    Attributes:
        policy: its name.
        offered: the cell.
        result: the record of ``serving.observers.report.result_of``.
        table: one row per request.
        meter: the overheads.
    """

    policy: str
    offered: Offered
    result: dict[str, Any]
    table: pd.DataFrame
    meter: OverheadMeter


def make_cells(
    profile: Profile, traces: Sequence[str], capacity_rps: float, settings: LiveSettings, seed: int | None = None
) -> list[Offered]:
    """The cells, one repetition after the other; each draws other requests, from ``seed`` or that of the settings on.

    Raises:
        InputError: an unknown trace, or nothing arrives in the time.
    """
    mix = WorkloadConfig(high_fraction=settings.high_fraction)
    cells = []
    for repetition, trace, load in product(range(settings.repetitions), traces, settings.loads):
        drawn = repetition + (settings.seed if seed is None else seed)
        source = read_source(trace, profile.models, drawn)
        workload = lay_out(source, profile, load * capacity_rps, settings.duration, mix, drawn)
        cells.append(Offered(trace, load, repetition, workload))
    return cells


def in_slots(cells: Sequence[Offered], slot_s: float) -> list[Offered]:
    """Each cell cut into time slots of ``slot_s`` seconds, the last one as long as what is left; empty ones are dropped.

    All policies serve a slot before the next one begins, so a slow minute of the machine slows all of them alike.
    """
    return [replace(cell, workload=slot) for cell in cells for slot in cell.workload.slots(1e3 * slot_s)]


def run_all(
    machine: Machine, policies: Sequence[str], cells: Sequence[Offered], say: Say = lambda text: None
) -> Iterator[LiveRun]:
    """Serve every cell under every policy; the first policy changes from cell to cell, so that none has the warmest device."""
    for number, offered in enumerate(cells):
        first = number % len(policies)
        for policy in (*policies[first:], *policies[:first]):
            facts = {"trace": offered.trace, "load": offered.load, "repetition": offered.repetition}
            meter = OverheadMeter()
            result, table = run_live(machine, policy, offered.workload, observers=[meter], facts=facts)
            say(f"{offered.trace} at {offered.load:g}, repetition {offered.repetition + 1}: {policy}")
            yield LiveRun(policy, offered, result | {"policy": policy}, table, meter)

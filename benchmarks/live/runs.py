"""Live runs of several policies on the same requests: what benchmarks.sim_to_live and benchmarks.live.__main__ stand on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import pandas as pd

from agents.learned.names import resolve
from agents.learned.policy_file import SHIPPED
from envs.profiles.profile import Profile
from serving.observers.overhead import OverheadMeter
from serving.replay.live_runs import Machine, run_live
from serving.replay.workload import lay_out, read_source
from traces.errors import InputError
from traces.workload import Workload, WorkloadConfig

LEARNED = "ppo"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Offered:
    """Requests of one cell: the same for all policies.

    Attributes:
        trace: name of the arrivals. load: over the measured capacity. repetition: number of it, which seeds the workload.
        workload: the requests, or those of one turn.
    """

    trace: str
    load: float
    repetition: int
    workload: Workload


@dataclass
class LiveRun:
    """One policy live on a cell: the record of ``result_of``, one row a request, and the overheads."""

    policy: str
    offered: Offered
    result: dict[str, Any]
    table: pd.DataFrame
    meter: OverheadMeter


def check_amounts(config: Any, names: Sequence[str]) -> None:
    """Refuse settings that leave nothing to run: fields ``names`` and all ``loads`` must be above 0.

    Raises:
        InputError: one is not.
    """
    for name in names:
        if not getattr(config, name) > 0:
            raise InputError(f"--{name}: {getattr(config, name)}; a number above 0 is wanted")
    if not config.loads or min(config.loads) <= 0:
        raise InputError(f"--loads: {config.loads}; one or more numbers above 0 are wanted")


def check_policies(names: Sequence[str]) -> tuple[str, ...]:
    """The policies to run: an unknown name is told before anything runs, a trained one that does not ship is left out.

    Raises:
        InputError: there is no such policy.
    """
    found = [name for name in dict.fromkeys(names) if name not in SHIPPED or SHIPPED[name].is_file()]
    for name in found:
        resolve(name)
    return tuple(found)


def make_cells(
    profile: Profile,
    traces: Sequence[str],
    loads: Sequence[float],
    repetitions: int,
    capacity_rps: float,
    duration_s: float,
    high_fraction: float = 0.3,
    seed: int = 0,
) -> list[Offered]:
    """The cells, one repetition after the other; each repetition draws other requests.

    Raises:
        InputError: an unknown trace, or nothing arrives in the time.
    """
    mix = WorkloadConfig(high_fraction=high_fraction)
    cells = []
    for repetition, trace, load in product(range(repetitions), traces, loads):
        drawn = seed + repetition
        source = read_source(trace, profile.models, drawn)
        workload = lay_out(source, profile, load * capacity_rps, duration_s, mix, drawn)
        cells.append(Offered(trace, load, repetition, workload))
    return cells


def in_turns(cells: Sequence[Offered], turn_s: float) -> list[Offered]:
    """Each cell cut into turns of ``turn_s`` seconds, the last one shorter where it must be; those with a request in them.

    What the policies serve in turn is then close together in time, and what a slow minute of the machine does to one of
    them it does to all.
    """
    out = []
    for cell in cells:
        turn_ms = 1e3 * turn_s
        count = int(cell.workload.arrival_ms[-1] // turn_ms) + 1
        turns = [cell.workload.window(i * turn_ms, (i + 1) * turn_ms) for i in range(count)]
        out += [replace(cell, workload=turn) for turn in turns if len(turn)]
    return out


def run_all(
    machine: Machine,
    policies: Sequence[str],
    cells: Sequence[Offered],
    say: Say = lambda text: None,
) -> Iterator[LiveRun]:
    """Serve every cell under every policy, policies in turn; who goes first changes, so that none has the warmest device."""
    for number, offered in enumerate(cells):
        first = number % len(policies)
        for policy in (*policies[first:], *policies[:first]):
            facts = {"trace": offered.trace, "load": offered.load, "repetition": offered.repetition}
            meter = OverheadMeter()
            result, table = run_live(machine, policy, offered.workload, observers=[meter], facts=facts)
            say(f"{offered.trace} at {offered.load:g}, repetition {offered.repetition + 1}: {policy}")
            yield LiveRun(policy, offered, result | {"policy": policy}, table, meter)

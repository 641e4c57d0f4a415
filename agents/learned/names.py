"""Policies by the names that flags use: registered kinds, checkpoints, and Strait with a part of it switched off.

``strait:no-interference`` is the policy ``strait`` under the switch ``no-interference``. Switches of the predictor change
what the scheduler is told (its ``Tables``), those of the policy change parameters. Tuned parameters, written by agents.tune,
apply unless told otherwise: those for the device's profile (data/tuned-PROFILE.json), else data/tuned.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from agents.learned.policy_file import DATA, DEVICE, SHIPPED, STRAIT_OF
from agents.policies.base import Policy
from agents.policies.registry import kinds, make_policy
from envs.scheduling.state import Tables
from traces.errors import InputError

TUNED = DATA / "tuned.json"
# Profile of a machine as it serves. Live, on whatever machine, policies take what was tuned for it.
SERVED = "cpu2-served"


def _no_interference(tables: Tables) -> Tables:
    """Every batch is expected to run as if it were alone, and nothing is learned."""
    return _static(tables)._replace(weight=np.zeros_like(tables.weight))


def _without(tables: Tables, field: str) -> Tables:
    """The same with 0 for a field of the device."""
    device = tables.device.copy()
    device[field] = 0.0
    return tables._replace(device=device)


def _static(tables: Tables) -> Tables:
    """The predictor stays at its offline prior: no adaptation of slowdowns."""
    return _without(tables, "forgetting")


def _no_mixed_batches(tables: Tables) -> Tables:
    """A batch holds one priority."""
    return _without(tables, "mixed_batches")


def _no_transfer(tables: Tables) -> Tables:
    """Copies and dispatch are expected to cost nothing."""
    return _without(tables, "dispatch_ms")._replace(h2d=np.zeros_like(tables.h2d), d2h=np.zeros_like(tables.d2h))


TABLE_SWITCHES: dict[str, Callable[[Tables], Tables]] = {
    "no-interference": _no_interference,
    "static": _static,
    "no-transfer": _no_transfer,
    "no-mixed-batches": _no_mixed_batches,
}
PARAMETER_SWITCHES: dict[str, dict[str, float]] = {
    "no-deferral": {"price": 0.0},
    "no-priority": {"high_weight": 1.0},
    "strict-priority": {"high_weight": 1e6, "price": 0.0},
}
SWITCHES = (*TABLE_SWITCHES, *PARAMETER_SWITCHES)
ABLATIONS = tuple(f"strait:{switch}" for switch in SWITCHES)


def tuned_path(profile: str) -> Path:
    """Where the parameters that policies take on a profile are; one that nothing was tuned for takes the CPU's."""
    own = DATA / f"tuned-{Path(profile).stem}.json"
    return own if own.is_file() else TUNED


@cache
def tuned(path: Path = TUNED) -> dict[str, dict[str, float]]:
    """Tuned parameters by policy; empty where nothing was tuned.

    Raises:
        InputError: the file is not what agents.tune writes.
    """
    found = read_tuned(path)["policies"] if path.is_file() else {}
    return {name: entry["params"] for name, entry in found.items()}


def read_tuned(path: Path) -> dict[str, Any]:
    """All that agents.tune wrote. Raises InputError: the file is something else."""
    try:
        data = dict(json.loads(path.read_text()))
        data["policies"] = {name: {**one, "params": {**one["params"]}} for name, one in data["policies"].items()}
        return data
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a file of tuned parameters ({error}); write it with agents.tune") from None


def resolve(
    name: str, n: int = 1, use_tuned: bool = True, profile: str = "", **params: Any
) -> tuple[Policy, Callable[[Tables], Tables]]:
    """A policy by name for n schedulers, and the change it makes to what the scheduler is told.

    Args:
        name: a registered kind, "ppo" (the checkpoint that ships), the path of a checkpoint, or "KIND:SWITCH".
        n: number of schedulers.
        use_tuned: whether tuned parameters replace the defaults. profile: the device's, by name or path.
        params: overrides of parameters by name; these win.

    Raises:
        InputError: there is no such policy, switch or parameter.
    """
    kind, _, switch = name.partition(":")
    settings = dict(tuned(tuned_path(profile)).get(kind, {})) if use_tuned else {}
    if name in SHIPPED or name.endswith(".safetensors"):
        from agents.learned.policy import load_policy

        learned = load_policy(SHIPPED.get(name, Path(name)), n, **(settings | params))
        if learned.metadata.get(STRAIT_OF) == DEVICE:
            learned.correct(resolve("strait", profile=profile)[0].vector)
        return learned, _same
    if switch and switch not in SWITCHES:
        raise InputError(f"policy {name!r}: unknown switch {switch!r}; known: {', '.join(SWITCHES)}")
    if kind not in kinds():
        names = ", ".join(sorted([*kinds(), *SHIPPED]))
        raise InputError(f"unknown policy {name!r}; known: {names}, or the path of a trained checkpoint")
    if switch in PARAMETER_SWITCHES:
        known = {f.name for f in fields(kinds()[kind].params)}
        missing = sorted(set(PARAMETER_SWITCHES[switch]) - known)
        if missing:
            raise InputError(f"policy {name!r}: {kind!r} has no parameter {missing[0]!r} to switch off")
        settings |= PARAMETER_SWITCHES[switch]
    policy = make_policy(kind, n, **(settings | params))
    policy.name = name
    return policy, TABLE_SWITCHES.get(switch, _same)


def _same(tables: Tables) -> Tables:
    return tables

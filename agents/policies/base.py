"""The policy interface.

A policy is one compiled function ``choose(state, tables, memory, env, params) -> (action, wake)`` over the shared scheduling
state: ``memory[env]`` is its own (MEMORY_SIZE floats per scheduler, zero at the start of an episode), ``params`` its parameters
as floats. It returns a valid candidate, or DEFER (the number of candidates) with the absolute time to be woken at (inf: at the
next event). It reads no clock, logs nothing and allocates nothing. The simulator and the live engine call the same function.

To add one: write a file in agents/policies with a parameter dataclass, a ``choose`` and its ``KIND``, and add one line to
agents/policies/registry.py; see docs/how-to/add-a-policy.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numba
import numpy as np
from numba import types

from envs.scheduling.jit import bind, njit
from envs.scheduling.quote import BY_PRIORITY
from envs.scheduling.state import SchedState, Tables
from traces.errors import InputError

MEMORY_SIZE = 32


@dataclass(frozen=True)
class PolicyKind:
    """A registered kind of policy.

    Attributes:
        name: its name in flags, reports and TensorBoard.
        choose: the compiled function.
        params: dataclass of its parameters, all numbers or booleans, with defaults.
        source: where it is described.
        drop: whether it drops requests that are out of reach, unless told otherwise.
        adapts: whether it uses the online interference predictor.
        order: which queued requests it serves before another, as ``envs.scheduling.quote`` counts what is ahead.
    """

    name: str
    choose: Callable[..., tuple[int, float]]
    params: type
    source: str
    drop: bool = True
    adapts: bool = False
    order: int = BY_PRIORITY


def places(params: type) -> range:
    """Where each parameter stands in a policy's vector, in the order of the dataclass."""
    return range(len(fields(params)))


@njit
def _choose_all(choose, memory, params, state, tables, skip, actions, wakes):
    """Ask ``choose`` in each scheduler where ``skip`` is False."""
    for env in range(actions.shape[0]):
        if not skip[env]:
            actions[env], wakes[env] = choose(state, tables, memory, env, params)


def bind_loop(
    loop: Any, choose: Callable[..., tuple[int, float]], memory: np.ndarray, params: np.ndarray, *args: Any
) -> Callable[..., Any]:
    """``loop(choose, memory, params, *args)`` compiled with ``choose`` as a function pointer.

    ``args`` begin with state and tables, or with a tuple that has them (envs.simulation.records.SimArrays).

    Numba would compile a loop anew for every function that it is given, in every process, since such an overload is never
    found in the cache. All policies have one signature, so one compiled loop serves them all; a call through the pointer
    costs a few nanoseconds.
    """
    if not hasattr(loop, "overloads"):
        return loop  # NUMBA_DISABLE_JIT=1
    state, tables = args[:2] if isinstance(args[0], SchedState) else (args[0].state, args[0].tables)
    signature = (pointer_type(choose, memory, params, state, tables), *map(numba.typeof, (memory, params, *args)))
    if signature not in loop.overloads:
        loop.compile(signature)
    return loop.overloads[signature].entry_point


def pointer_type(
    choose: Callable[..., tuple[int, float]], memory: np.ndarray, params: np.ndarray, state: SchedState, tables: Tables
) -> Any:
    """Type of ``choose`` as compiled loops take it; it is compiled for these arguments."""
    own = (*map(numba.typeof, (state, tables, memory)), types.int64, numba.typeof(params))
    choose.compile(own)  # type: ignore[attr-defined]
    return types.FunctionType(types.Tuple((types.int64, types.float64))(*own))


def call_compiled(
    loop: Any, choose: Callable[..., tuple[int, float]], memory: np.ndarray, params: np.ndarray, *args: Any
) -> Any:
    """Call ``loop`` as ``bind_loop`` compiles it. Looking the types up takes a millisecond: bind it where that counts."""
    return bind_loop(loop, choose, memory, params, *args)(choose, memory, params, *args)


class Policy:
    """A kind of policy with parameter values, ready to decide for N schedulers.

    Args:
        kind: registered kind.
        n: number of schedulers.
        drop: scale of solo latency at which a queued request is dropped as out of reach; 0 never drops; None is the
            kind's default: its parameter ``drop_scale`` if it has one, else 1 where it drops at all.
        params: overrides of parameters by name.
    """

    def __init__(self, kind: PolicyKind, n: int = 1, drop: float | None = None, **params: Any) -> None:
        known = {f.name for f in fields(kind.params)}
        for key in params:
            if key not in known:
                raise InputError(
                    f"policy {kind.name!r} has no parameter {key!r}; it has {', '.join(sorted(known)) or 'none'}"
                )
        self.kind = kind
        self.name = kind.name
        self.params = kind.params(**params)
        own = getattr(self.params, "drop_scale", 1.0 if kind.drop else 0.0)
        self.drop = float(own) if drop is None else drop
        self.vector = np.array([float(v) for v in asdict(self.params).values()] or [0.0])
        self.memory = np.zeros((n, MEMORY_SIZE))
        self._bound: tuple[Any, Any, Callable[..., Any]] = (None, None, kind.choose)
        self._bound_all: tuple[Any, Any, Callable[..., Any]] = (None, None, _choose_all)

    def reset(self, n: int | None = None) -> None:
        """Forget everything; with n, be ready for that many schedulers."""
        self.memory = np.zeros((n or len(self.memory), MEMORY_SIZE))

    def forget(self, which: np.ndarray) -> None:
        """Forget the schedulers where ``which`` (N,) is set: their episodes begin anew."""
        self.memory[which] = 0.0

    def check(self, state: SchedState, tables: Tables) -> None:
        """Raise InputError where the policy cannot decide for schedulers of this size; asked before the first decision."""

    def decide(self, state: SchedState, tables: Tables, env: int = 0) -> tuple[int, float]:
        """Action and wake time (absolute ms, inf for none) for scheduler ``env``."""
        if self._bound[0] is not state or self._bound[1] is not tables:
            self.check(state, tables)
            choose = bind(self.kind.choose, state, tables, self.memory, env, self.vector)
            self._bound = (state, tables, choose)
        return self._bound[2](state, tables, self.memory, env, self.vector)

    def decide_all(
        self, state: SchedState, tables: Tables, skip: np.ndarray, actions: np.ndarray, wakes: np.ndarray
    ) -> None:
        """Actions (n,) int64 and wake times (n,) for all schedulers where ``skip`` (n,) is False."""
        args = (self.kind.choose, self.memory, self.vector, state, tables, skip, actions, wakes)
        if self._bound_all[0] is not state or self._bound_all[1] is not tables:
            self.check(state, tables)
            self._bound_all = (state, tables, bind_loop(_choose_all, *args))
        self._bound_all[2](*args)

    def actions(self, state: SchedState, tables: Tables) -> np.ndarray:
        """Actions (n,) of all schedulers now."""
        actions = np.zeros(len(self.memory), np.int64)
        self.decide_all(state, tables, np.zeros(len(actions), bool), actions, np.zeros(len(actions)))
        return actions

"""Does before the first request what it would otherwise wait for."""

from __future__ import annotations

import gc
from collections.abc import Iterable

from agents.policies.base import Policy
from envs.scheduling.operations import clear
from envs.scheduling.state import Tables, make_state
from serving.engine.compiled import compile_core


def warm_up(tables: Tables, n_streams: int, policies: Iterable[Policy]) -> None:
    """Compile and run the engine's operations, and each policy, on a scratch state.

    A policy that raises here is left for the engine's guard to deal with. Its memory is cleared afterwards.
    """
    n_models, smallest = tables.solo.shape[1], int(tables.size[0])
    st = make_state(1, n_models, tables.size, n_streams, max(8, int(tables.size[-1])))
    clear(st, tables, 0)
    run = compile_core(st, tables)
    for id_ in range(smallest):
        run.arrive(st, tables, 1.0, 1.0, 1, 0, id_, 1e6)
    run.poll(st, tables, 2.0, 1.0, 1e3)
    for policy in policies:
        # Its own errors come up again, and are counted, when it is asked in earnest.
        try:
            policy.decide(st, tables)
        except Exception:
            continue
        finally:
            policy.reset(1)
    k = run.dispatch(st, tables, n_models * len(tables.size))
    run.next_timer(st, tables, 1.0, 1e3)
    run.finish(st, tables, 2.5, k, 0.5)


def freeze_garbage() -> None:
    """Collect garbage now, and spare what is left from all later collections.

    A collection stops the world: over the models and compiled code that stay anyway it takes longer than many a request. It is
    not made rarer: a closed connection leaves its last request in a cycle, body and all, until the next one.
    """
    gc.collect()
    gc.freeze()

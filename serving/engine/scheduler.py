"""The scheduling state of one engine, moved by the compiled operations of `serving.engine.compiled`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from envs.profiles.profile import Profile
from envs.scheduling.operations import clear, invalidate_forecast
from envs.scheduling.state import SchedState, Tables, make_state, n_actions
from serving.engine.compiled import ENV, compile_core
from serving.engine.model_set import move_state

AdjustTables = Callable[[Tables], Tables]


def unchanged(tables: Tables) -> Tables:
    """The tables of the profile as they are."""
    return tables


class LiveScheduler:
    """What the engine's scheduler knows. Times are ms on the engine's clock; models and priorities are given by index.

    The operations `arrive`, `cancel`, `poll`, `defer`, `valid`, `dispatch`, `finish`, `drop_all`, `next_timer` and `ahead` are
    those of `serving.engine.compiled.Core`, on the present state. Their arguments must be exactly int and float.

    Args:
        profile: what it knows of the models beforehand.
        adjust_tables: the change that the policy makes to that (see `agents.learned.names.resolve`).
        streams: of the device.
        queue_places: requests that each queue (one per priority and model) holds.

    Attributes:
        profile: of the models that are served.
        tables: made from it, as adjusted.
        state: arrays of one scheduler.
        index: place of each model, by name.
        defer_action: the action that dispatches nothing.
        n_ended: (1,) requests that ended since the last `take_ended`.
        n_queued: (1,) requests in all queues.
        n_free: (1,) streams without a batch.
    """

    def __init__(self, profile: Profile, adjust_tables: AdjustTables, streams: int, queue_places: int) -> None:
        self.streams = streams
        self._adjust_tables = adjust_tables
        tables = adjust_tables(profile.tables())
        state = make_state(1, len(profile.models), tables.size, streams, queue_places)
        clear(state, tables, ENV)
        self._core = compile_core(state, tables)
        self._set(profile, tables, state)

    def _set(self, profile: Profile, tables: Tables, state: SchedState) -> None:
        self.profile, self.tables, self.state = profile, tables, state
        self.index = {name: m for m, name in enumerate(profile.models)}
        self.defer_action = n_actions(state, tables) - 1
        core = self._core
        self.arrive = partial(core.arrive, state, tables)
        self.cancel = partial(core.cancel, state, ENV)
        self.poll = partial(core.poll, state, tables)
        self.defer = partial(core.defer, state, tables)
        self.valid = partial(core.valid, state, tables)
        self.dispatch = partial(core.dispatch, state, tables)
        self.finish = partial(core.finish, state, tables)
        self.drop_all = partial(core.drop_all, state, ENV)
        self.next_timer = partial(core.next_timer, state, tables)
        self.ahead = partial(core.ahead, state, tables)
        # Views of single fields: reading one through a record array costs twenty times as much.
        scheduler = state.scheduler
        self.n_ended, self.n_queued, self.n_free = scheduler["n_ended"], scheduler["n_queued"], scheduler["n_free"]
        self._ended_id, self._ended_outcome = state.ended["id"][0], state.ended["outcome"][0]
        self._member = state.member["id"][0]
        # Plain records, not np.record, whose attributes are looked up by name in Python.
        self._stream = state.stream[0].view(np.ndarray).view(np.dtype((np.void, state.stream.dtype)))

    @property
    def queued(self) -> int:
        """Requests in all queues."""
        return int(self.n_queued[0])

    @property
    def in_flight(self) -> int:
        """Streams with a batch."""
        return self.streams - int(self.n_free[0])

    @property
    def queue_lengths(self) -> np.ndarray:
        """(2, M) requests in each queue, by priority and model."""
        return self.state.queue["length"][0]

    @property
    def high_weight(self) -> float:
        """What a high-priority request counts to the policy, a low-priority one being 1; may be set while serving."""
        return float(self.state.scheduler["high_weight"][0])

    @high_weight.setter
    def high_weight(self, value: float) -> None:
        self.state.scheduler["high_weight"] = value

    def alone_ms(self, model: str) -> float:
        """Time that one request of a model takes on an idle device: copies and execution."""
        tables, m = self.tables, self.index[model]
        return float(tables.h2d[0, m, 0] + tables.solo[0, m, 0] + tables.d2h[0, m, 0])

    # What the operations leave in the state.

    def batch_on(self, stream: int) -> tuple[np.ndarray, list[int]]:
        """The record of the batch on a stream, and the numbers of its requests."""
        record = self._stream[stream]
        return record, self._member[stream, : int(record["n"])].tolist()

    def take_ended(self) -> list[tuple[int, int]]:
        """Number and outcome of each request that ended in the state since the last call."""
        n = int(self.n_ended[0])
        self.n_ended[0] = 0
        return list(zip(self._ended_id[:n].tolist(), self._ended_outcome[:n].tolist()))

    def adjust(self, adjust_tables: AdjustTables) -> None:
        """Make another change to what is known of the models; what was learned stays."""
        self._adjust_tables = adjust_tables
        self._set(self.profile, adjust_tables(self.profile.tables()), self.state)
        invalidate_forecast(self.state, ENV)

    def change_models(self, profile: Profile) -> None:
        """Serve the models of another profile; queues, batches in flight and what was learned move over."""
        tables = self._adjust_tables(profile.tables())
        came_from = [self.index.get(name, -1) for name in profile.models]
        self._set(profile, tables, move_state(self.state, tables, came_from))

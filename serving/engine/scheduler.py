"""The scheduling state of one engine, moved by the compiled operations of `serving.engine.compiled`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from envs.profiles.profile import Profile
from envs.scheduling.operations import clear, invalidate_forecast
from envs.scheduling.state import SchedState, Tables, make_state, n_actions
from serving.engine.compiled import compile_core
from serving.engine.model_set import move_state

AdjustTables = Callable[[Tables], Tables]


def unchanged(tables: Tables) -> Tables:
    """The tables of the profile as they are."""
    return tables


class LiveScheduler:
    """What the engine's scheduler knows. Times are ms on the engine's clock; models and priorities are given by index.

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
    """

    def __init__(self, profile: Profile, adjust_tables: AdjustTables, streams: int, queue_places: int) -> None:
        self.streams = streams
        self._adjust_tables = adjust_tables
        tables = adjust_tables(profile.tables())
        state = make_state(1, len(profile.models), tables.size, streams, queue_places)
        clear(state, tables, 0)
        self._core = compile_core(state, tables)
        self._set(profile, tables, state)

    def _set(self, profile: Profile, tables: Tables, state: SchedState) -> None:
        self.profile, self.tables, self.state = profile, tables, state
        self.index = {name: m for m, name in enumerate(profile.models)}
        self.defer_action = n_actions(state, tables) - 1
        # Views of single fields: reading one through a record array costs twenty times as much.
        scheduler = state.scheduler
        self._n_ended, self._n_queued, self._n_free = scheduler["n_ended"], scheduler["n_queued"], scheduler["n_free"]
        self._ended_id, self._ended_outcome = state.ended["id"][0], state.ended["outcome"][0]
        self._member = state.member["id"][0]
        # Plain records, not np.record, whose attributes are looked up by name in Python.
        self._stream = state.stream[0].view(np.ndarray).view(np.dtype((np.void, state.stream.dtype)))

    @property
    def queued(self) -> int:
        """Requests in all queues."""
        return int(self._n_queued[0])

    @property
    def in_flight(self) -> int:
        """Streams with a batch."""
        return self.streams - int(self._n_free[0])

    # Events.

    def arrive(self, now: float, arrival: float, priority: int, model: int, id_: int, deadline: float) -> bool:
        """Queue a request; False when its queue is full (it has ended as dropped)."""
        return self._core.arrive(self.state, self.tables, 0, now, arrival, priority, model, id_, deadline)

    def cancel(self, priority: int, model: int, id_: int) -> bool:
        """Take a request out of its queue; False when it is not there."""
        return self._core.cancel(self.state, 0, priority, model, id_)

    def poll(self, now: float, drop: float, grace: float) -> bool:
        """Move to time `now` and drop what has expired; whether the policy should be asked. See `compiled.poll`."""
        return self._core.poll(self.state, self.tables, 0, now, drop, grace)

    def defer(self, wake: float) -> None:
        """Dispatch nothing until `wake`, or the next event."""
        self._core.defer(self.state, 0, wake)

    def dispatch(self, action: int) -> int:
        """Put a candidate on a free stream; returns the stream."""
        return self._core.dispatch(self.state, self.tables, 0, action)

    def finish(self, now: float, stream: int, exec_ms: float) -> None:
        """The batch of a stream ended after `exec_ms` of execution; a negative number says that it failed."""
        self._core.finish(self.state, self.tables, 0, now, stream, exec_ms)

    def drop_all(self) -> None:
        """Drop what is queued."""
        self._core.drop_all(self.state, 0)

    # What can be asked.

    def next_timer(self, drop: float, grace: float) -> float:
        """When to look again if nothing happens before; inf: never."""
        return self._core.next_timer(self.state, self.tables, 0, drop, grace)

    def ahead(self, priority: int, due: float) -> tuple[int, float]:
        """Queued requests of a priority that are due no later, and their work in ms; see `compiled.ahead`."""
        return self._core.ahead(self.state, self.tables, 0, priority, due)

    @property
    def queue_lengths(self) -> np.ndarray:
        """(2, M) requests in each queue, by priority and model."""
        return self.state.queue["length"][0]

    def alone_ms(self, model: str) -> float:
        """Time that one request of a model takes on an idle device: copies and execution."""
        tables, m = self.tables, self.index[model]
        return float(tables.h2d[0, m, 0] + tables.solo[0, m, 0] + tables.d2h[0, m, 0])

    def batch_on(self, stream: int) -> tuple[np.ndarray, list[int]]:
        """The record of the batch on a stream, and the numbers of its requests."""
        record = self._stream[stream]
        return record, self._member[stream, : int(record["n"])].tolist()

    def take_ended(self) -> list[tuple[int, int]]:
        """Number and outcome of each request that ended in the state since the last call."""
        n = int(self._n_ended[0])
        if n == 0:
            return []
        self._n_ended[0] = 0
        return list(zip(self._ended_id[:n].tolist(), self._ended_outcome[:n].tolist()))

    # Changes while serving.

    def adjust(self, adjust_tables: AdjustTables) -> None:
        """Make another change to what is known of the models; what was learned stays."""
        self._adjust_tables = adjust_tables
        self._set(self.profile, adjust_tables(self.profile.tables()), self.state)
        invalidate_forecast(self.state, 0)

    def change_models(self, profile: Profile) -> None:
        """Serve the models of another profile; queues, batches in flight and what was learned move over."""
        tables = self._adjust_tables(profile.tables())
        came_from = [self.index.get(name, -1) for name in profile.models]
        self._set(profile, tables, move_state(self.state, tables, came_from))

"""What a door exports for Prometheus: how calls ended, and what it knows of its replicas."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Protocol

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import Metric

from envs.scheduling.state import PRIORITIES
from serving.cluster.link import Link
from serving.cluster.routing import LiveLedger
from serving.observers.prometheus import Labels, counter, gauge, process_registry


class Door(Protocol):
    """What is shown of a door, see `serving.cluster.remote_plane.RemotePlane`."""

    count: Counter[str]
    links: Sequence[Link]
    ledger: LiveLedger | None

    def is_used(self, place: int) -> bool:
        """Whether a replica gets requests."""

    def now_ms(self) -> float:
        """The clock of its ledger."""


class DoorMetrics:
    """The metrics of one door, read from it when they are asked for."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._registry = process_registry()
        self._registry.register(self)

    def render(self) -> tuple[bytes, str]:
        """As text, and its content type."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """The metrics at this moment."""
        door = self._door
        events: dict[Labels, int] = {(event,): number for event, number in door.count.items()}
        yield counter("door_requests", "Calls that came (sent), and how each ended.", ("event",), events)
        placed: dict[Labels, int] = {
            (link.name,): place for place, link in enumerate(door.links) if link.address is not None
        }
        used = {name: door.is_used(place) for name, place in placed.items()}
        yield gauge("replica_up", "Whether a replica gets requests.", ("replica",), used)
        ledger = door.ledger
        if ledger is None:
            return
        known = {name: ledger.ledger.replica[0, place] for name, place in placed.items()}
        outstanding = {name: one["outstanding"] for name, one in known.items()}
        yield gauge("replica_outstanding", "Requests sent and not answered.", ("replica",), outstanding)
        slowness = {name: one["log_told"] for name, one in known.items()}
        yield gauge("replica_log_slowness", "Log of its time over the usual, as it says.", ("replica",), slowness)
        missing = {name: int((ledger.ledger.load_ms[0, place] > 0.0).sum()) for name, place in placed.items()}
        yield gauge("replica_models_out", "Models that are out of its memory.", ("replica",), missing)
        now_ms = door.now_ms()
        work: dict[Labels, float] = {
            (*name, priority): ms
            for name, place in placed.items()
            for priority, ms in zip(PRIORITIES, ledger.work_ms(place, now_ms))
        }
        text = "Work that a replica is likely to have; of low what it adds to batches of high."
        yield gauge("replica_work_ms", text, ("replica", "priority"), work)

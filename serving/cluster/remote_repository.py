"""The repository of a door: its replicas' repositories as one, in which a model is loaded on one replica after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from serving.api.refusal import Kind, Refusal
from serving.cluster.greeting import Greeting
from serving.cluster.link import Link, Lost
from traces.errors import InputError

log = logging.getLogger(__name__)


class Door(Protocol):
    """What the repository asks of its door, see `serving.cluster.remote_plane.RemotePlane`."""

    links: Sequence[Link]
    greeting: Greeting
    changing: int

    @property
    def ready(self) -> bool:
        """Whether some replica takes requests."""

    def agree(self) -> None:
        """Serve what most replicas serve, and name those that do not in the log."""


class RemoteRepository:
    """The repository of a door, see the module's text."""

    def __init__(self, door: Door) -> None:
        self._door = door

    @property
    def evicted(self) -> Mapping[str, Any]:
        """None: the replicas themselves load what is out of their memory."""
        return {}

    async def bring_back(self, name: str) -> None:
        """The replicas do."""

    def defaults(self, name: str) -> tuple[int | None, float | None]:
        """None: they come with the models' views."""
        return None, None

    def index(self) -> list[dict[str, str]]:
        """Models as the replicas tell them; unavailable where no replica is there."""
        rows = self._door.greeting.repository
        if self._door.ready:
            return list(rows)
        return [row | {"state": "UNAVAILABLE", "reason": "no replica takes requests"} for row in rows]

    async def load(self, name: str, version: str = "") -> None:
        """Load a model on all replicas that are there; where none knows it, KeyError.

        Raises:
            InputError: one cannot load it, and those after it were not asked; or some do not know it, and the others have it.
            Refusal: no replica is there, or one was lost meanwhile; the others have it.
        """
        await self._change(True, name, version)

    async def unload(self, name: str, version: str = "") -> None:
        """Unload a model on all replicas that have it; errors as of `load`."""
        await self._change(False, name, version)

    async def _change(self, load: bool, name: str, version: str) -> None:
        asked = [link for link in self._door.links if link.accepting]
        word = "load" if load else "unload"
        if not asked:
            raise Refusal(Kind.STOPPING, f"no replica is there to {word} model {name!r}")
        if away := [link.name for link in self._door.links if link not in asked]:
            log.warning("%s %s: not on %s, which takes no requests now", word, name, ", ".join(away))
        lacking, lost = [], []
        self._door.changing += 1
        try:
            for link in asked:
                try:
                    if not await self._change_on(link, load, name, version):
                        lacking.append(link.name)
                except Lost as error:
                    lost.append(str(error))
        finally:
            self._door.changing -= 1
            self._door.agree()  # where it failed half-way, some serve something else now
        if lost:
            raise Refusal(Kind.STOPPING, f"{'; '.join(lost)}; {word} model {name!r} again once it is back")
        if len(lacking) == len(asked):
            raise KeyError(name)
        if load and lacking:
            raise InputError(
                f"{', '.join(lacking)} of {len(asked)} replicas do not know model {name!r}; the others have it"
            )

    async def _change_on(self, link: Link, load: bool, name: str, version: str) -> bool:
        """Change one replica; returns whether it knows the model. Raises Lost: it went away meanwhile."""
        try:
            await link.change(load, name, version)
        except Refusal as refusal:
            if refusal.kind is Kind.NOT_FOUND:
                return False
            raise InputError(f"replica {link.name}: {refusal}") from None
        return True

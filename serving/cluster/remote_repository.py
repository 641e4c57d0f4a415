"""The repository of a door: its replicas' repositories as one, in which a model is loaded on one replica after the other.

A replica that was away meanwhile, or has begun anew and serves something else, is told what it missed once it is there.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

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


class _Model(NamedTuple):
    """A model as a client named it; version "" for the one that its name alone means."""

    name: str
    version: str

    def is_in(self, greeting: Greeting) -> bool:
        """Whether a replica that says this serves it."""
        if not self.version:
            return self.name in greeting.views
        return any((view.name, view.version) == self for view in greeting.views.values())


class RemoteRepository:
    """The repository of a door, see the module's text."""

    def __init__(self, door: Door) -> None:
        self._door = door
        self._loaded: dict[_Model, bool] = {}  # what clients wanted last of each model: loaded, or not
        self._missed: defaultdict[Link, set[_Model]] = defaultdict(set)
        self._catching_up: set[asyncio.Task[None]] = set()

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
        """Load a model on all replicas that are there; where none knows it, KeyError. Others are told once they are there.

        Raises:
            InputError: one cannot load it, and those after it were not asked; or some do not know it, and the others have it.
            Refusal: no replica is there.
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
        away = [link for link in self._door.links if link not in asked]
        lacking, lost = [], []
        self._door.changing += 1
        try:
            for link in asked:
                try:
                    if not await self._change_on(link, load, name, version):
                        lacking.append(link.name)
                except Lost as error:
                    lost.append(str(error))
                    away.append(link)
        finally:
            self._door.changing -= 1
            self._door.agree()  # where it failed half-way, some serve something else now
        if len(lacking) + len(lost) == len(asked):
            if lost:
                raise Refusal(Kind.STOPPING, f"{'; '.join(lost)}; {word} model {name!r} again once it is back")
            raise KeyError(name)
        model = _Model(name, version)
        self._loaded.pop(model, None)  # the order is that of the last words
        self._loaded[model] = load
        for link in away:
            self._missed[link].add(model)
            log.warning("%s %s: replica %s is away; it is told once it is there", word, name, link.name)
        if load and lacking:
            raise InputError(
                f"{', '.join(lacking)} of {len(asked)} replicas do not know model {name!r}; the others have it"
            )

    def came(self, link: Link, said: Greeting) -> None:
        """A replica is there, or there again: it is told what it missed, and where its models are not those served here."""
        missed, served = self._missed.pop(link, set()), self._door.greeting
        todo = {}
        for model, load in self._loaded.items():
            # Another door may have changed its mind about a model since: then what is served here is not what this one wanted.
            differs = model.is_in(said) != load == model.is_in(served)
            if differs or (load and model in missed):  # loaded again: its file may have changed
                todo[model] = load
        if todo:
            task = asyncio.ensure_future(self._catch_up(link, todo))
            self._catching_up.add(task)
            task.add_done_callback(self._catching_up.discard)
            self._door.changing += 1  # until then it is not told apart as one that serves something else

    async def _catch_up(self, link: Link, todo: Mapping[_Model, bool]) -> None:
        left = dict(todo)
        try:
            for (name, version), load in todo.items():
                word = "load" if load else "unload"
                log.info("replica %s is back: %s %s, which it missed", link.name, word, name)
                try:
                    if not await self._change_on(link, load, name, version) and load:
                        log.warning("replica %s does not know model %r", link.name, name)
                except InputError as error:
                    log.warning("%s %s: %s", word, name, error)
                left.pop(_Model(name, version))
        except Lost:
            self._missed[link] |= left.keys()
        finally:
            self._door.changing -= 1
            self._door.agree()

    async def _change_on(self, link: Link, load: bool, name: str, version: str) -> bool:
        """Change one replica; returns whether it knows the model. Raises Lost: it went away meanwhile."""
        try:
            await link.change(load, name, version)
        except Refusal as refusal:
            if refusal.kind is Kind.NOT_FOUND:
                return False
            raise InputError(f"replica {link.name}: {refusal}") from None
        return True

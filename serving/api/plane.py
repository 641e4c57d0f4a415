"""What the server can be asked, whatever the protocol: HTTP and gRPC are thin handlers over one `Plane`.

A handler turns its bytes into an `InferCall` and a few plain values, asks here, and turns the answer or the `Refusal` into its
own form. So the two cannot differ in what they take, refuse or count.
"""

from __future__ import annotations

import asyncio
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol

from serving.api.answer import DIRECT, Answer, Caller, Quotation
from serving.api.config import ApiConfig
from serving.api.infer_call import InferCall, check_fields, check_schedule
from serving.api.model_view import ModelView
from serving.api.refusal import Kind, Refusal
from serving.engine.quotes import Quote
from serving.engine.request import Observer, Refused
from serving.models.tensors import VERSION_MARK
from serving.observers.statistics import Statistics
from serving.status.recent import QueueLengths, Recent
from traces.errors import InputError
from traces.machine import package_version

log = logging.getLogger(__name__)

EXTENSIONS = (
    "binary_tensor_data", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics",
)  # fmt: skip
HEAD_BYTES = 512  # of a body, left to what is not tensors
BIG = 256 * 1024  # bytes that are copied or looked through on a thread
NO_TOKEN = "this server requires a bearer token, and there is none or a wrong one"


class RepositoryApi(Protocol):
    """Loads and unloads models while the server runs."""

    @property
    def evicted(self) -> Mapping[str, Any]:
        """Models that are out of memory (`serving.residency.Evicted`), by name."""

    async def bring_back(self, name: str) -> None:
        """Load a model that is out of memory. Raises InputError."""

    def defaults(self, name: str) -> tuple[int | None, float | None]:
        """Priority and deadline in ms of a model's requests that name none; None where it does not say."""

    def index(self) -> list[dict[str, str]]:
        """All models that could be served: name, version, state, reason."""

    async def load(self, name: str, version: str = "") -> None:
        """Make a model ready. Raises KeyError for an unknown one, InputError for one that cannot be loaded."""

    async def unload(self, name: str, version: str = "") -> None:
        """Serve a model no more. Raises KeyError for an unknown one, InputError for one that must stay."""


class Listener(NamedTuple):
    """HTTP or gRPC as it is served.

    Attributes:
        port: the port it listens on.
        close: takes no more connections, and waits for the requests in hand, up to the limit `close_timeout_s`.
    """

    port: int
    close: Callable[[], Awaitable[object]]


class Plane(ABC):
    """Answers what HTTP and gRPC ask; the kinds differ in who serves: `DataPlane` an engine, a cluster's plane its replicas.

    Args:
        config: what one client may ask, and defaults of its requests.
        repository: loads and unloads models; None: the set of models is fixed.
        metrics: gives the body of /metrics and its content type.
    """

    def __init__(
        self,
        config: ApiConfig,
        repository: RepositoryApi | None = None,
        metrics: Callable[[], tuple[bytes, str]] | None = None,
    ) -> None:
        self.config = config
        self.repository = repository
        self.metrics = metrics
        self._statistics = Statistics()
        self._recent = Recent(self.now_ms, self.queue_lengths)
        self._scheduled: tuple[str, ...] = ()
        self._n_evicted = 0
        self._views: dict[str, ModelView] = {}
        self._clients: dict[str, int] = {}

    # What the kinds differ in.

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether requests are taken."""

    @property
    @abstractmethod
    def scheduled(self) -> tuple[str, ...]:
        """Names under which the models in memory are scheduled, buckets one by one; the same object until they change."""

    @property
    @abstractmethod
    def queue_places(self) -> int:
        """Requests that a queue holds, which are the most of one call."""

    @property
    @abstractmethod
    def watching(self) -> Sequence[Observer]:
        """Who is shown the calls that are refused."""

    @abstractmethod
    def _view_models(self) -> dict[str, ModelView]:
        """The models as clients see them; a version that does not have the name alone by its name and `VERSION_MARK`."""

    @abstractmethod
    async def serve(
        self, view: ModelView, call: InferCall, priority: int, deadline_ms: float, caller: Caller
    ) -> Answer:
        """Serve a call, whoever its client is; see `infer`."""

    @abstractmethod
    def quote(self, view: ModelView, priority: int, deadline_ms: float) -> Quote:
        """What a request of one item could expect if it came now; nothing is offered. Raises Refusal: the model has gone."""

    @abstractmethod
    def refuse(
        self, view: ModelView, priority: int, deadline_ms: float, n: int, message: str, caller: Caller
    ) -> Refusal:
        """Count n requests that are not offered, since they would not be in time; the refusal of their call."""

    @abstractmethod
    def now_ms(self) -> float:
        """The clock of what observers are shown."""

    @abstractmethod
    def in_force(self) -> dict[str, Any]:
        """Who serves, and why; see `ServerStatus` in openapi.json."""

    def queue_lengths(self) -> QueueLengths:
        """Requests in the queues of this server, of high and of low priority, by model; without models that have none."""
        return {}

    def scheduling(self) -> dict[str, Any]:
        """The policy in force, and what a high-priority request counts to it. Raises Refusal: others schedule."""
        raise Refusal(Kind.BAD_INPUT, "this server schedules nothing itself; ask its replicas")

    def set_high_weight(self, value: float) -> None:
        """Let a high-priority request count so much, a low-priority one being 1. Raises Refusal: others schedule."""
        raise Refusal(Kind.BAD_INPUT, "this server schedules nothing itself; ask its replicas")

    # What they have in common.

    def server_metadata(self) -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "strait", "version": package_version(), "extensions": list(EXTENSIONS)}

    @property
    def views(self) -> dict[str, ModelView]:
        """All models that are served, by name, described again if there are others than before."""
        evicted = {} if self.repository is None else self.repository.evicted
        if self.scheduled is not self._scheduled or len(evicted) != self._n_evicted:
            self._scheduled, self._n_evicted = self.scheduled, len(evicted)
            views = self._view_models()
            versions: dict[str, tuple[str, ...]] = {}
            for view in views.values():
                versions[view.name] = (*versions.get(view.name, ()), view.version)
            self._views = {name: replace(view, versions=versions[view.name]) for name, view in views.items()}
        return self._views

    def model(self, name: str, version: str = "") -> ModelView:
        """A served model.

        Raises:
            Refusal: no such model or version.
        """
        views = self.views
        view = views.get(name)
        if version and (view is None or version != view.version):
            view = views.get(f"{name}{VERSION_MARK}{version}", view)
        if view is None:
            raise Refusal(Kind.NOT_FOUND, f"model {name[:80]!r} is not served; served are {', '.join(views)}")
        if version not in ("", view.version):
            has = ", ".join(view.versions)
            raise Refusal(Kind.NOT_FOUND, f"model {name!r} has version {has}, not {version[:80]!r}")
        return view

    def model_statistics(self, name: str = "", version: str = "") -> list[dict[str, Any]]:
        """Statistics of one model, or of all."""
        views = [self.model(name, version)] if name else list(self.views.values())
        return [self._statistics.describe(view.name, view.version) for view in views]

    def status(self, since_ms: float = 0.0) -> dict[str, Any]:
        """What the status page shows: who serves, and what is new since a time of `now_ms`."""
        return self._recent.answer(since_ms) | {"server": self.in_force()}

    def serves(self, name: str) -> bool:
        """Whether there is a model of this name."""
        return name in [view.name for view in self.views.values()]

    # Inference.

    def most_items(self, view: ModelView, most_bytes: int | None = None) -> int:
        """Most items of one call: what a queue holds, since they are taken all or not at all, and what a body holds.

        Args:
            view: the model.
            most_bytes: of a message of the protocol, in and out; None: a body as HTTP takes it.
        """
        if most_bytes is None:
            fitting = (self.config.max_body_bytes - HEAD_BYTES) // max(view.item_bytes, 1)
        else:
            fitting = (most_bytes - HEAD_BYTES) // max(view.item_bytes, view.output_item_bytes, 1)
        return max(0, min(self.queue_places, self.config.max_per_client, fitting))

    def model_config(self, name: str, version: str = "", most_bytes: int | None = None) -> dict[str, Any]:
        """A model's configuration, with what one call and one client may ask; arguments as above."""
        view = self.model(name, version)
        limits = {name: getattr(self.config, name) for name in ("max_body_bytes", "max_grpc_bytes", "max_per_client")}
        limits["queue_places"] = self.queue_places
        return view.config(self.most_items(view, most_bytes), limits)

    def refused(self, refusal: Refusal, caller: Caller) -> None:
        """Show a refusal to those that watch, unless they have seen it as the end of a request."""
        if not refusal.observed:
            reason = refusal.kind.name.lower()
            refused = Refused(caller.protocol, reason, str(refusal), caller.address, caller.origin)
            for observer in self.watching:
                observer.request_refused(refused)

    def schedule(
        self, view: ModelView, parameters: Mapping[str, Any], n: int, left_ms: float | None = None
    ) -> tuple[int, float]:
        """The engine's priority, and the deadline in ms, of a request of n items.

        `priority` is 1 (high), 2 (low) or 0 (the model's default); `timeout` is in microseconds, 0 is the default: the time
        that the client waits, if it says so, else the model's. No deadline is after the client has left.

        Raises:
            InputError: anything else.
        """
        check_schedule(parameters)
        priority, timeout = parameters.get("priority", 0), parameters.get("timeout", 0)
        deadline_ms = timeout / 1e3 if timeout else view.deadline_ms * n if left_ms is None else left_ms
        if left_ms is not None:
            deadline_ms = min(deadline_ms, left_ms)
        return priority - 1 if priority else view.priority, deadline_ms

    async def infer(
        self, view: ModelView, call: InferCall, priority: int, deadline_ms: float, caller: Caller = DIRECT
    ) -> Answer:
        """Serve the n items of one call, all or none; when the calling task is cancelled, so are they.

        Args:
            view: the model, or its bucket for items of the call's size.
            call: what is asked.
            priority: 0 (high) or 1 (low).
            deadline_ms: from now.
            caller: whose address the limit of each client counts.

        Raises:
            Refusal: an item was not answered, or the client has too many in flight.
        """
        n, most, client = call.n_items, self.config.max_per_client, caller.address
        inside = self._clients.get(client, 0) + n
        if inside > most:
            held = f"this client has {inside - n} requests in flight; {most} are allowed (--max_per_client)"
            raise Refusal(Kind.TOO_MANY, held)
        self._clients[client] = inside
        try:
            if call.quoted or self.config.least_quote > 0.0:
                return await self._serve_quoted(view, call, priority, deadline_ms, caller)
            return await self.serve(view, call, priority, deadline_ms, caller)
        finally:
            left = self._clients[client] - n
            if left:
                self._clients[client] = left
            else:
                del self._clients[client]

    async def _serve_quoted(
        self, view: ModelView, call: InferCall, priority: int, deadline_ms: float, caller: Caller
    ) -> Answer:
        """Serve a call if its quote allows it; a client that asks for the quote gets it with its answer or refusal."""
        probability = self.quote(view, priority, deadline_ms).probability
        try:
            if probability < self.config.least_quote:
                message = (
                    f"deadline of {deadline_ms:.1f} ms is out of reach: quoted {100.0 * probability:.1f} % in time, "
                    f"at least {100.0 * self.config.least_quote:.1f} % is expected (--least_quote)"
                )
                raise self.refuse(view, priority, deadline_ms, call.n_items, message, caller)
            answer = await self.serve(view, call, priority, deadline_ms, caller)
        except Refusal as refusal:
            if call.quoted and probability >= self.config.least_quote:
                refusal.args = (f"{refusal} (quoted {100.0 * probability:.1f} % in time on arrival)",)
            raise
        if call.quoted:
            answer.parameters["quoted_percent"] = round(100.0 * probability)
        return answer

    def quotation(self, name: str, version: str, parameters: Mapping[str, int]) -> Quotation:
        """What a request could expect if it came now; nothing is offered.

        Args:
            name: of the model. version: its version; empty for the one that is served by default.
            parameters: `priority` and `timeout` as of a request, and `size`, that of its inputs which varies.

        Raises:
            InputError: what a request is refused for. Refusal: no such model.
        """
        view, size = self.model(name, version), parameters.get("size")
        if size is not None:
            view.check_size(size, "size")
        view = view.bucket(size)
        priority, deadline_ms = self.schedule(view, parameters, 1)
        probability, finish_ms = self.quote(view, priority, deadline_ms)
        finish_us = {f"p{100 * level:g}": round(1e3 * ms) for level, ms in finish_ms.items() if ms < math.inf}
        return Quotation(view.name, priority + 1, round(1e3 * deadline_ms), round(probability, 4), finish_us)

    # The repository.

    def repository_index(self, only_ready: bool = False) -> list[dict[str, str]]:
        """All models that are or could be served."""
        if self.repository is None:
            state = "READY" if self.ready else "UNAVAILABLE"
            rows = [
                {"name": one.name, "version": one.version, "state": state, "reason": ""} for one in self.views.values()
            ]
        else:
            rows = self.repository.index()
        return [row for row in rows if row["state"] == "READY" or not only_ready]

    async def load(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Make a model of the repository ready; goes on when the caller leaves. The parameter `version` chooses one."""
        check_fields(parameters, frozenset(["version"]), "load", "parameter")
        await self._change("load", name, parameters)

    async def unload(self, name: str, parameters: Mapping[str, Any]) -> None:
        """Serve a model no more; goes on when the caller leaves.

        Args:
            name: the model.
            parameters: `version`, and `unload_dependents`, which tritonclient always sends; no model here depends on another.
        """
        check_fields(parameters, frozenset(["unload_dependents", "version"]), "unload", "parameter")
        await self._change("unload", name, parameters)

    async def _change(self, verb: str, name: str, parameters: Mapping[str, Any]) -> None:
        version = str(parameters.get("version", ""))[:80]
        if self.repository is None:
            raise Refusal(Kind.BAD_INPUT, f"this server cannot {verb} models: it has no repository")
        change: Callable[[str, str], Awaitable[None]] = getattr(self.repository, verb)
        changing = asyncio.ensure_future(change(name, version))
        try:
            await asyncio.shield(changing)
        except asyncio.CancelledError:  # the caller has left; whoever asks for the index is told why it failed
            changing.add_done_callback(partial(_note_failure, verb, name))
            raise
        except Refusal:
            raise
        except KeyError:
            missing = "the repository has no model {}" if verb == "load" else "model {} is not loaded"
            which = f"{name[:80]!r}" + (f" of version {version!r}" if version else "")
            raise Refusal(Kind.NOT_FOUND, missing.format(which)) from None
        except InputError as error:
            raise Refusal(Kind.BAD_INPUT, str(error)) from None
        except Exception as error:  # a model's own code runs here
            log.exception("cannot %s model %r", verb, name)
            raise Refusal(Kind.FAULT, f"cannot {verb} model {name!r}: {type(error).__name__}: {error}") from None


def _note_failure(verb: str, name: str, ended: asyncio.Future[Any]) -> None:
    error = None if ended.cancelled() else ended.exception()
    if error is not None:
        log.warning(
            "cannot %s model %r, for which nobody waits any more: %s: %s", verb, name, type(error).__name__, error
        )

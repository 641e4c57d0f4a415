"""A door: answers HTTP and gRPC, and sends what is asked to replicas on other processes or machines."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Sequence

from agents.routing.registry import router
from serving.api.listen import check_addresses, listen, tls_context
from serving.cluster.link import LinkConfig
from serving.cluster.remote_plane import RemotePlane
from serving.config import ServeConfig
from serving.engine.warmup import freeze_garbage
from serving.signals import Signals, done_before
from traces.errors import InputError

log = logging.getLogger("serving")


def addresses(peers: list[str]) -> list[tuple[str, int]]:
    """Host and port of each peer.

    Raises:
        InputError: one is not HOST:PORT, or is named twice.
    """
    found = []
    for peer in peers:
        host, colon, port = peer.strip().rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise InputError(f"--peers {peer!r}; expected HOST:PORT")
        found.append((host.strip("[]"), int(port)))
    if len(set(found)) < len(found):
        raise InputError("--peers: a replica is named twice")
    return found


def peer_tls(config: ServeConfig) -> ssl.SSLContext | None:
    """TLS to the replicas, whose certificates --peer_ca vouches for; None without.

    Raises:
        InputError: the file cannot be read.
    """
    if config.peer_ca is None:
        return None
    try:
        return ssl.create_default_context(cafile=config.peer_ca)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"--peer_ca {config.peer_ca}: {error}") from None


def open_plane(config: ServeConfig, peers: Sequence[tuple[str, int] | None], token: str | None) -> RemotePlane:
    """The plane that the settings describe; it connects at once.

    Args:
        config: settings.
        peers: where its replicas are; None for one that is not placed yet.
        token: shown to them; None: they ask for none.

    Raises:
        InputError: a file is malformed, or there is no such router.
    """
    link = LinkConfig(token, peer_tls(config), config.peer_silence_ms / 1e3)
    return RemotePlane(config, peers, router(config.router), link, config.peer_retries)


async def run_door(config: ServeConfig) -> None:
    """Answer until the process is stopped; SIGINT and SIGTERM drain and close the door, the replicas go on.

    Raises:
        InputError: a setting is malformed, or an address is taken.
    """
    config.read_token()
    tls = tls_context(config)
    check_addresses(config)
    signals = Signals()
    plane = open_plane(config, addresses(config.peers), config.token)
    try:
        log.info("a door to %s by router %s", ", ".join(link.name for link in plane.links), plane.router.name)
        await answer(plane, tls, signals.stopping, plane.some_replica(), config.drain_timeout)
    finally:
        await plane.close()


async def answer(
    plane: RemotePlane,
    tls: ssl.SSLContext | None,
    stopping: asyncio.Event,
    some_replica: Awaitable[None],
    drain_timeout_s: float,
) -> None:
    """Wait for a replica, and answer clients until `stopping` is set; then drain.

    Args:
        plane: of the door.
        tls: towards clients; None without.
        stopping: set when the process is to end.
        some_replica: done when there is one.
        drain_timeout_s: how long calls inside have to end.

    Raises:
        InputError: an address is taken, or what `some_replica` raises.
    """
    waiting = asyncio.ensure_future(some_replica)
    if not await done_before(stopping, waiting):
        waiting.cancel()
        return
    await waiting
    listeners = await listen(plane, tls)
    freeze_garbage()
    await stopping.wait()
    await plane.drain(drain_timeout_s)
    for listener in listeners:
        await listener.close()

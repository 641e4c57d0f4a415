"""Opens the doors of a server: HTTP, and gRPC where it is wanted; with TLS where there is a certificate."""

from __future__ import annotations

import logging
import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from serving.api.config import ApiConfig, ApiLimits
from serving.api.dataplane import DataPlane
from serving.api.http import start_http
from serving.engine.engine import Engine
from serving.models.repository import Repository
from traces.errors import InputError

log = logging.getLogger("serving")


class Door(Protocol):
    """An open door."""

    @property
    def port(self) -> int:
        """Where it listens."""

    async def close(self) -> None:
        """Take no more connections, and end those that are open."""


def tls_context(config: ApiConfig) -> ssl.SSLContext | None:
    """TLS as the settings say; None without.

    Raises:
        InputError: a file cannot be read, or key and certificate do not fit.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(config.tls_cert, config.tls_key)
    except (OSError, ssl.SSLError) as error:
        raise InputError(f"--tls_cert {config.tls_cert} --tls_key {config.tls_key}: {error}") from None
    return context


def check_addresses(config: ApiConfig) -> None:
    """Refuse addresses that cannot be listened on now, before models are loaded and measured.

    Raises:
        InputError: with the address.
    """
    for flag, port in (("port", config.port), *([("grpc_port", config.grpc_port)] if config.grpc else [])):
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(config.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an ended server may linger
                one.bind(address)
        except OSError as error:
            raise InputError(f"--host {config.host} --{flag} {port}: cannot listen: {error.strerror}") from None


async def open_doors(
    config: ApiConfig,
    engine: Engine,
    repository: Repository,
    metrics: Callable[[], tuple[bytes, str]],
    tls: ssl.SSLContext | None,
) -> list[Door]:
    """Listen as the settings say.

    Args:
        config: settings. engine: started. repository: of its models.
        metrics: body of /metrics and its content type. tls: from ``tls_context``.

    Raises:
        InputError: an address is taken, or gRPC is wanted and not installed; no door is left open.
    """
    plane = DataPlane(engine, repository, metrics, limits=ApiLimits(), defaults=repository.defaults)
    try:
        http: Door = await start_http(plane, config.host, config.port, token=config.token, ssl_context=tls)
    except OSError as error:
        raise InputError(f"--host {config.host} --port {config.port}: cannot listen: {error.strerror}") from None
    log.info("HTTP on %s://%s:%d", "https" if tls else "http", config.host, http.port)
    if not config.grpc:
        return [http]
    try:
        import grpc  # an optional dependency

        from serving.api.grpc import start_grpc

        credentials = None
        if config.tls_cert is not None and config.tls_key is not None:
            pair = (Path(config.tls_key).read_bytes(), Path(config.tls_cert).read_bytes())
            credentials = grpc.ssl_server_credentials([pair])
        door: Door = await start_grpc(plane, config.host, config.grpc_port, config.token, credentials)
    except ImportError:
        await http.close()
        raise InputError("--grpc: the package grpcio is not here; install strait-rl[grpc]") from None
    except (OSError, RuntimeError) as error:
        await http.close()
        raise InputError(f"--host {config.host} --grpc_port {config.grpc_port}: cannot listen: {error}") from None
    log.info("gRPC on %s:%d", config.host, door.port)
    return [http, door]

"""Where a server listens: HTTP, and gRPC if it is asked for; with TLS if there is a certificate."""

from __future__ import annotations

import importlib.util
import logging
import socket
import ssl

from serving.api.config import ApiConfig
from serving.api.http import start_http
from serving.api.plane import Listener, Plane
from traces.errors import InputError

log = logging.getLogger("serving")


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


def check_addresses(config: ApiConfig, peer_port: int | None = None) -> None:
    """Refuse addresses that cannot be listened on, before models are loaded and anything is written.

    Args:
        config: settings.
        peer_port: where doors are listened for, too.

    Raises:
        InputError: with the address, or as gRPC is not installed.
    """
    if config.grpc and importlib.util.find_spec("grpc") is None:  # an optional dependency
        raise InputError("--grpc: the package grpcio is not here; install strait-rl[grpc]")
    ports = {"port": config.port, "grpc_port": config.grpc_port if config.grpc else None, "peer_port": peer_port}
    for flag, port in ports.items():
        if port is None:
            continue
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(config.host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as one:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an ended server may linger
                one.bind(address)
        except OSError as error:
            raise InputError(f"--host {config.host} --{flag} {port}: cannot listen: {error.strerror}") from None


async def listen(plane: Plane, tls: ssl.SSLContext | None) -> list[Listener]:
    """Listen as the settings of the data plane say.

    Args:
        plane: answers.
        tls: from `tls_context`.

    Raises:
        InputError: an address is taken; nothing listens then.
    """
    config = plane.config
    http = await start_http(plane, tls)
    log.info("HTTP on %s://%s:%d", "https" if tls else "http", config.host, http.port)
    if not config.grpc:
        return [http]
    from serving.api.grpc import start_grpc  # an optional dependency, see `check_addresses`

    try:
        listener = await start_grpc(plane)
    except InputError:
        await http.close()
        raise
    log.info("gRPC on %s:%d", config.host, listener.port)
    return [http, listener]

"""Where a server listens: HTTP, and gRPC if it is asked for; with TLS if there is a certificate."""

from __future__ import annotations

import logging
import socket
import ssl
from pathlib import Path

from serving.api.config import ApiConfig
from serving.api.dataplane import DataPlane, Listener
from serving.api.http import start_http
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


async def listen(plane: DataPlane, tls: ssl.SSLContext | None) -> list[Listener]:
    """Listen as the settings of the data plane say.

    Args:
        plane: answers.
        tls: from `tls_context`.

    Raises:
        InputError: an address is taken, or gRPC is not installed; nothing listens then.
    """
    http = await start_http(plane, tls)
    log.info("HTTP on %s://%s:%d", "https" if tls else "http", plane.config.host, http.port)
    if not plane.config.grpc:
        return [http]
    try:
        return [http, await _listen_grpc(plane)]
    except InputError:
        await http.close()
        raise


async def _listen_grpc(plane: DataPlane) -> Listener:
    config = plane.config
    try:
        import grpc  # an optional dependency

        from serving.api.grpc import start_grpc
    except ImportError:
        raise InputError("--grpc: the package grpcio is not here; install strait-rl[grpc]") from None
    credentials = None
    if config.tls_cert is not None and config.tls_key is not None:
        pair = Path(config.tls_key).read_bytes(), Path(config.tls_cert).read_bytes()
        credentials = grpc.ssl_server_credentials([pair])
    listener = await start_grpc(plane, credentials)
    log.info("gRPC on %s:%d", config.host, listener.port)
    return listener

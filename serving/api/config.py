"""Settings of the API."""

from __future__ import annotations

import hmac
import os
from dataclasses import dataclass
from pathlib import Path

from traces.errors import InputError

TOKEN_VARIABLE = "STRAIT_TOKEN"


@dataclass
class ApiConfig:
    """Where the server listens, to whom it answers, and what one client may ask.

    Attributes:
        host: address to listen on.
        port: port of HTTP (Open Inference Protocol v2); 0 takes a free one.
        grpc: answer gRPC, too.
        grpc_port: port of gRPC; 0 takes a free one.
        token: bearer token that callers must show; by default that of token_file, else of the variable STRAIT_TOKEN, else none.
        token_file: file whose text, less white space around it, is the token. Unlike a flag no list of processes shows it.
        tls_cert: certificate chain (PEM); TLS is on when it is given.
        tls_key: its private key (PEM).
        deadline_factor: default deadline of each item of a request, as a multiple of its model's solo latency.
        deadline_floor_ms: shortest default deadline of an item.
        max_body_bytes: largest body of a request over HTTP, after decompression.
        max_grpc_bytes: largest gRPC message in and out. gRPC copies each message several times under Python's lock, so
            large ones delay all other requests; HTTP with binary tensors does not.
        grpc_compression: how answers over gRPC are compressed for clients that take it: none, deflate or gzip. HTTP's are by
            the header Accept-Encoding.
        max_per_client: requests (items) that one client address may have in flight.
        least_quote: requests that are quoted a lower probability of being in time are refused on arrival; 0 refuses none.
        step_processes: processes for each model that has code on the host, a preprocess or a postprocess.
        body_timeout_s: time in which a body must have arrived.
        keepalive_s: an HTTP connection that is idle for so long, or has not sent a request's head, is closed.
        close_timeout_s: time that requests in hand have to end when the server stops listening.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    grpc: bool = False
    grpc_port: int = 8001
    token: str | None = None
    token_file: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    deadline_factor: float = 10.0
    deadline_floor_ms: float = 100.0
    max_body_bytes: int = 64 * 2**20
    max_grpc_bytes: int = 4 * 2**20
    grpc_compression: str = "none"
    max_per_client: int = 1024
    least_quote: float = 0.0
    step_processes: int = 2
    body_timeout_s: float = 30.0
    keepalive_s: float = 75.0
    close_timeout_s: float = 5.0

    def read_token(self) -> None:
        """Take the token from where it is given.

        Raises:
            InputError: it is empty or has white space, its file cannot be read, or it is given twice, differently.
        """
        source, found = "--token", self.token
        if self.token_file is not None:
            source = f"--token_file {self.token_file}"
            try:
                found = Path(self.token_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise InputError(f"{source}: {getattr(error, 'strerror', None) or 'not text in UTF-8'}") from None
            if self.token not in (None, found):
                raise InputError("--token and --token_file say different things: give one of them")
        elif found is None and TOKEN_VARIABLE in os.environ:
            source, found = f"the variable {TOKEN_VARIABLE}", os.environ[TOKEN_VARIABLE]
        if found is not None and (not found or any(letter.isspace() for letter in found)):
            raise InputError(f"{source}: the token is empty or has white space in it; expected one word")
        self.token = found


def allowed(token: str | None, header: str | None) -> bool:
    """Whether an Authorization header carries the token; compared in constant time. Without a token all are allowed."""
    if token is None:
        return True
    scheme, _, given = (header or "").partition(" ")
    right = hmac.compare_digest(given.strip().encode(errors="replace"), token.encode())
    return right and scheme.lower() == "bearer"

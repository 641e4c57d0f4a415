"""What the client of a request that is not answered gets, in the words of HTTP and of gRPC."""

from __future__ import annotations

from enum import Enum

from serving.engine.request import FULL, STOPPING, UNLOADED, UNREACHABLE, RequestResult


class Kind(Enum):
    """Why something is refused: its HTTP status and the name of its gRPC status."""

    BAD_INPUT = (400, "INVALID_ARGUMENT")
    UNAUTHENTICATED = (401, "UNAUTHENTICATED")
    NOT_FOUND = (404, "NOT_FOUND")
    TOO_SLOW = (408, "DEADLINE_EXCEEDED")
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")
    UNSUPPORTED = (415, "UNIMPLEMENTED")
    TOO_MANY = (429, "RESOURCE_EXHAUSTED")
    FAULT = (500, "INTERNAL")
    FULL = (503, "RESOURCE_EXHAUSTED")
    STOPPING = (503, "UNAVAILABLE")
    UNREACHABLE = (504, "DEADLINE_EXCEEDED")

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.value[0]

    @property
    def code(self) -> str:
        """The gRPC status."""
        return self.value[1]

    @property
    def retry(self) -> bool:
        """Whether the client may retry, in a second (`Retry-After: 1`)."""
        return self in (Kind.FULL, Kind.STOPPING, Kind.TOO_MANY)


_REASONS = {FULL: Kind.FULL, UNREACHABLE: Kind.UNREACHABLE, STOPPING: Kind.STOPPING, UNLOADED: Kind.NOT_FOUND}


class Refusal(Exception):
    """A request that is not answered; the message is one line."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.kind = kind

    @staticmethod
    def of(result: RequestResult) -> Refusal:
        """The refusal of a request that ended without an output."""
        return Refusal(_REASONS.get(result.reason, Kind.FAULT), result.message or result.reason)


def too_large(most: int) -> Refusal:
    """The refusal of a body."""
    return Refusal(Kind.TOO_LARGE, f"the body has more than the {most} bytes that are allowed")

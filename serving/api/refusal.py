"""What the client of a request that is not answered gets, in the words of HTTP and of gRPC."""

from __future__ import annotations

from enum import Enum

from serving.engine.request import FULL, STOPPING, UNLOADED, UNREACHABLE, RequestResult


class Kind(Enum):
    """Why something is refused: its HTTP status and the name of its gRPC status."""

    BAD_INPUT = (400, "INVALID_ARGUMENT")
    UNAUTHENTICATED = (401, "UNAUTHENTICATED")
    NOT_FOUND = (404, "NOT_FOUND")
    NO_METHOD = (405, "UNIMPLEMENTED")
    TOO_SLOW = (408, "DEADLINE_EXCEEDED")
    TOO_LARGE = (413, "RESOURCE_EXHAUSTED")
    UNSUPPORTED = (415, "UNIMPLEMENTED")
    UNEXPECTED = (417, "INVALID_ARGUMENT")
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
_WORDS = {kind: reason for reason, kind in _REASONS.items()}


class Refusal(Exception):
    """A request that is not answered; the message is one line.

    Attributes:
        kind: why.
        observed: whether observers of the engine have seen its end; if not, it was refused before it became a request.
    """

    def __init__(self, kind: Kind, message: str, observed: bool = False) -> None:
        super().__init__(" ".join(message.split()))
        self.kind = kind
        self.observed = observed

    @property
    def reason(self) -> str:
        """Why, as the result of a request says it."""
        return _WORDS.get(self.kind, self.kind.name.lower())

    @staticmethod
    def of(result: RequestResult) -> Refusal:
        """The refusal of a request that ended without an output."""
        return Refusal(_REASONS.get(result.reason, Kind.FAULT), result.message or result.reason, observed=True)


def too_large(most: int, flag: str = "max_body_bytes") -> Refusal:
    """The refusal of a body of more than `most` bytes after decompression; `flag` sets them."""
    return Refusal(Kind.TOO_LARGE, f"the body has more than the {most} bytes that are allowed (--{flag})")

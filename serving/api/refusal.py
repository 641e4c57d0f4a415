"""What a request is told that is not answered, in the words of both doors."""

from __future__ import annotations

from enum import Enum

from serving.engine.request import FULL, STOPPING, UNLOADED, UNREACHABLE, Outcome


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
        """Whether it is worth to come again in a second."""
        return self in (Kind.FULL, Kind.STOPPING, Kind.TOO_MANY)


_REASONS = {FULL: Kind.FULL, UNREACHABLE: Kind.UNREACHABLE, STOPPING: Kind.STOPPING, UNLOADED: Kind.NOT_FOUND}


class Refusal(Exception):
    """A request that is not answered; the message is one line."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(" ".join(message.split()))
        self.kind = kind

    @staticmethod
    def of(outcome: Outcome) -> Refusal:
        """The refusal of a request that ended without an output."""
        return Refusal(_REASONS.get(outcome.reason, Kind.FAULT), outcome.message or outcome.reason)

"""Logging of the server: lines for people, or one JSON object per line; and every request by its id."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from envs.scheduling.state import PRIORITIES
from serving.engine.request import Observer, Refused, RequestResult

log = logging.getLogger("serving.requests")
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time (UTC), level, logger, message, and the fields given as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        data: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        data |= {key: value for key, value in vars(record).items() if key not in _PLAIN}
        if record.exc_info:
            data["exception"] = self.formatException(record.exc_info)
        return json.dumps(data, default=str)


class _Handler(logging.StreamHandler):
    """Writes to standard error; a full disk or a closed pipe there costs lines, nothing else."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (its name in logging)
        """Say nothing: there is nowhere to say it."""


def set_up_logging(level: str = "info", as_json: bool = False) -> None:
    """Send all logs to standard error.

    Args:
        level: debug, info, warning or error.
        as_json: one JSON object per line, in place of lines for people.
    """
    handler = _Handler(sys.stderr)
    handler.setFormatter(
        JsonFormatter() if as_json else logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Others' debug lines (numba's by the thousand) would bury ours.
    root.setLevel(max(logging.WARNING, getattr(logging, level.upper())))
    for name in ("serving", "agents", "envs", "traces", "serve"):
        logging.getLogger(name).setLevel(level.upper())


MOST_REFUSALS = 20  # lines per second: who sends nonsense must not fill the disk


class RequestLog(Observer):
    """Logs the end of each request: failures as warnings, all others at level debug; and, at level info, what is refused."""

    def __init__(self) -> None:
        self._second = self._refusals = 0

    def request_refused(self, refused: Refused) -> None:
        second = int(time.monotonic())
        if second != self._second:
            if self._refusals > MOST_REFUSALS:
                log.info("%d more were refused in a second", self._refusals - MOST_REFUSALS)
            self._second, self._refusals = second, 0
        self._refusals += 1
        if self._refusals <= MOST_REFUSALS:
            fields = {name: getattr(refused, name) for name in ("protocol", "reason", "client")}
            named = f" {refused.origin.client_id!r}" if refused.origin.client_id else ""
            words = f"{refused.protocol} request{named} of {refused.client} refused"
            log.info("%s: %s", words, refused.message, extra=fields | refused.origin._asdict())

    def request_ended(self, result: RequestResult) -> None:
        level = logging.WARNING if result.outcome == "failed" else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        names = ("model", "outcome", "reason", "batch_id", "client_id", "traceparent")
        fields = {name: getattr(result, name) for name in names}
        fields |= {"request_id": result.id, "priority": PRIORITIES[result.priority]}
        fields |= {"latency_ms": round(result.latency_ms, 3)}
        named = f" ({result.client_id!r})" if result.client_id else ""
        words = f"request {result.id}{named} of {result.model} {result.outcome} after {result.latency_ms:.1f} ms"
        log.log(level, "%s", f"{words}: {result.message}" if result.message else words, extra=fields)

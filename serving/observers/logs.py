"""Logging of the server: lines for people, or one JSON object a line; and every request by its id."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from serving.engine.request import Observer, Outcome

log = logging.getLogger("serving.requests")
_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and the fields given as `extra`."""

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
        level: debug, info, warning or error. as_json: one JSON object a line, in place of lines for people.
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


class RequestLog(Observer):
    """Logs the end of each request: failures as warnings, all others at level debug."""

    def request_ended(self, outcome: Outcome) -> None:
        """Log one line with the request's id."""
        level = logging.WARNING if outcome.outcome == "failed" else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        o = outcome
        why = f": {o.message}" if o.message else ""
        log.log(
            level, "request %d of %s %s after %.1f ms%s", o.id, o.model, o.outcome, o.latency_ms, why,
            extra={
                "request_id": o.id, "model": o.model, "priority": ("high", "low")[o.priority], "outcome": o.outcome,
                "reason": o.reason, "latency_ms": round(o.latency_ms, 3), "batch_id": o.batch_id,
            },
        )  # fmt: skip


class OnceLog:
    """Logs the first failure of an output (a full disk), and that it works again, not each one between."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.failed = False

    def failure(self, error: Exception) -> None:
        """It failed; serving goes on without."""
        if not self.failed:
            logging.getLogger("serving").error("%s cannot be written, serving goes on without: %s", self.what, error)
        self.failed = True

    def success(self) -> None:
        """It worked."""
        if self.failed:
            logging.getLogger("serving").info("%s is written again", self.what)
        self.failed = False

"""Logging of the server: lines for people, or one JSON object per line; and every request by its id."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from envs.scheduling.state import PRIORITIES
from serving.engine.request import Observer, RequestResult

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


class RequestLog(Observer):
    """Logs the end of each request: failures as warnings, all others at level debug."""

    def request_ended(self, result: RequestResult) -> None:
        level = logging.WARNING if result.outcome == "failed" else logging.DEBUG
        if not log.isEnabledFor(level):
            return
        fields = {name: getattr(result, name) for name in ("model", "outcome", "reason", "batch_id")}
        fields |= {"request_id": result.id, "priority": PRIORITIES[result.priority]}
        fields |= {"latency_ms": round(result.latency_ms, 3)}
        words = f"request {result.id} of {result.model} {result.outcome} after {result.latency_ms:.1f} ms"
        log.log(level, "%s", f"{words}: {result.message}" if result.message else words, extra=fields)

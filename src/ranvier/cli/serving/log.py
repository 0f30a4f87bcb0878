"""Logging of a server: lines as vLLM writes them, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys

__all__ = ["configure_logging"]

TEXT = "%(levelname)s %(asctime)s [%(name)s] %(message)s"
DATES = "%m-%d %H:%M:%S"


class _Json(logging.Formatter):
    """A record as JSON; line breaks of what users send cannot forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            fields["exception"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure_logging(*, form: str, level: str) -> None:
    """Send the log to stderr; `form` is text or json."""
    sink = logging.StreamHandler(sys.stderr)
    sink.setFormatter(_Json() if form == "json" else logging.Formatter(TEXT, DATES))
    root = logging.getLogger()
    root.handlers[:] = [sink]
    root.setLevel(logging.WARNING)
    logging.getLogger("ranvier").setLevel(level)

"""Logs: one line an event, as text for a person or as JSON for a machine. Knows nothing of what is logged."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime


class JsonLines(logging.Formatter):
    """A record as one JSON object; what a caller put into `extra={"fields": …}` stands beside the message."""

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class Text(logging.Formatter):
    """A record as a line that a person reads."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line of text, and the stack below it where there is one."""
        fields = " ".join(f"{key}={value}" for key, value in getattr(record, "fields", {}).items())
        return super().format(record) + (f" {fields}" if fields else "")


def configure(level: str, style: str) -> None:
    """Send every logger's lines to standard error; style is text, json, or auto (text on a terminal)."""
    handler = logging.StreamHandler(sys.stderr)
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler.setFormatter(Text() if text else JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and stop are told by us

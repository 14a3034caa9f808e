"""Logs: one line an event, as text for a person or as JSON for a machine. Knows nothing of what is logged."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any


class JsonLines(logging.Formatter):
    """A record as one JSON object; what a caller put into `extra={"fields": …}` stands beside the message.

    always stands in every line.
    """

    def __init__(self, always: Mapping[str, object] | None = None) -> None:
        super().__init__()
        self._always = always or {}

    def format(self, record: logging.LogRecord) -> str:
        """One line of JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **self._always,
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return ENCODER.encode(line)


ENCODER = json.JSONEncoder(ensure_ascii=False, default=str)  # json.dumps would make one for every line


class Text(logging.Formatter):
    """A record as a line that a person reads. What a caller sent can't end the line, or move the cursor."""

    def __init__(self, always: Mapping[str, object] | None = None) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S")
        self._always = always or {}

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's name
        """The line itself, with its fields; the stack comes below it where there is one."""
        known = {**getattr(record, "fields", {}), **self._always}
        fields = [f"{key}={value}" for key, value in known.items()]
        return escaped(" ".join([super().formatMessage(record), *fields]))

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's name
        """The stack, indented, so that nothing in an error's text looks like a line of the log."""
        return "\n".join(f"    {escaped(line)}" for line in super().formatException(ei).splitlines())


def escaped(text: str) -> str:
    r"""Text on one line: what can't be printed is written as in Python, a newline as \n.

    >>> print(escaped("/a\n12:00:00 INFO b"))
    /a\n12:00:00 INFO b
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def configure(level: str, style: str, **always: object) -> None:
    """Send every logger's lines to standard error; style is text, json, or auto (text on a terminal).

    always stands in every line: which process it is from, where there are several.
    """
    handler = logging.StreamHandler(sys.stderr)
    text = style == "text" or (style == "auto" and sys.stderr.isatty())
    handler.setFormatter(Text(always) if text else JsonLines(always))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)  # its start and stop are told by us

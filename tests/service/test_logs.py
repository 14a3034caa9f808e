"""Logs: a line is a line, whatever a caller sent."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest

from service.logs import JsonLines, Text
from tests.kit import House

NASTY = ["\n", "\r", "\x1b[2J", "\x00", "\x85", "\x9b", "\u2028", "\x7f"]
FORGED = "12:00:00 INFO    request id=forged"


def record(message: str, **fields: object) -> logging.LogRecord:
    """A record with fields, as the access log makes them."""
    made = logging.LogRecord("service", logging.INFO, __file__, 1, message, None, None)
    made.fields = fields
    return made


@pytest.mark.parametrize("nasty", NASTY, ids=ascii)
def test_no_control_character_reaches_the_text(nasty: str) -> None:
    """Neither from a message nor from a field; what is printable stays as it is."""
    for one in (record(f"é{nasty}{FORGED}"), record("request", path=f"/é{nasty}{FORGED}")):
        line = Text().format(one)
        assert line.isprintable()
        assert "é\\" in line
        assert len(line.splitlines()) == 1


def test_a_stack_is_below_its_line_and_indented() -> None:
    """So that an error's text makes no line of its own either."""
    one = record("failed")
    try:
        raise ValueError(f"no\n{FORGED}\x1b[2J")
    except ValueError:
        one.exc_info = sys.exc_info()
    first, *stack = Text().format(one).splitlines()
    assert first.endswith("failed")
    assert any("ValueError: no" in line for line in stack)
    assert all(line.startswith("    ") and line.isprintable() for line in stack)


def test_json_is_one_line() -> None:
    """With the text as it came, escaped as JSON does."""
    line = JsonLines().format(record("a\nb", path="/\nc"))
    assert "\n" not in line
    assert (json.loads(line)["message"], json.loads(line)["path"]) == ("a\nb", "/\nc")


@pytest.mark.anyio
async def test_a_path_makes_one_line(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """%0a in a path is no newline in the access log."""
    with caplog.at_level(logging.INFO, "service.access"):
        await house.client.get("/nothing%0a12:00:00%20INFO%20%20%20%20request%20id=forged")
    (found,) = [one for one in caplog.records if one.name == "service.access"]
    line = Text().format(found)
    assert len(line.splitlines()) == 1
    assert re.search(r"path=/nothing\\n12:00:00 INFO", line)

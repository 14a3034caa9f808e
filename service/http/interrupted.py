"""Interrupted: the whole answer to whoever asked a process that died before it could answer. Knows no connection."""

from __future__ import annotations

import time
import uuid
from email.utils import formatdate
from functools import cache

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.errors import Interrupted
from service.http.errors import refusal
from service.http.telemetry import Visit

NOBODY = b"0" * 32
SAID = "the process that had this request died before it could answer; ask again"


def interrupted(v2: bool) -> bytes:
    """Head and body, in the words of the one table. Of the request nothing is known but the protocol that it spoke."""
    return _for_nobody(v2).replace(NOBODY, uuid.uuid4().hex.encode())


@cache
def _for_nobody(v2: bool) -> bytes:
    """The same under an id that is nobody's: whoever answers has many to answer at once, and is gone soon."""
    visit = Visit(NOBODY.decode(), time.perf_counter())
    found = refusal({"path": "/v2" if v2 else "/v1", "headers": (), "visit": visit}, Interrupted(SAID))
    heads = (
        b"date: %b\r\n" % formatdate(usegmt=True).encode(),
        b"content-length: %d\r\n" % len(found.body),
        found.lines,
        b"x-request-id: %b\r\nconnection: close\r\n" % NOBODY,
    )
    return b"".join((STATUS_LINE[found.status], *heads, b"\r\n", found.body))

"""Telemetry: one plain ASGI middleware for request ids, timing, metrics and the access log. Knows no operation."""

from __future__ import annotations

import logging
import random
import re
import time
from dataclasses import dataclass, field
from typing import Literal

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.door import Door
from service.http.errors import answer_problem
from service.metrics import Metrics
from service.operations import Errand

log = logging.getLogger("service.access")

ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


@dataclass(slots=True)
class Visit:
    """One request as the books know it; the endpoint fills in what only it can know. Times are in seconds."""

    id: str
    arrived: float
    operation: str = "other"
    model: str = ""
    rows: int = 0
    anomalies: int = 0
    parse: float = 0.0
    status: int = 0
    errand: Errand = field(default_factory=Errand)

    def timing(self, total: float) -> str:
        """The Server-Timing header, in milliseconds."""
        spans = {"parse": self.parse, "queue": self.errand.queued, "infer": self.errand.computed, "total": total}
        return ", ".join(f"{name};dur={seconds * 1e3:.3f}" for name, seconds in spans.items())


class Telemetry:
    """Around everything: it opens the books of a request and closes them, whatever happens inside."""

    def __init__(self, app: ASGIApp, *, door: Door, metrics: Metrics, access: Literal["none", "errors", "all"]) -> None:
        self._app = app
        self._door = door
        self._metrics = metrics
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        visit = scope["visit"] = Visit(_id(scope), time.perf_counter())
        stamped = self._stamped(visit, send)
        self._door.inside += 1
        try:
            await self._app(scope, receive, stamped)
        except Exception as error:
            # Nothing but a bug comes here: errors of ours were answered inside.
            if visit.status:
                raise  # half an answer is out; the server can only hang up
            await (await answer_problem(Request(scope), error))(scope, receive, stamped)
        finally:
            self._door.inside -= 1
            self._close(scope, visit)

    def _stamped(self, visit: Visit, send: Send) -> Send:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = list(message.get("headers", []))
                headers.append((b"x-request-id", visit.id.encode()))
                headers.append((b"server-timing", visit.timing(time.perf_counter() - visit.arrived).encode()))
                if self._door.parting and not any(name == b"connection" for name, _ in headers):
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        return stamped

    def _close(self, scope: Scope, visit: Visit) -> None:
        seconds = time.perf_counter() - visit.arrived
        metrics = self._metrics
        metrics.requests.labels(visit.operation, visit.model, str(visit.status)).inc()
        metrics.seconds.labels(visit.operation).observe(seconds)
        if visit.rows and visit.status == 200:
            metrics.rows.labels(visit.operation, visit.model).inc(visit.rows)
        if visit.anomalies:
            metrics.anomalies.labels(visit.model).inc(visit.anomalies)
        probe = visit.operation in ("livez", "readyz")  # whoever probes sees the answer; a line a second helps nobody
        if self._access == "all" or (self._access == "errors" and visit.status >= 400 and not probe):
            fields = {
                "id": visit.id,
                "method": scope["method"],
                "path": scope["path"],
                "status": visit.status,
                "rows": visit.rows,
                "ms": round(seconds * 1e3, 3),
            }
            level = logging.WARNING if visit.status >= 500 else logging.INFO
            log.log(level, "request", extra={"fields": fields})


def _id(scope: Scope) -> str:
    """The caller's request id if it is a decent one, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and ID.fullmatch(value):
            return bytes(value).decode()
    return f"{random.getrandbits(128):032x}"  # not a secret, so not worth a system call

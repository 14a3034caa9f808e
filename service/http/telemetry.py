"""Telemetry: one plain ASGI middleware for request ids, timing, metrics and the access log. Knows no operation."""

from __future__ import annotations

import logging
import random
import re
import time
from dataclasses import dataclass, field
from typing import Literal

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.door import Door, Era
from service.http.errors import refusal
from service.http.sparing import Sparing
from service.metrics import Metrics
from service.models import Model
from service.operations import Errand

log = logging.getLogger("service.access")

LINES = 16  # of requests refused with one status, in a second: overload or a stranger could fill the log with them
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
    era: Era | None = None

    def timing(self, total: float) -> str:
        """The Server-Timing header, in milliseconds."""
        errand = self.errand
        return (
            f"parse;dur={self.parse * 1e3:.3f}, queue;dur={errand.queued * 1e3:.3f}, "
            f"infer;dur={errand.computed * 1e3:.3f}, total;dur={total * 1e3:.3f}"
        )


@dataclass(slots=True)
class Sitting:
    """Requests that are answered together, as the books know them; parse, queued and computed are seconds of each."""

    model: Model
    parse: float
    queued: float = 0.0
    computed: float = 0.0
    rows: int = 0
    anomalies: int = 0
    seconds: list[float] = field(default_factory=list)

    def note(self, rows: int, seconds: float, anomalies: int) -> None:
        """One of them has its answer."""
        self.rows += rows
        self.anomalies += anomalies
        self.seconds.append(seconds)

    def timing(self, total: float) -> bytes:
        """One's id, and its Server-Timing header, as header lines."""
        return (
            f"x-request-id: {random.getrandbits(128):032x}\r\nserver-timing: parse;dur={self.parse * 1e3:.3f}, "
            f"queue;dur={self.queued * 1e3:.3f}, infer;dur={self.computed * 1e3:.3f}, total;dur={total * 1e3:.3f}\r\n"
        ).encode()


class Books:
    """What is written down of every request: metrics and the access log. Children of metrics are looked up once."""

    def __init__(self, door: Door, metrics: Metrics, access: Literal["none", "errors", "all"]) -> None:
        self.door = door
        self._metrics = metrics
        self._access = access
        self._counted: dict[tuple[str, str, int], Counter] = {}
        self._timed: dict[str, Histogram] = {}
        self._rows: dict[tuple[str, str], Counter] = {}
        self._sparing = Sparing(LINES, _left_out)

    def open(self, named: bytes | None) -> Visit:
        """A request has come, which may have an id of its own; it is kept if it is a decent one."""
        if named is not None and ID.fullmatch(named):
            visit = Visit(named.decode(), time.perf_counter())
        else:
            visit = Visit(f"{random.getrandbits(128):032x}", time.perf_counter())  # no secret: no system call
        visit.era = self.door.come()
        return visit

    def close(self, visit: Visit, method: str, path: str) -> None:
        """A request has its answer."""
        assert visit.era is not None
        self.door.go(visit.era)
        seconds = time.perf_counter() - visit.arrived
        operation, model, metrics = visit.operation, visit.model, self._metrics
        key = operation, model, visit.status
        if (counted := self._counted.get(key)) is None:
            counted = self._counted[key] = metrics.requests.labels(operation, model, str(visit.status))
        metrics.later(counted)
        if (timed := self._timed.get(operation)) is None:
            timed = self._timed[operation] = metrics.seconds.labels(operation)
        metrics.observe(timed, seconds)
        if visit.rows and visit.status == 200:
            if (rows := self._rows.get((operation, model))) is None:
                rows = self._rows[operation, model] = metrics.rows.labels(operation, model)
            metrics.later(rows, visit.rows)
        if visit.anomalies:
            metrics.anomalies.labels(model).inc(visit.anomalies)
        if self._access != "none":
            self._log(visit, method, path, seconds)

    def gone(self, path: str, era: Era) -> None:
        """The caller of a score left before its answer."""
        visit = Visit("", time.perf_counter(), "score", status=499, era=era)
        self.close(visit, "POST", path)

    def close_many(self, operation: str, model: str, sitting: Sitting) -> None:
        """Requests of one operation have their answers, all of them as asked."""
        count = len(sitting.seconds)
        key = operation, model, 200
        if (counted := self._counted.get(key)) is None:
            counted = self._counted[key] = self._metrics.requests.labels(operation, model, "200")
        self._metrics.later(counted, count)
        if (timed := self._timed.get(operation)) is None:
            timed = self._timed[operation] = self._metrics.seconds.labels(operation)
        self._metrics.observe(timed, *sitting.seconds)
        if (rows := self._rows.get((operation, model))) is None:
            rows = self._rows[operation, model] = self._metrics.rows.labels(operation, model)
        self._metrics.later(rows, sitting.rows)
        if sitting.anomalies:
            self._metrics.later(self._metrics.anomalies.labels(model), sitting.anomalies)

    @property
    def quiet(self) -> bool:
        """Whether no request gets a line for being answered."""
        return self._access != "all"

    def _log(self, visit: Visit, method: str, path: str, seconds: float) -> None:
        probe = visit.operation in ("livez", "readyz")  # whoever probes sees the answer; a line a second helps nobody
        if self._access == "errors" and (visit.status < 400 or probe or not self._sparing.admits(str(visit.status))):
            return
        fields = {
            "id": visit.id,
            "method": method,
            "path": path,
            "status": visit.status,
            "rows": visit.rows,
            "ms": round(seconds * 1e3, 3),
        }
        log.log(_level(visit.status), "request", extra={"fields": fields})

    def end(self) -> None:
        """Nothing more is written down: say which lines were left out."""
        self._sparing.tell()


def _left_out(status: str, count: int) -> None:
    """Say how many requests have no line of their own."""
    log.log(_level(int(status)), "more requests", extra={"fields": {"status": int(status), "count": count}})


def _level(status: int) -> int:
    return logging.WARNING if status >= 500 else logging.INFO


class Telemetry:
    """Around everything: it opens the books of a request and closes them, whatever happens inside."""

    def __init__(self, app: ASGIApp, *, books: Books) -> None:
        self._app = app
        self._books = books

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        named = b", ".join(value for name, value in scope["headers"] if name == b"x-request-id")
        visit = scope["visit"] = self._books.open(named)
        stamped = self._stamped(visit, send)
        try:
            await self._app(scope, receive, stamped)
        except Exception as error:
            # Nothing but a bug comes here: errors of ours were answered inside.
            if visit.status:
                raise  # half an answer is out; the server can only hang up
            await refusal(scope, error).response(scope, receive, stamped)
        finally:
            self._books.close(visit, scope["method"], scope["path"])

    def _stamped(self, visit: Visit, send: Send) -> Send:
        async def stamped(message: Message) -> None:
            if message["type"] == "http.response.start":
                visit.status = message["status"]
                headers = list(message.get("headers", []))
                headers.append((b"x-request-id", visit.id.encode()))
                headers.append((b"server-timing", visit.timing(time.perf_counter() - visit.arrived).encode()))
                if self._books.door.parting and not any(name == b"connection" for name, _ in headers):
                    headers.append((b"connection", b"close"))
                message = {**message, "headers": headers}
            await send(message)

        return stamped

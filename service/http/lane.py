"""The lane: requests for an operation, met in the protocol itself. Knows uvicorn's connections, and no operation.

An ASGI app is started with a request's head and asks for its body; that costs a task, an event and a dozen messages,
more than a small model computes. Here a request is met when it is whole. What is small is answered without a task; the
rest goes the same way as over ASGI. Whatever isn't a plain POST to an operation is left to the app, on the same
connection: chunked bodies, callers that wait for 100-continue, other methods and paths.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any
from typing import Protocol as TypingProtocol
from urllib.parse import parse_qsl, unquote

from starlette.requests import Request
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import Late, Problem
from service.http.errors import refusal
from service.http.exchange import Desk, Drop, Heard, Held
from service.http.express import LARGEST, Counter, Entry, Known, Speaker
from service.http.jobs import Job, Reply
from service.http.telemetry import Books, Visit


class Finder(TypingProtocol):
    """What knows the paths of one of our protocols."""

    def __call__(self, parts: Sequence[str]) -> Callable[[Heard, Visit], Job] | None:
        """What begins the job that a path stands for, if any, by its parts."""

    def scores(self, parts: Sequence[str], heads: Mapping[bytes, bytes]) -> Speaker | None:
        """Who speaks of scores there, to requests with these headers, where the express serves them."""


HEARD = {
    *(b"content-type", b"content-encoding", b"accept", b"x-timeout-ms", b"x-request-id", b"content-length"),
    *(b"accept-encoding", b"inference-header-content-length"),
}
LEFT = {b"transfer-encoding", b"expect", b"upgrade"}  # a request with one of these is left to the app
ROUTES = 1024  # paths that are remembered
LONGEST = 4096  # bytes of a head that is remembered
OK = STATUS_LINE[200]
CLOSE = b"connection: close\r\n"


class Route:
    """A path, how a job is begun for who asks there, and what finds that."""

    __slots__ = ("begin", "finder", "path")

    def __init__(self, path: str, begin: Callable[[Heard, Visit], Job], finder: Finder) -> None:
        self.path, self.begin, self.finder = path, begin, finder


class Lane:
    """What every connection of the lane is handed: the desk, the books, and what finds an operation by a path."""

    def __init__(self, desk: Desk, books: Books, finders: Sequence[Finder], lanes: int) -> None:
        self.desk, self.books, self.lanes = desk, books, lanes
        self._finders = finders
        self._routes: dict[bytes, Route | None] = {}
        self._counters: dict[tuple[str, bytes], Counter] = {}
        self.known: dict[bytes, Known] = {}
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def learn(self, head: bytes, route: Route, heads: dict[bytes, bytes], query: bytes) -> None:
        """A whole request had this head: others that have it may take the express."""
        length = int(heads.get(b"content-length", b"0"))
        if query or not 0 < length <= LARGEST or len(head) > LONGEST or not self.books.quiet:
            return
        speaker = route.finder.scores(route.path.split("/"), heads)
        if speaker is None:
            return
        if len(self.known) >= ROUTES:
            self.known.clear()
        key = route.path, heads.get(b"inference-header-content-length", b"")
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= ROUTES:
                return
            counter = self._counters[key] = Counter(speaker, self.books, self.desk.timeout, self.lanes)
        self.known[head] = Known(route, heads, query, length, counter)

    def route(self, url: bytes) -> Route | None:
        """Where a request's path leads, if that is an operation."""
        if url in self._routes:
            return self._routes[url]
        found = self._find(url)
        if len(self._routes) < ROUTES:
            self._routes[url] = found
        return found

    def _find(self, url: bytes) -> Route | None:
        path = unquote(url.decode("latin-1"))
        begins = ((finder(path.split("/")), finder) for finder in self._finders)
        return next((Route(path, begin, finder) for begin, finder in begins if begin), None)

    def usual(self, headers: list[tuple[bytes, bytes]]) -> bytes:
        """The headers of every answer, as lines; uvicorn makes a new list of them each second."""
        if headers is not self._headers:
            self._headers, self._lines = headers, b"".join([b"%b: %b\r\n" % head for head in headers])
        return self._lines

    def protocol(self) -> type[HttpToolsProtocol]:
        """The protocol that uvicorn is to speak on its connections."""
        return type("LaneProtocol", (Connection,), {"lane": self})


class Connection(HttpToolsProtocol):
    """uvicorn's connection, on which requests for an operation take the lane."""

    lane: Lane
    call: Call | None = None
    entry: Entry | None = None  # the request that takes the express
    head: bytes | None = None  # of the request that is being read, if it came in one piece
    reading = False  # whether a request's message has begun and not ended
    active = 0.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.later: list[bytes] = []

    # ------------------------------------------------------------ the express

    def data_received(self, data: bytes) -> None:
        """Bytes are here: a request that came whole under a head that is known takes the express."""
        if self.entry is not None:
            self.later.append(data)
            self.flow.pause_reading()
            return
        self.head = None
        if not self.reading and (self.cycle is None or self.cycle.response_complete):
            end = data.find(b"\r\n\r\n", 0, LONGEST) + 4
            if end > 4:
                head = data[:end]
                known = self.lane.known.get(head)
                if known is not None and len(data) == end + known.length and not self.lane.books.door.parting:
                    self.entry = Entry(self, known, data[end:])
                    known.counter.add(self.entry)
                    return
                self.head = head
        super().data_received(data)

    def answered(self, entry: Entry, heads: bytes, body: bytes, timing: bytes) -> None:
        """The express has an answer."""
        self.entry = None
        close = not entry.keep_alive or self.lane.books.door.parting
        head = self.lane.usual(self.server_state.default_headers), heads, b"content-length: %d\r\n" % len(body), timing
        self.transport.write(b"".join((OK, *head, CLOSE if close else b"", b"\r\n", body)))
        self.server_state.total_requests += 1
        if close:
            self.transport.close()
            return
        self.active = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._look_later(self.timeout_keep_alive)
        self._go_on()

    def step_by_step(self, entry: Entry) -> None:
        """The express can't answer this: it is met like any other request, as of when it came."""
        self.entry = None
        known = entry.known
        if self.transport.is_closing():
            return
        self.call = call = Call(self, known.route, dict(known.heads), known.query)
        self.cycle = call  # type: ignore[assignment]
        call.keep_alive, call.visit.arrived = entry.keep_alive, entry.arrived
        call.begin()
        call.more(entry.body)
        call.whole()
        self._go_on()

    def _go_on(self) -> None:
        """What came in the meantime is met now."""
        if self.later:
            data, self.later = b"".join(self.later), []
            self.flow.resume_reading()
            self.data_received(data)

    def _look_later(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is idle; the express leaves the timer alone, and says when it was last used."""
        rest = self.active + self.timeout_keep_alive - self.loop.time()
        if self.entry is not None or rest > 0:
            self._look_later(max(rest, 1.0))
            return
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """The server ends: what is being answered ends the connection with it."""
        if self.entry is not None:
            self.entry.keep_alive = False
        else:
            super().shutdown()

    # ------------------------------------------------------------ step by step

    def on_message_begin(self) -> None:
        """A request begins."""
        self.reading = True
        super().on_message_begin()

    @property
    def laned(self) -> Call | None:
        """The request that is being read, if it takes the lane."""
        cycle: object = self.cycle
        return self.call if cycle is self.call else None

    def on_headers_complete(self) -> None:
        """A request's head is here: is it one for the lane?"""
        if self.parser.get_method() == b"POST" and (self.cycle is None or self.cycle.response_complete):
            url, _, query = self.url.partition(b"?")
            if (route := self.lane.route(url)) and (heads := self._heads()) is not None:
                self.call = Call(self, route, heads, query)
                self.cycle = self.call  # type: ignore[assignment]
                self.call.begin()
                return
        super().on_headers_complete()

    def _heads(self) -> dict[bytes, bytes] | None:
        """The headers that matter, their lines joined; None where the request is left to the app."""
        if self.parser.get_http_version() != "1.1" or self.parser.should_upgrade():
            return None
        heads: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in LEFT:
                return None
            if name in HEARD:
                heads[name] = heads[name] + b", " + value if name in heads else value
        length = heads.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12 or int(length) > self.lane.desk.limits.body_bytes:
            return None
        return heads

    def on_body(self, body: bytes) -> None:
        """Some of a body is here."""
        if call := self.laned:
            call.more(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        self.reading = False
        if call := self.laned:
            if self.head is not None and call.keep_alive and not call.response_complete:
                call.learn(self.head)
            call.whole()
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone."""
        super().connection_lost(exc)
        if self.entry is not None and not self.entry.gone:
            self.entry.known.counter.drop(self.entry)
        if self.call is not None:
            self.call.gone()


class Told:
    """Stands in for the event that uvicorn sets for an app that waits; nobody waits here."""

    def set(self) -> None:
        """Nothing."""


TOLD = Told()


class Call:
    """One request on the lane, in the place of uvicorn's cycle, whose attributes it has."""

    __slots__ = (
        *("_connection", "_drop", "_heads", "_held", "_job", "_parts", "_query", "_route", "_size", "_task", "_timer"),
        *("disconnected", "keep_alive", "message_event", "response_complete", "visit"),
    )

    def __init__(self, connection: Connection, route: Route, heads: dict[bytes, bytes], query: bytes) -> None:
        self._connection, self._route, self._heads, self._query = connection, route, heads, query
        self._parts: list[bytes] = []
        self._size = 0
        self._held = Held(connection.lane.desk.memory)
        self._job: Job | None = None
        self._drop: Drop | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.visit = connection.lane.books.open(heads.get(b"x-request-id"))
        self.response_complete = self.disconnected = False
        self.keep_alive = connection.parser.should_keep_alive()
        self.message_event = TOLD

    def learn(self, head: bytes) -> None:
        """Its head and it came in one piece: what comes under the same head may take the express."""
        self._connection.lane.learn(head, self._route, self._heads, self._query)

    # ------------------------------------------------------------ in

    def begin(self) -> None:
        """The head is here: what can be refused by it is, and its time runs."""
        try:
            self._job = self._route.begin(self._heard(), self.visit)
            self._timer = self._connection.loop.call_at(self.visit.errand.deadline, self._late)
        except Exception as error:  # ours is answered with a reference, like any other
            self._refuse(error)

    def more(self, body: bytes) -> None:
        """Some of the body is here; what comes after a refusal is thrown away."""
        if self.response_complete:
            return
        self._size += len(body)
        try:
            self._held.resize(self._size)
        except Problem as error:
            self._refuse(error)
            return
        self._parts.append(body)

    def whole(self) -> None:
        """The request is whole: answer it, at once or in a task."""
        if self.response_complete:
            return
        parts = self._parts
        content = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        job, deadline = self._job, self.visit.errand.deadline
        assert job is not None
        assert self._timer is not None
        try:
            drop = job.quick(content, self._held, self._told)
            if drop is None:
                self._timer.cancel()
                self._start(self._work(job, content))
            elif not self.response_complete:
                self._drop = drop
                if self.visit.errand.deadline != deadline:  # the body named one
                    self._timer.cancel()
                    self._timer = self._connection.loop.call_at(self.visit.errand.deadline, self._late)
        except Exception as error:
            self._refuse(error)

    def _heard(self) -> Heard:
        heads = {name: value.decode("latin-1") for name, value in self._heads.items()}
        return Heard(
            heads.get(b"content-type"),
            heads.get(b"content-encoding"),
            heads.get(b"accept"),
            heads.get(b"x-timeout-ms"),
            parse_qsl(self._query.decode("latin-1"), keep_blank_values=True) if self._query else (),
            heads.get(b"accept-encoding"),
            heads.get(b"inference-header-content-length"),
        )

    # ------------------------------------------------------------ out

    def _told(self, found: Reply | Exception) -> None:
        """The answer to a small request."""
        if isinstance(found, Exception):
            self._refuse(found)
        else:
            self._write(200, *found)

    def _late(self) -> None:
        self._refuse(Late("the deadline passed before the answer was ready"))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        connection = self._connection
        self._task = connection.loop.create_task(work)
        connection.tasks.add(self._task)
        self._task.add_done_callback(connection.tasks.discard)

    async def _work(self, job: Job, content: bytes) -> None:
        """The same as over ASGI, from a body that is whole."""
        try:
            async with asyncio.timeout_at(self.visit.errand.deadline) as clock:
                reply = await job.work(content, self._held, clock)
            self._write(200, *reply)
        except TimeoutError:
            self._late()
        except Exception as error:
            self._refuse(error)

    def _refuse(self, error: Exception) -> None:
        """Say what is wrong, in the words of the one table."""
        if self.response_complete:
            return
        if self._job is not None:
            self._job.failed()
        headers = list(self._heads.items())
        scope = {"type": "http", "method": "POST", "path": self._route.path, "headers": headers, "visit": self.visit}
        found = refusal(Request(scope), error)
        heads = [b"%b: %b\r\n" % head for head in found.raw_headers if head[0] != b"content-length"]
        self._write(found.status_code, b"".join(heads), bytes(found.body))

    def _write(self, status: int, heads: bytes, text: bytes) -> None:
        """The whole answer, and what comes after it."""
        if self.response_complete:
            return
        connection, visit = self._connection, self.visit
        books, transport = connection.lane.books, connection.transport
        visit.status = status
        self.response_complete = True
        self._let_go()
        if books.door.parting:
            self.keep_alive = False
        head = [STATUS_LINE[status]]
        for name, value in connection.server_state.default_headers:
            head += name, b": ", value, b"\r\n"
        seconds = time.perf_counter() - visit.arrived
        head += (
            heads,
            b"content-length: %d\r\nx-request-id: %b\r\nserver-timing: %b\r\n"
            % (len(text), visit.id.encode(), visit.timing(seconds).encode()),
            b"\r\n" if self.keep_alive else CLOSE + b"\r\n",
            text,
        )
        transport.write(b"".join(head))
        if not self.keep_alive:
            transport.close()
        books.close(visit, "POST", self._route.path)
        connection.on_response_complete()

    def gone(self) -> None:
        """The caller left: what waits for it is never computed."""
        if self.response_complete:
            return
        self.response_complete = self.disconnected = True
        self.visit.status = 499
        if self._job is not None:
            self._job.failed()
        self._let_go()
        self._connection.lane.books.close(self.visit, "POST", self._route.path)

    def _let_go(self) -> None:
        """Nothing waits for this request any more, and it holds no memory."""
        if self._timer is not None:
            self._timer.cancel()
        if self._drop is not None:
            self._drop()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._timer = self._drop = self._task = self._job = None
        self._parts = []
        self._held.resize(0)

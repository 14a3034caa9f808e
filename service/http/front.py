"""The front: requests for an operation, met in the protocol itself. Knows uvicorn's connections, and no operation.

An ASGI app is started with a request's head and asks for its body; that costs a task, an event and a dozen messages,
more than a small model computes. Here a request is met when it is whole. What is small is answered without a task; the
rest goes the same way as over ASGI. Whatever isn't a plain POST to an operation is left to the app, on the same
connection: chunked bodies, callers that wait for 100-continue, other methods and paths.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import TimerHandle
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from typing import Protocol as TypingProtocol
from urllib.parse import unquote

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.debts import Debts
from service.errors import Problem
from service.http.calls import CLOSE, Call
from service.http.exchange import Desk, Heard
from service.http.express import Counter, Entry, Known, Speaker
from service.http.grammar import Grammar, refuser
from service.http.jobs import Job
from service.http.noting import Noting, noted
from service.http.telemetry import Books, Visit


class Finder(TypingProtocol):
    """What knows the paths of one of our protocols. aligns: whether its bodies are JSON with tensors behind it."""

    aligns: bool

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
GATHERING = 0.05  # seconds that the rest of a body may take
OK = STATUS_LINE[200]


class Route:
    """A path, how a job is begun for who asks there, and what finds that."""

    __slots__ = ("begin", "finder", "path", "v2")

    def __init__(self, path: str, begin: Callable[[Heard, Visit], Job], finder: Finder) -> None:
        self.path, self.begin, self.finder = path, begin, finder
        self.v2 = path.startswith("/v2/")


class Front:
    """What every connection of the front is handed: the desk, the books, and what finds an operation by a path.

    debts: where is noted what is owed to callers, if somebody else would answer them when this process dies.
    """

    def __init__(
        self, desk: Desk, books: Books, finders: Sequence[Finder], lanes: int, debts: Debts | None = None
    ) -> None:
        self.desk, self.books, self.lanes, self.debts = desk, books, lanes, debts
        self._finders = finders
        self._routes: dict[bytes, Route | None] = {}
        self._counters: dict[tuple[str, bytes], Counter] = {}
        self.known: dict[bytes, Known] = {}
        self._headers: list[tuple[bytes, bytes]] = []
        self._lines = b""

    def learn(self, head: bytes, route: Route, heads: dict[bytes, bytes], query: bytes) -> None:
        """A whole request had this head: others that have it may take the express."""
        length = int(heads.get(b"content-length", b"0"))
        if query or length == 0 or len(head) > LONGEST or not self.books.quiet:
            return
        speaker = route.finder.scores(route.path.split("/"), heads)
        if speaker is None or length > speaker.largest:
            return
        if len(self.known) >= ROUTES:
            self.known.clear()
        key = route.path, heads.get(b"inference-header-content-length", b"")
        counter = self._counters.get(key)
        if counter is None:
            if len(self._counters) >= ROUTES:  # those who have callers end with these
                self._counters.clear()
                self.known.clear()
            desk = self.desk
            counter = Counter(speaker, self.books, desk.models, desk.memory, desk.timeout, self.lanes)
            self._counters[key] = counter
        self.known[head] = Known(route, heads, query, length, counter)

    def forget(self) -> None:
        """A model was put away."""
        for counter in self._counters.values():
            counter.forget()

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

    def protocol(self) -> type[Grammar]:
        """The protocol that uvicorn is to speak on its connections."""
        return type("FrontProtocol", (Connection,), {"front": self, "refuser": staticmethod(refuser(self.books))})


class Connection(Grammar):
    """A connection on which requests for an operation are met at the front."""

    front: Front
    call: Call | None = None
    entry: Entry | None = None  # the request that takes the express
    head: bytes | None = None  # of the request that is being read, if it was read from its beginning
    left = 0  # bytes of the body that is being read, which are still to come
    since: float | None = None  # when a request came that the parser is shown only now
    active = 0.0
    heard = 0  # bytes that were read and met
    noting: Noting | None = None
    unread = math.inf  # bytes that the caller hadn't read when that was last looked at

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.later: list[bytes] = []
        self.parts: list[bytes] = []  # head, spaces, and the body as far as it is here, of one to take the express
        self.missing = 0  # bytes that it lacks
        self.timer: TimerHandle | None = None  # runs while it lacks some

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A caller is here."""
        if self.front.debts is not None:
            transport = noted(transport, self, self.front.debts)
        super().connection_made(transport)

    # ------------------------------------------------------------ the express

    def data_received(self, data: bytes) -> None:
        """Bytes are here: a request under a head that is known takes the express once it is whole."""
        if self.flow.write_paused or (self.entry is not None and self.timer is None):
            self.later.append(data)  # whoever doesn't read its answers isn't given more of them
            self.flow.pause_reading()
            return
        self.heard += len(data)
        if self.entry is not None:
            self._gather(self.entry, data)
            return
        if self.left and self.fronted:
            self._more(data)
            return
        self.head = None
        idle = not self.reading and (self.cycle is None or self.cycle.response_complete)
        if idle and data.startswith(b"POST "):  # not with the empty lines that a parser takes before it
            end = data.find(b"\r\n\r\n", 0, LONGEST) + 4
            if end > 4:
                head = data[:end]
                known = self.front.known.get(head)
                if known is not None and len(data) <= end + known.length and not self.front.books.door.parting:
                    self._express(known, data, end)
                    return
                self.head = head
        super().data_received(data)
        if self.noting is not None and not self.reading and (self.cycle is None or self.cycle.response_complete):
            self.noting.nothing()  # more than is answered by now: empty lines

    def _express(self, known: Known, data: bytes, end: int) -> None:
        """A known head is here, and as much of the body behind it as came with it."""
        self.entry = entry = Entry(self, known)
        entry.era = self.front.books.door.come()
        if self.noting is not None and self.noting.v2 is not known.route.v2:
            self.noting.speaks(known.route.v2)
        body = data[end:]
        if len(body) == known.length:
            entry.body = known.spaces + body if known.spaces else body
            known.counter.add(entry)
            return
        self.parts = [data[:end], known.spaces, body]
        self.missing = known.length - len(body)
        self.timer = self.loop.call_later(GATHERING, self._ungather)

    def _gather(self, entry: Entry, data: bytes) -> None:
        """Some more of a body is here; what follows it is another request's."""
        if len(data) > self.missing:
            self.later.append(data[self.missing :])
            self.heard -= len(data) - self.missing
            self.flow.pause_reading()
            data = data[: self.missing]
        self.parts.append(data)
        self.missing -= len(data)
        if self.missing:
            try:
                entry.held.resize(entry.known.length - self.missing)
            except Problem:
                self._ungather()
            return
        assert self.timer is not None
        self.timer.cancel()
        self.timer = None
        entry.body, self.parts = b"".join(self.parts[1:]), []
        entry.known.counter.add(entry)

    def _ungather(self) -> None:
        """A body takes its time, or there is no room for it: the request is met as if its head were not known."""
        timer, self.timer, entry = self.timer, None, self.entry
        assert timer is not None
        assert entry is not None
        timer.cancel()
        (head, _, *parts), self.parts, self.entry = self.parts, [], None
        data = b"".join((head, *parts))
        entry.let_go()
        self.front.books.door.go(entry.era)
        if not self.transport.is_closing():
            self.since = entry.arrived
            super().data_received(data)

    def _more(self, data: bytes) -> None:
        """The body of a request at the front goes on: nothing in it is for the parser, which would copy it."""
        self._unset_keepalive_if_required()  # armed with a refusal that came before the whole body
        rest = data[self.left :]
        self.on_body(data[: self.left] if rest else data)
        if self.left == 0:
            self.renew()  # the old parser still waits for this body
            call = self.call
            assert call is not None
            self.on_message_complete()
            if not call.keep_alive or self.transport.is_closing():
                return  # nothing is met after the last answer
            if call.response_complete and self.timeout_keep_alive_task is None:
                self._look_later(self.timeout_keep_alive)
            if rest:
                self.heard -= len(rest)
                self.data_received(rest)

    def answered(self, entry: Entry, heads: bytes, body: bytes, timing: bytes) -> None:
        """The express has an answer."""
        self.entry = None
        close = not entry.keep_alive or self.front.books.door.parting
        head = self.front.usual(self.server_state.default_headers), heads, b"content-length: %d\r\n" % len(body), timing
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
            books = self.front.books
            books.gone(known.route.path, books.door.come())
            return
        self._unset_keepalive_if_required()  # it is armed again with the answer
        self.call = call = Call(self, known.route, dict(known.heads), known.query)
        self.cycle = call  # type: ignore[assignment]
        call.keep_alive, call.visit.arrived = entry.keep_alive, entry.arrived
        call.begin()
        call.more(entry.body[len(known.spaces) :])
        call.whole()
        self._go_on()

    def _go_on(self) -> None:
        """What came in the meantime is met now."""
        if self.later:
            data, self.later = b"".join(self.later), []
            self.flow.resume_reading()
            if not self.transport.is_closing():
                self.data_received(data)

    def resume_writing(self) -> None:
        """The caller has read its answers: what it asked in the meantime is met."""
        super().resume_writing()
        self.unread = math.inf
        if self.entry is None or self.timer is not None:
            self._go_on()

    def _look_later(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(seconds, self.timeout_keep_alive_handler)

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection that is idle; the express leaves the timer alone, and says when it was last used."""
        rest = self.active + self.timeout_keep_alive - self.loop.time()
        if self.entry is not None or rest > 0:
            self._look_later(max(rest, 1.0))
            return
        if self.flow.write_paused:  # to close it would wait for a caller who doesn't read; one who does has time
            unread = self.transport.get_write_buffer_size()
            if unread < self.unread:
                self.unread = unread
                self._look_later(self.timeout_keep_alive)
                return
            self.transport.abort()
        super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """The server ends: what is being answered ends the connection with it."""
        if self.entry is not None:
            self.entry.keep_alive = False
        else:
            super().shutdown()

    # ------------------------------------------------------------ step by step

    @property
    def fronted(self) -> Call | None:
        """The request that is being read, if it is met at the front."""
        cycle: object = self.cycle
        return self.call if cycle is self.call else None

    def on_headers_complete(self) -> None:
        """A request's head is here: is it one for the front?"""
        if self.upgrades:
            return
        if self.noting is not None:
            self.noting.speaks(self.url.startswith(b"/v2"))
        if self.parser.get_method() == b"POST" and (self.cycle is None or self.cycle.response_complete):
            url, _, query = self.url.partition(b"?")
            if (route := self.front.route(url)) and (heads := self._heads()) is not None:
                self.headed, self.barren = True, 0
                self.call = Call(self, route, heads, query)
                self.cycle = self.call  # type: ignore[assignment]
                self.left = int(heads.get(b"content-length", b"0"))
                if self.since is not None:
                    self.call.visit.arrived, self.since = self.since, None
                self.call.begin()
                return
        super().on_headers_complete()

    def _heads(self) -> dict[bytes, bytes] | None:
        """The headers that matter, their lines joined; None where the request is left to the app."""
        if self.parser.get_http_version() != "1.1":
            return None
        heads: dict[bytes, bytes] = {}
        for name, value in self.headers:
            if name in LEFT:
                return None
            if name in HEARD:
                heads[name] = heads[name] + b", " + value if name in heads else value
        length = heads.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 12 or int(length) > self.front.desk.limits.body_bytes:
            return None
        return heads

    def on_body(self, body: bytes) -> None:
        """Some of a body is here."""
        if call := self.fronted:
            self.left -= len(body)
            call.more(body)
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if self.upgrades:
            return
        self.reading = False
        if self.noting is not None:
            self.noting.whole()
        head, self.head = self.head, None  # it is the first request's in these bytes, and no other's
        if call := self.fronted:
            self.barren = 0
            if head is not None and call.keep_alive and not call.response_complete:
                call.learn(head)
            call.whole()
        else:
            super().on_message_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone."""
        super().connection_lost(exc)
        if self.noting is not None:
            self.noting.forget()
        if self.timer is not None:
            self.timer.cancel()
        if self.entry is not None and not self.entry.gone:
            self.entry.known.counter.drop(self.entry)
        if self.call is not None:
            self.call.gone()
        self.call = self.running = None  # each holds this: they would wait together for the collector
        self.cycle = None  # type: ignore[assignment]

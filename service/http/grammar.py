"""Grammar: uvicorn's connection as far as it tells what is HTTP/1.1 and what isn't. Knows no path but that of /v2.

What can't be read is refused in our own words, like any other request: in its turn, counted, with an id, and with the
end of the connection, since nobody can tell any more where the next request begins. Who asks for another protocol
(h2c, websocket) is answered in this one.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserUpgrade, HttpRequestParser, parse_url
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.errors import HeadTooLarge, Malformed
from service.http.errors import refusal
from service.http.telemetry import Books, Telemetry

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, HTTPScope

HEAD = 65_536  # bytes without the end of a head in them; trailers and what stands behind a chunk's size count too
LINGER = 1.0  # seconds in which what still comes is thrown away: to close on it would reset the answer


class Grammar(HttpToolsProtocol):
    """A connection whose requests may be none. refuser is the app that answers those."""

    refuser: ASGI3Application
    reading = False  # whether a request's message has begun and not ended
    headed = False  # whether its head is here
    barren = 0  # bytes since the last head, the last of a body, or the last end of a request
    deaf = False  # nothing that comes is a request any more
    running: RequestResponseCycle | None = None  # the request that the app is answering, or answered last

    def renew(self) -> None:
        """Another parser, for what comes next."""
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    def data_received(self, data: bytes) -> None:
        """Bytes are here: show them to the parser."""
        self._unset_keepalive_if_required()
        if self.deaf:
            return
        self.barren += len(data)
        try:
            self._feed(data)
        except (HttpParserError, Malformed) as error:
            self._refuse(_fault(error))
        else:
            if self.barren > HEAD:
                self._refuse(HeadTooLarge(f"the head of a request is over the limit of {HEAD} bytes"))

    def _feed(self, data: bytes) -> None:
        part: bytes | memoryview = data
        while part:
            try:
                self.parser.feed_data(part)
                return
            except HttpParserUpgrade as upgrade:
                part = memoryview(part)[upgrade.args[0] :]
                self._stay()

    def _stay(self) -> None:
        """A request to speak another protocol: the parser skips its body, so it is read again without that wish."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            raise Malformed("CONNECT is not offered: this is no proxy")
        lines = [b"%b: %b\r\n" % head for head in self.headers if head[0] != b"upgrade"]
        self.renew()
        self.parser.feed_data(b"".join((method, b" ", self.url, b" HTTP/", version, b"\r\n", *lines, b"\r\n")))

    def _refuse(self, fault: Exception) -> None:
        """What came can't be read: say so to whoever sent it, after the answers that are owed before; then end."""
        self.deaf = True
        cycle = self.cycle
        if self.reading and self.headed and cycle is not None:  # it is its body that can't be read
            cycle.scope["broken"] = fault  # type: ignore[typeddict-unknown-key]
            cycle.keep_alive = False
            if cycle.response_complete:
                Parting(self).close()
            else:
                cycle.transport = cast("asyncio.Transport", Parting(self))
                cycle.message_event.set()
            return
        self.cycle = refused = self._cycle(fault)
        if cycle is None or cycle.response_complete:
            self._start_asgi_task(refused, self.refuser)
        else:
            self.pipeline.appendleft((refused, self.refuser))

    def _cycle(self, fault: Exception) -> RequestResponseCycle:
        """A request of which only the beginning is known, if that."""
        url, headers = (self.url, self.headers) if self.reading else (b"", [])
        self.reading = True
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": self.parser.get_method().decode() if url else "GET",
            "path": url.partition(b"?")[0].decode("latin-1") or "/",
            "query_string": b"",
            "headers": headers,
            "broken": fault,
        }
        return RequestResponseCycle(
            scope=cast("HTTPScope", scope),
            transport=cast("asyncio.Transport", Parting(self)),
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=lambda: None,
        )

    # ------------------------------------------------------------ what the parser says

    @property
    def upgrades(self) -> bool:
        """Whether what the parser says now is said of a request that will be read again."""
        return self.parser.should_upgrade()

    def on_message_begin(self) -> None:
        """A request begins."""
        self.reading, self.headed = True, False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is here."""
        if not self.upgrades:
            self._root()
            super().on_headers_complete()
            self.headed, self.barren = True, 0  # not before: what can't be told from a target is no request yet

    def _root(self) -> None:
        """A target of a host alone, as a proxy is sent it, is that host's root (RFC 9112, 3.2)."""
        if not self.url.startswith((b"/", b"*")) and not (target := parse_url(self.url)).path:
            self.url = b"/" if target.query is None else b"/?" + target.query

    def on_body(self, body: bytes) -> None:
        """Some of a body is here."""
        self.barren = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is whole."""
        if not self.upgrades:
            self.reading, self.barren = False, 0
            super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.running = cycle  # uvicorn would tell only the last one that was read that its caller has gone
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller has gone."""
        super().connection_lost(exc)
        if self.running is not None and not self.running.response_complete:
            self.running.disconnected = True
            self.running.message_event.set()


class Parting:
    """A connection's transport for its last answer: when that is out, the other end has time to read it."""

    def __init__(self, connection: Grammar) -> None:
        self._transport, self._loop, self._flow = connection.transport, connection.loop, connection.flow

    def __getattr__(self, name: str) -> Any:
        """Whatever else it can."""
        return getattr(self._transport, name)

    def close(self) -> None:
        """Say that there is no more; what comes is thrown away for a while."""
        if self._transport.is_closing():
            return
        self._transport.write(b"")  # what is kept back goes now
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._flow.resume_reading()
        self._loop.call_later(LINGER, self._transport.close)


def refuser(books: Books) -> ASGI3Application:
    """The app that answers what can't be read."""
    return cast("ASGI3Application", Telemetry(_refused, books=books))


async def _refused(scope: Scope, receive: Receive, send: Send) -> None:
    await refusal(scope, scope["broken"]).response(scope, receive, send)


def _fault(error: HttpParserError | Malformed) -> Exception:
    """What the parser complains of, in our own terms; what one of its listeners raised may be a mistake of ours."""
    if isinstance(error, Malformed):
        return error
    cause = error.__context__
    if isinstance(error, HttpParserCallbackError) and not isinstance(cause, HttpParserError | ValueError | None):
        return cast("Exception", cause)
    return Malformed(f"what was sent can't be read as HTTP/1.1: {cause or error}")

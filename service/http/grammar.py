"""Grammar: uvicorn's connection, where an upgrade isn't taken and what is no HTTP is refused in our words.

Clients that would rather speak HTTP/2 (Java's, curl --http2) ask for it with their first request, and are content with
an answer in HTTP/1.1. The parser takes what follows such a head for another protocol, and the body would be lost.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.errors import Malformed
from service.http.errors import refusal

if TYPE_CHECKING:
    from service.http.front import Front

SAID = "this can't be read as HTTP/1.1: a method, a header or a chunk is not as it has to be"


class Grammar(HttpToolsProtocol):
    """A connection, whose bytes are fed to its parser. What comes of them is told by headed and ended."""

    front: Front
    reading = False  # whether a request's message has begun and not ended

    def renew(self) -> None:
        """Read what comes next as a request from its beginning."""
        self.parser = HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's

    def feed(self, data: bytes) -> None:
        """Have the parser read some bytes."""
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade as asked:
            (end,) = asked.args
            self._decline(data[end:])
        except HttpParserError:
            self._refuse()

    def _decline(self, rest: bytes) -> None:
        """Read a request that asks for another protocol again, as if it didn't; its body is still to come."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":  # another protocol whatever its headers say
            self._refuse()
            return
        lines = [b"%b: %b\r\n" % (name, value) for name, value in self.headers if name != b"upgrade"]
        head = b"%b %b HTTP/%b\r\n%b\r\n" % (method, self.url, version, b"".join(lines))
        self.renew()
        self.feed(head + rest)

    def _refuse(self) -> None:
        """Say that this is no HTTP, and end the connection: nobody knows where another request would begin."""
        books = self.front.books
        visit = books.open(None)
        visit.status = 400
        path = "/v2" if self.reading and self.url.startswith(b"/v2") else "/v1"
        found = refusal({"path": path, "headers": (), "visit": visit}, Malformed(SAID))
        heads = [
            *self.server_state.default_headers,
            (b"content-length", b"%d" % len(found.body)),
            (b"x-request-id", visit.id.encode()),
            (b"server-timing", visit.timing(time.perf_counter() - visit.arrived).encode()),
            (b"connection", b"close"),
        ]
        lines = b"".join(b"%b: %b\r\n" % head for head in heads)
        self.transport.write(b"%b%b%b\r\n%b" % (STATUS_LINE[400], lines, found.lines, found.body))
        self.transport.close()
        books.close(visit, "", path)

    def on_message_begin(self) -> None:
        """A request begins."""
        self.reading = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """A request's head is here; one that asks for another protocol is read again."""
        if not self.parser.should_upgrade():
            self.headed()

    def on_message_complete(self) -> None:
        """A request is whole, and one that asks for another protocol isn't."""
        if not self.parser.should_upgrade():
            self.ended()

    def headed(self) -> None:
        """A request's head is here: it is the app's."""
        super().on_headers_complete()

    def ended(self) -> None:
        """A request is whole."""
        super().on_message_complete()

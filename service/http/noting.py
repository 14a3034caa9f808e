"""Noting: a connection's transport that notes what is said on it, for whoever has to answer when this process can't."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from service.debts import ALL, Debts, Note

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from service.http.front import Connection

HEAD = b"HTTP/1.1 "
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"  # no answer: that is still owed


class Noting:
    """A transport, and the line that is kept of it. An answer is noted first and sent then.

    The app sends a head and then a body, and an answer of which the head has gone can't be given by anyone else: so
    what comes in the same turn of the loop goes together.
    """

    __slots__ = (
        *("_before", "_connection", "_debts", "_descriptor", "_kept", "_note", "_said", "_settled", "_transport"),
        *("_write", "get_extra_info", "is_closing", "pause_reading", "resume_reading", "v2"),
    )

    def __init__(
        self, transport: asyncio.Transport, connection: Connection, debts: Debts, descriptor: int, note: Note
    ) -> None:
        self._transport, self._connection = transport, connection
        self._debts, self._descriptor, self._note = debts, descriptor, note
        self._before = self._said = self._settled = 0
        self.v2 = False
        self._kept = b""
        self._write = transport.write
        self.is_closing = transport.is_closing
        self.pause_reading, self.resume_reading = transport.pause_reading, transport.resume_reading
        self.get_extra_info = transport.get_extra_info

    def __getattr__(self, name: str) -> Any:
        """Whatever is asked for seldom."""
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send an answer or a part of one, to all that has been heard so far."""
        connection = self._connection
        if connection.running is not None or connection.reading or connection.pipeline:
            self._write_part(connection, data)
            return
        heard = connection.heard
        if heard != self._settled:
            self._before, self._settled = self._said, heard
        self._said = said = self._said + len(data)
        self._note(self._before, said, heard)
        self._write(data)

    def _write_part(self, connection: Connection, data: bytes) -> None:
        """The same for what comes in parts, before a request is whole, or is no answer."""
        kept, running = self._kept, connection.running
        if not kept and running is not None and self._begins(running, data):
            self._kept = data
            connection.loop.call_soon(self._flush)
            return
        heard = self._met(connection)
        if data == CONTINUE:
            heard, self._before = self._settled, self._said
        elif heard != self._settled:
            self._before, self._settled = self._said, heard
        self._said += len(kept) + len(data)
        self._note(self._before, self._said, heard)
        if kept:
            self._kept = b""
            self._transport.writelines((kept, data))
        else:
            self._write(data)

    def _met(self, connection: Connection) -> int:
        """Bytes that are met once this answer is sent: less than were read, where they hold requests behind it."""
        behind = len(connection.pipeline)
        if connection.reading:
            if connection.headed or connection.deaf:  # its body is still to come, unless it stands in the pipeline
                return connection.heard - behind if behind else ALL
            behind += 1
        return connection.heard - behind  # less by each, so that every answer has a number of its own

    def _begins(self, running: RequestResponseCycle, data: bytes) -> bool:
        return not running.response_complete and data.startswith(HEAD) and data != CONTINUE

    def _flush(self) -> None:
        if self._kept and not self._transport.is_closing():
            self.write(b"")

    def close(self) -> None:
        """Close it, once all was sent."""
        self._flush()
        self._transport.close()

    def whole(self) -> None:
        """A request is whole: what comes now is another."""
        if self._settled == ALL:
            self._settled = self._connection.heard
            self._note(self._before, self._said, self._settled)

    def nothing(self) -> None:
        """What was read is no request, nor a part of one: nothing is owed for it."""
        heard = self._connection.heard
        if heard != self._settled:
            self._settled = heard
            self._note(self._before, self._said, heard)

    def speaks(self, v2: bool) -> None:
        """Note the protocol of the request that is read."""
        if v2 is not self.v2:
            self.v2 = v2
            self._debts.speaks(self._descriptor, v2)

    def forget(self) -> None:
        """The connection has ended: nothing more is noted, and it isn't kept."""
        self._debts.closed(self._descriptor)
        self._connection.noting = None
        self._connection, self._note = GONE, nowhere  # the line may be another's by now


class Gone:
    """What stands for a connection that has ended: nothing more is written on it."""

    running, reading, heard, noting, pipeline = None, False, 0, None, ()


GONE: Any = Gone()


def nowhere(before: int, said: int, heard: int) -> None:
    """Where what has ended is noted."""


def noted(transport: asyncio.Transport, connection: Connection, debts: Debts) -> asyncio.Transport:
    """A transport that notes what is said, where there is room for its line; the same one where there isn't."""
    descriptor = transport.get_extra_info("socket").fileno()
    note = debts.opened(descriptor)
    if note is None:
        return transport
    connection.noting = noting = Noting(transport, connection, debts, descriptor, note)
    return cast("asyncio.Transport", noting)

"""The client: HTTP/1.1 over kept-alive connections of an event loop, cheap enough to share its cores with a server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from benchmarks.load import Ask

END = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer: its status, its head as bytes, its body."""

    status: int
    head: bytes
    body: bytes

    def header(self, name: str) -> str | None:
        """A header by its name."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name.lower().encode():
                return value.strip().decode()
        return None


def written(ask: Ask, method: str = "POST", more: Mapping[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    headers = {"Host": "127.0.0.1", "Content-Length": str(len(ask.body)), **ask.headers, **(more or {})}
    told = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {ask.path} HTTP/1.1\r\n{told}\r\n".encode() + ask.body


class Connection(asyncio.Protocol):
    """One connection, one request at a time. ConnectionError where the server closes it before it has answered."""

    def __init__(self) -> None:
        self._kept = bytearray()
        self._answer: asyncio.Future[Reply] | None = None
        self._transport: asyncio.Transport | None = None
        self._size = -1  # of the whole answer, once its head is there
        self._head = 0

    @classmethod
    async def open(cls, port: int) -> Connection:
        """A new one."""
        _, protocol = await asyncio.get_running_loop().create_connection(cls, "127.0.0.1", port)
        return protocol

    async def ask(self, request: bytes) -> Reply:
        """Send a request and wait for all of its answer."""
        return await self.send(request)

    def send(self, request: bytes) -> asyncio.Future[Reply]:
        """Send a request; what will be its answer."""
        if self._transport is None or self._transport.is_closing():
            raise ConnectionError("the server has closed the connection")
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def leave(self, request: bytes = b"") -> None:
        """Close; a request given is sent before, and nobody waits for its answer."""
        if self._transport and not self._transport.is_closing():
            self._transport.write(request)
            self._transport.close()

    # ---------------------------------------------------------------- as a protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep what to write to."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass of it

    def data_received(self, data: bytes) -> None:
        """Answer whoever waits, once the whole answer is there."""
        self._kept += data
        if self._size < 0:
            end = self._kept.find(END)
            if end < 0:
                return
            head = bytes(self._kept[:end]).lower()
            _, _, length = head.partition(b"\r\ncontent-length:")  # not the one of inference-header-
            self._head, self._size = end, end + len(END) + int(length.split(b"\r\n")[0] or 0)
        if len(self._kept) >= self._size and self._answer and not self._answer.done():
            head, body = bytes(self._kept[: self._head]), bytes(self._kept[self._head + len(END) : self._size])
            del self._kept[: self._size]
            self._size = -1
            self._answer.set_result(Reply(int(head[9:12]), head, body))

    def connection_lost(self, error: Exception | None) -> None:
        """Tell whoever waits."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(ConnectionError(str(error or "the server closed the connection")))

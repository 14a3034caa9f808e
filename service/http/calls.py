"""Calls: one request at the front, step by step. Knows its connection, and no operation."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Coroutine
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.errors import Late, Problem
from service.http.errors import refusal
from service.http.exchange import Drop, Heard, Held
from service.http.jobs import Job, Reply

if TYPE_CHECKING:
    from service.http.front import Connection, Route

CLOSE = b"connection: close\r\n"
LARGE, WIDEST = 65_536, 8  # bytes of a body whose tensors are to be aligned, and of the widest number in them


class Told:
    """Stands in for the event that uvicorn sets for an app that waits; nobody waits here."""

    def set(self) -> None:
        """Nothing."""


TOLD = Told()


class Call:
    """One request at the front, in the place of uvicorn's cycle, whose attributes it has."""

    __slots__ = (
        *("_connection", "_drop", "_heads", "_held", "_job", "_parts", "_query", "_route", "_size", "_task", "_timer"),
        *("disconnected", "keep_alive", "message_event", "response_complete", "visit"),
    )

    def __init__(self, connection: Connection, route: Route, heads: dict[bytes, bytes], query: bytes) -> None:
        self._connection, self._route, self._heads, self._query = connection, route, heads, query
        self._parts: list[bytes] = []
        self._size = 0
        self._held = Held(connection.front.desk.memory)
        self._job: Job | None = None
        self._drop: Drop | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.visit = connection.front.books.open(heads.get(b"x-request-id"))
        self.response_complete = self.disconnected = False
        self.keep_alive = connection.parser.should_keep_alive()
        self.message_event = TOLD

    def learn(self, head: bytes) -> None:
        """Its head and it came in one piece: what comes under the same head may take the express."""
        self._connection.front.learn(head, self._route, self._heads, self._query)

    # ------------------------------------------------------------ in

    def begin(self) -> None:
        """The head is here: what can be refused by it is, and its time runs."""
        try:
            self._job = self._route.begin(self._aligned(self._heard()), self.visit)
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

    def _aligned(self, heard: Heard) -> Heard:
        """Have tensors behind JSON lie where any dtype wants them: with a few spaces before it, JSON means the same.

        A large body is put together here anyway; elsewhere it would be copied once more, as a whole.
        """
        after, size = heard.tensors_after or "", int(self._heads.get(b"content-length", b"0"))
        if (
            not self._route.finder.aligns
            or size < LARGE
            or heard.content_encoding
            or not re.fullmatch("[1-9][0-9]{0,11}", after)
            or int(after) >= size
        ):
            return heard
        if not (spaces := -int(after) % WIDEST):
            return heard
        self._parts.append(b" " * spaces)
        return replace(heard, tensors_after=str(int(after) + spaces))

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
        # No header of those that the front takes changes an error's answer.
        found = refusal({"path": self._route.path, "headers": (), "visit": self.visit}, error)
        self._write(found.status, found.lines, found.body)

    def _write(self, status: int, heads: bytes, text: bytes) -> None:
        """The whole answer, and what comes after it."""
        if self.response_complete:
            return
        connection, visit = self._connection, self.visit
        books, transport = connection.front.books, connection.transport
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
        self._connection.front.books.close(self.visit, "POST", self._route.path)

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

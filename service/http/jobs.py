"""Jobs: an operation's request from its whole body to its answer's bytes. Knows no connection and no ASGI.

There is one kind for each protocol that operations are spoken to in. A job is begun with a request's head; then it is
either done at once, without a task, or worked on in one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from service.errors import Problem
from service.http import wire
from service.http.exchange import INLINE, Desk, Drop, Heard, Held, Operation, checked, off_loop, signed
from service.http.telemetry import Visit

Reply = tuple[bytes, bytes]  # headers, each ended as HTTP ends lines, and the body
Tell = Callable[[Reply | Exception], None]


class Job:
    """One request's work. Whatever it raises is answered as a problem."""

    def quick(self, content: bytes, held: Held, tell: Tell) -> Drop | None:
        """Begin without a task, and say how to give up; None where it takes one, or nothing is gained without."""
        raise NotImplementedError

    async def work(self, content: bytes, held: Held, clock: asyncio.Timeout) -> Reply:
        """The answer to a body; clock is the request's deadline, which a body may name too."""
        raise NotImplementedError

    def failed(self) -> None:
        """The request was refused, or its caller has gone."""


class Described(Job):
    """A request on /v1."""

    __slots__ = ("_desk", "_form", "_heard", "_model", "_operation", "_visit")

    def __init__(
        self, desk: Desk, operation: Operation[Any], name: str, version: str | None, heard: Heard, visit: Visit
    ) -> None:
        self._desk, self._operation, self._heard, self._visit = desk, operation, heard, visit
        self._form, self._model = desk.begin(heard, operation, visit, name, version)

    def quick(self, content: bytes, held: Held, tell: Tell) -> Drop | None:
        """See Job: small scores in JSON."""
        operation, desk, model, heard = self._operation, self._desk, self._model, self._heard
        if operation.quick is None or len(content) > INLINE or heard.content_encoding or self._form != wire.JSON:
            return None
        started = time.perf_counter()
        model.check()  # before a body is parsed that there is no time for
        body = desk.parse(heard, operation, model, content)
        held.resize(0 if body.array is None else body.array.nbytes)
        self._visit.parse = time.perf_counter() - started
        asked = checked(operation.fields, body, operation.array)
        return operation.quick(desk, model, asked, body.array, self._visit, partial(self._told, tell))

    def _told(self, tell: Tell, found: Mapping[str, Any] | Problem) -> None:
        if isinstance(found, Problem):
            tell(found)
            return
        try:
            reply = self._reply(wire.write(self._form, signed(self._model, found)))
        except Exception as error:
            tell(error)
        else:
            tell(reply)

    async def work(self, content: bytes, held: Held, _: asyncio.Timeout) -> Reply:
        """See Job."""
        answer = await self._desk.work(self._heard, self._operation, self._visit, self._model, content, held)
        return self._reply(await off_loop(wire.size(answer), lambda: wire.write(self._form, answer)))

    def _reply(self, text: bytes) -> Reply:
        return HEADS[self._form], text


HEADS = {form: b"content-type: " + form.encode() + b"\r\n" for form in (wire.JSON, wire.NPZ)}


class Finder:
    """Which job a path of /v1 stands for, if any."""

    def __init__(self, desk: Desk, operations: Mapping[str, Operation[Any]]) -> None:
        self._desk, self._operations = desk, operations

    def __call__(self, parts: Sequence[str]) -> Callable[[Heard, Visit], Job] | None:
        """What begins the job, by the path's parts."""
        match parts:
            case ["", "v1", "models", model, name] if model and name in self._operations:
                return partial(Described, self._desk, self._operations[name], model, None)
            case ["", "v1", "models", model, "versions", version, name] if (
                model and version and name in self._operations
            ):
                return partial(Described, self._desk, self._operations[name], model, version)
        return None

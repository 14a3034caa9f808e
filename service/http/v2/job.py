"""Job: an inference on the lane, from its whole body to its answer's bytes. Knows no connection."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from service.errors import Problem
from service.http.exchange import INLINE, Drop, Heard, Held
from service.http.jobs import Job, Reply, Tell
from service.http.telemetry import Visit
from service.http.v2 import answer
from service.http.v2.infer import Window, composed, effort, parsed, prepared
from service.http.v2.request import Inference


class Inferred(Job):
    """A request to infer."""

    __slots__ = ("_heard", "_served", "_visit", "_wanted", "_window")

    def __init__(self, window: Window, name: str, version: str | None, heard: Heard, visit: Visit) -> None:
        self._window, self._heard, self._visit = window, heard, visit
        self._served = window.begin(heard, visit, name, version)

    def quick(self, content: bytes, held: Held, tell: Tell) -> Drop | None:
        """See Job: small scores, uncompressed."""
        heard, served, window = self._heard, self._served, self._window
        operation, desk = served.operation, window.desk
        small = effort(heard.tensors_after, len(content)) <= INLINE
        if operation.quick is None or not small or heard.content_encoding or heard.accept_encoding:
            return None
        started = time.perf_counter()
        served.model.check()
        wanted = parsed(content, None, heard.tensors_after, served, desk.limits)
        held.resize(wanted.nbytes)
        self._visit.parse = time.perf_counter() - started
        if wanted.timeout is not None:
            window.hurry(heard, self._visit, wanted.timeout)
        fields, array = prepared(served, wanted)
        return operation.quick(desk, served.model, fields, array, self._visit, partial(self._told, wanted, tell))

    def _told(self, wanted: Inference, tell: Tell, found: Mapping[str, Any] | Problem) -> None:
        if isinstance(found, Problem):
            tell(found)
            return
        started = time.perf_counter()
        try:
            reply = _reply(*composed(self._served, wanted, answer.flat(found), None))
        except Exception as error:
            tell(error)
            return
        self._window.tally.succeeded(self._served, self._visit, time.perf_counter() - started)
        tell(reply)

    async def work(self, content: bytes, held: Held, clock: asyncio.Timeout) -> Reply:
        """See Job."""
        headers, body, written = await self._window.work(self._heard, self._served, self._visit, content, held, clock)
        self._window.tally.succeeded(self._served, self._visit, written)
        return _reply(headers, body)

    def failed(self) -> None:
        """Count it."""
        self._window.tally.failed(self._served, self._visit)


def _reply(headers: Mapping[str, str], body: bytes) -> Reply:
    return b"".join([f"{name}: {value}\r\n".encode() for name, value in headers.items()]), body


class Finder:
    """Which job a path of /v2 stands for, if any."""

    def __init__(self, window: Window) -> None:
        self._window = window

    def __call__(self, parts: Sequence[str]) -> Callable[[Heard, Visit], Job] | None:
        """What begins the job, by the path's parts."""
        match parts:
            case ["", "v2", "models", model, "infer"] if model:
                return partial(Inferred, self._window, model, None)
            case ["", "v2", "models", model, "versions", version, "infer"] if model and version:
                return partial(Inferred, self._window, model, version)
        return None

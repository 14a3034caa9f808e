"""Jobs: an operation's request from its whole body to its answer's bytes. Knows no connection and no ASGI.

There is one kind for each protocol that operations are spoken to in. A job is begun with a request's head; then it is
either done at once, without a task, or worked on in one.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from service.artifact import Array
from service.errors import Problem
from service.http import wire
from service.http.exchange import INLINE, Desk, Drop, Heard, Held, Operation, checked, find, off_loop, signed
from service.http.express import Entry
from service.http.scores import Columns, Score
from service.http.telemetry import Sitting, Visit
from service.models import Model

LARGEST = 262_144  # bytes of JSON that takes the express: some thousands of numbers more are parsed in a millisecond
HELD = 5  # times JSON, for it and what is read of it: two characters may be a double
Reply = tuple[bytes, bytes]  # headers, each ended as HTTP ends lines, and the body
Tell = Callable[[Reply | Exception], None]


class Job(ABC):
    """One request's work. Whatever it raises is answered as a problem."""

    @abstractmethod
    def quick(self, content: bytes, held: Held, tell: Tell) -> Drop | None:
        """Begin without a task, and say how to give up; None where it takes one, or nothing is gained without."""

    @abstractmethod
    async def work(self, content: bytes, held: Held, clock: asyncio.Timeout) -> Reply:
        """The answer to a body; clock is the request's deadline, which a body may name too."""

    def failed(self) -> None:  # noqa: B027  most have nothing to count
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
        model.check(self._visit.errand.deadline)  # before a body is parsed that there is no time for
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


class Scores:
    """How scores are spoken of on /v1, in JSON: what the express needs to know of it."""

    largest = LARGEST

    def __init__(self, desk: Desk, operation: Operation[Any], name: str, version: str | None) -> None:
        self._desk, self._operation, self._name, self._version = desk, operation, name, version
        self._seen: dict[tuple[Any, ...], Score] = {}  # fields that were found right

    def model(self) -> Model:
        """See Speaker."""
        return find(self._desk.models, self._name, self._version)

    def held(self, length: int) -> int:
        """See Speaker."""
        return length * HELD

    def spaces(self, _: int) -> int:
        """See Speaker: JSON takes none."""
        return 0

    def read(self, model: Model, body: bytes, _: int) -> tuple[Score, Array, None]:
        """See Speaker."""
        limits = self._desk.limits
        read = wire.read_json(body, "inputs", limits, tuple(model.manifest.event_shape))
        if read.array is None:
            raise ValueError("no rows")
        kinds = tuple(map(type, read.fields.values()))
        given = *read.fields.items(), *kinds  # their types too: 16.0 is no number of draws, and equals 16
        numbers = {int, float}.issuperset(kinds)
        if numbers and (known := self._seen.get(given)) is not None:
            asked = known
        else:
            asked = checked(self._operation.fields, read, "inputs")
            if numbers and len(self._seen) < SEEN:
                self._seen[given] = asked
        limits.check(len(read.array), asked.draws or model.draws)
        return asked, read.array, None

    def write(self, columns: Columns, start: int, stop: int, entry: Entry) -> Reply:
        """See Speaker."""
        return HEADS[wire.JSON], wire.dumps(signed(columns.model, columns.fields(start, stop, entry.asked.alpha)))

    def forget(self) -> None:
        """There is nothing of a model here."""

    def count(self, sitting: Sitting, seconds: float) -> None:
        """There is nothing more to note."""


SEEN = 64  # combinations of fields that are remembered
HEADS = {form: b"content-type: " + form.encode() + b"\r\n" for form in (wire.JSON, wire.NPZ)}


class Finder:
    """Which job a path of /v1 stands for, if any."""

    aligns = False

    def __init__(self, desk: Desk, operations: Mapping[str, Operation[Any]]) -> None:
        self._desk, self._operations = desk, operations

    def scores(self, parts: Sequence[str], heads: Mapping[bytes, bytes]) -> Scores | None:
        """Who speaks of scores at a path, to requests with these headers, where the express serves them."""
        usual = heads.keys() <= {b"content-type", b"content-length", b"accept", b"accept-encoding"}
        said = heads.get(b"accept", b"*/*") in (b"*/*", b"application/json")
        if not usual or not said or heads.get(b"content-type", b"application/json") != b"application/json":
            return None
        match parts:
            case ["", "v1", "models", model, "score"]:
                return Scores(self._desk, self._operations["score"], model, None)
            case ["", "v1", "models", model, "versions", version, "score"]:
                return Scores(self._desk, self._operations["score"], model, version)
        return None

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

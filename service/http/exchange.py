"""The exchange: one request's body in, its deadline kept, its answer out. Knows no operation."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.artifact import Array, Manifest
from service.door import Door
from service.errors import (
    Fault,
    Invalid,
    Late,
    Malformed,
    Overloaded,
    Problem,
    TooLarge,
    Unknown,
    Unreadable,
    invalid,
    pointer,
)
from service.http import wire
from service.http.errors import Gone
from service.http.telemetry import Visit
from service.http.wire import Body, Limits
from service.models import Model, Models
from service.operations import Keeping

T = TypeVar("T")
F = TypeVar("F", bound="Fields")

INLINE = 131_072  # bytes of a body, or numbers of an answer, that are handled without leaving the event loop
UNPACKING = 4  # compressed bodies that are unpacked and parsed at once
MOST_FAULTS = 16  # that an answer lists


class Fields(BaseModel):
    """An operation's fields besides its array; nothing unknown, and nothing taken for what it isn't."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Work = Callable[["Desk", Model, F, Any, Visit], Coroutine[Any, Any, Mapping[str, Any]]]
Answered = Callable[[Mapping[str, Any] | Problem], None]
Drop = Callable[[], None]
# The same without waiting: who is to be told, and how to say that nobody is any more. None where it has to wait.
Quick = Callable[["Desk", Model, F, Any, Visit, Answered], Drop | None]


@dataclass(frozen=True, slots=True)
class Operation(Generic[F]):
    """An operation as it is spoken to: its name, its fields, the array that comes beside them, and the work.

    answer and about are for its page: what it gives, and what the array is. The work's docstring is the page's text.
    quick does the work of small requests without a task. withheld says why a model doesn't offer it, and None where it
    does. One that changes anything is never done for the
    page.
    """

    name: str
    fields: type[F]
    answer: type[BaseModel]
    work: Work[F]
    array: str | None = None
    about: str = ""
    withheld: Callable[[Manifest], str | None] = lambda _manifest: None
    changes: bool = False
    quick: Quick[F] | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """What a request's head says that matters here, as it was sent; lists are joined, and what wasn't sent is None."""

    content_type: str | None = None
    content_encoding: str | None = None
    accept: str | None = None
    timeout: str | None = None
    query: Sequence[tuple[str, str]] = ()
    accept_encoding: str | None = None
    tensors_after: str | None = None  # Inference-Header-Content-Length, of the Open Inference Protocol


class Memory:
    """The bytes that all requests together may hold in bodies and arrays, while they are read and computed."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    @contextmanager
    def held(self) -> Iterator[Held]:
        """One request's share; given back at the end, whatever that is."""
        held = Held(self)
        try:
            yield held
        finally:
            self.taken -= held.size


@dataclass(slots=True)
class Held:
    """One request's share of the memory."""

    memory: Memory
    size: int = 0

    def resize(self, size: int) -> None:
        """Hold so many bytes from now on; Overloaded where others hold too many for that."""
        others = self.memory.taken - self.size
        if size > self.size and others and others + size > self.memory.limit:
            raise Overloaded(f"requests hold {others} of {self.memory.limit} bytes already")
        self.memory.taken = others + size
        self.size = size


@dataclass(frozen=True, slots=True)
class Desk:
    """What every operation's route is handed: models, limits, door, memory, deadlines, where calibrations are kept."""

    models: Models
    limits: Limits
    door: Door
    memory: Memory
    timeout: float
    longest: float
    keeping: Keeping | None = None
    unpacking: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UNPACKING))

    async def serve(self, request: Request, operation: Operation[F]) -> Response:
        """One request from its headers to its answer: exactly one, in time, to a caller who is still there."""
        visit: Visit = request.scope["visit"]
        heard = hear(request)
        form, model = self.begin(
            heard, operation, visit, request.path_params["model"], request.path_params.get("version")
        )
        try:
            async with asyncio.timeout_at(visit.errand.deadline):
                with self.memory.held() as held:
                    content = await read_body(request, self.limits.body_bytes, held)
                    answer = await while_there(request, self.work(heard, operation, visit, model, content, held))
                text = await off_loop(wire.size(answer), lambda: wire.write(form, answer))
        except TimeoutError:
            raise Late("the deadline passed before the answer was ready") from None
        return Response(text, media_type=form)

    def begin(
        self, heard: Heard, operation: Operation[Any], visit: Visit, name: str, version: str | None
    ) -> tuple[str, Model]:
        """The form of the answer and the model that gives it; refuses what needs no body to be refused."""
        visit.operation = operation.name
        self.door.check()
        visit.errand.deadline, visit.errand.served = self.deadline(heard, visit), True
        form = wire.negotiate(heard.accept)
        model = find(self.models, name, version)
        visit.model = name
        if reason := operation.withheld(model.manifest):
            raise Unknown(reason)
        return form, model

    async def work(
        self, heard: Heard, operation: Operation[Any], visit: Visit, model: Model, content: bytes, held: Held
    ) -> dict[str, Any]:
        """An operation's answer to a body."""
        started = time.perf_counter()

        def parsed() -> Body:
            return self.parse(heard, operation, model, content)

        if (heard.content_encoding or "identity") == "identity":
            body = await off_loop(len(content), parsed)
        else:  # a few bytes may become as many as are allowed, so few do at once; the others wait
            async with self.unpacking:
                body = await asyncio.to_thread(parsed)
        held.resize(0 if body.array is None else body.array.nbytes)
        visit.parse = time.perf_counter() - started
        asked = checked(operation.fields, body, operation.array)
        return signed(model, await operation.work(self, model, asked, body.array, visit))

    def parse(self, heard: Heard, operation: Operation[Any], model: Model, content: bytes) -> Body:
        """A body's fields and array."""
        event = tuple(model.manifest.event_shape)
        if operation.array == "latents":
            event = (model.manifest.latent_size,)
        nulls = model.manifest.missing and operation.array == "inputs"
        return parse(heard, content, operation.array, self.limits, event, nulls)

    def count(self, visit: Visit, rows: Array, draws: int = 1, most: int | None = None) -> None:
        """Hold a request to the limits, and note its rows; most is another limit for the draws."""
        visit.rows = len(rows) if rows.ndim else 0
        self.limits.check(visit.rows, draws, most)

    def deadline(self, heard: Heard, visit: Visit) -> float:
        """When the answer is late, in the loop's clock, counted from the request's headers."""
        timeout = self.timeout
        if (asked := heard.timeout) is not None:
            if not re.fullmatch(r"[0-9]{1,12}", asked) or int(asked) == 0:
                raise Malformed("X-Timeout-Ms is not a whole number of milliseconds above 0")
            timeout = min(int(asked) / 1e3, self.longest)
        return asyncio.get_running_loop().time() - (time.perf_counter() - visit.arrived) + timeout


def signed(model: Model, found: Mapping[str, Any]) -> dict[str, Any]:
    """An answer with the model that gave it."""
    return {"model": model.manifest.name, "version": model.manifest.version, **found}


def hear(request: Request) -> Heard:
    """What a request's head says."""
    return Heard(
        header(request, "content-type"),
        header(request, "content-encoding"),
        header(request, "accept"),
        header(request, "x-timeout-ms"),
        request.query_params.multi_items(),
        header(request, "accept-encoding"),
        header(request, "inference-header-content-length"),
    )


def find(models: Models, name: str, version: str | None) -> Model:
    """A model by what stands in the path."""
    return models.get(name, number(version))


def number(version: str | None) -> int | None:
    """A version as it stands in the path, if one does: a positive integer."""
    if version is not None and not re.fullmatch(r"[1-9][0-9]{0,8}", version):
        raise Unknown(f"{version!r} is not a version; versions are positive integers")
    return None if version is None else int(version)


def header(request: Request, name: str) -> str | None:
    """A header, if it was sent; its lines are one list (RFC 9110, 5.3)."""
    lines = request.headers.getlist(name)
    return ", ".join(lines) if lines else None


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do a request's work unless its caller leaves; uvicorn only tells those who ask.

    The work stays in this task, which is cancelled when the caller leaves: a task less for each request.
    """
    caller, gone = asyncio.current_task(), False
    assert caller is not None

    def leave(_: asyncio.Task[None]) -> None:
        nonlocal gone
        gone = caller.cancel()

    leaving = asyncio.create_task(_left(request))
    leaving.add_done_callback(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not gone:
            raise
        caller.uncancel()
        raise Gone from None
    finally:
        leaving.remove_done_callback(leave)
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def read_body(request: Request, limit: int, held: Held) -> bytes:
    """The body's bytes, never more than the limit; Content-Length is believed only when it says too much.

    One that can't be read raises what the connection says of it.
    """
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit:
        raise TooLarge(f"the body of {declared} bytes is over the limit of {limit} bytes")
    parts: list[bytes] = []
    size = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise Gone
        if fault := request.scope.get("broken"):
            raise fault
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLarge(f"the body is over the limit of {limit} bytes")
        held.resize(size)
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def parse(
    heard: Heard, content: bytes, array: str | None, limits: Limits, event: tuple[int, ...], nulls: bool = False
) -> Body:
    """A body's fields and array, whatever form they came in; event is the shape of one of the array's rows.

    With nulls, a null in the array is a value that is missing.
    """
    kind = wire.media_type(heard.content_type)
    content = wire.decompress(content, heard.content_encoding, limits.body_bytes)
    if kind == wire.NPY:
        if array is None:
            raise Unreadable(f"this operation takes no array; send {wire.JSON}")
        query = dict(heard.query)
        if len(query) < len(heard.query):
            raise invalid("", "a query parameter is given twice")
        return Body(query, wire.read_npy(content, array), query=True)
    if heard.query:
        raise invalid(pointer(heard.query[0][0]), f"with {wire.JSON} this belongs into the body, not into the query")
    if not content and array is None:
        return Body({}, None)
    return wire.read_json(content, array, limits, event, nulls)


def checked(fields: type[F], body: Body, array: str | None) -> F:
    """The fields as their model has them; Invalid points at each that isn't right."""
    if array is not None and body.array is None:
        raise invalid(f"/{array}", "is missing")
    if body.query and (
        faults := [fault for name, word in body.fields.items() if (fault := _inexact(fields, name, word))]
    ):
        raise Invalid(*faults)
    try:
        # Query parameters are text, so there "16" is the number 16; in JSON it is not.
        return fields.model_validate(body.fields, strict=not body.query)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        faults = [Fault(pointer(*fault["loc"]), _reason(fault["msg"])) for fault in found[:MOST_FAULTS]]
        more = [Fault("", f"and {len(found) - MOST_FAULTS} more")] if len(found) > MOST_FAULTS else []
        raise Invalid(*faults, *more) from None


def _inexact(fields: type[Fields], name: str, word: str) -> Fault | None:
    """What is wrong with text for a whole number that isn't one's digits: pydantic would take 16.0 and 1_6 for 16."""
    known = fields.model_fields.get(name)
    if known is None or int not in (known.annotation, *get_args(known.annotation)):
        return None
    if re.fullmatch(r"-?[0-9]+", word, re.ASCII):
        return None
    return Fault(pointer(name), "is not a whole number in digits, as 16 is")


def _reason(message: str) -> str:
    return "is not a field of this operation" if message.startswith("Extra inputs") else message


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Work on so many bytes or numbers: here if they are few, else on a thread."""
    return work() if size <= INLINE else await asyncio.to_thread(work)

"""Infer: one request of the protocol from its headers to its answer. Knows no operation."""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.artifact import Array
from service.errors import Late, Malformed
from service.http.exchange import Desk, Heard, Held, checked, hear, off_loop, read_body, while_there
from service.http.telemetry import Visit
from service.http.v2 import answer, encodings, request
from service.http.v2.answer import Answer
from service.http.v2.request import Inference
from service.http.v2.served import Served, Shelf
from service.http.v2.tally import Tally
from service.http.wire import JSON, Body, Limits

LENGTH = "Inference-Header-Content-Length"
BINARY = "application/octet-stream"
COPYING = 16  # bytes of a buffer that are copied, at the least, in the time that one of JSON takes to be read
PACKING = 64  # numbers that are written in the time that one takes to be compressed


@dataclass(frozen=True, slots=True)
class Window:
    """Where inferences are asked for: the desk that does them, the shelf of models, and the tally that is kept."""

    desk: Desk
    shelf: Shelf
    tally: Tally

    async def infer(self, asked: Request) -> Response:
        """One request: exactly one answer, in time, to a caller who is still there."""
        visit: Visit = asked.scope["visit"]
        heard, parts = hear(asked), asked.path_params
        served = self.begin(heard, visit, parts["model"], parts.get("version"))
        try:
            async with asyncio.timeout_at(visit.errand.deadline) as clock:
                with self.desk.memory.held() as held:
                    content = await read_body(asked, self.desk.limits.body_bytes, held)
                    work = self.work(heard, served, visit, content, held, clock)
                    headers, body, written = await while_there(asked, work)
        except TimeoutError:
            self.tally.failed(served, visit)
            raise Late("the deadline passed before the answer was ready") from None
        except Exception:
            self.tally.failed(served, visit)
            raise
        self.tally.succeeded(served, visit, written)
        return Response(body, 200, headers)

    def begin(self, heard: Heard, visit: Visit, name: str, version: str | None) -> Served:
        """The model that is asked; refuses what needs no body to be refused."""
        self.desk.door.check()
        visit.errand.deadline, visit.errand.served = self.desk.deadline(heard, visit), True
        served = self.shelf.find(name, version)
        visit.operation, visit.model = served.operation.name, served.model.manifest.name
        return served

    async def work(
        self,
        heard: Heard,
        served: Served,
        visit: Visit,
        content: bytes,
        held: Held,
        clock: asyncio.Timeout,
        *,
        wanted: Inference | None = None,
    ) -> tuple[dict[str, str], bytes, float]:
        """The answer's headers and body, and the seconds that writing it took; wanted is a body that was read."""
        desk = self.desk
        wanted = wanted or await self._read(heard, served, visit, content, held)
        if wanted.timeout is not None:
            self.hurry(heard, visit, wanted.timeout)
            clock.reschedule(visit.errand.deadline)
        fields, array = prepared(served, wanted)
        found = await served.operation.work(desk, served.model, fields, array, visit)
        started = time.perf_counter()
        answered = answer.flat(found, wanted)
        numbers = answered.numbers * (PACKING if heard.accept_encoding else 1)
        headers, body = await off_loop(numbers, lambda: composed(served, wanted, answered, heard.accept_encoding))
        return headers, body, time.perf_counter() - started

    async def _read(self, heard: Heard, served: Served, visit: Visit, content: bytes, held: Held) -> Inference:
        """The body, parsed, and its memory accounted for."""
        limits, encoding, length = self.desk.limits, heard.content_encoding, heard.tensors_after
        started = time.perf_counter()

        def work() -> Inference:
            return parsed(content, encoding, length, served, limits)

        if (encoding or "identity") == "identity":
            wanted = await off_loop(effort(length, len(content)), work)
        else:  # a few bytes may become as many as are allowed, so few do at once; the others wait
            async with self.desk.unpacking:
                wanted = await asyncio.to_thread(work)
        held.resize(wanted.nbytes)
        visit.parse = time.perf_counter() - started
        return wanted

    def hurry(self, heard: Heard, visit: Visit, timeout: float) -> None:
        """Take a deadline from the body, which like the header's runs from the request's headers on."""
        loop = asyncio.get_running_loop().time()
        deadline = loop - (time.perf_counter() - visit.arrived) + min(timeout, self.desk.longest)
        if heard.timeout is not None:
            deadline = min(deadline, visit.errand.deadline)
        visit.errand.deadline = deadline


# ---------------------------------------------------------------- what needs no request, only its bytes


def parsed(content: bytes, encoding: str | None, length: str | None, served: Served, limits: Limits) -> Inference:
    """What a body asks of a model, by its Content-Encoding and its Inference-Header-Content-Length."""
    body = encodings.unpack(content, encoding, limits.body_bytes)
    nulls = served.model.manifest.missing and served.operation.array == "inputs"
    wanted = request.read(body, request.header_length(length, len(body)), served.inputs, limits, nulls)
    _check_outputs(served, wanted)
    return wanted


def effort(length: str | None, size: int) -> int:
    """Bytes of JSON that a body is worth the work of: buffers are copied at most."""
    if not length or not length.isdecimal() or len(length) > 15 or not 0 < int(length) <= size:
        return size
    return int(length) + (size - int(length)) // COPYING


def _check_outputs(served: Served, wanted: Inference) -> None:
    """Refuse an output that the model never gives, before any work is done."""
    for output in wanted.outputs:
        if output.name not in served.known:
            close = difflib.get_close_matches(output.name[:80], served.known, n=1)
            hint = f"did you mean {close[0]}?" if close else "its metadata lists what it has"
            raise Malformed(f"{served.name} has no output {output.name[:80]}; {hint}")


def prepared(served: Served, wanted: Inference) -> tuple[Any, Array | None]:
    """The operation's fields and its array, as /v1 would have them; an output that needs a field sets it."""
    operation = served.operation
    given: Mapping[str, Any] = wanted.parameters
    if needs := [served.extra[output.name] for output in wanted.outputs if output.name in served.extra]:
        brought = {name: value for need in needs for name, value in need.items()}
        given = brought | dict(given)
    if operation.array is None:
        return checked(operation.fields, Body(_counted(given, wanted.inputs), None), None), None
    array = wanted.inputs[operation.array]
    return checked(operation.fields, Body(given, array), operation.array), array


def _counted(given: Mapping[str, Any], inputs: Mapping[str, Array]) -> Mapping[str, Any]:
    """An operation without rows takes its count as a tensor of one number, or as a parameter."""
    if (count := inputs.get("count")) is None:
        return given
    if "count" in given:
        raise Malformed("count is given as an input and as a parameter")
    if count.size != 1 or count.dtype.kind not in "iu":
        raise Malformed("input count is not one whole number")
    return {**given, "count": int(count.reshape(()))}


def composed(served: Served, wanted: Inference, found: Answer, accepted: str | None) -> tuple[dict[str, str], bytes]:
    """An answer's headers and its body, by the request's Accept-Encoding.

    The length of the JSON is there only where buffers follow, and is that of what was compressed.
    """
    outputs = answer.chosen(found, wanted)
    length, body = answer.write(served.name, served.version, wanted, found.scalars, outputs)
    headers = {"Content-Type": JSON} if length is None else {"Content-Type": BINARY, LENGTH: str(length)}
    if encoding := encodings.accepted(accepted, len(body)):
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
        body = encodings.pack(body, encoding)
    return headers, body

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
from service.http.errors import Gone
from service.http.exchange import Desk, Held, checked, header, off_loop, read_body, while_there
from service.http.telemetry import Visit
from service.http.v2 import answer, encodings, request
from service.http.v2.answer import Answer
from service.http.v2.request import Inference
from service.http.v2.served import Served, Shelf
from service.http.v2.tally import Tally
from service.http.wire import Body

LENGTH = "Inference-Header-Content-Length"


@dataclass(frozen=True, slots=True)
class Window:
    """Where inferences are asked for: the desk that does them, the shelf of models, and the tally that is kept."""

    desk: Desk
    shelf: Shelf
    tally: Tally

    async def infer(self, asked: Request) -> Response:
        """One request: exactly one answer, in time, to a caller who is still there."""
        visit: Visit = asked.scope["visit"]
        self.desk.door.check()
        visit.errand.deadline, visit.errand.served = self.desk.deadline(asked), True
        served = self.shelf.find(asked.path_params["model"], asked.path_params.get("version"))
        visit.operation, visit.model = served.operation.name, served.model.manifest.name
        try:
            async with asyncio.timeout_at(visit.errand.deadline) as clock:
                response, written = await self._serve(asked, served, visit, clock)
        except TimeoutError:
            self.tally.failed(served, visit)
            raise Late("the deadline passed before the answer was ready") from None
        except (Exception, Gone):
            self.tally.failed(served, visit)
            raise
        self.tally.succeeded(served, visit, written)
        return response

    async def _serve(
        self, asked: Request, served: Served, visit: Visit, clock: asyncio.Timeout
    ) -> tuple[Response, float]:
        """The answer, and the seconds that writing it took."""
        desk = self.desk
        with desk.memory.held() as held:
            wanted = await self._read(asked, served, visit, held)
            if wanted.timeout is not None:
                self._hurry(visit, wanted.timeout, clock)
            fields, array = prepared(served, wanted)
            found = await while_there(asked, served.operation.work(desk, served.model, fields, array, visit))
        started = time.perf_counter()
        response = await _written(served, wanted, answer.flat(found), header(asked, "accept-encoding"))
        return response, time.perf_counter() - started

    async def _read(self, asked: Request, served: Served, visit: Visit, held: Held) -> Inference:
        """The body, read and parsed, and its memory accounted for."""
        limits = self.desk.limits
        content = await read_body(asked, limits.body_bytes, held)
        started = time.perf_counter()
        encoding, length = header(asked, "content-encoding"), header(asked, LENGTH)
        nulls = served.model.manifest.missing and served.operation.array == "inputs"

        def work() -> Inference:
            body = encodings.unpack(content, encoding, limits.body_bytes)
            return request.read(body, request.header_length(length, len(body)), served.inputs, limits, nulls)

        if (encoding or "identity") == "identity":
            wanted = await off_loop(_effort(length, len(content)), work)
        else:  # a few bytes may become as many as are allowed, so few do at once; the others wait
            async with self.desk.unpacking:
                wanted = await asyncio.to_thread(work)
        held.resize(wanted.nbytes)
        visit.parse = time.perf_counter() - started
        _check_outputs(served, wanted)
        return wanted

    def _hurry(self, visit: Visit, timeout: float, clock: asyncio.Timeout) -> None:
        """Take a deadline from the body, which like the header's runs from the request's headers on."""
        loop = asyncio.get_running_loop().time()
        deadline = loop - (time.perf_counter() - visit.arrived) + min(timeout, self.desk.longest)
        visit.errand.deadline = deadline
        clock.reschedule(deadline)


def _effort(length: str | None, size: int) -> int:
    """Bytes of a body that are worked on: buffers are only looked at."""
    return min(size, int(length)) if length and length.isdecimal() and len(length) < 16 and length != "0" else size


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


async def _written(served: Served, wanted: Inference, found: Answer, accepted: str | None) -> Response:
    """The answer as it goes over the wire."""
    outputs = answer.chosen(found, wanted)
    numbers = sum(len(one) if isinstance(one, list) else one.size for _, one, _ in outputs)

    def work() -> tuple[int | None, bytes, str | None]:
        length, body = answer.write(served.name, served.version, wanted, found.scalars, outputs)
        encoding = encodings.accepted(accepted, len(body))
        return length, encodings.pack(body, encoding) if encoding else body, encoding

    effort = numbers * (8 if accepted else 1)
    length, body, encoding = await off_loop(effort, work)
    return _response(length, body, encoding)


def _response(length: int | None, body: bytes, encoding: str | None) -> Response:
    """Its headers; the length of the JSON is there only where buffers follow, and is that of what was compressed."""
    headers = {} if length is None else {LENGTH: str(length)}
    if encoding:
        headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
    return Response(body, 200, headers, media_type="application/json" if length is None else "application/octet-stream")

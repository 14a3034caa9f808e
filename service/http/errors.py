"""Errors on the wire: one table from class to status, and the problem body (RFC 9457). Knows no operation."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from service import errors

log = logging.getLogger(__name__)

STATUSES: Mapping[type[Exception], int] = {
    errors.Malformed: 400,
    errors.Unauthorised: 401,
    errors.Unknown: 404,
    errors.Unspeakable: 406,
    errors.TooLarge: 413,
    errors.HeadTooLarge: 431,
    errors.Unreadable: 415,
    errors.NotLoaded: 422,
    errors.Invalid: 422,
    errors.Overloaded: 429,
    errors.NotReady: 503,
    errors.Late: 503,
    errors.Interrupted: 503,
    errors.Unkept: 503,
    errors.Problem: 500,
    Exception: 500,
}


TITLES = {status.value: status.phrase for status in HTTPStatus}


class Gone(Exception):
    """The caller left before the answer; nothing is sent, and 499 is what the log calls it."""


def status_of(error: Exception) -> int:
    """The status of an error, by the nearest class that the table knows."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an error is answered with; headers are by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def lines(self) -> bytes:
        """The headers as lines, without the body's length."""
        return "".join([f"{name}: {value}\r\n" for name, value in self.headers.items()]).encode("latin-1")

    @property
    def response(self) -> Response:
        """The same as an app answers it."""
        return Response(self.body, self.status, self.headers)


async def answer_problem(request: Request, error: Exception) -> Response:
    """The answer to anything in our own tree of errors, and to a bug."""
    return refusal(request.scope, error).response


def refusal(scope: Scope, error: Exception) -> Refusal:
    """The same without an app: a refusal is to cost little, since overload is made of them."""
    status = status_of(error)
    if status == 500:
        return _ours(scope, error)
    headers: dict[str, str] = {}
    if isinstance(error, errors.Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    faults = error.faults if isinstance(error, errors.Invalid) else ()
    return problem(scope, status, str(error), type(error).__name__, faults, headers)


async def answer_http(request: Request, error: Exception) -> Response:
    """The answer to what the router refuses: no such path, or another method."""
    assert isinstance(error, HTTPException)
    detail = {
        404: f"there is nothing at {request.url.path}; /docs lists what there is",
        405: f"{request.method} is not offered at {request.url.path}",
    }.get(error.status_code, error.detail)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    return problem(request.scope, error.status_code, detail, "Unknown", (), headers).response


async def answer_gone(_: Request, __: Exception) -> Response:
    """A response for the books; its connection is closed already."""
    return Response(status_code=499)


def _ours(scope: Scope, error: Exception) -> Refusal:
    """Our own mistake: the caller gets a reference, the log gets the rest."""
    reference: str = scope["visit"].id
    log.error("reference %s", reference, exc_info=error)
    return problem(scope, 500, f"this is our mistake; its reference is {reference}", "Ours", (), {})


def speaks_v2(scope: Scope) -> bool:
    """Whether a request is one of the Open Inference Protocol."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    return path == "/v2" or path.startswith("/v2/")


def problem(
    scope: Scope,
    status: int,
    detail: str,
    kind: str,
    faults: tuple[errors.Fault, ...],
    headers: dict[str, str],
) -> Refusal:
    """A problem body, RFC 9457, or the Open Inference Protocol's where that is spoken.

    The connection stays: the server reads what is left of a body and throws it away, where closing would reset the
    connection under a client that still sends, before it has seen the answer. One that waits for 100-continue may
    not send its body at all, and then nobody knows where the next request begins.
    """
    if any(name == b"expect" for name, _ in scope["headers"]):
        headers = {**headers, "connection": "close"}
    if speaks_v2(scope):
        return Refusal(status, {**headers, "content-type": "application/json"}, _written({"error": detail}))
    body = {
        "type": f"urn:vae-serve:problem:{kind.lower()}",
        "title": TITLES[status],
        "status": status,
        "detail": detail,
        "errors": [{"pointer": fault.pointer, "reason": fault.reason} for fault in faults],
        "request_id": scope["visit"].id,
    }
    return Refusal(status, {**headers, "content-type": "application/problem+json"}, _written(body))


def _written(body: Mapping[str, object]) -> bytes:
    """JSON of what may quote the caller; a half of a character in it, which UTF-8 can't hold, is a question mark."""
    try:
        return orjson.dumps(body)
    except TypeError:
        return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")

"""Errors on the wire: one table from class to status, and the problem body (RFC 9457). Knows no operation."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
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


class Gone(Exception):
    """The caller left before the answer; nothing is sent, and 499 is what the log calls it."""


def status_of(error: Exception) -> int:
    """The status of an error, by the nearest class that the table knows."""
    return next(STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES)


async def answer_problem(request: Request, error: Exception) -> Response:
    """The answer to anything in our own tree of errors, and to a bug."""
    return refusal(request, error)


def refusal(request: Request, error: Exception) -> Response:
    """The same for who doesn't wait."""
    status = status_of(error)
    if status == 500:
        return _ours(request, error)
    headers: dict[str, str] = {}
    if isinstance(error, errors.Unavailable):
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    faults = error.faults if isinstance(error, errors.Invalid) else ()
    return problem(request, status, str(error), type(error).__name__, faults, headers)


async def answer_http(request: Request, error: Exception) -> Response:
    """The answer to what the router refuses: no such path, or another method."""
    assert isinstance(error, HTTPException)
    detail = {
        404: f"there is nothing at {request.url.path}; /docs lists what there is",
        405: f"{request.method} is not offered at {request.url.path}",
    }.get(error.status_code, error.detail)
    return problem(request, error.status_code, detail, "Unknown", (), dict(error.headers or {}))


async def answer_gone(_: Request, __: Exception) -> Response:
    """A response for the books; its connection is closed already."""
    return Response(status_code=499)


def _ours(request: Request, error: Exception) -> Response:
    """Our own mistake: the caller gets a reference, the log gets the rest."""
    reference = request_id(request)
    log.error("reference %s", reference, exc_info=error)
    return problem(request, 500, f"this is our mistake; its reference is {reference}", "Ours", (), {})


def speaks_v2(scope: Scope) -> bool:
    """Whether a request is one of the Open Inference Protocol."""
    path: str = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
    return path == "/v2" or path.startswith("/v2/")


def request_id(request: Request) -> str:
    """The id that telemetry gave the request."""
    return str(request.scope["visit"].id)


def problem(
    request: Request,
    status: int,
    detail: str,
    kind: str,
    faults: tuple[errors.Fault, ...],
    headers: dict[str, str],
) -> Response:
    """A problem body, RFC 9457, or the Open Inference Protocol's where that is spoken.

    The connection stays: the server reads what is left of a body and throws it away, where closing would reset the
    connection under a client that still sends, before it has seen the answer. One that waits for 100-continue may
    not send its body at all, and then nobody knows where the next request begins.
    """
    if "expect" in request.headers:
        headers = {**headers, "Connection": "close"}
    if speaks_v2(request.scope):
        return Response(orjson.dumps({"error": detail}), status, headers, media_type="application/json")
    body = {
        "type": f"urn:vae-serve:problem:{kind.lower()}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "errors": [{"pointer": fault.pointer, "reason": fault.reason} for fault in faults],
        "request_id": request_id(request),
    }
    return Response(orjson.dumps(body), status, headers, media_type="application/problem+json")

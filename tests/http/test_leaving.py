"""Clients on real sockets: one that leaves, one that is slow, one that sends too much."""

from __future__ import annotations

import gc
import http.client
import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.http.front import Connection
from tests.kit import NPY, Gate, configured, digits, listening, npy, wait_until

LIMIT = 2**20


@pytest.fixture
def gated(small: Path) -> Iterator[tuple[str, FastAPI, Gate]]:
    """The service with one lane behind a gate, and room for 64 waiting decoder rows."""
    gate = Gate()
    settings = configured(small, lanes=1, waiting=64, max_body_bytes=LIMIT)
    with listening(settings, opener=gate.opener) as (address, app):
        try:
            yield address, app, gate
        finally:
            gate.open()


def _score(count: int, seed: int = 0) -> bytes:
    return json.dumps({"inputs": digits(count, seed).tolist()}).encode()


@contextmanager
def _calling(address: str, body: bytes, length: int | None = None) -> Iterator[socket.socket]:
    """A socket on which a score was asked for."""
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/models/tiny/score HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length or len(body)}\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        caller.sendall(head.encode() + body)
        yield caller


def _waiting(app: FastAPI) -> int:
    return int(app.state.models.get("tiny").doors["score"].waiting)


def test_rows_of_a_client_that_leaves_are_never_computed(gated: tuple[str, FastAPI, Gate]) -> None:
    """Its room is given back, its neighbours get the numbers that they always get, and the books call it 499."""
    address, app, gate = gated
    with httpx.Client(base_url=address) as client, ThreadPoolExecutor() as callers:

        def ask(body: bytes) -> httpx.Response:
            return httpx.post(f"{address}/v1/models/tiny/score", content=body, timeout=20)

        wanted = [ask(_score(1, seed)).content for seed in (1, 2)]
        gate.shut()
        first = callers.submit(ask, _score(1, 1))
        assert gate.waits.wait(20)
        with _calling(address, _score(3)):
            wait_until(lambda: _waiting(app) == 48)
            second = callers.submit(ask, _score(1, 2))
            wait_until(lambda: _waiting(app) == 64)
            assert ask(_score(1, 3)).status_code == 429
        wait_until(lambda: _waiting(app) == 16)  # the socket is closed, and nothing was computed
        gate.open()
        assert [first.result().content, second.result().content] == wanted
        assert gate.rows("elbo") == 2
        wait_until(lambda: 'status="499"' in client.get("/metrics").text)


def test_a_client_that_leaves_while_its_rows_are_computed_costs_nothing(gated: tuple[str, FastAPI, Gate]) -> None:
    """The call ends, its answer is dropped, and the next caller is served."""
    address, app, gate = gated
    gate.shut()
    with _calling(address, _score(2)):
        assert gate.waits.wait(20)
    wait_until(lambda: app.state.door.inside == 0)
    gate.open()
    assert httpx.post(f"{address}/v1/models/tiny/score", content=_score(1)).status_code == 200
    assert _waiting(app) == 0


def test_a_client_that_leaves_within_its_body_costs_nothing(gated: tuple[str, FastAPI, Gate]) -> None:
    """Half a body is no request."""
    address, app, gate = gated
    gate.shut()
    with _calling(address, _score(1)[:50], length=500):
        wait_until(lambda: app.state.door.inside == 1)
    wait_until(lambda: app.state.door.inside == 0)
    assert gate.calls == []


def test_a_body_that_comes_too_slowly_is_a_503(gated: tuple[str, FastAPI, Gate]) -> None:
    """The deadline runs from the request's headers."""
    address, _, _ = gated
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        head = "POST /v1/models/tiny/score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nX-Timeout-Ms: 100\r\n\r\n{"
        caller.sendall(head.encode())
        assert caller.recv(100).startswith(b"HTTP/1.1 503")


def test_a_body_over_the_limit_gets_its_413_over_a_socket(gated: tuple[str, FastAPI, Gate]) -> None:
    """A client that sends all before it looks for an answer is told, not cut off; its connection goes on."""
    address, _, _ = gated
    caller = http.client.HTTPConnection(address.removeprefix("http://"), timeout=20)
    with closing(caller):
        for body, status in ((bytes(20 * LIMIT), 413), (_score(1), 200), (bytes(LIMIT + 1), 413), (_score(1), 200)):
            caller.request("POST", "/v1/models/tiny/score", body, {"Content-Type": "application/json"})
            response = caller.getresponse()
            assert (response.status, bool(response.read())) == (status, True)


@pytest.mark.parametrize("declared", [True, False])
def test_a_413_names_the_limit_to_whoever_streams(gated: tuple[str, FastAPI, Gate], declared: bool) -> None:
    """With a length that was declared, and without."""
    address, _, _ = gated
    content = bytes(20 * LIMIT) if declared else (bytes(2**16) for _ in range(20 * LIMIT // 2**16))
    response = httpx.post(f"{address}/v1/models/tiny/score", content=content, timeout=20)
    assert response.status_code == 413
    assert str(LIMIT) in response.json()["detail"]


def test_who_waits_for_100_continue_is_refused_before_the_body(gated: tuple[str, FastAPI, Gate]) -> None:
    """A client that asks first needn't send what is too much, and the connection ends there."""
    address, _, _ = gated
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        head = f"POST /v1/models/tiny/score HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT + 1}\r\n"
        caller.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        answer = b""
        while part := caller.recv(4096):
            answer += part
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer.lower()


def test_who_waits_for_100_continue_is_told_to_go_on(gated: tuple[str, FastAPI, Gate]) -> None:
    """A body that may come is asked for, and answered."""
    address, _, _ = gated
    host, port = address.removeprefix("http://").split(":")
    body = _score(1)
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        head = f"POST /v1/models/tiny/score HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        caller.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert caller.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        caller.sendall(body)
        assert caller.recv(4096).startswith(b"HTTP/1.1 200")


def test_a_connection_is_kept_after_a_refusal(gated: tuple[str, FastAPI, Gate]) -> None:
    """A client's mistake costs it no new connection."""
    address, _, _ = gated
    with httpx.Client(base_url=address) as client:
        for body, status in ((b"{", 400), (b"{}", 422), (_score(1), 200)) * 2:
            response = client.post("/v1/models/tiny/score", content=body)
            assert response.status_code == status
            assert response.headers.get("connection") != "close"


def test_a_client_that_leaves_with_more_than_one_request_underway_costs_nothing(
    gated: tuple[str, FastAPI, Gate], caplog: pytest.LogCaptureFixture
) -> None:
    """Over ASGI the one that is being answered hears of it: its rows are never computed, and nothing is logged."""
    address, app, gate = gated
    host, port = address.removeprefix("http://").split(":")
    gate.shut()
    body = _score(1)
    chunked = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    head = b"POST /v1/models/tiny/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        caller.sendall((head + chunked) * 2 + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")
        assert gate.waits.wait(20)
    wait_until(lambda: app.state.door.inside == 0)
    gate.open()
    with httpx.Client(base_url=address) as client:
        assert client.post("/v1/models/tiny/score", content=body).status_code == 200
        assert 'operation="score",status="499"} 1.0' in client.get("/metrics").text
    assert not caplog.records


def test_a_connection_that_has_ended_is_gone_at_once(gated: tuple[str, FastAPI, Gate]) -> None:
    """It isn't left to the collector, which looks seldom: memory would grow until then."""
    address, _, _ = gated
    bodies: list[tuple[bytes, str]] = [
        (_score(1), "application/json"),
        (b"{", "application/json"),
        (npy(digits(2)), NPY),
    ]

    def kept() -> int:
        return sum(issubclass(type(one), Connection) for one in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        for body, form in bodies * 2:
            with httpx.Client(base_url=address) as client:
                client.get("/livez")
                client.post("/v1/models/tiny/score", content=body, headers={"content-type": form})
        wait_until(lambda: kept() == 0)
    finally:
        gc.enable()

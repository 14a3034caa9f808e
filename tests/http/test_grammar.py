"""Grammar: who would rather speak another protocol is answered in this one, and what is no HTTP is told so."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from tests.http.test_front import X, answers, connected, request
from tests.kit import configured, listening, wait_until

BODY = json.dumps({"inputs": X.tolist()}).encode()
H2C = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQCAAAAAAIAAAAA\r\n"
WEBSOCKET = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"


@pytest.fixture(scope="module")
def served(small: Path) -> Iterator[tuple[str, FastAPI]]:
    """The service on a socket."""
    with listening(configured(small, inline_us=1000)) as found:
        yield found


def asking(sent: bytes, upgrade: str) -> bytes:
    """A request that asks for another protocol."""
    return sent.replace(b"Host: x\r\n", b"Host: x\r\n" + upgrade.encode(), 1)


@pytest.mark.parametrize("upgrade", [H2C, WEBSOCKET])
@pytest.mark.parametrize("path", ["tiny/score", "tiny/encode", "tiny/nothing"])
def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one(
    served: tuple[str, FastAPI], path: str, upgrade: str
) -> None:
    """As Java's client and curl --http2 ask with their first: whole, in pieces, by the express, in a pipeline."""
    address, app = served
    wanted = httpx.post(f"{address}/v1/models/{path}", content=BODY, headers={"x-request-id": "one"})
    asked = asking(request(BODY, path, x_request_id="one"), upgrade)
    with connected(address) as caller:
        for pieces in ([asked], [asked], [asked[:90], asked[90:-200], asked[-200:]], [asked * 3]):
            for piece in pieces:
                caller.sendall(piece)
                time.sleep(0.01)  # so that they come one by one; whatever comes together is right too
            for status, headers, found in answers(caller, 3 if pieces == [asked * 3] else 1):
                assert (status, found) == (wanted.status_code, wanted.content)
                assert "upgrade" not in headers
    wait_until(lambda: app.state.door.inside == 0)


def test_a_chunked_body_after_such_a_head_is_read(served: tuple[str, FastAPI]) -> None:
    """By the app."""
    address, _ = served
    wanted = httpx.post(f"{address}/v1/models/tiny/score", content=BODY).content
    head = b"POST /v1/models/tiny/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with connected(address) as caller:
        caller.sendall(asking(head, H2C) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY))
        status, _, found = answers(caller, 1)[0]
        assert (status, found) == (200, wanted)
        caller.sendall(request(BODY))
        assert answers(caller, 1)[0][0] == 200


MISREAD = [
    "FOO {} HTTP/1.1\r\nHost: x\r\n\r\n",
    "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
    "POST {} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
    "POST {} HTTP/1.1\r\nHost: x\r\nno colon\r\n\r\n",
    "POST {} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
]


@pytest.mark.parametrize("sent", MISREAD)
@pytest.mark.parametrize("path", ["/v1/models/tiny/score", "/v2/models/tiny/infer"])
def test_what_is_no_http_is_a_400_in_the_words_of_its_protocol(
    served: tuple[str, FastAPI], path: str, sent: str
) -> None:
    """A problem, or the Open Inference Protocol's error where a path of it has been read; then the connection ends."""
    address, app = served
    with connected(address) as caller:
        caller.sendall(sent.format(path).encode())
        status, headers, text = answers(caller, 1)[0]
        assert caller.recv(1) == b""
    assert (status, headers["connection"]) == (400, "close")
    told = json.loads(text)
    if path.startswith("/v2") and sent.startswith("POST"):
        assert (headers["content-type"], set(told)) == ("application/json", {"error"})
    else:
        assert headers["content-type"] == "application/problem+json"
        assert (told["status"], told["request_id"]) == (400, headers["x-request-id"])
    wait_until(lambda: app.state.door.inside == 0)

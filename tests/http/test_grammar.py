"""What is not HTTP/1.1 is refused in our own words, in its turn, and the connection ends; nothing fills the log."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from service.http.grammar import HEAD
from tests.http.test_front import answers, connected, request
from tests.kit import PATIENCE, Gate, configured, digits, listening, wait_until

GOOD = json.dumps({"inputs": digits(3).tolist()}).encode()
CHUNKED = b"POST %b HTTP/1.1\r\nHost: x\r\nX-Request-Id: mine\r\nTransfer-Encoding: chunked\r\n\r\n"
V1, V2 = b"/v1/models/tiny/score", b"/v2/models/tiny/infer"
BAD = {
    "no request": b"what is this\r\n\r\n",
    "another protocol": b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "no version": b"POST %b\r\n\r\n",
    "another version": b"POST %b HTTP/9.9\r\n\r\n",
    "words too many": b"POST %b and more HTTP/1.1\r\n\r\n",
    "a line that is no header": b"POST %b HTTP/1.1\r\nHost: x\r\nno header\r\n\r\n",
    "a length that is none": b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: many\r\n\r\n",
    "two lengths": b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
    "a target without a host": b"POST http:///x HTTP/1.1\r\nHost: x\r\n\r\n",
    "a target that is none": b"GET http://[:: HTTP/1.1\r\nHost: x\r\n\r\n",
    "a path past ASCII": b"POST %b\xff HTTP/1.1\r\nHost: x\r\n\r\n",
    "a chunk without a size": CHUNKED + b"3\r\nabc\r\nno size\r\n",
    "a chunk that is longer than it says": CHUNKED + b"3\r\nabcdef\r\n",
    "a proxy's": b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "a long head": b"POST %b HTTP/1.1\r\nHost: x\r\nCookie: " + b"x" * (8 * HEAD),
    "long trailers": CHUNKED + b"3\r\nabc\r\n0\r\nTrailer: " + b"x" * (8 * HEAD),
    "a long word behind a chunk's size": CHUNKED + b"3;" + b"x" * (8 * HEAD),
    "nothing but empty lines": b"\r\n" * (4 * HEAD),
}


@pytest.fixture(scope="module")
def served(small: Path) -> Iterator[tuple[str, FastAPI]]:
    """The service on a socket, computing small batches on its loop."""
    with listening(configured(small, inline_us=1000)) as found:
        yield found


def counted(address: str, status: int) -> float:
    """How many requests were answered so."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    wanted = [line for line in lines if line.startswith("vae_serve_requests_total") and f'status="{status}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in wanted)


@pytest.mark.parametrize("path", [V1, V2])
@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_like_anything_else(
    served: tuple[str, FastAPI], name: str, path: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """With a problem, or an error on /v2, an id, and the end of the connection; counted, and no warning in the log."""
    address, app = served
    sent = BAD[name].replace(b"%b", path)
    status = 431 if len(sent) > HEAD else 400
    before = counted(address, status)
    with caplog.at_level(logging.WARNING), connected(address) as caller:
        caller.sendall(sent)
        found, headers, text = answers(caller, 1)[0]
        assert caller.recv(1) == b""
    assert found == status
    assert headers["connection"] == "close"
    assert headers["x-request-id"]
    assert "server-timing" in headers
    if path == V2 and b"/v2" in sent and name != "a path past ASCII":
        assert headers["content-type"] == "application/json"
        assert list(json.loads(text)) == ["error"]
    elif name != "a path past ASCII":
        assert headers["content-type"] == "application/problem+json"
        problem = json.loads(text)
        assert (problem["status"], problem["request_id"]) == (status, headers["x-request-id"])
        assert problem["detail"]
    if sent.startswith(CHUNKED[:4]) and b"mine" in sent:
        assert headers["x-request-id"] == "mine"
    assert counted(address, status) == before + 1
    assert not caplog.records
    wait_until(lambda: app.state.door.inside == 0)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("step", [1000, 7])
def test_what_is_owed_before_it_is_answered_first(served: tuple[str, FastAPI], name: str, step: int) -> None:
    """However it arrives: two whole requests have their answers, at the front or not, and then comes the refusal."""
    address, app = served
    sent = request(GOOD) + b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n" + BAD[name].replace(b"%b", V1)
    with connected(address) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, 4000, step):
            caller.sendall(sent[start : min(start + step, 4000)])
        caller.sendall(sent[4000:])
        found = [status for status, _, _ in answers(caller, 3)]
        assert caller.recv(1) == b""
    assert found == [200, 200, 431 if len(BAD[name]) > HEAD else 400]
    wait_until(lambda: app.state.door.inside == 0)


def test_who_goes_on_sending_has_the_refusal(served: tuple[str, FastAPI]) -> None:
    """Megabytes behind what can't be read are thrown away: closing on them would reset the answer."""
    address, _ = served
    with connected(address) as caller:
        caller.sendall(CHUNKED.replace(b"%b", V1) + b"no size\r\n")
        for _ in range(64):
            caller.sendall(bytes(2**16))
        assert [status for status, _, _ in answers(caller, 1)] == [400]
        assert caller.recv(1) == b""


def test_a_refusal_that_was_given_is_the_only_answer(served: tuple[str, FastAPI]) -> None:
    """A body that is refused by its head and then can't be read has one answer, and not two."""
    address, app = served
    with connected(address) as caller:
        caller.sendall(CHUNKED.replace(b"%b", b"/v1/models/nobody/score"))
        assert [status for status, _, _ in answers(caller, 1)] == [404]
        caller.sendall(b"no size\r\n")
        assert caller.recv(1) == b""
    wait_until(lambda: app.state.door.inside == 0)


UPGRADES = {
    "h2c": b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
}


@pytest.mark.parametrize("name", UPGRADES)
@pytest.mark.parametrize("step", [10**6, 7])
def test_who_asks_for_another_protocol_is_answered_in_this_one(
    served: tuple[str, FastAPI], name: str, step: int, caplog: pytest.LogCaptureFixture
) -> None:
    """With and without a body, chunked or not, on a connection that goes on, and without a word in the log."""
    address, app = served
    wish = b"Host: x\r\n" + UPGRADES[name]
    wanted = httpx.post(f"{address}{V1.decode()}", content=GOOD).content
    whole = request(GOOD).replace(b"Host: x\r\n", wish)
    chunked = CHUNKED.replace(b"%b", V1).replace(b"Host: x\r\n", wish) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    sent = (b"GET /livez HTTP/1.1\r\n" + wish + b"\r\n" + whole + chunked + request(GOOD)) * 2
    with caplog.at_level(logging.WARNING), connected(address) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(sent), step):
            caller.sendall(sent[start : start + step])
        found = answers(caller, 8)
    assert [status for status, _, _ in found] == [200] * 8
    assert [text for _, _, text in found][1:4] == [wanted] * 3
    assert not caplog.records
    wait_until(lambda: app.state.door.inside == 0)


def test_many_such_wishes_at_once_are_met_one_by_one(served: tuple[str, FastAPI]) -> None:
    """Thousands in one piece of what arrives."""
    address, _ = served
    sent = b"GET /livez HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n" * 3000
    with connected(address) as caller:
        caller.sendall(sent)
        assert [status for status, _, _ in answers(caller, 3000)] == [200] * 3000


@pytest.mark.parametrize("path", ["score", "encode", "nothing"])
def test_such_a_wish_changes_no_answer(served: tuple[str, FastAPI], path: str) -> None:
    """The first time, the next, in pieces and in a row, of what the front meets and what it refuses."""
    address, app = served
    wanted = httpx.post(f"{address}/v1/models/tiny/{path}", content=GOOD, headers={"x-request-id": "one"})
    asked = request(GOOD, f"tiny/{path}", x_request_id="one").replace(b"Host: x\r\n", b"Host: x\r\n" + UPGRADES["h2c"])
    with connected(address) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in (asked, asked, asked[:90], asked[90:-200], asked[-200:], asked * 3):
            caller.sendall(piece)
        for status, headers, found in answers(caller, 6):
            assert (status, found) == (wanted.status_code, wanted.content)
            assert "upgrade" not in headers
    wait_until(lambda: app.state.door.inside == 0)


@pytest.mark.parametrize("name", ["a target without a host", "a target that is none", "no request"])
def test_what_is_computed_is_answered_though_the_next_cannot_be_read(
    small: Path, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request at the front, and a chunked one, has its own answer while nonsense waits behind it."""
    gate = Gate()
    chunked = CHUNKED.replace(b"%b", V1) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(GOOD), GOOD)
    with listening(configured(small), opener=gate.opener) as (address, app):
        for sent in (request(GOOD), chunked):
            gate.shut()
            with caplog.at_level(logging.WARNING), connected(address) as caller:
                caller.sendall(sent)
                assert gate.waits.wait(PATIENCE)
                caller.sendall(BAD[name])
                wait_until(lambda: app.state.front.books.door.inside >= 1)
                gate.open()
                assert [status for status, _, _ in answers(caller, 2)] == [200, 400]
                assert caller.recv(1) == b""
    assert not [
        record for record in caplog.records if record.name != "service.footing"
    ]  # which finds drift, and is right


@pytest.mark.parametrize("target", ["http://x", "http://x?a=b", "http://x/livez"])
def test_a_target_may_name_the_host(served: tuple[str, FastAPI], target: str) -> None:
    """As a proxy is asked; that of a host alone is its root."""
    address, _ = served
    with connected(address) as caller:
        caller.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        status, headers, _ = answers(caller, 1)[0]
    assert (status, headers.get("location")) == ((200, None) if target.endswith("livez") else (307, "/docs"))

"""The front: what is answered in the protocol is answered as over ASGI, and a connection is never left in a muddle."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI
from uvicorn.server import ServerState

from service.debts import Debts, Line
from tests.kit import JSON, NPY, NPZ, Gate, configured, digits, listening, npy, open_house, until, wait_until

X = digits(3)
HEADERS = {"server-timing", "x-request-id", "date"}  # that differ from one answer to the next


@pytest.fixture(scope="module")
def served(small: Path) -> Iterator[tuple[str, FastAPI]]:
    """The service on a socket, computing small batches on its loop."""
    with listening(configured(small, inline_us=1000, max_body_bytes=2**20)) as found:
        yield found


@contextmanager
def connected(address: str) -> Iterator[socket.socket]:
    """A connection."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as caller:
        yield caller


def request(body: bytes, path: str = "tiny/score", **headers: str) -> bytes:
    """A POST as bytes; headers are named with underscores."""
    named = {"content-type": JSON, "content-length": str(len(body))}
    named |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = "".join(f"{name}: {value}\r\n" for name, value in named.items())
    return f"POST /v1/models/{path} HTTP/1.1\r\nHost: x\r\n{lines}\r\n".encode() + body


def answers(caller: socket.socket, count: int) -> list[tuple[int, dict[str, str], bytes]]:
    """The next answers on a connection: status, headers, body."""
    found = []
    with caller.makefile("rb") as stream:
        for _ in range(count):
            status = int(stream.readline().split()[1])
            headers = {key.lower(): value for key, value in http.client.parse_headers(stream).items()}
            found.append((status, headers, stream.read(int(headers["content-length"]))))
    return found


SAME: list[tuple[str, bytes, dict[str, str]]] = [
    ("tiny/score", json.dumps({"inputs": X.tolist()}).encode(), {}),
    ("tiny/score", json.dumps({"inputs": X.tolist(), "draws": 1}).encode(), {}),
    ("tiny/score", json.dumps({"inputs": X.tolist(), "draws": 40, "seed": 7, "explain": True}).encode(), {}),
    ("tiny/score", json.dumps({"inputs": X.tolist(), "fdr": 0.2, "correction": "simes"}).encode(), {}),
    ("tiny/versions/1/score", json.dumps({"inputs": X.tolist()}).encode(), {}),
    ("tiny/score", json.dumps({"inputs": X.tolist()}).encode(), {"accept": NPZ}),
    ("tiny/score?draws=20&alpha=0.1", npy(X), {"content-type": NPY}),
    ("tiny/score?draws=20&draws=3", npy(X), {"content-type": NPY}),
    ("tiny/score?draws=20", json.dumps({"inputs": X.tolist()}).encode(), {}),
    ("tiny/encode", json.dumps({"inputs": X.tolist(), "draws": 2}).encode(), {}),
    ("tiny/reconstruct", json.dumps({"inputs": X.tolist()}).encode(), {}),
    ("tiny/decode", b'{"latents": [[0.5, -1]]}', {}),
    ("tiny/sample", b'{"count": 2, "seed": 3}', {}),
    ("tiny/sample", b'{"seed": 9}', {"accept": NPZ}),
    ("tiny/evidence", json.dumps({"inputs": X.tolist(), "draws": 64}).encode(), {}),
    ("tiny/score", b"", {}),
    ("tiny/score", b'{"\\ud800": 1, "\\ud800": 1}', {}),
    ("tiny/encode", b'{"\\ud800": 1, "\\ud800": 1}', {}),
    ("tiny/score", b"{", {}),
    ("tiny/score", b"[]", {}),
    ("tiny/score", b'{"inputs": [[[1]]], "what": 3}', {}),
    ("tiny/score", json.dumps({"inputs": (X * 7).tolist()}).encode(), {}),
    ("tiny/score", json.dumps({"inputs": X.tolist()}).encode(), {"accept": "image/png"}),
    ("tiny/score", json.dumps({"inputs": X.tolist()}).encode(), {"content-type": "text/plain"}),
    ("tiny/score", json.dumps({"inputs": X.tolist()}).encode(), {"content-encoding": "br"}),
    ("tiny/score", json.dumps({"inputs": X.tolist()}).encode(), {"x-timeout-ms": "soon"}),
    ("tiny/score", json.dumps({"inputs": X.tolist()}).encode(), {"x-request-id": "mine-1"}),
    ("tiny/versions/zero/score", json.dumps({"inputs": X.tolist()}).encode(), {}),
    ("nobody/score", json.dumps({"inputs": X.tolist()}).encode(), {}),
    ("tiny/impute", json.dumps({"inputs": X.tolist()}).encode(), {}),
    ("tiny/nothing", b"{}", {}),
    ("ti%6Ey/score", json.dumps({"inputs": X.tolist()}).encode(), {}),
]


@pytest.mark.parametrize(("path", "body", "headers"), SAME)
def test_it_answers_as_the_app_does(
    served: tuple[str, FastAPI], path: str, body: bytes, headers: dict[str, str]
) -> None:
    """Status, headers and body are the same, for answers and for refusals; a chunked body is the app's."""
    address, _ = served
    sent = {"content-type": JSON, "x-request-id": "one", **headers}
    fast = httpx.post(f"{address}/v1/models/{path}", content=body, headers=sent, timeout=20)
    slow = httpx.post(f"{address}/v1/models/{path}", content=iter([body]), headers=sent, timeout=20)
    assert fast.status_code == slow.status_code, fast.text
    assert _told(fast) == _told(slow)
    kept = [{k: v for k, v in each.headers.items() if k not in HEADERS} for each in (fast, slow)]
    assert kept[0] == kept[1]
    assert fast.headers["x-request-id"] == slow.headers["x-request-id"]
    assert {span.split(";")[0].strip() for span in _spans(fast)} == {"parse", "queue", "infer", "total"}


TWICE = [("content-type", (JSON, "text/plain")), ("x-timeout-ms", ("1000", "2000")), ("accept", ("text/html", JSON))]


@pytest.mark.parametrize(("name", "values"), TWICE)
def test_a_header_that_is_sent_twice_is_one_list_to_both(
    served: tuple[str, FastAPI], name: str, values: tuple[str, str]
) -> None:
    """A body of two types is of none that we read, whoever reads it."""
    address, _ = served
    body = json.dumps({"inputs": X.tolist()}).encode()
    sent = [("x-request-id", "one"), *((name, value) for value in values)]
    fast = httpx.post(f"{address}/v1/models/tiny/score", content=body, headers=sent)
    slow = httpx.post(f"{address}/v1/models/tiny/score", content=iter([body]), headers=sent)
    assert (fast.status_code, fast.content) == (slow.status_code, slow.content)
    assert fast.status_code == {"content-type": 415, "x-timeout-ms": 400, "accept": 200}[name]


def _spans(response: httpx.Response) -> list[str]:
    return response.headers["server-timing"].split(",")


def _told(response: httpx.Response) -> Any:
    if response.headers.get("content-type") != NPZ:
        return response.content
    with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
        return {name: archive[name].tobytes() for name in archive.files}


def test_requests_in_a_pipeline_are_answered_in_their_order(served: tuple[str, FastAPI]) -> None:
    """Whether or not they are met at the front, and however they arrive."""
    address, _ = served
    bodies = [json.dumps({"inputs": digits(2, seed).tolist()}).encode() for seed in range(4)]
    wanted = [httpx.post(f"{address}/v1/models/tiny/score", content=body).content for body in bodies]
    livez = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    sent = request(bodies[0]) + livez + request(bodies[1]) + request(bodies[2]) + livez + request(bodies[3])
    for step in (len(sent), 777):
        with connected(address) as caller:
            for start in range(0, len(sent), step):
                caller.sendall(sent[start : start + step])
            found = answers(caller, 6)
        assert [status for status, _, _ in found] == [200] * 6
        assert [found[index][2] for index in (0, 2, 3, 5)] == wanted


def test_a_connection_is_kept_and_closed_as_the_caller_wants(served: tuple[str, FastAPI]) -> None:
    """After an answer or a refusal the next request is met; `Connection: close` is honoured."""
    address, _ = served
    good = json.dumps({"inputs": X.tolist()}).encode()
    with connected(address) as caller:
        for body, status in ((good, 200), (b"{", 400), (good, 200), (b"[]", 422), (good, 200)):
            caller.sendall(request(body))
            assert answers(caller, 1)[0][0] == status
        caller.sendall(request(good, connection="close"))
        status, headers, _ = answers(caller, 1)[0]
        assert (status, headers["connection"]) == (200, "close")
        assert caller.recv(1) == b""


@pytest.mark.parametrize("how", ["chunked", "expect", "http/1.0"])
def test_what_the_lane_leaves_alone_is_answered_by_the_app(served: tuple[str, FastAPI], how: str) -> None:
    """Chunked bodies, callers that wait for 100-continue, and HTTP/1.0."""
    address, _ = served
    body = json.dumps({"inputs": X.tolist()}).encode()
    wanted = httpx.post(f"{address}/v1/models/tiny/score", content=body).content
    with connected(address) as caller:
        if how == "chunked":
            head = b"POST /v1/models/tiny/score HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            caller.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        elif how == "expect":
            head, _, _ = request(body, expect="100-continue").partition(body)
            caller.sendall(head)
            assert caller.recv(1024).startswith(b"HTTP/1.1 100")
            caller.sendall(body)
        else:
            caller.sendall(request(body).replace(b"HTTP/1.1", b"HTTP/1.0"))
        status, _, found = answers(caller, 1)[0]
    assert (status, found) == (200, wanted)


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served: tuple[str, FastAPI]) -> None:
    """With the limit named, and without a byte of it."""
    address, _ = served
    with connected(address) as caller:
        caller.sendall(request(b"", content_length=str(2**20 + 1)))
        status, _, text = answers(caller, 1)[0]
    assert status == 413
    assert str(2**20) in text.decode()


def test_memory_and_places_are_given_back(served: tuple[str, FastAPI]) -> None:
    """After answers, refusals and callers that leave in the middle of a body, nothing is held and nobody inside."""
    address, app = served
    body = json.dumps({"inputs": digits(500).tolist()}).encode()
    for _ in range(3):
        assert httpx.post(f"{address}/v1/models/tiny/score", content=body).status_code == 200
        assert httpx.post(f"{address}/v1/models/tiny/score", content=body[:-1]).status_code == 400
        with connected(address) as caller:
            caller.sendall(request(body)[: len(body) // 2])
    wait_until(lambda: app.state.door.inside == 0)
    assert app.state.desk.memory.taken == 0


def test_when_requests_hold_too_much_a_body_is_refused_in_the_middle_and_the_connection_goes_on(small: Path) -> None:
    """The refusal comes at once; what is left of the body is thrown away, and the next request is met."""
    body = json.dumps({"inputs": digits(200).tolist()}).encode()
    gate = Gate()
    with listening(configured(small, max_held_bytes=len(body) + 1000), opener=gate.opener) as (address, app):
        with connected(address) as holder, connected(address) as caller:
            gate.shut()
            holder.sendall(request(body))
            assert gate.waits.wait(20)
            caller.sendall(request(body) + request(body[:-1]))
            first, second = answers(caller, 2)
            assert (first[0], second[0]) == (429, 429)
            gate.open()
            assert answers(holder, 1)[0][0] == 200
            caller.sendall(request(body))
            assert answers(caller, 1)[0][0] == 200
        assert app.state.desk.memory.taken == 0


@pytest.mark.parametrize("inline", [0, 1000])
def test_a_deadline_holds_at_the_front(small: Path, inline: int) -> None:
    """A request that can't be done in time is a 503, whoever computes; the next is answered."""
    gate = Gate()
    body = json.dumps({"inputs": X.tolist()}).encode()
    with listening(configured(small, lanes=1), opener=gate.opener) as (address, _):
        gate.shut()
        late = httpx.post(f"{address}/v1/models/tiny/score", content=body, headers={"x-timeout-ms": "100"})
        assert late.status_code == 503
        assert "deadline" in late.json()["detail"]
        gate.open()
        assert httpx.post(f"{address}/v1/models/tiny/score", content=body).status_code == 200
    with listening(configured(small, inline_us=inline)) as (address, _):
        found = httpx.post(f"{address}/v1/models/tiny/score", content=body, headers={"x-timeout-ms": "20000"})
        assert found.status_code == 200


@pytest.mark.parametrize("spaces", range(4))
def test_tensors_behind_json_are_read_wherever_they_lie(served: tuple[str, FastAPI], spaces: int) -> None:
    """A large body comes in many pieces, which are put together once; and what follows it is met after it."""
    address, app = served
    x = np.resize(digits(300), (1200, 8, 8)).astype("<f4")
    tensor = {"name": "inputs", "shape": x.shape, "datatype": "FP32", "parameters": {"binary_data_size": x.nbytes}}
    outputs = [{"name": "elbo", "parameters": {"binary_data": True}}]
    head = json.dumps({"parameters": {"draws": 1}, "inputs": [tensor], "outputs": outputs}).encode() + b" " * spaces
    named = {"content_type": "application/octet-stream", "inference_header_content_length": str(len(head))}
    asked = request(head + x.tobytes(), **named).replace(b"/v1/models/tiny/score", b"/v2/models/tiny/infer")
    small = request(json.dumps({"inputs": X.tolist(), "draws": 1}).encode())
    alone = httpx.post(f"{address}/v1/models/tiny/score", json={"inputs": x.tolist(), "draws": 1}, timeout=60)
    with connected(address) as caller:
        caller.sendall(small)
        wanted = answers(caller, 1)[0][2]
        for rest in (b"", small, asked):
            sender = threading.Thread(target=caller.sendall, args=(asked + rest,))
            sender.start()
            (status, headers, body), *after = answers(caller, 1 + bool(rest))
            assert status == 200
            elbo = np.frombuffer(body, "<f8", offset=int(headers["inference-header-content-length"]))
            assert elbo.tolist() == alone.json()["elbo"]
            assert [text for _, _, text in after] == [wanted if rest == small else body] * len(after)
            sender.join()
    wait_until(lambda: app.state.door.inside == 0)


@pytest.mark.parametrize("length", ["", "x", "0", "-8", "99999999", "123456789012345"])
def test_a_length_that_is_wrong_is_told_as_it_was_sent(served: tuple[str, FastAPI], length: str) -> None:
    """Nothing is aligned for a header that makes no sense."""
    address, _ = served
    body = b"{}" + b" " * 100_000
    asked = request(body, inference_header_content_length=length, content_type="application/octet-stream")
    with connected(address) as caller:
        caller.sendall(asked.replace(b"/v1/models/tiny/score", b"/v2/models/tiny/infer"))
        status, _, text = answers(caller, 1)[0]
    assert status == 400
    if length.isdigit() and length != "0":
        assert length in json.loads(text)["error"]


def test_a_length_of_json_is_nothing_to_v1(served: tuple[str, FastAPI]) -> None:
    """A header that only /v2 reads changes no body of another protocol."""
    address, _ = served
    asked = request(npy(np.resize(X, (1200, 8, 8))), "tiny/score?draws=1", content_type=NPY)
    with connected(address) as caller:
        caller.sendall(asked)
        wanted = answers(caller, 1)[0]
        caller.sendall(asked.replace(b"Host: x\r\n", b"Host: x\r\nInference-Header-Content-Length: 5\r\n"))
        found = answers(caller, 1)[0]
    assert (found[0], found[2]) == (200, wanted[2])


def test_nothing_is_met_after_the_last_answer(served: tuple[str, FastAPI]) -> None:
    """Requests behind one that closes the connection are not, in whatever pieces they come."""
    address, app = served
    last = request(json.dumps({"inputs": X.tolist()}).encode(), connection="close")
    sample = request(b'{"count":1}', "tiny/sample")

    def sampled() -> float:
        counted = asyncio.run(app.state.metrics.read(vae_serve_requests_total=["operation"]))
        return float(counted["vae_serve_requests_total"].get(("sample",), 0.0))

    before = sampled()
    with connected(address) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller.sendall(last[:-50])
        wait_until(lambda: app.state.door.inside == 1)
        caller.sendall(last[-50:] + sample + sample)
        text = caller.makefile("rb").read()
    assert text.count(b"HTTP/1.1 200") == 1
    wait_until(lambda: app.state.door.inside == 0)
    assert sampled() == before


def test_who_reads_late_has_every_answer(served: tuple[str, FastAPI]) -> None:
    """Large answers that nobody reads hold up what is asked behind them, and lose none of it."""
    address, app = served
    asked, count = request(b'{"count":500}', "tiny/sample"), 120
    with connected(address) as caller:
        for _ in range(count):
            caller.sendall(asked)
        assert [status for status, _, _ in answers(caller, count)] == [200] * count
    wait_until(lambda: app.state.door.inside == 0)


class Wire(asyncio.Transport):
    """A transport to nobody: what was written, and whether it is still read."""

    def __init__(self, extra: dict[str, Any] | None = None) -> None:
        super().__init__(extra)
        self.written: list[bytes] = []
        self.reading, self.aborted, self.closed, self.unread = True, False, False, 0

    def write(self, data: Any) -> None:
        """Keep it."""
        self.written.append(bytes(data))

    def get_write_buffer_size(self) -> int:
        """What hasn't been read."""
        return self.unread

    def is_reading(self) -> bool:
        """Whether more is taken."""
        return self.reading

    def is_closing(self) -> bool:
        """Once it was aborted."""
        return self.aborted

    def abort(self) -> None:
        """Say so."""
        self.aborted = True

    def close(self) -> None:
        """Say so."""
        self.closed = True

    def pause_reading(self) -> None:
        """Say so."""
        self.reading = False

    def resume_reading(self) -> None:
        """Say so."""
        self.reading = True


def wired(app: FastAPI) -> tuple[Any, Wire]:
    """A connection of the front's to nobody."""
    speaks = app.state.front.protocol()
    config = uvicorn.Config(app, http=speaks, log_config=None, lifespan="off")
    config.load()
    connection, wire = speaks(config=config, server_state=ServerState(), app_state={}), Wire()
    connection.connection_made(wire)
    return connection, wire


def armed(connection: Any) -> bool:
    """Whether it will be closed for being idle."""
    return connection.timeout_keep_alive_task is not None


@pytest.mark.anyio
async def test_a_body_that_is_refused_halfway_has_time_to_end(small: Path) -> None:
    """An idle connection is closed after a while; one whose refused body still comes isn't idle, until it has ended."""
    body = json.dumps({"inputs": digits(200).tolist()}).encode()
    asked = request(body)
    async with open_house(configured(small, max_held_bytes=len(body) // 2)) as house:
        connection, wire = wired(house.app)
        with house.app.state.desk.memory.held() as others:
            others.resize(10)
            connection.data_received(asked[: -len(body) // 4])
            await until(lambda: len(wire.written) == 1)
        assert b" 429 " in wire.written[0]
        assert armed(connection)
        connection.data_received(asked[-len(body) // 4 : -9])
        assert not armed(connection)
        connection.data_received(asked[-9:])
        assert armed(connection)
        connection.data_received(request(json.dumps({"inputs": X.tolist()}).encode()))
        await until(lambda: len(wire.written) == 2)
        assert b" 200 " in wire.written[1]
        connection.connection_lost(None)


@pytest.mark.anyio
async def test_while_answers_are_not_read_nothing_more_is_met(small: Path) -> None:
    """And who reads nothing for long is let go, unlike who reads slowly."""
    async with open_house(configured(small)) as house:
        connection, wire = wired(house.app)
        asked = request(json.dumps({"inputs": X.tolist()}).encode())
        connection.data_received(asked)
        await until(lambda: len(wire.written) == 1)
        connection.pause_writing()
        connection.data_received(asked)
        assert not wire.is_reading()
        assert house.app.state.door.inside == 0
        connection.resume_writing()
        assert wire.is_reading()
        await until(lambda: len(wire.written) == 2)
        connection.pause_writing()
        for connection.active, wire.unread, aborted in ((-1e9, 90, False), (-1e9, 60, False), (-1e9, 60, True)):
            connection.timeout_keep_alive_handler()
            assert wire.aborted == aborted
        connection.connection_lost(None)


@pytest.mark.anyio
async def test_a_request_that_the_express_cannot_answer_any_more_is_counted(small: Path) -> None:
    """Its connection was closing when it was handed back: its caller has gone, like others that have."""
    async with open_house(configured(small)) as house:
        speaks = house.app.state.front.protocol()
        config = uvicorn.Config(house.app, http=speaks, log_config=None, lifespan="off")
        config.load()
        connection, wire = speaks(config=config, server_state=ServerState(), app_state={}), Wire()
        connection.connection_made(wire)
        good = json.dumps({"inputs": X.tolist()}).encode()
        connection.data_received(request(good))
        await until(lambda: len(wire.written) == 1)
        connection.data_received(request(good.replace(b"0", b"7", 1)))
        assert house.app.state.door.inside == 1
        wire.abort()
        await until(lambda: house.app.state.door.inside == 0)
        assert len(wire.written) == 1
        assert 'operation="score",status="499"} 1.0' in (await house.client.get("/metrics")).text
        connection.connection_lost(None)


@pytest.mark.anyio
@pytest.mark.parametrize("line", ["", "Connection: close"])
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
async def test_where_debts_are_noted_the_app_answers_in_one_piece(small: Path, method: str, line: str) -> None:
    """So an answer has begun or it hasn't, and what was read and said is noted before it goes."""
    async with open_house(configured(small)) as house:
        house.app.state.front.debts = debts = Debts()
        speaks = house.app.state.front.protocol()
        config = uvicorn.Config(house.app, http=speaks, log_config=None, lifespan="off")
        config.load()
        connection = speaks(config=config, server_state=ServerState(), app_state={})
        with socket.socket() as end:
            wire = Wire({"socket": end})
            connection.connection_made(wire)
            said = heard = 0
            for count in (1, 2) if not line else (1,):
                asked = "\r\n".join(
                    [f"{method} /livez HTTP/1.1", "Host: x", *([line] if line else []), "", ""]
                ).encode()
                connection.data_received(asked)
                heard += len(asked)
                assert debts.line(end.fileno()).standing(said, heard) == "owed"
                await until(lambda: len(wire.written) == count and connection.cycle.response_complete)  # noqa: B023
                before, said = said, said + len(wire.written[-1])
                assert debts.line(end.fileno()) == Line(before, said, heard, False)
                assert wire.written[-1].startswith(b"HTTP/1.1 405" if method == "POST" else b"HTTP/1.1 200")
            assert wire.closed == bool(line)
            connection.connection_lost(None)
            assert debts.line(end.fileno()) == Line(0, 0, 0, False)

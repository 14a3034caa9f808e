"""The express: requests under a head that was seen before are answered together, each as if it had come alone."""

from __future__ import annotations

import gc
import json
import re
import socket
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from pydantic import SecretStr

from service.artifact import Array
from service.http import front
from service.http.express import Counter, Entry
from tests.http.test_front import answers, connected, request
from tests.kit import Gate, configured, copied, digits, listening, wait_until

OTHER = re.compile(rb'"request_id":"[0-9a-f]{32}"|reference is [0-9a-f]{32}')  # what differs from refusal to refusal


@pytest.fixture(scope="module", params=[0, 1000], ids=["in lanes", "on the loop"])
def served(small: Path, request: pytest.FixtureRequest) -> Iterator[tuple[str, FastAPI]]:
    """The service on a socket."""
    with listening(configured(small, inline_us=request.param)) as found:
        yield found


def score(of: int, rows: int = 1, **fields: Any) -> bytes:
    """A score of some rows, padded so that all such bodies have one length, and so one head."""
    body = json.dumps({"inputs": digits(rows, of).tolist(), **fields}).encode()
    return body + b" " * (4000 - len(body))


def inference(seed: int, rows: int = 1, **more: Any) -> tuple[bytes, dict[str, str]]:
    """The same over the Open Inference Protocol, in binary both ways, and its headers."""
    x = digits(rows, seed)
    tensor = {"name": "inputs", "shape": list(x.shape), "datatype": "UINT8"}
    asked = {"inputs": [{**tensor, "parameters": {"binary_data_size": x.nbytes}}], **more}
    head = json.dumps(asked).encode()
    return head + x.tobytes(), {"inference_header_content_length": str(len(head))}


def alone(address: str, body: bytes, path: str = "v1/models/tiny/score", **headers: str) -> tuple[int, bytes]:
    """What a request is answered that is chunked, and so is the app's."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    found = httpx.post(f"{address}/{path}", content=iter([body]), headers=named, timeout=20)
    return found.status_code, OTHER.sub(b"", found.content)


def inferring(body: bytes, **headers: str) -> bytes:
    """A request to infer, as bytes."""
    return request(body, **headers).replace(b"/v1/models/tiny/score", b"/v2/models/tiny/infer")


def took(app: FastAPI) -> int:
    """How many heads are known."""
    return len(app.state.front.known)


BODIES = [
    score(1),
    score(2, rows=3),
    score(3, draws=1),
    score(4, seed=5),
    score(5, rows=2, alpha=0.4),
    score(6, alpha=0.0001),
    score(7, rows=4, fdr=0.3),
    score(8, correction="simes"),
    score(9, explain=True),
    score(1, what=3),
    score(1, draws=0),
    score(1, draws=1e9),
    score(3, draws=1.0),
    score(4, seed=5.0),
    score(1, draws=True),
    score(1).replace(b"1,", b"7,"),
    score(1).replace(b"[[[", b"[[[[", 1).replace(b"]]]", b"]]]]", 1),
    score(1)[:-1] + b"x",
    b"{}" + b" " * 3998,
]


@pytest.mark.parametrize("at_once", [1, len(BODIES)], ids=["one by one", "together"])
def test_each_is_answered_as_if_it_had_come_alone(served: tuple[str, FastAPI], at_once: int) -> None:
    """Answers and refusals, whoever shares their batch."""
    address, app = served
    wanted = [alone(address, body) for body in BODIES]
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(address)) for _ in range(at_once)]
        for caller in callers:
            caller.sendall(request(BODIES[0]))
            assert answers(caller, 1)[0][0] == 200
        assert took(app) >= 1
        for start in range(0, len(BODIES), at_once):
            batch = range(start, min(len(BODIES), start + at_once))
            for index, caller in zip(batch, callers, strict=False):
                caller.sendall(request(BODIES[index]))
            for index, caller in zip(batch, callers, strict=False):
                status, headers, text = answers(caller, 1)[0]
                assert (status, OTHER.sub(b"", text)) == wanted[index], BODIES[index][:80]
                assert "x-request-id" in headers
                assert "total;dur=" in headers["server-timing"]
    wait_until(lambda: app.state.door.inside == 0)


FORMS: list[dict[str, Any]] = [
    {},
    {"parameters": {"binary_data_output": True}},
    {"outputs": [{"name": "elbo", "parameters": {"binary_data": True}}]},
    {"outputs": [{"name": "scores.kl.p_value"}, {"name": "kl"}], "parameters": {"binary_data_output": True}},
    {"outputs": [{"name": "anomaly", "parameters": {"binary_data": True}}, {"name": "elbo"}]},
    {"outputs": [{"name": "latent_kl", "parameters": {"binary_data": True}}]},
    {"outputs": [{"name": "p_value"}], "parameters": {"draws": 1}},
    {"parameters": {"draws": 1, "binary_data_output": True}},
    {"id": "seven"},
    {"parameters": {"timeout": 9_000_000}},
    {"outputs": [{"name": "nothing"}]},
]


@pytest.mark.parametrize("form", FORMS, ids=range(len(FORMS)))
@pytest.mark.parametrize("rows", [1, 3])
def test_inferences_too(served: tuple[str, FastAPI], form: dict[str, Any], rows: int) -> None:
    """In every form of an answer, again and again under one head."""
    address, _ = served
    with connected(address) as caller:
        for seed in (1, 1, 2, 3):
            body, headers = inference(seed, rows, **form)
            wanted = alone(address, body, "v2/models/tiny/infer", **headers)
            caller.sendall(inferring(body, **headers))
            status, _, text = answers(caller, 1)[0]
            assert (status, OTHER.sub(b"", text)) == wanted


def test_rows_that_are_as_they_should_be_are_not_held_up_by_others(served: tuple[str, FastAPI]) -> None:
    """Of forty that come at once some are bad; each gets its own answer, and they are counted right."""
    address, app = served
    bodies = [score(seed) if seed % 4 else score(seed).replace(b"0,", b"5,", 1) for seed in range(40)]
    wanted = [alone(address, body) for body in bodies]
    before = counted(address)
    with ThreadPoolExecutor(8) as pool, ExitStack() as stack:
        clients = [stack.enter_context(httpx.Client(base_url=address, timeout=20)) for _ in range(8)]

        def ask(index: int) -> tuple[int, bytes]:
            found = clients[index % 8].post("/v1/models/tiny/score", content=bodies[index])
            return found.status_code, OTHER.sub(b"", found.content)

        assert list(pool.map(ask, range(40))) == wanted
    assert counted(address) - before == 30
    wait_until(lambda: app.state.door.inside == 0)
    assert app.state.desk.memory.taken == 0


def counted(address: str) -> float:
    """Scores answered with a 200, of both counts that there are."""
    text = httpx.get(f"{address}/metrics").text
    found = [
        re.search(pattern, text, re.MULTILINE)
        for pattern in (
            r'^vae_serve_requests_total\{model="tiny",operation="score",status="200"\} (\S+)$',
            r'^vae_serve_request_seconds_count\{operation="score"\} (\S+)$',
        )
    ]
    first, every = (float(each.group(1)) if each else 0.0 for each in found)
    assert every >= first
    return first


def test_what_comes_before_the_answer_is_met_after_it(served: tuple[str, FastAPI]) -> None:
    """Requests in a pipeline, in whatever pieces, and whatever they ask."""
    address, _ = served
    bodies = [score(seed) for seed in range(5)]
    wanted = [alone(address, body) for body in bodies]
    livez = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with connected(address) as caller:
        caller.sendall(request(bodies[0]))
        assert answers(caller, 1)[0][0] == 200
        caller.sendall(request(bodies[1]))
        caller.sendall(request(bodies[2]) + livez + request(bodies[3])[:50])
        caller.sendall(request(bodies[3])[50:] + request(bodies[4]))
        found = answers(caller, 5)
    assert [(found[index][0], found[index][2]) for index in (0, 1, 3, 4)] == wanted[1:]


def test_rows_of_callers_who_leave_are_not_computed_and_those_of_others_are(small: Path) -> None:
    """While a lane is held, what waits is dropped with its caller; the books call it 499."""
    gate = Gate()
    with listening(configured(small, lanes=1), opener=gate.opener) as (address, app), ExitStack() as stack:
        keeper, holder = stack.enter_context(connected(address)), stack.enter_context(connected(address))
        keeper.sendall(request(score(0)))
        wanted = answers(keeper, 1)[0][2]
        gate.shut()
        holder.sendall(request(score(1)))
        assert gate.waits.wait(20)
        with ExitStack() as leaving:
            for _ in range(3):
                leaving.enter_context(connected(address)).sendall(request(score(2)))
            keeper.sendall(request(score(0)))
            wait_until(lambda: app.state.door.inside == 5)
        wait_until(lambda: app.state.door.inside == 2)
        gate.open()
        assert answers(holder, 1)[0][0] == 200
        assert answers(keeper, 1)[0][2] == wanted
        assert gate.rows("elbo") == 2
        wait_until(lambda: 'status="499"' in httpx.get(f"{address}/metrics").text)
        wait_until(lambda: app.state.door.inside == 0)


def test_what_waits_here_counts_as_waiting(small: Path) -> None:
    """A full room is a 429 at once, those who wait are answered, and the room is given back."""
    gate = Gate()
    settings = configured(small, lanes=1, waiting=32)
    with listening(settings, opener=gate.opener) as (address, app), ExitStack() as stack:
        callers = [stack.enter_context(connected(address)) for _ in range(4)]
        callers[0].sendall(request(score(0)))
        assert answers(callers[0], 1)[0][0] == 200
        gate.shut()
        callers[0].sendall(request(score(0)))
        assert gate.waits.wait(20)
        for caller in callers[1:3]:
            caller.sendall(request(score(1)))
        room = app.state.models.get("tiny").scores
        wait_until(lambda: room.waiting == 32)
        callers[3].sendall(request(score(2)))
        status, headers, text = answers(callers[3], 1)[0]
        assert status == 429
        assert int(headers["retry-after"]) >= 1
        assert b"32 of 32" in text
        gate.open()
        assert [answers(caller, 1)[0][0] for caller in callers[:3]] == [200] * 3
        assert room.waiting == 0


def test_who_waits_for_too_long_is_told_so(small: Path) -> None:
    """The deadline of the service holds, for those who wait and those who are being computed."""
    gate = Gate()
    with listening(configured(small, lanes=1, timeout_ms=300), opener=gate.opener) as (address, app), ExitStack() as s:
        callers = [s.enter_context(connected(address)) for _ in range(3)]
        callers[0].sendall(request(score(0)))
        assert answers(callers[0], 1)[0][0] == 200
        gate.shut()
        for seed, caller in enumerate(callers):
            caller.sendall(request(score(seed)))
        for caller in callers:
            status, _, text = answers(caller, 1)[0]
            assert status == 503
            assert b"deadline" in text
        gate.open()
        wait_until(lambda: app.state.door.inside == 0)
        callers[0].sendall(request(score(0)))
        assert answers(callers[0], 1)[0][0] == 200


def test_a_model_that_is_missing_or_closed_is_refused_as_ever(served: tuple[str, FastAPI]) -> None:
    """A path that was learnt says nothing of what is served there."""
    address, app = served
    with connected(address) as caller:
        for _ in range(2):
            caller.sendall(request(score(0), path="nobody/score"))
            assert answers(caller, 1)[0][0] == 404
    assert all(known.route.path != "/v1/models/nobody/score" for known in app.state.front.known.values()) or took(app)


def test_a_row_has_its_bits_whoever_came_with_it(served: tuple[str, FastAPI]) -> None:
    """To the last one, in companies of any size."""
    address, _ = served
    mine = score(77, rows=2)
    with ExitStack() as stack:
        callers = [stack.enter_context(connected(address)) for _ in range(12)]
        for caller in callers:
            caller.sendall(request(score(0)))
            answers(caller, 1)
        found = set()
        for company in (0, 1, 5, 11):
            for seed, caller in enumerate(callers[1 : 1 + company]):
                caller.sendall(request(score(seed, rows=1 + seed % 4)))
            callers[0].sendall(request(mine))
            elbo = json.loads(answers(callers[0], 1)[0][2])["elbo"]
            found.add(np.array(elbo).tobytes())
            for caller in callers[1 : 1 + company]:
                answers(caller, 1)
    assert len(found) == 1


def test_a_number_that_is_not_whole_is_refused_after_the_same_one_that_is(served: tuple[str, FastAPI]) -> None:
    """16.0 is no number of draws, whatever was asked before: to Python it equals 16, which is remembered as right."""
    address, _ = served
    fields: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"draws": 16}, {"draws": 16.0}),
        ({"seed": 0}, {"seed": 0.0}),
    ]
    for whole, broken in fields:
        right, wrong = score(1, **whole), score(1, **broken)
        with connected(address) as caller:
            for body, wanted in ((wrong, 422), (right, 200), (right, 200), (wrong, 422), (right, 200)):
                caller.sendall(request(body))
                assert answers(caller, 1)[0][0] == wanted


def test_a_head_is_learnt_of_its_own_request_alone(served: tuple[str, FastAPI]) -> None:
    """One that is refused, with another behind it in the same bytes, teaches nothing of that other."""
    address, _ = served
    with connected(address) as caller:
        for _ in range(2):
            caller.sendall(request(score(0), path="nobody/score") + request(score(0)))
            assert [status for status, _, _ in answers(caller, 2)] == [404, 200]
        caller.sendall(request(score(0), path="nobody/score"))
        assert answers(caller, 1)[0][0] == 404


def test_anomalies_are_counted_however_an_answer_is_written(served: tuple[str, FastAPI]) -> None:
    """In binary, where the text of an answer is made once, as in JSON."""
    address, _ = served
    wanted = {"outputs": [{"name": "p_value", "parameters": {"binary_data": True}}], "parameters": {"alpha": 0.99}}
    body, headers = inference(5, 4, **wanted)
    with connected(address) as caller:
        counts = []
        for _ in range(6):
            caller.sendall(inferring(body, **headers))
            status, head, text = answers(caller, 1)[0]
            assert status == 200
            p = np.frombuffer(text[int(head["inference-header-content-length"]) :], np.float64)
            counts.append(anomalies(address))
    assert np.diff(counts).tolist() == [float((p <= 0.99).sum())] * 5


def anomalies(address: str) -> float:
    """How many were flagged."""
    found = re.search(r'^vae_serve_anomalies_total\{model="tiny"\} (\S+)$', httpx.get(f"{address}/metrics").text, re.M)
    return float(found.group(1)) if found else 0.0


def test_a_header_that_is_no_text_is_refused_like_any_other(served: tuple[str, FastAPI]) -> None:
    """With an error of the protocol, and the connection goes on."""
    address, _ = served
    body, headers = inference(1)
    sent = inferring(body, **headers)
    at = sent.index(b"inference-header-content-length: ") + len(b"inference-header-content-length: ")
    with connected(address) as caller:
        for _ in range(2):
            caller.sendall(sent[:at] + b"\xff" + sent[at + 1 :])
            status, _, text = answers(caller, 1)[0]
            assert status == 400
            assert "error" in json.loads(text)
        caller.sendall(sent)
        assert answers(caller, 1)[0][0] == 200


@pytest.mark.parametrize("fields", [{"fdr": 0.2}, {"correction": "simes"}, {"alpha": 0.0001}, {"explain": True}, {}])
def test_rows_are_shown_to_the_watch_once(served: tuple[str, FastAPI], fields: dict[str, Any]) -> None:
    """Also those of requests that are handed back: shown twice, they would look like a stream that repeats itself."""
    address, _ = served
    with connected(address) as caller:
        caller.sendall(request(score(1)))
        assert answers(caller, 1)[0][0] == 200
        before = watched(address)
        for of in range(4):
            caller.sendall(request(score(of, rows=2, **fields)))
            assert answers(caller, 1)[0][0] == 200
    assert watched(address) - before == 8


def watched(address: str) -> int:
    """Rows that the watch for drift has seen."""
    return int(httpx.get(f"{address}/v1/models/tiny").json()["drift"]["rows"])


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The bodies that took the express; all the time in the world for them to come in pieces."""
    found: list[bytes] = []
    whole = Counter.add

    def add(counter: Counter, entry: Entry) -> None:
        found.append(entry.body)
        whole(counter, entry)

    monkeypatch.setattr(Counter, "add", add)
    monkeypatch.setattr(front, "GATHERING", 60.0)
    return found


@pytest.mark.parametrize("cut", [0, 1, 2000, 3999])
def test_a_body_may_come_after_its_head(served: tuple[str, FastAPI], added: list[bytes], cut: int) -> None:
    """As many clients send it: in a piece of its own, or in several; and what follows it is met after it."""
    address, app = served
    body, after = score(1), score(2)
    wanted = [alone(address, one) for one in (body, after)]
    with connected(address) as caller:
        caller.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        caller.sendall(request(score(0)))
        answers(caller, 1)
        del added[:]
        asked = request(body)
        caller.sendall(asked[: len(asked) - len(body) + cut])
        wait_until(lambda: app.state.door.inside == 1)
        assert added == []
        caller.sendall(body[cut:] + request(after))
        assert [(status, text) for status, _, text in answers(caller, 2)] == wanted
    assert added == [body, after]


def test_a_body_that_takes_its_time_is_met_without_the_express(
    served: tuple[str, FastAPI], added: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing waits in the express for long that isn't whole; its deadline runs from its head."""
    address, app = served
    body, late = score(1), threading.Event()
    wanted = alone(address, body)
    ungather = front.Connection._ungather

    def told(each: front.Connection) -> None:
        ungather(each)
        late.set()

    monkeypatch.setattr(front.Connection, "_ungather", told)
    with connected(address) as caller:
        caller.sendall(request(score(0)))
        answers(caller, 1)
        del added[:]
        monkeypatch.setattr(front, "GATHERING", 0.0)
        asked = request(body)
        caller.sendall(asked[:-100])
        assert late.wait(20)
        caller.sendall(asked[-100:])
        status, _, text = answers(caller, 1)[0]
        assert (status, text) == wanted
        assert added == []
        late.clear()
        caller.sendall(asked[:-100])
        assert late.wait(20)
    wait_until(lambda: app.state.door.inside == 0)  # who leaves before it is whole is counted out


def test_who_leaves_before_the_body_is_whole_is_counted_out(served: tuple[str, FastAPI], added: list[bytes]) -> None:
    """And nothing of it is ever read."""
    address, app = served
    with connected(address) as caller:
        caller.sendall(request(score(0)))
        answers(caller, 1)
        del added[:]
        caller.sendall(request(score(1))[:-100])
        wait_until(lambda: app.state.door.inside == 1)
    wait_until(lambda: app.state.door.inside == 0)
    assert added == []


def large(seed: int, rows: int = 1000, spaces: int = 0) -> tuple[bytes, dict[str, str]]:
    """An inference of half a mebibyte, whose tensor lies eight bytes aligned, or so many bytes past that."""
    x = digits(rows, seed).astype("<f8")
    tensor = {"name": "inputs", "shape": list(x.shape), "datatype": "FP64"}
    asked = {
        "inputs": [{**tensor, "parameters": {"binary_data_size": x.nbytes}}],
        "outputs": [{"name": "elbo", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(asked).encode()
    head += b" " * (-len(head) % 8 + spaces)
    return head + x.tobytes(), {"inference_header_content_length": str(len(head))}


@pytest.mark.parametrize("spaces", [0, 3])
def test_large_tensors_are_gathered_where_they_are_aligned(
    served: tuple[str, FastAPI], added: list[bytes], spaces: int
) -> None:
    """However they lie in the body; it is copied once, and refused as ever where a value is wrong."""
    address, app = served
    bodies = [large(seed, spaces=spaces)[0] for seed in (1, 2, 1)]
    bodies[2] = bodies[2][:-8] + np.float64(0.5).tobytes()
    _, headers = large(1, spaces=spaces)
    wanted = [alone(address, body, "v2/models/tiny/infer", **headers) for body in bodies]
    assert [status for status, _ in wanted] == [200, 200, 422]
    with connected(address) as caller:
        caller.sendall(inferring(large(0, spaces=spaces)[0], **headers))
        answers(caller, 1)
        for body, (status, text) in zip(bodies, wanted, strict=True):
            del added[:]
            caller.sendall(inferring(body, **headers))
            found = answers(caller, 1)[0]
            assert (found[0], OTHER.sub(b"", found[2])) == (status, text)
            assert [len(each) - len(body) for each in added] == [-spaces % 8]
    wait_until(lambda: app.state.door.inside == 0)
    assert app.state.desk.memory.taken == 0


def test_more_numbers_than_are_looked_at_on_the_loop_are_met_step_by_step(served: tuple[str, FastAPI]) -> None:
    """They have the same answer."""
    address, _ = served
    x = digits(2048, 3)
    x = np.concatenate([x] * 5)  # 655,360 bytes, each a number
    tensor = {"name": "inputs", "shape": list(x.shape), "datatype": "UINT8"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": x.nbytes}}]}).encode()
    headers = {"inference_header_content_length": str(len(head))}
    wanted = alone(address, head + x.tobytes(), "v2/models/tiny/infer", **headers)
    with connected(address) as caller:
        for _ in range(2):
            caller.sendall(inferring(head + x.tobytes(), **headers))
            status, _, text = answers(caller, 1)[0]
            assert (status, OTHER.sub(b"", text)) == wanted


def test_narrow_numbers_are_counted_as_wide_as_they_become(tmp_path: Path) -> None:
    """A float64 event of INT8 holds eight times its bytes; what is held is given back."""
    folder = tmp_path / "models"
    copied("breast-cancer", folder, source="breast-cancer")
    gate = Gate()
    x = np.ones((4000, 30), np.int8)
    tensor = {"name": "inputs", "shape": list(x.shape), "datatype": "INT8"}
    head = json.dumps({"inputs": [{**tensor, "parameters": {"binary_data_size": x.nbytes}}]}).encode()
    sent = inferring(head + x.tobytes(), inference_header_content_length=str(len(head)))
    sent = sent.replace(b"/models/tiny/", b"/models/breast-cancer/")
    with listening(configured(folder, lanes=1), opener=gate.opener) as (address, app), connected(address) as caller:
        caller.sendall(sent)
        assert answers(caller, 1)[0][0] == 200
        assert took(app) == 1
        gate.shut()
        caller.sendall(sent)
        assert gate.waits.wait(20)
        assert app.state.desk.memory.taken >= 9 * x.nbytes
        gate.open()
        assert answers(caller, 1)[0][0] == 200
        assert app.state.desk.memory.taken == 0


def test_a_body_that_there_is_no_memory_for_is_refused_while_it_comes(small: Path, added: list[bytes]) -> None:
    """What others hold stays theirs, and nobody is kept in the dark until the body is whole."""
    gate = Gate()
    body, headers = large(1)
    settings = configured(small, lanes=1, max_held_bytes=3 * len(body))
    with (
        listening(settings, opener=gate.opener) as (address, app),
        connected(address) as one,
        connected(address) as two,
    ):
        one.sendall(inferring(body, **headers))
        assert answers(one, 1)[0][0] == 200
        gate.shut()
        one.sendall(inferring(body, **headers))
        assert gate.waits.wait(20)
        memory = app.state.desk.memory
        assert len(body) < memory.taken < 2.1 * len(body)
        memory.limit = memory.taken + len(body) // 2
        del added[:]
        asked = inferring(body, **headers)
        two.sendall(asked[: -len(body) // 4])  # three quarters of it
        status, found, text = answers(two, 1)[0]
        assert status in (429, 503), text
        assert int(found["retry-after"]) >= 1
        assert added == []
        gate.open()
        assert answers(one, 1)[0][0] == 200
    assert memory.taken == 0


def test_who_leaves_while_nothing_is_read_takes_the_body_along(small: Path, added: list[bytes]) -> None:
    """Bytes that aren't counted as held aren't held, though no lane gets free."""
    gate = Gate()
    body, headers = large(1)
    with listening(configured(small, lanes=1), opener=gate.opener) as (address, app), ExitStack() as stack:
        callers = [stack.enter_context(connected(address)) for _ in range(3)]
        callers[0].sendall(inferring(body, **headers))
        assert answers(callers[0], 1)[0][0] == 200
        gate.shut()
        callers[0].sendall(inferring(body, **headers))
        assert gate.waits.wait(20)
        for caller in callers[1:]:
            caller.sendall(inferring(body, **headers))
        wait_until(lambda: len(added) == 3)
        entries = [one for one in gc.get_objects() if type(one) is Entry and not one.gone]
        callers[2].close()
        wait_until(lambda: [len(one.body) for one in entries if one.gone] == [0])
        gate.open()
        assert [answers(caller, 1)[0][0] for caller in callers[:2]] == [200] * 2
    assert app.state.desk.memory.taken == 0


@dataclass
class Faulty(Gate):
    """A gate that some calls fail at."""

    broken: bool = False

    def passes(self, graph: str, rows: Array) -> None:
        """Fail if it is broken."""
        if self.broken:
            raise RuntimeError("broken")
        super().passes(graph, rows)


def test_an_engine_that_fails_on_the_loop_is_met_step_by_step(small: Path) -> None:
    """What is computed at once and fails is computed again, alone, and then refused with a reference."""
    faulty = Faulty()
    with listening(configured(small, inline_us=1000), opener=faulty.opener) as (address, app):
        with connected(address) as caller:
            caller.sendall(request(score(0)))
            assert answers(caller, 1)[0][0] == 200
            faulty.broken = True
            caller.sendall(request(score(1)))
            status, _, text = answers(caller, 1)[0]
            assert status == 500
            assert b"reference is" in text
            faulty.broken = False
            caller.sendall(request(score(0)))
            assert answers(caller, 1)[0][0] == 200
        wait_until(lambda: app.state.door.inside == 0)


def test_one_bad_request_leaves_its_neighbours_together(small: Path) -> None:
    """Rows that are refused are taken out, and the others are computed in one call as ever."""
    gate = Gate()
    with listening(configured(small, inline_us=1000), opener=gate.opener) as (address, app), ExitStack() as stack:
        callers = [stack.enter_context(connected(address)) for _ in range(9)]
        for caller in callers:
            caller.sendall(request(score(0)))
            assert answers(caller, 1)[0][0] == 200
        gate.shut()
        callers[0].sendall(request(score(0)))
        assert gate.waits.wait(20)  # the loop itself: whatever comes now comes together
        for seed, caller in enumerate(callers[1:]):
            caller.sendall(request(score(seed).replace(b"0,", b"5,", 1) if seed == 4 else score(seed)))
        gate.open()
        assert [answers(caller, 1)[0][0] for caller in callers] == [200] * 5 + [422] + [200] * 3
        assert [len(rows) for graph, rows in gate.calls if graph == "elbo"] == [1, 7]
        wait_until(lambda: app.state.door.inside == 0)


def test_lengths_of_json_without_end_leave_the_express_open(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those that are remembered make room for others."""
    monkeypatch.setattr(front, "ROUTES", 4)
    with listening(configured(small)) as (address, app), connected(address) as caller:
        for spaces in range(12):
            body, headers = inference(1)
            padded = body[: int(headers["inference_header_content_length"])] + b" " * spaces
            headers["inference_header_content_length"] = str(len(padded))
            caller.sendall(inferring(padded + body[-64:], **headers))
            assert answers(caller, 1)[0][0] == 200
            assert 1 <= took(app) <= 4


def test_a_head_begins_with_its_request(served: tuple[str, FastAPI]) -> None:
    """Empty lines before it, which a parser takes, are no head to learn."""
    address, app = served
    odd = b"\n\r\n\r\n"
    with connected(address) as caller:
        caller.sendall(odd + request(score(1)))
        assert answers(caller, 1)[0][0] == 200
        assert odd not in app.state.front.known


def test_a_model_that_is_put_away_is_kept_by_nobody(small: Path) -> None:
    """Nor by what the express found out for requests that came again and again, over either protocol."""
    body, headers = inference(1)
    settings = configured(small, inline_us=1000, admin_token=SecretStr("t" * 32))
    with listening(settings) as (address, app), connected(address) as connection:
        for _ in range(3):
            for sent in (request(score(1)), inferring(body, **headers)):
                connection.sendall(sent)
                assert [status for status, *_ in answers(connection, 1)] == [200]
        assert took(app) == 2
        model = weakref.ref(app.state.models.get("tiny"))
        unloaded = httpx.post(f"{address}/v1/models/tiny/unload", headers={"Authorization": f"Bearer {'t' * 32}"})
        assert unloaded.status_code == 200
        wait_until(lambda: model() is None)

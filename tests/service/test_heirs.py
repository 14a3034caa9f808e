"""Heirs: whoever asked a worker that dies is answered, exactly once, however it dies and wherever the request was."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from service.debts import Debts, Line, Standing
from service.workers.estate import passed
from tests.kit import JSON, PATIENCE, digits, wait_until
from tests.service.test_workers import Group, changed, group

ONE = json.dumps({"inputs": digits(1).tolist()}).encode()
SEVEN = b'{"draws": 7, ' + ONE[1:]  # draws that CAUGHT does something at
CAUGHT = """
class Caught(engine.Engine):
    def compute(self, graph, feeds):
        if len(feeds.get("noise", ())) == 7:
            WHAT
        return super().compute(graph, feeds)

def caught(found, device, opened=ahead.open_engine):
    engine = opened(found, device)
    return Caught(engine.device, engine.providers, engine.fallback, engine.sessions)

ahead.open_engine = caught
"""
STUCK = CAUGHT.replace("WHAT", "threading.Event().wait()")
CRASHES = CAUGHT.replace("WHAT", "os.kill(os.getpid(), signal.SIGSEGV)")
PATIENT = "from service.workers import estate; estate.GRACE = 60.0"


def asking(body: bytes = ONE, path: str = "/v1/models/tiny/score", *lines: str) -> bytes:
    """A POST as bytes."""
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {JSON}", f"Content-Length: {len(body)}", *lines]
    return "\r\n".join([*head, "", ""]).encode() + body


@contextmanager
def calling(found: Group, sends: bytes = b"") -> Iterator[socket.socket]:
    """A connection, on which something was sent."""
    host, port = found.address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=PATIENCE) as caller:
        caller.sendall(sends)
        yield caller


def rest(caller: socket.socket) -> bytes:
    """All that comes until the other side ends it."""
    with caller.makefile("rb") as stream:
        return stream.read()


def split(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    """A whole answer: status, headers and body."""
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    assert len(body) == int(headers["content-length"]), "there is more than one answer, or less"
    return int(first.split()[1]), headers, body


def interrupted(answer: bytes, whose: str) -> None:
    """It is the one answer, and says in the table's words that the process died."""
    status, headers, body = split(answer)
    assert status == 503, whose
    assert int(headers["retry-after"]) >= 1
    assert headers["connection"] == "close"
    assert headers["content-type"] == "application/problem+json"
    said = json.loads(body)
    assert said["type"] == "urn:vae-serve:problem:interrupted"
    assert said["request_id"] == headers["x-request-id"]


def one(caller: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The next answer on a connection."""
    answer = b""
    while not whole(answer):
        part = caller.recv(65536)
        assert part, f"cut off after {answer!r}"
        answer += part
    return split(answer)


def several(caller: socket.socket, count: int) -> list[int]:
    """The statuses of the next answers on a connection, after which none comes as yet."""
    start, text = b"HTTP/1.1 ", b""
    while text.count(start) < count or not whole(text[text.rindex(start) :]):
        part = caller.recv(65536)
        assert part, f"cut off after {text!r}"
        text += part
    return [int(answer[:3]) for answer in text.split(start)[1:]]


def whole(answer: bytes) -> bool:
    """Whether an answer has come to its end."""
    head, end, body = answer.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    return bool(end) and len(body) >= int(next(line[15:] for line in lines if line.startswith(b"content-length:")))


def heirs(found: Group) -> list[int]:
    """Processes that the supervisor has and didn't say that it started."""
    children = Path(f"/proc/{found.process.pid}/task/{found.process.pid}/children").read_text().split()
    return [int(pid) for pid in children if not found.said(f"(pid {pid})")]


def killed(found: Group, *seats: str) -> None:
    """Kill the workers at some seats, and wait for others there."""
    before = len(found.forked())
    pids = found.pids()
    for seat in seats:
        os.kill(pids[seat], signal.SIGKILL)
    found.until_said("started worker", before + len(seats))


# ---------------------------------------------------------------- what is owed


@pytest.mark.parametrize(
    ("line", "sent", "read", "standing"),
    [
        (Line(0, 0, 0, False), 0, 0, "even"),  # nobody has asked
        (Line(0, 0, 0, False), 0, 9, "owed"),  # asked, and nothing was said
        (Line(0, 50, 9, False), 50, 9, "even"),  # answered
        (Line(0, 50, 9, False), 50, 12, "owed"),  # answered, and asked again
        (Line(0, 50, 9, False), 0, 9, "owed"),  # an answer was made and didn't go
        (Line(50, 99, 18, False), 50, 18, "owed"),  # the second didn't
        (Line(50, 99, 18, False), 70, 18, "broken"),  # a part of it did
        (Line(50, 99, 18, False), 30, 18, "broken"),  # nor all of the one before
        (Line(0, 0, 0, False), 50, 9, "even"),  # nothing is known of it
    ],
)
def test_what_is_owed_follows_from_what_was_sent_and_read(line: Line, sent: int, read: int, standing: Standing) -> None:
    """An answer that hasn't begun can be given by another; one that has can't."""
    assert line.standing(sent, read) == standing


def test_a_line_is_anothers_once_its_connection_is_closed() -> None:
    """Descriptors are used again, and what was noted of the last one is forgotten."""
    debts = Debts()
    note = debts.opened(7)
    assert note
    note(1, 2, 3)
    debts.speaks(7, True)
    assert debts.line(7) == Line(1, 2, 3, True)
    assert debts.opened(7)
    assert debts.line(7) == Line(0, 0, 0, False)
    assert debts.opened(10**9) is None
    assert debts.line(10**9) == Line(0, 0, 0, False)


def test_the_kernel_knows_what_was_sent_and_read() -> None:
    """Whether or not the other side has taken it, and after it has ended its side."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()) as caller,
        listener.accept()[0] as found,
    ):
        assert passed(found) == (0, 0)
        caller.sendall(bytes(100))
        assert len(found.recv(40)) == 40
        assert passed(found) == (0, 40)
        found.setblocking(False)
        sent = found.send(bytes(10_000_000))
        assert passed(found) == (sent, 40)
        caller.shutdown(socket.SHUT_WR)
        found.setblocking(True)
        assert len(found.recv(100)) == 60
        assert found.recv(100) == b""
        assert passed(found) == (sent, 100)


# ---------------------------------------------------------------- who is answered


def test_all_whose_requests_are_in_a_worker_that_is_killed_are_told(small: Path) -> None:
    """Rows that wait for a lane, a long evidence, half a body, half a head; on /v2 in its words. Who is idle is let go.

    Then both seats are filled, and nothing is left behind.
    """
    long = b'{"draws": 16384, ' + ONE[1:]
    chunked = asking(b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    asked = {
        "half a head": [asking()[:30]],
        "a lane that is stuck": [asking(SEVEN)] * 16,
        "a row behind it": [asking()] * 24,
        "evidence": [asking(long, "/v1/models/tiny/evidence")] * 2,
        "half a body": [asking()[:-1], asking(bytes(10**6))[:-1]],
        "chunks that don't come": [chunked],
        "two at once": [asking() + asking()],
    }
    with group(small, changed(STUCK), lanes="1", inline_us="0", timeout_ms="60000") as found, ExitStack() as stack:
        idle = [stack.enter_context(calling(found)) for _ in range(8)]
        told = {
            what: [stack.enter_context(calling(found, sends)) for sends in requests] for what, requests in asked.items()
        }
        v2 = stack.enter_context(calling(found, asking(ONE, "/v2/models/tiny/infer")[:-1]))
        count = sum(map(len, told.values()))  # without half a head, but with whoever asks for this
        wait_until(lambda: found.metrics()["vae_serve_requests_inside"] > count)
        killed(found, "0", "1")
        for what, callers in told.items():
            for caller in callers:
                interrupted(rest(caller), what)
        status, headers, text = split(rest(v2))
        assert (status, headers["content-type"]) == (503, JSON)
        assert list(json.loads(text)) == ["error"]
        assert {rest(caller) for caller in idle} == {b""}
        stack.close()
        counted = 'vae_serve_requests_total{model="",operation="interrupted",status="503"}'
        wait_until(lambda: found.metrics()[counted] == count + 1)
        wait_until(lambda: len(heirs(found)) == 2)
        assert found.ask().status_code == 200
        assert found.end() == 0


def test_who_asked_behind_an_answer_is_told_and_who_asked_nothing_is_not(small: Path) -> None:
    """What came with a request that was answered since, all of it or half a head; empty lines are no request."""
    livez = b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    behind = asking(SEVEN), asking(SEVEN) + livez, asking(SEVEN)[:-1], asking()[:30]
    with group(small, changed(STUCK), lanes="1", inline_us="0", timeout_ms="60000") as found, ExitStack() as stack:
        callers = [stack.enter_context(calling(found, livez + livez + rest)) for rest in behind]
        fronted = stack.enter_context(calling(found, asking(b"{") + livez + asking()[:30]))
        silent = [stack.enter_context(calling(found, sends)) for sends in (livez, livez + b"\r\n", asking(b"{"))]
        assert [several(caller, 2) for caller in callers] == [[200, 200]] * len(callers)
        assert several(fronted, 2) == [400, 200]
        assert [several(caller, 1) for caller in silent] == [[200], [200], [400]]
        for caller in silent:
            caller.sendall(b"\r\n\r\n")
        wait_until(lambda: found.metrics()["vae_serve_requests_inside"] >= 3)
        killed(found, "0", "1")
        for caller in silent:
            caller.sendall(b"\r\n")
        for caller in [*callers, fronted]:
            interrupted(rest(caller), "behind an answer")
        assert {rest(caller) for caller in silent} == {b""}
        assert found.end() == 0


def test_a_crash_in_the_runtime_is_told_to_everyone_in_that_worker(small: Path) -> None:
    """Also where it computes on the loop, between reading some requests and sending answers that are made."""
    with group(small, changed(CRASHES), inline_us="1000", access_log="none") as found:
        wait_until(lambda: found.metrics()["vae_serve_workers"] == 2)
        wait_until(lambda: len(heirs(found)) == 2)  # the porter has gone, who would say that nothing is loaded yet
        with calling(found, asking()) as caller:
            _, _, wanted = one(caller)
        for _ in range(3):
            with ExitStack() as stack:
                callers = [stack.enter_context(calling(found, asking())) for _ in range(20)]
                with calling(found, asking(SEVEN)) as last:
                    interrupted(rest(last), "who crashed it")
                for code, _, body in map(one, callers):
                    assert code == 503 or body == wanted


def test_under_load_every_request_has_one_answer(small: Path) -> None:
    """Whenever a worker is killed: the same bits as always, or a 503. Nobody is cut off."""
    stopped = threading.Event()

    def call() -> Counter[bytes]:
        got: Counter[bytes] = Counter()
        while not stopped.is_set():
            with calling(found) as caller:
                status = 200
                while status == 200 and not stopped.is_set():
                    caller.sendall(asking())
                    status, _, body = one(caller)
                    got[body if status == 200 else b"%d" % status] += 1
                if status != 200:
                    assert rest(caller) == b""
        return got

    with group(small, changed(PATIENT), access_log="none") as found, ThreadPoolExecutor(16) as pool:
        calls = [pool.submit(call) for _ in range(16)]
        try:
            for seat in ("0", "1", "0"):
                killed(found, seat)
                wait_until(lambda: found.metrics()["vae_serve_workers"] == 2)
        finally:
            stopped.set()
        got = sum((task.result(PATIENCE) for task in calls), Counter[bytes]())
    assert len(got.keys() - {b"503"}) == 1
    assert 0 < got[b"503"] <= 3 * 16


@pytest.fixture(scope="module")
def pair(small: Path) -> Iterator[Group]:
    """Two workers, who may die four times within ten seconds."""
    with group(small, max_body_bytes="1048576", access_log="none") as found:
        yield found


def test_an_answer_that_has_begun_is_cut(pair: Group) -> None:
    """By a reset: nobody takes the part that it got for the whole, or a 503 for the rest of it."""
    host, port = pair.address.removeprefix("http://").split(":")
    with socket.socket() as caller:
        caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        caller.connect((host, int(port)))
        caller.sendall(asking(b'{"count": 4096}', "/v1/models/tiny/sample"))
        assert caller.recv(12) == b"HTTP/1.1 200"
        killed(pair, "0", "1")
        with pytest.raises(ConnectionResetError):
            rest(caller)
    pair.until_said("cut off 1")


# ---------------------------------------------------------------- how connections and heirs end


def test_a_connection_that_a_worker_closes_is_closed(pair: Group) -> None:
    """Its heir has it too, and holds nothing open: the caller sees the end. What was answered is owed no longer."""
    early = asking(bytes(2**21))[: -(2**20)]  # refused before it is whole, and thrown away to its end
    told = len(pair.said("answered 503"))
    for sends in (
        asking(ONE, "/v1/models/tiny/score", "Connection: close"),
        asking(ONE, "/v1/models/tiny/nothing", "Connection: close"),
        b"GET /livez HTTP/1.0\r\n\r\n",
        b"no request\r\n\r\n",
    ):
        with calling(pair, sends) as caller:
            assert rest(caller).startswith(b"HTTP/1.1 ")
    sent = asking(), early, asking(ONE, "/v2/models/tiny/infer"), b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"
    with ExitStack() as stack:
        callers = [stack.enter_context(calling(pair, sends)) for sends in sent for _ in range(4)]
        assert {one(caller)[0] for caller in callers} == {200, 400, 413}
        killed(pair, "0", "1")
        for caller in callers[4:8]:
            caller.sendall(bytes(2**10))
        assert {rest(caller) for caller in callers} == {b""}
    assert len(pair.said("answered 503")) == told


def test_who_is_told_to_go_on_is_owed_an_answer_still(pair: Group) -> None:
    """100 Continue is none."""
    asks = asking(ONE, "/v1/models/tiny/score", "Expect: 100-continue")[: -len(ONE)]
    with calling(pair, asks) as caller:
        assert caller.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        killed(pair, "0", "1")
        interrupted(rest(caller), "continue")


def test_heirs_go_with_the_group(small: Path) -> None:
    """Nobody but the group's end ends them: neither a signal to all of them, nor a supervisor that is killed first."""
    with group(small) as found:
        wait_until(lambda: len(heirs(found)) == 2)
        left = heirs(found)
        for pid in left:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(pid, number)
        assert found.ask().status_code == 200
        assert heirs(found) == left
        found.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))


def test_where_there_can_be_no_heir_the_service_says_so_and_serves(small: Path) -> None:
    """Once a worker."""
    with group(small, changed("from service.workers import heir; heir.CLONE.clear()")) as found:
        assert found.ask().status_code == 200
        assert len(found.said("can't have an heir here")) == 2
        assert heirs(found) == []
        killed(found, "0")
        wait_until(lambda: found.metrics()["vae_serve_workers"] == 2)

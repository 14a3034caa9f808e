"""Workers: several processes answer on one port as one service does, whichever of them dies or is replaced."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, Counter, values

from service.metrics.group import Group as Metered
from service.metrics.group import counts
from service.workers import count, member, obstacle, plan, share
from service.workers.channel import Channel
from tests.kit import COMMITTED, PATIENCE, answered, configured, copied, digits, program, refused, running, wait_until

BODY = {"inputs": digits(4).tolist()}
SCORE = "/v1/models/tiny/score"
TOKEN = "a-token-that-nobody-guesses"

# The service, changed by what is put in place of CHANGE.
CHANGED = """
import fcntl, os, resource, signal, sys, threading
from service import __main__, ahead, engine
from service.workers import member

class Stuck(engine.Engine):
    def compute(self, graph, feeds):
        if graph == "elbo" and len(feeds["x"]) == 5:
            threading.Event().wait()
        return super().compute(graph, feeds)

def stuck(found, device, opened=ahead.open_engine):
    engine = opened(found, device)
    return Stuck(engine.device, engine.providers, engine.fallback, engine.sessions)

def slow(found, device, opened=ahead.open_engine):
    with open(os.environ["GATE"]) as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
    return opened(found, device)

def dies(*_):
    os.kill(os.getpid(), signal.SIGSEGV)

CHANGE
sys.exit(__main__.main(["serve", "--workers", "2"]))
"""


def changed(how: str) -> tuple[str, str]:
    """How to start the service with a change."""
    return "-c", CHANGED.replace("CHANGE", how)


def client(address: str, **headers: str) -> httpx.Client:
    """A client that reads no certificates, which would take longer than all else here."""
    return httpx.Client(base_url=address, timeout=PATIENCE, verify=False, headers=headers)


def once(address: str, path: str, body: object = None, **headers: str) -> httpx.Response:
    """What one request by a connection of its own is answered: a POST where there is a body."""
    with client(address) as caller:
        return caller.request("GET" if body is None else "POST", path, json=body, headers=headers)


@dataclass
class Group:
    """The service as several processes, and what they have logged so far."""

    process: subprocess.Popen[str]
    address: str
    lines: list[dict[str, Any]] = field(default_factory=list)

    def read(self) -> None:
        """Read the log to its end."""
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(json.loads(line) if line.startswith("{") else {"message": line.rstrip()})

    def said(self, text: str) -> list[dict[str, Any]]:
        """The lines that hold a text."""
        return [line for line in list(self.lines) if text in line["message"]]

    def until_said(self, text: str, times: int = 1) -> None:
        """Wait for lines that hold a text."""
        wait_until(lambda: len(self.said(text)) >= times)

    def pids(self) -> dict[str, int]:
        """The newest process at each seat."""
        self.until_said("started worker", 2)
        started = [line["message"] for line in self.said("started worker")]
        return {line.split()[2]: int(line.rpartition(" ")[2].rstrip(")")) for line in started}

    def forked(self) -> list[int]:
        """Every worker that there has been."""
        return [int(line["message"].rpartition(" ")[2].rstrip(")")) for line in self.said("started worker")]

    def answerers(self, ids: list[str]) -> dict[str, str]:
        """Which worker answered each request, once the log says so."""
        wait_until(lambda: {line.get("id") for line in list(self.lines)} >= set(ids))
        return {line["id"]: line["worker"] for line in list(self.lines) if line.get("id") in ids}

    def ask(self, body: object = BODY, path: str = SCORE, **headers: str) -> httpx.Response:
        """POST by a connection of its own, to whichever worker that leads."""
        return once(self.address, path, body, **headers)

    def get(self, path: str) -> Any:
        """What a GET by a connection of its own is answered, as JSON."""
        return once(self.address, path).json()

    def metrics(self) -> dict[str, float]:
        """Every series."""
        lines = once(self.address, "/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}

    def end(self) -> int:
        """Drain; the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def group(models: Path, start: tuple[str, ...] = ("-m", "service"), **changes: str) -> Iterator[Group]:
    """Two workers, ready."""
    settings: dict[str, Any] = {
        "workers": "2",
        "log_format": "json",
        "access_log": "all",
        "drain_grace_ms": "300",
        **changes,
    }
    with running(start=start, models=str(models), **settings) as (process, address):
        found = Group(process, address)
        reader = threading.Thread(target=found.read)
        reader.start()
        yield found
        if process.poll() is None:
            process.kill()
        reader.join(PATIENCE)


@dataclass
class Caller:
    """Asks for scores one after another until it is stopped; remembers what came of it."""

    group: Group
    number: int
    keeps: bool
    stopped: threading.Event
    versions: list[int] = field(default_factory=list)
    statuses: list[int] = field(default_factory=list)
    answers: set[bytes] = field(default_factory=set)
    cut: int = 0
    told: int = 0  # that its worker had died

    @property
    def first(self) -> str:
        """The id of its first request."""
        return f"caller-{self.number}"

    def call(self) -> None:
        """Ask until stopped, or turned away."""
        headers = {} if self.keeps else {"Connection": "close"}
        with client(self.group.address, **headers) as caller:
            while not self.stopped.is_set() and set(self.statuses) <= {200}:
                named = {} if self.statuses else {"X-Request-Id": self.first}
                try:
                    response = caller.post(SCORE, json=BODY, headers=named)
                except httpx.TransportError:
                    self.cut += 1
                    continue
                if "interrupted" in response.text:
                    self.told += 1
                    continue
                self.statuses.append(response.status_code)
                if response.status_code == 200:
                    self.answers.add(response.content)
                    self.versions.append(response.json()["version"])


@contextmanager
def load(found: Group, count: int = 6) -> Iterator[list[Caller]]:
    """Callers at work, half of whom keep their connections."""
    stopped = threading.Event()
    callers = [Caller(found, number, number % 2 == 0, stopped) for number in range(count)]
    with ThreadPoolExecutor(count) as pool:
        calling = [pool.submit(caller.call) for caller in callers]
        try:
            wait_until(lambda: all(len(caller.statuses) >= 2 for caller in callers))
            yield callers
        finally:
            stopped.set()
        for task in calling:
            task.result(PATIENCE)


def by_both(found: Group, ask: Callable[[str], httpx.Response]) -> list[httpx.Response]:
    """Ask by new connections until both workers have answered; an id for each is handed to ask."""
    answers: list[httpx.Response] = []
    workers: set[str] = set()
    while len(workers) < 2:
        assert len(answers) < 60
        ids = [os.urandom(8).hex() for _ in range(4)]
        answers += [ask(name) for name in ids]
        workers |= set(found.answerers(ids).values())
    return answers


# ---------------------------------------------------------------- as one


@pytest.fixture(scope="module")
def pair(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Group]:
    """Two workers on tiny, who may calibrate it; with a token, though none of them alone may load."""
    state = tmp_path_factory.mktemp("state")
    with group(small, state=str(state), calibrate="true", admin_token=TOKEN) as found:
        yield found


def test_either_worker_gives_the_same_bits(pair: Group) -> None:
    """And their counts are added up by whoever is asked."""
    before = pair.metrics()
    answers = by_both(pair, lambda name: pair.ask(x_request_id=name, **{"X-Request-Id": name}))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    asked = 'vae_serve_requests_total{model="tiny",operation="score",status="200"}'
    rows = 'vae_serve_rows_total{model="tiny",operation="score"}'
    wait_until(lambda: pair.metrics()[asked] - before.get(asked, 0) == len(answers))
    after = pair.metrics()
    assert after[rows] - before.get(rows, 0) == 4 * len(answers)
    assert after["vae_serve_workers"] == 2
    assert after["process_cpu_seconds_total"] >= before["process_cpu_seconds_total"] > 0
    assert after["vae_serve_requests_inside"] >= 1


def test_one_watch_sees_the_rows_of_all(pair: Group) -> None:
    """Whichever worker says so; the alarm has one line, from the supervisor, who sees them all."""
    strange = {"inputs": np.random.default_rng(0).integers(0, 2, (40, 8, 8)).tolist()}

    def drift() -> dict[str, Any]:
        found: dict[str, Any] = pair.get("/v1/models/tiny")["drift"]
        return found

    by_both(pair, lambda name: pair.ask(strange, **{"X-Request-Id": name}))
    scored = 'vae_serve_rows_total{model="tiny",operation="score"}'
    wait_until(lambda: {drift()["rows"] for _ in range(6)} == {pair.metrics()[scored]})
    assert drift()["alarm"]
    assert drift()["recent_strange"] > 5
    pair.until_said("drift: tiny/1")
    assert "worker" not in pair.said("drift: tiny/1")[0]
    assert len(pair.said("drift: tiny/1")) == 1
    assert pair.metrics()['vae_serve_drift_alarm{model="tiny",version="1"}'] == 1


def test_one_watch_takes_more_rows_than_a_turn_of_the_loop(pair: Group) -> None:
    """The supervisor, who shows them to it, has no loop to take turns with."""
    scored = 'vae_serve_rows_total{model="tiny",operation="score"}'
    before = pair.metrics()[scored]
    assert pair.ask({"inputs": digits(1500).tolist()}).status_code == 200
    wait_until(lambda: pair.metrics()[scored] == before + 1500)
    wait_until(lambda: pair.get("/v1/models/tiny")["drift"]["rows"] == before + 1500)
    assert pair.process.poll() is None


@pytest.mark.anyio
async def test_what_is_said_late_of_one_calibration_is_not_said_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that gave up waiting for the others asks of the next calibration by another number."""
    monkeypatch.setattr(member, "PATIENCE", 0.01)
    ours, theirs = Channel.pair()
    asker = member.Member(0, 0, ours, [], None, (), tmp_path, None)
    tiny: Any = SimpleNamespace(manifest=SimpleNamespace(name="tiny", version=1))
    for _ in range(2):
        await asker.told(tiny)
    assert len({message.facts["serial"] for message in theirs.receive()}) == 2
    ours.close()
    theirs.close()


def test_a_calibration_is_every_workers_once_it_is_answered(pair: Group) -> None:
    """Whoever answered it; the watch begins anew, and scores before it count for nothing."""
    for n in (30, 50):
        rows = {"inputs": digits(n).tolist()}
        made = answered(pair.ask(rows, "/v1/models/tiny/calibrate"))
        assert made["n"] == n
        scores = by_both(pair, lambda name: pair.ask(**{"X-Request-Id": name}))
        assert {answered(score)["calibration"]["n"] for score in scores} == {n}
        assert pair.get("/v1/models/tiny")["calibration_in_use"]["n"] == n
        asked = 4 * len(scores)
        wait_until(lambda: pair.get("/v1/models/tiny")["drift"]["rows"] == asked)  # noqa: B023  it is awaited here


def test_ids_that_workers_make_differ(pair: Group) -> None:
    """What is drawn in a worker isn't what its sibling draws."""
    answers = by_both(pair, lambda name: pair.ask({}, "/v1/models/tiny/sample", **{"X-Request-Id": name}))
    drawn = [answered(answer)["seed"] for answer in answers]
    assert len(set(drawn)) == len(drawn)
    made = [once(pair.address, "/livez").headers["x-request-id"] for _ in range(20)]
    assert len(set(made)) == len(made)


def test_what_one_of_several_does_not_offer_is_not_among_the_extensions(pair: Group) -> None:
    """Loading by a route; who tries it hears what to do instead."""
    assert "model_repository" not in pair.get("/v2")["extensions"]
    refused = once(pair.address, "/v2/repository/models/tiny/load", {}, authorization=f"Bearer {TOKEN}")
    assert refused.status_code == 400
    assert "SIGHUP" in refused.json()["error"]


def test_who_asks_a_worker_for_another_protocol_is_answered_in_this_one(pair: Group) -> None:
    """On connections of which is noted what is owed, and by whichever worker."""
    wanted = pair.ask().content
    asking = {"connection": "Upgrade, HTTP2-Settings", "upgrade": "h2c", "http2-settings": "AAMAAABk"}
    with client(pair.address, **asking) as caller:
        assert {caller.post(SCORE, json=BODY).content for _ in range(4)} == {wanted}


def test_a_full_table_of_descriptors_ends_nothing(small: Path) -> None:
    """Who is connected is served, in ways that nobody was before; what can't be read isn't taken for nothing."""
    tensor = {"name": "inputs", "shape": [4, 8, 8], "datatype": "UINT8", "data": BODY["inputs"]}

    def ask(caller: socket.socket, path: str, body: object = None) -> str:
        content = json.dumps(body).encode() if body else b""
        head = f"{'POST' if body else 'GET'} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n"
        caller.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + content)
        return caller.recv(65536)[:12].decode()

    def taken(pid: int) -> int:
        return len(list(Path(f"/proc/{pid}/fd").iterdir()))

    with group(small, changed("resource.setrlimit(resource.RLIMIT_NOFILE, (80, 80))")) as found, ExitStack() as stack:
        found.until_said("has left")
        where = httpx.URL(found.address)
        callers: list[socket.socket] = []
        while any(taken(pid) < 80 for pid in found.pids().values()):
            caller = stack.enter_context(socket.create_connection((where.host, where.port or 0), PATIENCE))
            with suppress(ConnectionError):  # there was no room for it
                if ask(caller, "/livez"):
                    callers.append(caller)
        for caller in callers[:16]:
            assert ask(caller, SCORE, BODY) == "HTTP/1.1 200"
            assert ask(caller, "/v2/models/tiny/infer", {"inputs": [tensor]}) == "HTTP/1.1 200"
            assert ask(caller, "/metrics") == "HTTP/1.1 500"
        failed = [line["exception"] for line in found.said("reference ")]
        assert failed
        assert all("Too many open files" in said and "StopIteration" not in said for said in failed)
        stack.close()
        scored = 'vae_serve_requests_total{model="tiny",operation="score",status="200"}'
        wait_until(lambda: all(taken(pid) < 64 for pid in found.pids().values()))
        wait_until(lambda: found.metrics()[scored] == 2 * 16)
        assert found.metrics()["vae_serve_workers_replaced_total"] == 0


def test_counts_end_with_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers whose supervisor was killed take it away, the first of them before the last has answered everybody."""
    monkeypatch.setattr(values, "ValueClass", values.ValueClass)
    (tmp_path / "group").mkdir()
    counted = counts(Metered(tmp_path / "group", 0, list))
    Counter("counted", "", registry=CollectorRegistry())
    assert [metric.name for metric in counted.collect()] == ["counted"]
    shutil.rmtree(tmp_path / "group")
    assert list(counted.collect()) == []


# ---------------------------------------------------------------- deaths


def test_a_worker_that_is_killed_is_replaced(small: Path) -> None:
    """Its siblings' callers notice nothing, its own are told once, what newcomers there are wait; counts never fall."""
    with group(small) as found, load(found) as callers:
        whose = found.answerers([caller.first for caller in callers if caller.keeps])
        counted = [found.metrics()]
        os.kill(found.pids()["1"], signal.SIGKILL)
        found.until_said("started worker 1", 2)

        def both() -> bool:
            counted.append(found.metrics())
            return counted[-1]["vae_serve_workers"] == 2

        wait_until(both)
        assert {status for caller in callers for status in caller.statuses} == {200}
        done = [len(caller.statuses) for caller in callers]
        wait_until(lambda: all(len(caller.statuses) > past for caller, past in zip(callers, done, strict=True)))
        counted.append(found.metrics())
        for caller in callers:
            assert set(caller.statuses) == {200}
            assert len(caller.answers) == 1
            assert caller.told == 0 or whose.get(caller.first, "1") == "1"
            assert caller.told <= 1
            assert caller.cut == 0
        for name in counted[-1]:
            if name.partition("{")[0].endswith(("_total", "_count", "_bucket", "_sum")):
                series = [count.get(name, 0.0) for count in counted]
                assert series == sorted(series), name
        assert counted[-1]["vae_serve_workers_replaced_total"] == 1
        assert found.said("died: SIGKILL")


def test_a_worker_that_stalls_or_is_told_to_end_is_replaced(small: Path) -> None:
    """By one that answers, whether its loop stands still, its engine doesn't come back, or it alone is told."""
    with (
        group(small, changed("ahead.open_engine = stuck"), stall_ms="1500", inline_us="0") as found,
        ThreadPoolExecutor(1) as pool,
    ):
        ways: dict[str, Callable[[int], object]] = {
            "was sent SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
            "no sign of life": lambda pid: os.kill(pid, signal.SIGSTOP),
            "has been computing": lambda _: pool.submit(found.ask, {"inputs": digits(5).tolist()}),
        }
        for count, (said, harm) in enumerate(ways.items(), 1):
            harm(found.pids()["0"])
            found.until_said(said)
            found.until_said("started worker", 2 + count)
            wait_until(lambda: found.metrics()["vae_serve_workers"] == 2)
            by_both(found, lambda name: found.ask(**{"X-Request-Id": name}))
        assert found.metrics()["vae_serve_workers_replaced_total"] == len(ways)
        wait_until(lambda: sum(Path(f"/proc/{pid}").exists() for pid in found.forked()) == 2)
        assert found.end() == 0


def test_workers_that_die_again_and_again_end_the_service(small: Path) -> None:
    """With a status that isn't 0 and the reason in the last line."""
    with (
        pytest.raises(AssertionError, match="died 5 times in a row, the last time by SIGSEGV"),
        group(small, changed("member.check_golden = dies")),
    ):
        pass


def test_workers_end_with_their_supervisor(small: Path) -> None:
    """Even where it was killed, and could tell nobody."""
    with group(small) as found:
        pids = found.pids().values()
        found.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))


def test_a_worker_that_only_rises_ends_with_its_supervisor_too(small: Path) -> None:
    """Before it was told that it may listen: or it would wait to be told for ever."""
    with group(small) as found:
        os.kill(found.pids()["0"], signal.SIGKILL)
        found.until_said("started worker", 3)
        found.process.kill()
        wait_until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in found.forked()))


# ---------------------------------------------------------------- start and end


def test_before_anything_is_opened_the_service_answers(small: Path, tmp_path: Path) -> None:
    """Alive, not ready and why, 503 with Retry-After; then it is ready, without a connection refused or cut."""
    gate = (tmp_path / "gate").open("w")
    fcntl.flock(gate, fcntl.LOCK_EX)
    os.environ["GATE"] = gate.name

    def look(port: str) -> list[httpx.Response]:
        address = f"http://127.0.0.1:{port}"
        answers: list[httpx.Response] = []
        try:
            wait_until(lambda: _listens(address))
            ready = once(address, "/readyz")
            assert ready.status_code == 503
            assert "tiny/1 is still being loaded" in ready.text
            assert refused(once(address, SCORE, BODY), 503)["detail"] == "tiny/1 is still being loaded"
        finally:
            gate.close()
        with client(address) as caller:
            while not answers or answers[-1].status_code == 503:
                answers.append(caller.post(SCORE, json=BODY))
            answers.extend(caller.post(SCORE, json=BODY) for _ in range(20))
        return answers

    port = _free_port()
    try:
        with ThreadPoolExecutor(1) as pool:
            looking = pool.submit(look, port)
            with group(small, changed("ahead.open_engine = slow"), port=port, access_log="none") as found:
                statuses = [answer.status_code for answer in looking.result(PATIENCE)]
                assert statuses == sorted(statuses, reverse=True)
                assert set(statuses) <= {200, 503}
                found.until_said("has left")
                assert found.end() == 0
    finally:
        del os.environ["GATE"]


def _free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _listens(address: str) -> bool:
    try:
        return once(address, "/livez").status_code == 200
    except httpx.TransportError:
        return False


def test_under_load_sigterm_loses_nothing(small: Path) -> None:
    """200s through the grace, then 503s, no connection cut, and status 0."""
    with group(small, drain_grace_ms="700") as found:
        with load(found) as callers:
            found.process.send_signal(signal.SIGTERM)
            wait_until(lambda: all(caller.statuses[-1] == 503 for caller in callers))
        assert found.process.wait(PATIENCE) == 0
    for caller in callers:
        assert caller.cut == 0
        assert set(caller.statuses[:-1]) == {200}


def test_being_told_twice_ends_it_at_once(small: Path) -> None:
    """Whoever can't wait for the grace says so again."""
    with group(small, drain_grace_ms="600000") as found:
        found.process.send_signal(signal.SIGTERM)
        found.until_said("draining", 2)
        found.process.send_signal(signal.SIGTERM)
        assert found.process.wait(PATIENCE) == 0


def test_a_port_is_not_shared_with_another_service(pair: Group, small: Path) -> None:
    """Though its workers share it among themselves."""
    port = pair.address.rpartition(":")[2]
    ended = program("serve", "--workers", "2", models=str(small), port=port, device="cpu")
    assert ended.returncode == 1
    assert f"can't listen on 127.0.0.1:{port}" in ended.stderr


def test_a_device_that_one_process_owns_takes_no_workers(small: Path) -> None:
    """One line, and a status that isn't 0."""
    ended = program("serve", "--workers", "2", models=str(small), port="0", device="cuda")
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1
    assert "VAE_SERVE_WORKERS=2: one process owns a CUDA device" in ended.stderr


def test_what_is_set_for_the_service_is_shared_out(monkeypatch: pytest.MonkeyPatch, small: Path) -> None:
    """Cores, bytes and waiting rows; a device that might be taken is one too, on whatever system."""
    settings = configured(small, lanes=0, workers=4, max_held_bytes=400, waiting=40)
    assert count(settings) == 4
    assert count(configured(small)) == 1
    assert obstacle(settings) is None
    monkeypatch.setattr(plan, "cores", lambda: 8)
    each = share(settings, 4)
    assert (each.lanes, each.max_held_bytes, each.waiting) == (2, 100, 10)
    assert share(settings.model_copy(update={"lanes": 3}), 4).lanes == 3
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider"])
    assert obstacle(settings) is None
    assert "may take a CUDA device" in str(obstacle(configured(small, device="auto")))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", list)
    assert "no temporary folder can be written" in str(obstacle(settings))
    monkeypatch.setattr("sys.platform", "darwin")
    assert "isn't Linux" in str(obstacle(settings))


# ---------------------------------------------------------------- other models


def test_a_new_version_is_served_without_losing_a_request(tmp_path: Path) -> None:
    """SIGHUP, under load: a sound version comes into use, one that is spoilt doesn't, and one that is gone goes."""
    models = tmp_path / "models"
    shutil.copytree(COMMITTED / "tiny", models / "tiny")
    with group(models) as found:
        with load(found) as callers:
            put(models, tmp_path, 2)
            found.process.send_signal(signal.SIGHUP)
            wait_until(lambda: all(caller.versions[-1] == 2 for caller in callers))
            put(models, tmp_path, 3, spoilt=True)
            shutil.rmtree(models / "tiny" / "1")
            found.process.send_signal(signal.SIGHUP)
            found.until_said("refused tiny/3")
            wait_until(lambda: found.metrics().get('vae_serve_model_refused{model="tiny",version="3"}') == 1)
            wait_until(lambda: found.get("/v1/models")[0]["versions"] == [2])
            assert found.get("/readyz")["status"] == "ready"
        found.until_said("2 workers serve", 3)
        for caller in callers:
            assert caller.cut == 0
            assert set(caller.statuses) == {200}
            assert caller.versions == sorted(caller.versions)
        wait_until(lambda: found.metrics()["vae_serve_workers"] == 2)
        assert found.end() == 0


def put(models: Path, scratch: Path, version: int, *, spoilt: bool = False) -> None:
    """Put a version of tiny into a folder of models, whole at once."""
    made = copied("tiny", scratch / "made", version=version)
    if spoilt:
        (made / "decoder.onnx").write_bytes(b"spoilt")
    made.rename(models / "tiny" / str(version))


def test_what_was_served_outlives_a_spoilt_artifact_in_its_place(tmp_path: Path) -> None:
    """And where nothing has changed, nobody is replaced."""
    models = tmp_path / "models"
    shutil.copytree(COMMITTED / "tiny", models / "tiny")
    with group(models) as found:
        wanted = found.ask().content
        found.process.send_signal(signal.SIGHUP)
        found.until_said("nothing has changed")
        manifest = models / "tiny" / "1" / "manifest.json"
        manifest.write_bytes(manifest.read_bytes().replace(b"{", b"{ ", 1))
        (models / "tiny" / "1" / "elbo.onnx").write_bytes(b"spoilt")
        found.process.send_signal(signal.SIGHUP)
        found.until_said("as it was goes on being served")
        found.until_said("nothing has changed", 2)
        assert found.ask().content == wanted
        assert len(found.said("started worker")) == 2


PICKY = """
def picky(engine, found, golden=member.check_golden):
    if found.manifest.version == 2:
        dies()
    golden(engine, found)

member.check_golden = picky
"""


def test_nobody_is_judged_by_a_silence_that_is_the_supervisors_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it opens an artifact it listens to nobody, however long that takes."""
    models, gate = tmp_path / "models", (tmp_path / "gate").open("w")
    shutil.copytree(COMMITTED / "tiny", models / "tiny")
    monkeypatch.setenv("GATE", gate.name)
    with group(models, changed("ahead.open_engine = slow"), stall_ms="1000") as found, gate:
        fcntl.flock(gate, fcntl.LOCK_EX)
        put(models, tmp_path, 2)
        found.process.send_signal(signal.SIGHUP)
        found.until_said("SIGHUP")
        assert not threading.Event().wait(1.5)  # longer than a worker may be silent
        gate.close()
        wait_until(lambda: found.get("/v1/models")[0]["versions"] == [1, 2])
        assert not found.said("no sign of life")
        wait_until(lambda: found.metrics()["vae_serve_workers"] == 2)


def test_a_worker_that_dies_while_others_rise_in_vain_is_replaced_all_the_same(tmp_path: Path) -> None:
    """By one that serves what it served: no seat is left empty, where newcomers would wait for nobody."""
    models = tmp_path / "models"
    shutil.copytree(COMMITTED / "tiny", models / "tiny")
    with group(models, changed(PICKY)) as found:
        before = found.pids()["1"]
        put(models, tmp_path, 2)
        found.process.send_signal(signal.SIGHUP)
        found.until_said("SIGSEGV")
        os.kill(before, signal.SIGKILL)
        found.until_said("the new workers die")
        wait_until(lambda: found.metrics()["vae_serve_workers"] == 2)
        assert {once(found.address, "/livez").status_code for _ in range(16)} == {200}
        assert found.get("/v1/models")[0]["versions"] == [1]

"""Shutdown: the door closes without a request lost, and the process ends with status 0."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.kit import (
    PATIENCE,
    ROOT,
    Gate,
    configured,
    copied,
    digits,
    environment,
    open_house,
    refused,
    running,
    until,
    wait_until,
)

BODY = {"inputs": digits(4).tolist()}
CALLERS = 8

# The service, with an engine that never comes back from a score of four rows.
STUCK = """
import sys, threading
from service import __main__, ahead, engine

class Stuck(engine.Engine):
    def compute(self, graph, feeds):
        if graph == "elbo" and len(feeds["x"]) == 4:
            threading.Event().wait()
        return super().compute(graph, feeds)

def stuck(found, device, opened=ahead.open_engine):
    engine = opened(found, device)
    return Stuck(engine.device, engine.providers, engine.fallback, engine.sessions)

ahead.open_engine = stuck
sys.exit(__main__.main(["serve"]))
"""

# The service, whose engines are opened once its standard input has ended.
SLOW = """
import sys
from service import __main__, ahead

def slow(found, device, opened=ahead.open_engine):
    print("opening", flush=True)
    sys.stdin.read()
    return opened(found, device)

ahead.open_engine = slow
sys.exit(__main__.main(["serve"]))
"""


@dataclass
class Caller:
    """Asks for scores one after another until it is turned away; remembers every answer."""

    address: str
    body: object
    keeps: bool
    statuses: list[int] = field(default_factory=list)
    answers: set[bytes] = field(default_factory=set)

    def call(self) -> httpx.Response:
        """Ask until a 503; it is returned."""
        headers = {} if self.keeps else {"Connection": "close"}
        with httpx.Client(base_url=self.address, timeout=PATIENCE, headers=headers) as client:
            while True:
                response = client.post("/v1/models/tiny/score", json=self.body)
                self.statuses.append(response.status_code)
                if response.status_code != 200:
                    return response
                self.answers.add(response.content)


def _ended(process: subprocess.Popen[str]) -> int:
    return process.wait(PATIENCE)


def test_under_load_not_one_accepted_request_is_lost(small: Path) -> None:
    """SIGTERM: 200s all through the grace while /readyz is 503, then 503 with Connection: close, then exit 0."""
    models = str(small)
    with running(models=models, drain_grace_ms="2000") as (process, address), ThreadPoolExecutor(CALLERS) as pool:
        callers = [
            Caller(address, {**BODY, "seed": i % 2, "draws": 64}, keeps=i < CALLERS // 2) for i in range(CALLERS)
        ]
        calling: list[Future[httpx.Response]] = [pool.submit(caller.call) for caller in callers]
        wait_until(lambda: all(len(caller.statuses) >= 3 for caller in callers))
        process.send_signal(signal.SIGTERM)

        with httpx.Client(base_url=address) as client:
            wait_until(lambda: client.get("/readyz").status_code == 503)
            during = client.post("/v1/models/tiny/score", json=BODY)
            assert during.status_code == 200
            assert during.headers["connection"] == "close"
            assert client.get("/livez").status_code == 200

        last = [task.result(PATIENCE) for task in calling]  # which raises if a connection was cut
        for response in last:
            refused(response, 503)
            assert response.headers["connection"] == "close"
        for caller in callers:
            assert set(caller.statuses[:-1]) == {200}
            assert len(caller.answers) == 1
        assert _ended(process) == 0


def test_what_is_in_flight_finishes(small: Path) -> None:
    """A request that outlasts the grace is answered whole."""
    service = running(models=str(small), drain_grace_ms="0", batch="256", lanes="1")
    with service as (process, address), ThreadPoolExecutor(1) as pool:
        large = {"inputs": digits(1000).tolist(), "draws": 300}

        def ask() -> httpx.Response:
            return httpx.post(f"{address}/v1/models/tiny/score", json=large, timeout=PATIENCE)

        asking = pool.submit(ask)
        inside = "vae_serve_requests_inside 2.0"
        wait_until(lambda: inside in httpx.get(f"{address}/metrics").text)
        process.send_signal(signal.SIGTERM)
        assert asking.result(PATIENCE).status_code == 200
        assert _ended(process) == 0


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_idle_service_ends_with_status_0(small: Path, name: str) -> None:
    """Whichever way it is told."""
    with running(models=str(small), drain_grace_ms="0") as (process, _):
        process.send_signal(signal.Signals[name])
        assert _ended(process) == 0


def test_a_welcome_that_cannot_be_printed_ends_nothing(small: Path) -> None:
    """Standard output may be full."""
    with socket.socket() as probe, Path("/dev/full").open("w") as full:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
        probe.close()
        settings = environment(port=port, models=str(small), device="cpu", drain_grace_ms="0")
        process = subprocess.Popen([sys.executable, "-m", "service"], cwd=ROOT, env=settings, stdout=full, text=True)
        wait_until(lambda: _status(f"http://127.0.0.1:{port}/readyz") == 200)
        process.send_signal(signal.SIGTERM)
        assert _ended(process) == 0


def _status(address: str) -> int:
    try:
        return httpx.get(address).status_code
    except httpx.TransportError:
        return 0


def test_an_idle_connection_does_not_hold_the_end_up(small: Path) -> None:
    """A client that keeps its connection and says nothing isn't waited for."""
    with running(models=str(small), drain_grace_ms="0") as (process, address), httpx.Client(base_url=address) as client:
        assert client.get("/livez").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert _ended(process) == 0


def test_being_told_twice_ends_it_at_once(small: Path) -> None:
    """Whoever can't wait for the grace says so again."""
    with running(models=str(small), drain_grace_ms="600000") as (process, address):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 503)
        process.send_signal(signal.SIGTERM)
        assert _ended(process) == 0


def test_an_engine_that_never_comes_back_does_not_hold_the_end_up(small: Path) -> None:
    """At the hard deadline whoever still waits is told, as a problem body, and the process ends with status 0."""
    service = running(start=("-c", STUCK), models=str(small), drain_grace_ms="0", drain_limit_ms="300", inline_us="0")
    with service as (process, address), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(httpx.post, f"{address}/v1/models/tiny/score", json=BODY, timeout=PATIENCE)
        inside = "vae_serve_requests_inside 2.0"
        wait_until(lambda: inside in httpx.get(f"{address}/metrics").text)
        process.send_signal(signal.SIGTERM)
        refused(asking.result(PATIENCE), 503)
        assert _ended(process) == 0


def test_an_engine_that_stalls_on_the_loop_itself_ends_the_process(small: Path) -> None:
    """Nobody could be answered any more, not even /livez; who restarts processes restarts this one."""
    with running(start=("-c", STUCK), models=str(small), stall_ms="300", inline_us="1000") as (process, address):
        with pytest.raises(httpx.TransportError):
            httpx.post(f"{address}/v1/models/tiny/score", json=BODY, timeout=PATIENCE)
        assert _ended(process) == 1


@pytest.mark.anyio
async def test_a_hard_deadline_ends_the_wait(small: Path) -> None:
    """What doesn't finish within VAE_SERVE_DRAIN_LIMIT_MS is left behind."""
    gate = Gate()
    async with open_house(configured(small), opener=gate.opener) as house:
        door = house.app.state.door
        gate.shut()
        stuck = asyncio.create_task(house.ask("tiny/score", BODY))
        await gate.held()
        draining = asyncio.create_task(door.drain(0.0, 0.05))
        await asyncio.wait_for(door.ended.wait(), PATIENCE)
        assert door.inside == 1
        gate.open()
        assert (await stuck).status_code == 200
        await draining


@pytest.mark.anyio
async def test_closed_the_door_refuses_and_what_is_inside_is_answered(small: Path) -> None:
    """503 with Connection: close for newcomers; those that came before get their answers."""
    gate = Gate()
    async with open_house(configured(small, lanes=1), opener=gate.opener) as house:
        wanted = (await house.ask("tiny/score", BODY)).content
        gate.shut()
        inside = [asyncio.create_task(house.ask("tiny/score", BODY)) for _ in range(5)]
        await gate.held()
        await until(lambda: house.app.state.door.inside == 5)
        draining = asyncio.create_task(house.app.state.door.drain(0.0, PATIENCE))
        await until(lambda: house.app.state.door.state == "closed")
        response = await house.ask("tiny/score", BODY)
        refused(response, 503)
        assert response.headers["connection"] == "close"
        assert not house.app.state.door.ended.is_set()
        gate.open()
        assert [(await task).content for task in inside] == [wanted] * 5
        await draining


def test_whoever_ends_while_models_are_opened_opens_no_more(tmp_path: Path) -> None:
    """SIGTERM at the start: the one that is being opened is, since nothing stops the runtime, and the others aren't."""
    for version in (1, 2, 3):
        copied("slow", tmp_path, version=version)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    livez = f"http://127.0.0.1:{port}/livez"
    settings = environment(models=str(tmp_path), port=str(port), device="cpu", lanes="1", drain_grace_ms="0")
    command, pipe = [sys.executable, "-c", SLOW], subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=settings, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdin
        assert process.stdout
        assert process.stdout.readline() == "opening\n"
        wait_until(lambda: _status(livez) == 200)
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: _status(livez) == 0)
        process.stdin.close()
        assert _ended(process) == 0
        assert "opening" not in process.stdout.read()


def test_whatever_ends_the_start_opens_no_more(tmp_path: Path) -> None:
    """What is imported beside may fail, or be interrupted: the interpreter waits for who opens, not for the rest."""
    for version in (1, 2, 3, 4):
        copied("slow", tmp_path, version=version)
    code = SLOW.replace("import sys", "import sys; sys.modules['service.serving'] = None")
    settings = environment(models=str(tmp_path), port="0", device="cpu", lanes="1")
    command, pipe = [sys.executable, "-c", code], subprocess.PIPE
    done = subprocess.run(
        command, cwd=ROOT, env=settings, stdin=subprocess.DEVNULL, stdout=pipe, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stdout.count("opening") <= 1

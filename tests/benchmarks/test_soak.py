"""What a soak notices: wrong bytes, wrong statuses, memory that grows."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks import load, mixture, overload, servers, serving, soak
from benchmarks.client import Connection, Reply, written
from benchmarks.load import Ask
from benchmarks.mixture import Case
from benchmarks.servers import Running
from benchmarks.soak import Seen
from tests.kit import COMMITTED

SCORE = mixture.ask("tiny", "score", {"inputs": [[[0] * 8] * 8], "draws": 1})
BAD = mixture.ask("tiny", "score", {"inputs": []})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service with one small model."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(COMMITTED / "tiny" / "1", models / "tiny" / "1")
    started = servers.start(servers.kind("ours"), models, models, models)
    try:
        serving.until_first(started, Ask("/readyz", {}, b""))
        yield started
    finally:
        started.end()


def test_the_client_reads_answers_one_after_another(server: Running) -> None:
    """Good, bad and with another method, on one connection; and it says when the server has gone."""

    async def ask() -> list[Reply]:
        connection = await Connection.open(server.port)
        wanted = (written(SCORE), written(BAD), written(Ask("/livez", {}, b""), "GET"))
        replies = [await connection.ask(request) for request in wanted]
        connection.leave()
        with pytest.raises(ConnectionError):
            await connection.ask(wanted[0])
        return replies

    score, bad, alive = asyncio.run(ask())
    assert [score.status, bad.status, alive.status] == [200, 422, 200]
    assert score.body == load.send(server.port, SCORE)[2]
    assert score.header("Content-Type") == "application/json"
    assert score.header("nothing") is None


def test_a_soak_counts_what_is_wrong(server: Running) -> None:
    """The right answer and the right refusal are no fault; other bytes and another status are, each by its name."""
    right = mixture.first(server.port, Case("right", SCORE))
    cases = [right, mixture.first(server.port, Case("refused", BAD, 422))]
    seen = asyncio.run(soak.soak(server, cases, 60, 3))
    assert seen.faults == Counter()
    assert set(seen.statuses) == {200, 422}
    wrong = [Case("bytes", SCORE, answer=b"{}", request=right.request), Case("status", BAD, 200, request=written(BAD))]
    seen = asyncio.run(soak.soak(server, wrong, 60, 3))
    assert {fault.partition(":")[0] for fault in seen.faults} == {"bytes", "status"}


def test_capacity_counts_every_answer(server: Running) -> None:
    """What four callers together were answered is what the service counts; a refusal is no answer."""
    before, started = answers(server), time.perf_counter()
    rate = asyncio.run(overload.closed(server.port, SCORE, 4, 0.3))
    assert rate * (time.perf_counter() - started) >= answers(server) - before > 4
    assert asyncio.run(overload.closed(server.port, BAD, 2, 0.05)) == 0


def answers(server: Running) -> float:
    """Scores of tiny that the service has answered with 200."""
    said = load.send(server.port, Ask("/metrics", {}, b""))[2].decode()
    name = 'vae_serve_requests_total{model="tiny",operation="score",status="200"} '
    return sum(float(line.removeprefix(name)) for line in said.splitlines() if line.startswith(name))


def test_overload_tells_goodput_from_lateness(capsys: pytest.CaptureFixture[str]) -> None:
    """An answer after its deadline is none."""
    seen = overload.Seen(sent=100, times=[0.1] * 8 + [0.9] * 2, statuses=Counter({200: 10, 503: 90}), told=[1.0, 3.0])
    overload.described(seen, capacity=1.0, deadline=0.5, seconds=10.0)
    said = capsys.readouterr().out
    assert "goodput 0.8/s, 80% of capacity" in said
    assert "2 of them late" in said
    assert "503 90.0%" in said
    assert "Retry-After 1 to 3 s" in said


def test_a_first_answer_that_is_wrong_ends_it(server: Running) -> None:
    """Before any load."""
    with pytest.raises(SystemExit, match="odd: status 422, not 200"):
        mixture.first(server.port, Case("odd", BAD))


def test_memory_that_grows_is_no_success(capsys: pytest.CaptureFixture[str]) -> None:
    """The first tenth is the warm-up; after it two hundredths are allowed, and no wrong answer."""
    flat = Seen(done=10, memory=[(1, 50.0), *((count, 100.0 + 0.1 * count) for count in range(2, 11))])
    assert soak.summary(flat)
    assert not soak.summary(Seen(done=10, memory=[(count, 100.0 + count) for count in range(1, 11)]))
    assert not soak.summary(Seen(done=10, memory=flat.memory, faults=Counter({"score: status 500": 1})))
    assert "WRONG 1 × score: status 500" in capsys.readouterr().out

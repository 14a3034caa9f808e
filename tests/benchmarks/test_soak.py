"""What a soak notices: wrong bytes, wrong statuses, memory that grows."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks import load, mixture, servers, serving, soak
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

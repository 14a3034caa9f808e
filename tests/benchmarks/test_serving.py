"""How speed is measured: what wrk says is read rightly, answers are checked, and verdicts follow from the turns."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import asks, load, report, servers, serving
from benchmarks.inprocess import Graph
from benchmarks.load import Ask, Load, LoadFailed
from benchmarks.servers import Running
from benchmarks.serving import CELLS, Cell
from tests.kit import COMMITTED

SAID = """Running 2s test @ http://127.0.0.1:8000/score
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     1.92ms    0.61ms  17.08ms   94.29%
  16410 requests in 2.10s, 2.50MB read
  Non-2xx or 3xx responses: 3
Requests/sec:   7814.11
measured {"requests":16410,"seconds":2.100036,"p50":0.001920,"p99":0.004010,"status":3,"socket":1}
"""
CELL = Cell("S1", 1, "json", 16)
needs_wrk = pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed: apt-get install wrk")


def turns(*rates: float) -> list[Load]:
    """Turns of one second at these requests a second."""
    return [Load(int(rate), 1.0, 0.001, 0.002, 0) for rate in rates]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The service with one small model, as the benchmark starts it."""
    models = tmp_path_factory.mktemp("models")
    shutil.copytree(COMMITTED / "tiny" / "1", models / "tiny" / "1")
    started = servers.start(servers.kind("ours:log_level=warning"), models, models, models)
    try:
        serving.until_first(started, Ask("/readyz", {}, b""))
        yield started
    finally:
        started.end()


def test_what_wrk_says_is_read() -> None:
    """Requests, seconds, percentiles, and every kind of failure counted."""
    assert load.parsed(SAID) == Load(16410, 2.100036, 0.00192, 0.00401, 4)


def test_what_wrk_does_not_say_is_an_error() -> None:
    """The reason is handed on."""
    with pytest.raises(LoadFailed, match="unable to connect"):
        load.parsed("unable to connect to 127.0.0.1:1 Connection refused\n")


def test_without_wrk_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line."""
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(LoadFailed, match="apt-get install wrk"):
        load.wrk(1, Ask("/", {}, b"x"), 1, 1.0)


@pytest.mark.parametrize(
    ("ours", "peer", "said"),
    [
        (turns(300, 310, 320), turns(200, 210, 299), "×1.48, ahead, beyond the spread"),
        (turns(250, 310, 320), turns(200, 210, 299), "×1.48, ahead, within the spread"),
        (turns(100, 110, 120), turns(200, 220, 230), "×0.50, behind, beyond the spread"),
        (turns(100, 110, 240), turns(200, 220, 230), "×0.50, behind, within the spread"),
    ],
)
def test_a_verdict_is_of_every_turn(ours: list[Load], peer: list[Load], said: str) -> None:
    """Ahead beyond the spread: our least above the most of every peer, the second best ones too."""
    assert said in report.verdict(CELL, {"ours": ours, "mosec": peer, "lean": turns(10, 20, 30)})
    lucky = report.verdict(CELL, {"ours": turns(300, 310, 320), "mosec": turns(1, 200, 200), "lean": turns(1, 2, 305)})
    assert lucky.endswith("ahead, within the spread")


def test_servers_are_named_with_their_settings() -> None:
    """As environment variables of ours and of a peer; an unknown one is refused by name."""
    assert servers.kind("ours:workers=2+lanes=1", "lanes=2").env == {"VAE_SERVE_LANES": "1", "VAE_SERVE_WORKERS": "2"}
    assert servers.kind("mosec:batch=32").env == {"PEER_BATCH": "32"}
    with pytest.raises(SystemExit, match="no server nosuch"):
        servers.kind("nosuch")


def test_a_server_that_answers_something_else_is_not_measured(server: Running) -> None:
    """The right answer passes, in JSON and npy; another one, or a refusal, ends the run."""
    found = serving.opened(COMMITTED / "tiny" / "1")
    graph = Graph(COMMITTED / "tiny" / "1" / "elbo.onnx", found.noise)
    x = found.some(5)
    for form in ("json", "binary"):
        serving.check(server, asks.to_us(x, form, "npy", found), graph.elbo(x))
    with pytest.raises(SystemExit, match="and the graph"):
        serving.check(server, asks.to_us(x, "json", "npy", found), graph.elbo(x) + 1e-3)
    with pytest.raises(SystemExit, match="404"):
        serving.check(server, asks.to_us(x, "json", "npy", replace(found, name="nobody")), graph.elbo(x))


def test_a_server_is_seen_whole(server: Running) -> None:
    """Its processes have memory and have computed; it listens where it was told to."""
    assert server.process.pid in server.pids()
    assert server.memory() > 20
    assert server.cpu() > 0


def test_cpu_of_processes_that_ended_is_counted() -> None:
    """One that a server started and that has gone took its seconds along: the sum would fall, below 0 while idle."""
    program = """
import os, time
def burn(seconds):
    while time.process_time() < seconds: pass
if os.fork() == 0:
    burn(0.3)
    print("burnt", flush=True)
    input()
    os._exit(0)
os.wait()
print("gone", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin
    assert process.stdout
    with tempfile.NamedTemporaryFile(delete=False) as log:
        started = Running(servers.kind("ours"), 0, 0.0, process, log)
        try:
            assert process.stdout.readline() == b"burnt\n"
            before, pids = started.cpu(), started.pids()
            process.stdin.write(b"\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"gone\n"
            assert len(started.pids()) == len(pids) - 1
            assert started.cpu() >= before >= 0.3
        finally:
            started.end()
            process.stdin.close()
            process.stdout.close()


@needs_wrk
def test_a_refusal_under_load_ends_the_run(server: Running) -> None:
    """Nobody is fast by refusing."""
    refused = Ask("/v1/models/tiny/score", {"Content-Type": asks.JSON}, b'{"inputs": 1}')
    with pytest.raises(SystemExit, match="failed under load"):
        serving.run(server, refused, CELL, serving.Plan(seconds=1.0, warm=1.0))


@needs_wrk
def test_it_measures_and_reports(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole of it in its smallest form: one cell, ours alone, one turn."""
    monkeypatch.setattr(serving, "RESULTS", tmp_path / "serving.md")
    told = ["--models", str(COMMITTED / "tiny" / "1"), "--servers", "ours", "--binary", "npy", "--write"]
    serving.main([*told, "--only", "S3 c=1", "--repeats", "1", "--seconds", "0.2", "--starts", "1"])
    said = capsys.readouterr().out
    assert said == (tmp_path / "serving.md").read_text() + "\n"
    assert "| S3 c=1: 1-row binary | **ours** |" in said
    assert "met: S3 c=1: p50" in said


def test_cells_are_those_of_the_table() -> None:
    """Eight of them, each with a name of its own, and rows that a request may have."""
    assert len({str(cell) for cell in CELLS}) == len(CELLS) == 8
    assert np.array([cell.rows for cell in CELLS]).max() <= 4096

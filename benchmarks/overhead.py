"""What the service costs on top of its graph, over loopback, client and server on the same cores.

    python -m benchmarks.overhead [--models mnist tiny] [--seconds 5]

In one run: the p50 of the score graph in process (one row, the calibrated draws, one thread), the p50 of a one-row
JSON score over a kept-alive connection, and the rows a second of one-row requests at concurrency 64 beside the rows a
second of the same graph in process at its best batch. Ratios are what to read: machines differ, and share.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime
import orjson

from service import artifact
from service.engine import Engine, open_engine
from service.lanes import cores

MODELS = Path(__file__).parents[1] / "exported_models"


def main() -> None:
    """Print the table."""
    asked = arguments()
    print(f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}, ", end="")
    print(f"onnxruntime {onnxruntime.__version__}, {time.strftime('%Y-%m-%d')}\n")
    print(
        "| model | graph, one row: p50 | served, one row: p50 | overhead | graph at its best: rows/s (batch) "
        "| served, 64 callers: rows/s | share |"
    )
    print("|---|---|---|---|---|---|---|")
    with server() as port:
        for name in asked.models:
            print(line(name, port, asked.seconds), flush=True)


def line(name: str, port: int, seconds: float) -> str:
    """One model's line of the table."""
    found = artifact.read(MODELS / name / "1")
    engine = open_engine(found)
    x, noise = found.golden["elbo.x"], (found.calibration or found.golden)["noise"]
    request = http_request(port, name, orjson.dumps({"inputs": x[:1].tolist()}))
    check(engine, x[:1], noise, port, request)
    alone = one_row(engine, x[:1], noise, seconds)
    served = asyncio.run(closed_loop(port, request, 1, seconds))
    best, batch = in_process(engine, x, noise, seconds)
    crowd = asyncio.run(closed_loop(port, request, 64, seconds))
    p50 = statistics.median(served)
    rate = len(crowd) / seconds
    cells = [
        name,
        f"{alone * 1e3:.3f} ms",
        f"{p50 * 1e3:.3f} ms",
        f"{(p50 - alone) * 1e3:.3f} ms",
        f"{best:.0f} ({batch})",
        f"{rate:.0f}",
        f"{rate / best:.0%}",
    ]
    return f"| {' | '.join(cells)} |"


def one_row(engine: Engine, x: artifact.Array, noise: artifact.Array, seconds: float) -> float:
    """The p50 of one row through the graph, in seconds."""
    times = []
    end = time.perf_counter() + seconds
    while (started := time.perf_counter()) < end:
        engine.compute("elbo", {"x": x, "noise": noise})
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def in_process(engine: Engine, x: artifact.Array, noise: artifact.Array, seconds: float) -> tuple[float, int]:
    """Rows a second through the graph in one thread, at the best of several batches, and that batch."""
    rates = {}
    for batch in (1, 8, 32, 64, 128):
        rows = np.resize(x, (batch, *x.shape[1:]))
        count, started = 0, time.perf_counter()
        while time.perf_counter() < started + seconds / 5:
            engine.compute("elbo", {"x": rows, "noise": noise})
            count += batch
        rates[batch] = count / (time.perf_counter() - started)
    best = max(rates, key=lambda batch: rates[batch])
    return rates[best], best


def http_request(port: int, name: str, body: bytes) -> bytes:
    """A whole POST as it goes over the wire."""
    head = f"POST /v1/models/{name}/score HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def check(engine: Engine, x: artifact.Array, noise: artifact.Array, port: int, request: bytes) -> None:
    """Refuse to measure a server that answers anything but the graph's own number."""
    body = request.partition(b"\r\n\r\n")[2]
    url = f"http://127.0.0.1:{port}{request.split()[1].decode()}"
    ask = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(ask) as reply:
        answer = orjson.loads(reply.read())
    exact = engine.compute("elbo", {"x": x, "noise": noise})
    assert abs(answer["log_likelihood"][0] - exact["log_likelihood"].mean()) < 1e-9 * abs(answer["log_likelihood"][0])


async def closed_loop(port: int, request: bytes, callers: int, seconds: float) -> list[float]:
    """How long each of many requests took, callers asking one after another, each on its own connection."""
    times: list[float] = []
    end = time.perf_counter() + seconds

    async def caller() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while (started := time.perf_counter()) < end:
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            await reader.readexactly(length)
            times.append(time.perf_counter() - started)
        writer.close()

    await asyncio.gather(*(caller() for _ in range(callers)))
    return times


@contextmanager
def server() -> Iterator[int]:
    """The service as `make serve` starts it, on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {"VAE_SERVE_PORT": str(port), "VAE_SERVE_MODELS": str(MODELS), "VAE_SERVE_WELCOME": "false"}
    settings |= {"VAE_SERVE_DRAIN_GRACE_MS": "0"}
    process = subprocess.Popen([sys.executable, "-m", "service"], env={**os.environ, **settings}, cwd=MODELS.parent)
    try:
        wait_until_ready(port)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def wait_until_ready(port: int) -> None:
    """Ask /readyz until it says yes."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz"):
                return
        except OSError:
            time.sleep(0.05)
    raise SystemExit("the service did not become ready")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="What the service costs on top of its graph.")
    parser.add_argument("--models", nargs="+", default=["tiny", "breast-cancer", "mnist"])
    parser.add_argument("--seconds", type=float, default=5.0, help="a measurement")
    return parser.parse_args()


if __name__ == "__main__":
    main()

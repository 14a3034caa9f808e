"""What several worker processes bring and cost, beside several lanes in one, over loopback with wrk.

    python -m benchmarks.workers [--layouts 1x1 1x2 2x1 2x2] [--cores 1 2] [--models tiny mnist]
                                 [--seconds 4] [--rounds 3] [--only load costs]

A layout is workers × lanes. Client and server share the cores they are bound to, and rounds are interleaved: every
layout is measured once before any is measured again, since what else runs on a machine comes and goes. Requests are
one-row JSON scores by connections that are kept. Costs are memory (each process's own and its share of what it shares),
the time from a start to the first score, the time from a worker's death to the last of its callers' being told and to
the next one's serving, and what counting takes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import re
import select
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime

from service.lanes import cores
from service.metrics import Metrics
from service.metrics.group import Group, proportional

MODELS = Path(__file__).parents[1] / "exported_models"
CONCURRENCY = (1, 16, 64)
CALLERS = 200  # who are inside when a worker dies
THREE = ("tiny", "mnist", "diabetes")


@dataclass(frozen=True)
class Load:
    """What wrk measured: requests a second, and milliseconds."""

    rate: float
    p50: float
    p99: float


def main() -> None:
    """Print the tables."""
    asked = arguments()
    print(f"{platform.machine()}, {cores()} cores, load {os.getloadavg()[0]:.1f}, ", end="")
    print(f"onnxruntime {onnxruntime.__version__}, {time.strftime('%Y-%m-%d')}")
    if "load" in asked.only:
        for count, model in itertools.product(asked.cores, asked.models):
            table(count, model, asked.layouts, asked.seconds, asked.rounds)
    if "costs" in asked.only:
        memory()
        start(asked.rounds)
        replacement(asked.rounds)
        counting()


# ---------------------------------------------------------------- load


def table(count: int, model: str, layouts: Sequence[str], seconds: float, rounds: int) -> None:
    """One model on so many cores: a line a layout, with the least and the most of the rounds."""
    found: dict[tuple[str, int], list[Load]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        script = script_for(model, Path(scratch))
        for _ in range(rounds):
            for layout in layouts:
                with service(layout, (model,), count) as (_, address):
                    load(address, model, script, 8, 1.0, count)
                    for callers in CONCURRENCY:
                        got = load(address, model, script, callers, seconds, count)
                        found.setdefault((layout, callers), []).append(got)
    print(f"\n{model}, {count} core{'s' * (count > 1)}\n")
    print(
        "| workers × lanes | " + " | ".join(f"c={callers}: requests/s | p50 / p99 ms" for callers in CONCURRENCY) + " |"
    )
    print("|---" * (1 + 2 * len(CONCURRENCY)) + "|")
    for layout in layouts:
        cells = [cell for callers in CONCURRENCY for cell in said(found[layout, callers])]
        print(f"| {layout.replace('x', ' × ')} | {' | '.join(cells)} |", flush=True)


def said(loads: list[Load]) -> tuple[str, str]:
    """The median of the rounds, and their spread."""
    rates = [got.rate for got in loads]
    rate = f"{statistics.median(rates):,.0f} ({min(rates):,.0f}–{max(rates):,.0f})"
    p50, p99 = (statistics.median(getattr(got, name) for got in loads) for name in ("p50", "p99"))
    return rate, f"{p50:.2f} / {p99:.2f}"


def script_for(model: str, folder: Path) -> Path:
    """What wrk sends: one golden row."""
    with np.load(MODELS / model / "1" / "golden.npz") as golden:
        body = json.dumps({"inputs": golden["encoder.x"][:1].tolist()}, separators=(",", ":"))
    script = folder / f"{model}.lua"
    script.write_text(
        f"wrk.method='POST'\nwrk.body='{body}'\nwrk.headers['Content-Type']='application/json'\n"
        "function done(s,l,r)\n"
        "io.write(string.format('RESULT %d %d %f %f %d\\n', s.requests, s.duration, l:percentile(50), "
        "l:percentile(99), s.errors.connect+s.errors.read+s.errors.write+s.errors.status+s.errors.timeout))\nend\n"
    )
    return script


def load(address: str, model: str, script: Path, callers: int, seconds: float, count: int) -> Load:
    """One run of wrk."""
    bound = ["taskset", "-c", f"0-{count - 1}"]
    command = [*bound, "wrk", "-t1", f"-c{callers}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    ended = subprocess.run([*command, f"{address}/v1/models/{model}/score"], capture_output=True, text=True, check=True)
    words = re.search(r"RESULT (\d+) (\d+) ([\d.]+) ([\d.]+) (\d+)", ended.stdout)
    assert words, ended.stdout
    requests, micros, p50, p99, errors = (float(word) for word in words.groups())
    assert not errors, ended.stdout
    return Load(requests / micros * 1e6, p50 / 1e3, p99 / 1e3)


# ---------------------------------------------------------------- costs


def memory() -> None:
    """What a group holds, beside as many services of their own."""
    print(f"\nMemory with {', '.join(THREE)}, MB\n\n| processes | one group | services of their own |\n|---|---|---|")
    for workers in (1, 2, 4):
        with service(f"{workers}x1", THREE) as (process, address):
            for model in THREE * 2 * workers:
                ask(address, model)
            group = held(process.pid)
        with ExitStack() as stack:
            apart = [stack.enter_context(service("1x1", THREE)) for _ in range(workers)]
            for _, address in apart:
                for model in THREE * 2:
                    ask(address, model)
            alone = sum(held(process.pid) for process, _ in apart)
        print(f"| {workers} | {group / 1e6:.0f} | {alone / 1e6:.0f} |", flush=True)


def held(pid: int) -> float:
    """Bytes of a process and its children, what they share counted once."""
    return sum(proportional(one) for one in (pid, *children(pid)))


def children(pid: int) -> list[int]:
    """The processes that one has forked."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def start(rounds: int) -> None:
    """From the start of a process to its first score."""
    print(f"\nStart to first score with {', '.join(THREE)}, s\n\n| workers | median | least–most |\n|---|---|---|")
    for workers in (1, 2, 4):
        taken = []
        for _ in range(rounds):
            begun = time.perf_counter()
            with service(f"{workers}x1", THREE) as (_, address):
                ask(address, "mnist")
                taken.append(time.perf_counter() - begun)
        print(f"| {workers} | {spread(taken, '.2f')} |", flush=True)


def replacement(rounds: int) -> None:
    """From the death of a worker to the last of its callers' being told, and to the next one's serving."""
    taken, told, count = [], [], 0
    with service("2x1", THREE) as (process, address):
        time.sleep(1.0)  # the porter has gone
        for dead in range(1, rounds + 1):
            with ExitStack() as stack:
                callers = [stack.enter_context(half_asked(address)) for _ in range(CALLERS)]
                time.sleep(0.2)  # they are in the workers
                begun = time.perf_counter()
                os.kill(children(process.pid)[0], signal.SIGKILL)
                last = begun
                wanted = ("vae_serve_workers 2.0", f"vae_serve_workers_replaced_total {dead}.0")
                serving = ThreadPoolExecutor(1).submit(until_said, address, wanted)
                while not serving.done():
                    for caller in select.select(callers, [], [], 0.005)[0]:
                        last = time.perf_counter()
                        assert caller.recv(4096).startswith(b"HTTP/1.1 503")
                        callers.remove(caller)
                count += CALLERS - len(callers)
                told.append(last - begun)
                taken.append(serving.result() - begun)
            time.sleep(11.0)  # not one of a row
    print(f"\nDeath of one of two workers to both serving, s: median | least–most: {spread(taken, '.2f')}")
    print(f"To the last of its callers ({count / rounds:.0f} each time) being told, s: {spread(told, '.3f')}")


def until_said(address: str, wanted: Sequence[str]) -> float:
    """When /metrics has some lines."""
    while not all(line in metrics(address) for line in wanted):
        time.sleep(0.005)
    return time.perf_counter()


@contextmanager
def half_asked(address: str) -> Iterator[socket.socket]:
    """A connection, and a request on it whose body doesn't come."""
    host, port = address.removeprefix("http://").split(":")
    head = "POST /v1/models/mnist/score HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(head.encode())
        yield caller


def counting() -> None:
    """What one more request costs the books."""
    print("\nCounting, µs\n\n| | counter | histogram |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for name, group in (("one process", None), ("of a group", Group(Path(folder), 0, list))):
            books = Metrics(group)
            counter, histogram = books.rows.labels("score", "tiny"), books.seconds.labels("score")
            print(f"| {name} | {micros(counter.inc):.2f} | {micros(lambda: histogram.observe(0.001)):.2f} |")  # noqa: B023
            books.share()


def micros(work: Callable[[], None], times: int = 100_000) -> float:
    """Microseconds that something takes."""
    begun = time.perf_counter()
    for _ in range(times):
        work()
    return (time.perf_counter() - begun) / times * 1e6


def spread(numbers: list[float], form: str) -> str:
    """Median, and least to most."""
    return f"{statistics.median(numbers):{form}} | {min(numbers):{form}}–{max(numbers):{form}}"


# ---------------------------------------------------------------- the service


@contextmanager
def service(
    layout: str, models: Sequence[str], count: int | None = None
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The service in a layout on the first so many cores, and its address once it is ready."""
    workers, lanes = layout.split("x")
    settings = {"PORT": "0", "DEVICE": "cpu", "LANES": lanes, "DRAIN_GRACE_MS": "0", "DRIFT_FALSE_ALARM": "0"}
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            (Path(folder) / model).symlink_to(MODELS / model)
        named = {f"VAE_SERVE_{name}": value for name, value in {**settings, "MODELS": folder}.items()}
        bound = ["taskset", "-c", f"0-{count - 1}"] if count else []
        process = subprocess.Popen(
            [*bound, sys.executable, "-m", "service", "serve", "--workers", workers],
            env={**os.environ, **named, "VAE_SERVE_LOG_LEVEL": "error"},
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout
            line = next(line for line in iter(process.stdout.readline, "") if "ready at " in line)
            yield process, line.partition("ready at ")[2].split()[0]
        finally:
            process.terminate()
            process.wait()
            process.communicate()


def ask(address: str, model: str) -> None:
    """One score of a golden row, by a connection of its own."""
    with np.load(MODELS / model / "1" / "golden.npz") as golden:
        body = json.dumps({"inputs": golden["encoder.x"][:1].tolist()}).encode()
    request = urllib.request.Request(
        f"{address}/v1/models/{model}/score", body, {"Content-Type": "application/json", "Connection": "close"}
    )
    with urllib.request.urlopen(request) as response:
        assert response.status == 200


def metrics(address: str) -> list[str]:
    """The lines of /metrics."""
    with urllib.request.urlopen(f"{address}/metrics") as response:
        return str(response.read(), "utf-8").splitlines()


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--layouts", nargs="+", default=["1x1", "1x2", "2x1", "2x2"], help="workers × lanes")
    parser.add_argument("--cores", nargs="+", type=int, default=[1, 2], help="to bind client and server to")
    parser.add_argument("--models", nargs="+", default=["tiny", "mnist"])
    parser.add_argument("--seconds", type=float, default=4, help="of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=("load", "costs"), default=["load", "costs"])
    return parser.parse_args()


if __name__ == "__main__":
    main()

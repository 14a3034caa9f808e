"""A long mixed load on the service: is its memory flat, is every answer right, is every status what it should be.

    python -m benchmarks.soak [--requests 1000000] [--connections 16] [--ours workers=2]
    python -m benchmarks.soak --overload        ten times what it can do: see benchmarks/overload.py

Every operation of several models, in JSON, npy, npz and on /v2, good and bad, some clients leaving before the answer.
An answer is right if it has the bytes of the first one to the same request; before the load, first answers are
compared with the graphs in process. Memory is PSS of all its processes, without the pages of files, whose share others
that have them open take away; the first tenth of the requests is the warm-up.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import uvloop

from benchmarks import overload, servers
from benchmarks.client import Connection
from benchmarks.load import Ask
from benchmarks.mixture import Case, cases
from benchmarks.servers import Running
from benchmarks.serving import say, until_first

MODELS = servers.ROOT / "exported_models"
LINES = 40  # of memory
LEAVING = 0.002  # the share of requests whose sender doesn't wait
RECONNECT = 0.002  # the share of requests before which a connection is made anew
FLAT = 0.02


@dataclass
class Seen:
    """What a soak has seen so far."""

    done: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[int, float]] = field(default_factory=list)  # requests so far, MiB


def main(arguments: Sequence[str] | None = None) -> None:
    """Soak, and print what was seen; the status is 1 where anything was wrong."""
    asked = parser().parse_args(arguments)
    server = servers.start(servers.kind(servers.OURS, asked.ours), MODELS, MODELS, MODELS)
    try:
        until_first(server, Ask("/readyz", {}, b""))
        if asked.overload:
            overload.report(server, asked.seconds, asked.deadline_ms)
            return
        mixture = cases(server.port, MODELS)
        say(f"{len(mixture)} kinds of request")
        seen = uvloop.run(soak(server, mixture, asked.requests, asked.connections))
    finally:
        server.end()
    if not summary(seen):
        raise SystemExit(1)


async def soak(server: Running, mixture: Sequence[Case], requests: int, connections: int) -> Seen:
    """Ask so often, over so many connections."""
    seen, weights = Seen(), [case.weight for case in mixture]
    started = time.perf_counter()
    step = max(1, requests // LINES)
    print("| requests | requests/s | own PSS MiB | CPU s |\n|---|---|---|---|", flush=True)

    async def caller(number: int) -> None:
        generator = random.Random(number)
        connection = await Connection.open(server.port)
        while seen.done < requests:
            (case,) = generator.choices(mixture, weights)
            seen.done += 1
            if seen.done % step == 0:
                line(server, seen, time.perf_counter() - started)
            chance = generator.random()
            if chance < LEAVING + RECONNECT:
                connection.leave(case.request if chance < LEAVING else b"")
                connection = await Connection.open(server.port)
                if chance < LEAVING:
                    continue
            connection = await one(connection, server.port, case, seen)
        connection.leave()

    await asyncio.gather(*(caller(number) for number in range(connections)))
    return seen


async def one(connection: Connection, port: int, case: Case, seen: Seen) -> Connection:
    """One request and what is to be said of its answer; the connection to go on with."""
    try:
        reply = await connection.ask(case.request)
    except ConnectionError as error:
        seen.faults[f"{case.name}: {error}"] += 1
        return await Connection.open(port)
    seen.statuses[reply.status] += 1
    if fault := case.fault(reply):
        seen.faults[f"{case.name}: {fault}"] += 1
    if (reply.header("connection") or "").lower() == "close":
        connection.leave()
        return await Connection.open(port)
    return connection


def line(server: Running, seen: Seen, seconds: float) -> None:
    """A line of memory."""
    seen.memory.append((seen.done, server.own_memory()))
    rate, cpu = seen.done / seconds, server.cpu()
    print(f"| {seen.done:,} | {rate:,.0f} | {seen.memory[-1][1]:.1f} | {cpu:.0f} |", flush=True)


def summary(seen: Seen) -> bool:
    """Print what was seen; whether all of it is well."""
    warm = seen.memory[len(seen.memory) // 10 :] or seen.memory
    first, last = warm[0][1], warm[-1][1]
    drift = max(abs(memory / first - 1) for _, memory in warm)
    print(f"\n{seen.done:,} requests; statuses {dict(sorted(seen.statuses.items()))}")
    print(f"memory after the warm-up {first:.1f} MiB, at the end {last:.1f} MiB ({last / first - 1:+.1%}); ", end="")
    print(f"never further off than {drift:.1%}, {FLAT:.0%} wanted")
    for fault, count in seen.faults.most_common(30):
        print(f"WRONG {count} × {fault}")
    print(f"{sum(seen.faults.values())} wrong answers or statuses")
    return not seen.faults and drift <= FLAT


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.soak", description="A long mixed load on the service.")
    top.add_argument("--requests", type=int, default=1_000_000, help="how many (default 1,000,000)")
    top.add_argument("--connections", type=int, default=16, help="how many at once (default 16)")
    top.add_argument("--ours", default="", help="settings: workers=2,lanes=1")
    top.add_argument("--overload", action="store_true", help="ten times what it can do, instead")
    top.add_argument("--seconds", type=float, default=20.0, help="of overload (default 20)")
    top.add_argument("--deadline-ms", type=int, default=500, help="of each request in overload (default 500)")
    return top


if __name__ == "__main__":
    main()

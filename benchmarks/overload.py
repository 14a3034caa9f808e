"""Overload: requests come at ten times the rate that the service can answer, whether it has answered or not.

Capacity is what a closed loop of 32 gets of the same request. Then requests come by chance (a Poisson process), each
with a deadline, on a connection that is free or a new one. Goodput is answers of 200 within the deadline, a second.
After the load, Retry-After is taken at its word: who comes back then should be let in. The client shares the
server's cores.
"""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from statistics import quantiles

import numpy as np
import uvloop

from benchmarks.asks import NPY
from benchmarks.client import Connection, Reply, written
from benchmarks.load import Ask
from benchmarks.servers import Running
from service.artifact import Array

TIMES = 10
CALLERS = 32  # of the closed loop that measures the capacity
PATIENT = 30.0  # seconds of its deadline, so that nothing is refused
RETURNING = 8  # who come back together after the load
MOST = 4000  # connections
HEAVY, TINY = 0.010, 1  # seconds that a lone request takes at the least; draws of a tiny one


@dataclass
class Seen:
    """What an open loop has seen: statuses, seconds of those answered, what Retry-After said.

    lag is how late requests were sent, in seconds: where it is large, it is the client that can't keep up.
    """

    sent: int = 0
    lost: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    times: list[float] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)
    told: list[float] = field(default_factory=list)
    untold: int = 0
    lag: list[float] = field(default_factory=list)


def report(server: Running, seconds: float, deadline_ms: int) -> None:
    """Measure with requests of 10 ms and more, and with tiny ones; print both."""
    uvloop.run(_report(server, seconds, deadline_ms / 1e3))


async def _report(server: Running, seconds: float, deadline: float) -> None:
    port = server.port
    draws = await heavy(port)
    for name, wanted in ((f"{draws} draws", draws), ("tiny", TINY)):
        ask = asked(wanted, deadline)
        alone = await closed(port, asked(wanted, PATIENT), 1, 2.0)
        capacity = await closed(port, asked(wanted, PATIENT), CALLERS, max(3.0, seconds / 4))
        print(f"\n## {name}: alone {1e3 / alone:.1f} ms, capacity {capacity:,.0f} requests/s, deadline {deadline:g} s")
        before, client, started = server.cpu(), time.process_time(), time.perf_counter()
        seen = await opened(port, ask, TIMES * capacity, seconds)
        took = time.perf_counter() - started
        described(seen, capacity, deadline, seconds)
        cores = [spent / took for spent in (server.cpu() - before, time.process_time() - client)]
        print(f"sent late by {percentiles(seen.lag)}; server had {cores[0]:.2f} cores, client {cores[1]:.2f}")
        await trusted(port, ask, seen)


def asked(draws: int, deadline: float) -> Ask:
    """One row of mnist, so many draws."""
    x = np.zeros((1, 28, 28), np.uint8)
    headers = {"Content-Type": NPY, "X-Timeout-Ms": str(round(deadline * 1e3))}
    return Ask(f"/v1/models/mnist/score?draws={draws}", headers, npy(x))


def npy(x: Array) -> bytes:
    """An array as an npy file."""
    kept = io.BytesIO()
    np.save(kept, x)
    return kept.getvalue()


async def heavy(port: int) -> int:
    """Draws with which a lone request takes 10 ms and more."""
    draws = 16
    while 1 / await closed(port, asked(draws, PATIENT), 1, 0.5) < HEAVY and draws < 4096:
        draws *= 2
    return draws


async def closed(port: int, ask: Ask, callers: int, seconds: float) -> float:
    """Answers of 200 a second in a closed loop."""
    request, done, started = written(ask), 0, time.perf_counter()

    async def caller() -> None:
        nonlocal done
        connection = await Connection.open(port)
        while time.perf_counter() < started + seconds:
            reply = await connection.ask(request)
            done += reply.status == 200  # not in the same line: `done` would be read before the others have added
        connection.leave()

    await asyncio.gather(*(caller() for _ in range(callers)))
    return done / (time.perf_counter() - started)


async def opened(port: int, ask: Ask, rate: float, seconds: float) -> Seen:
    """Requests at a rate, whatever becomes of them."""
    open_loop, generator = OpenLoop(port, written(ask)), random.Random(0)
    seen = open_loop.seen
    began = at = time.perf_counter()
    while (now := time.perf_counter()) < began + seconds:
        while at <= now:
            seen.lag.append(now - at)
            at += generator.expovariate(rate)
            open_loop.one()
        await asyncio.sleep(0.001)
    await open_loop.end()
    return seen


class OpenLoop:
    """Requests on connections that are free or new. A task for each would cost the server's cores as much again."""

    def __init__(self, port: int, request: bytes) -> None:
        self.seen = Seen()
        self._port, self._request = port, request
        self._free: list[Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._flying = 0
        self._landed = asyncio.Event()

    def one(self) -> None:
        """Send one."""
        seen, started = self.seen, time.perf_counter()
        seen.sent += 1
        if self._flying >= MOST:
            seen.lost += 1
            return
        self._flying += 1
        self._landed.clear()
        if self._free:
            self._send(self._free.pop(), started)
            return
        task = asyncio.create_task(self._open(started))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def end(self) -> None:
        """Wait for all answers."""
        if self._flying:
            await self._landed.wait()
        for connection in self._free:
            connection.leave()

    async def _open(self, started: float) -> None:
        try:
            connection = await Connection.open(self._port)
        except OSError:
            self._land(lost=1)
            return
        self._send(connection, started)

    def _send(self, connection: Connection, started: float) -> None:
        try:
            answer = connection.send(self._request)
        except ConnectionError:
            self._land(lost=1)
            return
        answer.add_done_callback(partial(self._told, connection, started))

    def _told(self, connection: Connection, started: float, answer: asyncio.Future[Reply]) -> None:
        if answer.exception():
            self._land(lost=1)
            return
        seen, reply, took = self.seen, answer.result(), time.perf_counter() - started
        seen.statuses[reply.status] += 1
        if reply.status == 200:
            seen.times.append(took)
        else:
            seen.refused.append(took)
            said = reply.header("retry-after")
            seen.untold += said is None
            seen.told += [float(said)] if said else []
        self._free.append(connection)
        self._land()

    def _land(self, lost: int = 0) -> None:
        self.seen.lost += lost
        self._flying -= 1
        if not self._flying:
            self._landed.set()


def described(seen: Seen, capacity: float, deadline: float, seconds: float) -> None:
    """Print what came of them."""
    good = [took for took in seen.times if took <= deadline]
    print(f"offered {seen.sent / seconds:,.0f}/s ({seen.sent / seconds / capacity:.1f} × capacity), lost {seen.lost}")
    print(f"goodput {len(good) / seconds:,.1f}/s, {len(good) / seconds / capacity:.0%} of capacity; 90% wanted")
    print(f"answered {percentiles(seen.times)}; {len(seen.times) - len(good)} of them late")
    shares = ", ".join(f"{status} {count / max(1, seen.sent):.1%}" for status, count in sorted(seen.statuses.items()))
    print(f"statuses {shares}; refused {percentiles(seen.refused)}")
    if seen.told:
        print(f"Retry-After {min(seen.told):g} to {max(seen.told):g} s, and {seen.untold} refusals without one")


def percentiles(times: list[float]) -> str:
    """p50 and p99 in ms."""
    if len(times) < 2:
        return f"{len(times)} times"
    cuts = quantiles(times, n=100)
    return f"p50 {cuts[49] * 1e3:.1f} ms, p99 {cuts[98] * 1e3:.1f} ms"


async def trusted(port: int, ask: Ask, seen: Seen) -> None:
    """Whether Retry-After is honest: the load has ended, and who comes back when told to is let in."""
    if not seen.told:
        return
    request, started, said = written(ask), time.perf_counter(), seen.told[-1]
    connections = [await Connection.open(port) for _ in range(RETURNING)]
    while (await connections[0].ask(request)).status != 200:  # noqa: ASYNC110  the server can't say when
        await asyncio.sleep(0.01)
    free = time.perf_counter() - started
    await asyncio.sleep(max(0.0, said - free))
    replies = await asyncio.gather(*(connection.ask(request) for connection in connections))
    let = sum(reply.status == 200 for reply in replies)
    print(
        f"after the load: room at once or after {free:.2f} s; after the {said:g} s told, {let} of {len(replies)} let in"
    )
    for connection in connections:
        connection.leave()

"""The loop: for how long single steps of the event loop hold up everybody else, by kind of request.

    python -m benchmarks.loop [--times 200] [--longest 0.5]

Every kind of request of the soak's mixture that has few bytes, one at a time. A step is one callback of the loop; what
counts is the CPU time that its thread used, which other jobs on the machine don't add to. Small batches are computed on
the loop on purpose (VAE_SERVE_INLINE_US): what the runtime took of a step is told apart.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import http.client
import os
import platform
import signal
import socket
import sys
import threading
import time
from asyncio import events
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks.mixture import Case, cases
from benchmarks.serving import say
from benchmarks.soak import MODELS
from service import __main__ as command
from service.lanes import Lanes, cores
from service.settings import Settings

SMALL = 16_384  # bytes of a body that says something of few rows
MILLISECOND = 1.0


@dataclass(slots=True)
class Seen:
    """The steps of one kind of request: milliseconds of each beyond the runtime, and with it; what the longest was."""

    own: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    longest: str = ""

    def add(self, own: float, whole: float, what: Callable[[], str]) -> None:
        """A step was taken."""
        if own > max(self.own, default=0.0):
            self.longest = what()
        self.own.append(own)
        self.whole.append(whole)


class Clock:
    """Around every step of a loop in Python, and every call of the runtime within one."""

    def __init__(self) -> None:
        self.seen: Seen | None = None
        self._runtime = 0

    def install(self) -> None:
        """Watch from now on, for the rest of the process."""
        run: Callable[[Any], None] = vars(events.Handle)["_run"]
        here = Lanes.here

        @functools.wraps(run)
        def timed(handle: Any) -> None:
            if (seen := self.seen) is None:
                run(handle)
                return
            self._runtime, started = 0, time.thread_time_ns()
            run(handle)
            whole = time.thread_time_ns() - started
            seen.add((whole - self._runtime) / 1e6, whole / 1e6, lambda: named(handle))

        def computed(lanes: Lanes, work: Callable[[], Any]) -> Any:
            started = time.thread_time_ns()
            try:
                return here(lanes, work)
            finally:
                self._runtime += time.thread_time_ns() - started

        setattr(events.Handle, "_run", timed)  # noqa: B010  the library's own part, which it has no public way to
        setattr(Lanes, "here", computed)  # noqa: B010


def named(handle: Any) -> str:
    """What a step ran: a function, or a task's coroutine."""
    callback = handle._callback
    task = getattr(callback, "__self__", None)
    if isinstance(task, asyncio.Task):
        callback = task.get_coro()
    while isinstance(callback, functools.partial):
        callback = callback.func
    return str(getattr(callback, "__qualname__", callback))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve in this process, ask from a thread, and print the table."""
    asked = parser().parse_args(arguments)
    listener = command.listen("127.0.0.1", 0)
    port = int(listener.getsockname()[1])
    clock = Clock()
    clock.install()
    found: list[tuple[str, Seen]] = []

    def ask() -> None:
        try:
            until_ready(port)
            for case in cases(port, MODELS):
                if len(case.ask.body) <= SMALL:
                    found.append((case.name, repeated(port, case, asked.times, clock)))
        finally:
            leave.set()

    leave = threading.Event()
    command.settle(1)
    threading.Thread(target=ask, daemon=True).start()
    asyncio.run(until(leave, listener))
    report(found, asked.longest)


async def until(leave: threading.Event, listener: socket.socket) -> None:
    """Serve until told to leave."""
    serving = asyncio.create_task(command.run(Settings(models=MODELS, welcome=False, drain_grace_ms=0), [listener]))
    while not leave.is_set() and not serving.done():  # noqa: ASYNC110  a thread can't set an asyncio event
        await asyncio.sleep(0.05)
    if not serving.done():
        os.kill(os.getpid(), signal.SIGTERM)
    if status := await serving:
        raise SystemExit(status)


def until_ready(port: int) -> None:
    """Wait for the first ready answer."""
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/readyz")
            if connection.getresponse().status == http.client.OK:
                return
        except OSError:
            pass
        time.sleep(0.05)


def repeated(port: int, case: Case, times: int, clock: Clock) -> Seen:
    """One kind of request, so often, after a few that aren't counted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seen = Seen()
    for count in range(times + 5):
        clock.seen = seen if count >= 5 else None
        connection.request(case.method, case.ask.path, case.ask.body or None, dict(case.ask.headers))
        connection.getresponse().read()
    clock.seen = None
    connection.close()
    return seen


def report(found: Iterable[tuple[str, Seen]], longest: float) -> None:
    """The kinds by their longest step, those above a limit, and what holds of all."""
    print(f"{platform.machine()}, {cores()} cores, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}\n")
    kinds = sorted(found, key=lambda one: -max(one[1].own, default=0.0))
    print("| request | median step, ms | 99.9 % of steps, ms | longest | of the longest | with the runtime |")
    print("|---|---|---|---|---|---|")
    for name, seen in kinds:
        if max(seen.own, default=0.0) >= longest or (name, seen) in kinds[:5]:
            ordered = sorted(seen.own)
            high = ordered[min(len(ordered) - 1, int(0.999 * len(ordered)))]
            cells = f"{median(ordered):.3f} | {high:.3f} | {ordered[-1]:.3f} | {seen.longest} | {max(seen.whole):.3f}"
            print(f"| {name} | {cells} |")
    steps = [step for _, seen in kinds for step in seen.own]
    over = sum(step > MILLISECOND for step in steps)
    print(f"\n{len(kinds)} kinds of request, {len(steps):,} steps, {over} of them ({over / len(steps):.3%}) above 1 ms")


def parser() -> argparse.ArgumentParser:
    """What the command line takes."""
    top = argparse.ArgumentParser(prog="python -m benchmarks.loop", description="How long the event loop is held up.")
    top.add_argument("--times", type=int, default=200, help="requests of each kind (default 200)")
    top.add_argument("--longest", type=float, default=0.5, help="list kinds with a step of so many ms (default 0.5)")
    return top


if __name__ == "__main__":
    say("every kind of request, one after another")
    main()
    sys.stdout.flush()

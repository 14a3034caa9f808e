"""The lanes: the threads that compute, and whose turn it is. Knows nothing of what is computed.

The event loop schedules and a lane computes; they meet in `Lanes.start`.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")
Done = Callable[[Any, BaseException | None], None]


class Lanes:
    """The threads that compute, shared by every engine of the process; who wants one takes a turn, first come first.

    Threads of our own, not an executor's: a call then costs a queue and a wake-up, and a stuck one keeps no process.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = count
        self._wanted: deque[Callable[[], None]] = deque()
        self._work: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads = 0
        self._started: dict[object, float] = {}
        self._here = math.inf

    @property
    def busy(self) -> bool:
        """Whether who asks now would wait."""
        return self._free < 1

    def ask(self, granted: Callable[[], None]) -> None:
        """Call back as soon as a lane is free, which may be at once. Whoever is called back must give it back."""
        if self._free < 1:
            self._wanted.append(granted)
            return
        self._free -= 1
        granted()

    async def take(self) -> None:
        """Wait for a lane. What is to be computed is decided after this, not before."""
        turn = asyncio.get_running_loop().create_future()

        def granted() -> None:
            if turn.done():
                self.give()
            else:
                turn.set_result(None)

        self.ask(granted)
        await turn

    def give(self) -> None:
        """Hand a lane back."""
        if self._wanted:
            self._wanted.popleft()()
        else:
            self._free += 1

    def start(self, work: Callable[[], Any], done: Done) -> None:
        """Compute on a lane and call `done` on the loop with the result or the error; the caller holds a turn."""
        loop = asyncio.get_running_loop()
        token = object()  # not the call itself: that would hold itself, and a batch's rows, until they are collected

        def call() -> None:
            found, error = None, None
            started = self._started
            started[token] = time.monotonic()
            try:
                found = work()
            except BaseException as failure:  # whatever it is, the caller is told and the lane goes on
                error = failure
            finally:
                del started[token]
            try:
                loop.call_soon_threadsafe(done, found, error)
            except RuntimeError:  # the loop has ended, and everyone was told
                return

        self._work.put(call)
        if self._threads < self.count:
            self._threads += 1
            threading.Thread(target=self._serve, name=f"lane-{self._threads}", daemon=True).start()

    def here(self, work: Callable[[], T]) -> T:
        """Compute on the loop itself, what is quick; `longest_here` tells whoever watches if it isn't."""
        self._here = time.monotonic()
        try:
            return work()
        finally:
            self._here = math.inf

    def longest_here(self) -> float:
        """For how many seconds the loop itself has been computing; 0 when it isn't."""
        return max(0.0, time.monotonic() - self._here)

    async def run(self, work: Callable[[], T]) -> T:
        """Compute on a lane; the caller holds a turn."""
        reply: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        def done(found: T, error: BaseException | None) -> None:
            if reply.done():
                return
            if error is not None:
                reply.set_exception(error)
            else:
                reply.set_result(found)

        self.start(work, done)
        return await reply

    def _serve(self) -> None:
        while (call := self._work.get()) is not None:
            call()
            del call  # it holds a batch's rows

    def longest(self) -> float:
        """For how many seconds the oldest call has been computing; 0 when none is."""
        return time.monotonic() - min(list(self._started.values()), default=time.monotonic())

    def close(self) -> None:
        """Let the threads go; a call that is stuck is left behind."""
        for _ in range(self._threads):
            self._work.put(None)


def cores() -> int:
    """How many cores this process may use: the container's quota where there is one, not the host's count."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(usable, _quota())))


def _quota(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Cores granted by cgroup v2, then v1; infinite without a quota."""
    for file in (root / "cpu.max", root / "cpu" / "cpu.cfs_quota_us"):
        try:
            words = file.read_text().split()
            if len(words) == 1:
                words.append((root / "cpu" / "cpu.cfs_period_us").read_text())
            if words[0] not in ("max", "-1"):
                return float(words[0]) / float(words[1])
        except (OSError, ValueError):
            continue
    return math.inf

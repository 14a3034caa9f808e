"""The lanes: the threads that compute, and whose turn it is. Knows nothing of what is computed.

The event loop schedules and a lane computes; they meet in `Lanes.run`.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class Lanes:
    """The threads that compute, shared by every engine of the process; who wants one takes a turn, first come first."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._free = asyncio.Semaphore(count)
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="lane")
        self._started: dict[object, float] = {}

    async def take(self) -> None:
        """Wait for a lane. What is to be computed is decided after this, not before."""
        await self._free.acquire()

    def give(self) -> None:
        """Hand a lane back."""
        self._free.release()

    async def run(self, work: Callable[[], T]) -> T:
        """Compute on a lane; the caller holds a turn."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._watched, work)

    def _watched(self, work: Callable[[], T]) -> T:
        call = object()
        self._started[call] = time.monotonic()
        try:
            return work()
        finally:
            del self._started[call]

    def longest(self) -> float:
        """For how many seconds the oldest call has been computing; 0 when none is."""
        return time.monotonic() - min(self._started.values(), default=time.monotonic())

    def close(self) -> None:
        """Let the threads go; a call that is stuck is left behind."""
        self._threads.shutdown(wait=False, cancel_futures=True)


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

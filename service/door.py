"""The door: whether requests are taken, how many are inside, and what has died. Knows nothing of what they ask.

    open ──drain──▶ draining ──grace──▶ closed ──all out, or the limit──▶ the process ends

While draining, requests are served and /readyz is 503, so that whoever balances load looks elsewhere; closed, newcomers
get a 503 and what is inside finishes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Literal

from service.errors import NotReady, Problem

log = logging.getLogger(__name__)

# Seconds that the closed door still answers, so that a request already on its way gets its 503 and not a cut line;
# the shorter where there is no grace, for whoever pressed ^C and waits.
LINGER, SHORT_LINGER = 1.0, 0.25


class Era:
    """Those who came in between two changes to what is served. Over, once it has ended and all of them have left."""

    __slots__ = ("inside", "over")

    def __init__(self) -> None:
        self.inside = 0
        self.over = asyncio.Event()


class Door:
    """The one piece of state about the process as a whole."""

    def __init__(self) -> None:
        self.state: Literal["open", "draining", "closed"] = "open"
        self.inside = 0
        self._era = Era()
        self._ended: list[Era] = []  # that some are still inside of
        self.leaving = False  # for another process, which takes those who come; nobody is refused
        self.fault: str | None = None
        self.ended = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def check(self) -> None:
        """NotReady once the door is closed."""
        if self.state == "closed":
            raise NotReady("the service is shutting down; send this to another instance", retry_after=1.0)

    def come(self) -> Era:
        """Someone comes in."""
        self.inside += 1
        self._era.inside += 1
        return self._era

    def go(self, era: Era) -> None:
        """Someone who came in that era goes out."""
        self.inside -= 1
        era.inside -= 1
        if era is not self._era and not era.inside:
            era.over.set()

    async def passed(self) -> None:
        """Wait until everyone has left who is inside now; nobody waits for who comes later."""
        if self._era.inside:
            self._ended.append(self._era)
            self._era = Era()
        for era in list(self._ended):
            await era.over.wait()
        self._ended = [era for era in self._ended if not era.over.is_set()]

    @property
    def parting(self) -> bool:
        """Whether callers are told to open another connection for what they ask next."""
        return self.leaving or self.state != "open"

    async def leave(self, grace: float, limit: float, hang_up: Callable[[], bool]) -> None:
        """Go without refusing anybody, once no more callers are sent here; seconds.

        Whoever asks during the grace is answered and told to come again by another connection. Then hang_up closes
        connections that are idle, and says whether any is left; limit is how long those may take.
        """
        self.leaving = True
        log.info("leaving: %d are inside, others take the newcomers", self.inside)
        await asyncio.sleep(grace)
        end = asyncio.get_running_loop().time() + limit
        while hang_up() and asyncio.get_running_loop().time() < end:  # noqa: ASYNC110  a connection can't say so
            await asyncio.sleep(0.01)
        self.ended.set()

    async def drain(self, grace: float, limit: float) -> None:
        """Go through the states until nobody is inside, or the limit has passed; seconds."""
        self.state = "draining"
        log.info("draining: requests are taken for %.3g s more, %d are inside", grace, self.inside)
        await asyncio.sleep(grace)
        self.state = "closed"
        linger = LINGER if grace else SHORT_LINGER
        clock = asyncio.get_running_loop().time
        closed = clock()
        # Three things end this, and one of them is time.
        while clock() < closed + limit and (self.inside or clock() < closed + linger):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        log.info("closed with %d inside", self.inside)
        self.ended.set()

    def spawn(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Run what must go on as long as the service does; if it dies, the service ends, loudly.

        The loader may finish, and what serves a model that is put away; all else ends only by being cancelled.
        """
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._look)

    def _look(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            known = isinstance(error, Problem)  # it says all there is to say; a bug needs its stack
            fault = str(error) if known else f"{task.get_name()} died: {error}"
            log.critical("%s", fault, exc_info=None if known else error)
            self.fail(fault)

    def fail(self, fault: str) -> None:
        """Something that can't be done without is gone: refuse requests and end with a non-zero status."""
        self.fault = self.fault or fault
        self.state = "closed"
        self.ended.set()

    async def close(self) -> None:
        """Cancel all that was spawned, and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

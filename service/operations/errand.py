"""Errand: what goes along with a request, and how work is cut so that neither memory nor the event loop is held up."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from service import noise
from service.appraisal import Yardstick
from service.artifact import Array, Arrays
from service.errors import Late
from service.models import Model

T = TypeVar("T")

PIECE = 8_388_608  # numbers that an operation holds at once between the engine and its answer; 64 MiB of float64
INLINE = 65_536  # numbers that are worked on without leaving the event loop: well under a millisecond


@dataclass(slots=True)
class Errand:
    """What goes along with a request: its deadline (the loop's clock) in, seconds queued and computed out.

    served says that it is a caller's, so that its scores tell of drift; our own examples and files don't.
    """

    deadline: float = math.inf
    queued: float = 0.0
    computed: float = 0.0
    served: bool = False

    async def ask(
        self, model: Model, graph: str, rows: Arrays, bank: noise.Bank | None = None, *, own: bool = False
    ) -> Arrays:
        """Have one graph computed, and note how long it took. own: the bank is these rows', and nobody else's."""
        answer = await model.ask(graph, rows, bank=bank, own=own, deadline=self.deadline)
        self.queued += answer.queued
        self.computed += answer.computed
        return answer.outputs

    async def appraise(self, model: Model, x: Array, by: Yardstick) -> Arrays:
        """Have rows appraised, and note how long it took."""
        answer = await model.appraise(x, by, deadline=self.deadline)
        self.queued += answer.queued
        self.computed += answer.computed
        return answer.outputs


def chunks(count: int, width: int = 1, step: int | None = None) -> Iterator[slice]:
    """Slices of `count` things of `width` numbers each, none holding more than PIECE numbers if it can be helped.

    step: how many things to a slice instead.
    """
    step = step or max(1, PIECE // max(1, width))
    return (slice(start, min(count, start + step)) for start in range(0, count, step))


def in_time(parts: Iterable[slice], rows: int, errand: Errand) -> Iterator[slice]:
    """The parts of so many rows, in turn; Late as soon as those that are done tell that the others will be."""
    clock, began, first = asyncio.get_running_loop().time, 0.0, 0
    for count, part in enumerate(parts):
        if count == 1:  # the first rows also pay for what is made once: noise, and an import
            began, first = clock(), part.start
        elif count:
            refuse_late(part.start - first, rows - first, clock(), began, errand)
        yield part


def refuse_late(done: int, rows: int, now: float, began: float, errand: Errand) -> None:
    """Late, as soon as the rows that are done tell that the others won't be in time."""
    need = (now - began) * (rows - done) / done if done > 0 else 0.0
    if now + need > errand.deadline:
        said = f"{done} of {rows} rows took {now - began:.3g} s, and the others would take about {need:.3g} s"
        raise Late(f"the deadline can't be met: {said}; send fewer rows or draws, or set X-Timeout-Ms", max(1.0, need))


async def together(one: Coroutine[Any, Any, T], other: Coroutine[Any, Any, T]) -> tuple[T, T]:
    """Do two things at once. When either fails the other is cancelled, so that it is never computed."""
    try:
        async with asyncio.TaskGroup() as group:
            beside = group.create_task(other)
            found = await one
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return found, beside.result()


async def off_loop(size: int, work: Callable[[], T]) -> T:
    """Work on so many numbers: here if they are few, else on a thread."""
    return work() if size <= INLINE else await asyncio.to_thread(work)

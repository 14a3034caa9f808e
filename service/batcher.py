"""The batcher: many callers' rows → one call → each caller's rows. Knows one graph and nothing of what it means.

No timer. A batch is whatever is waiting when a lane comes free, and it is cut after the turn is taken, so load
alone makes batches and a lone caller never waits for company. Room, cost and pieces are counted in decoder rows
(rows × draws). A large ticket is cut into engine-sized pieces, along rows and then along draws; after each it queues
up behind those who came meanwhile, so small tickets wait for one piece of it and not for all.

Every ticket is settled exactly once: answered, failed, expired, or its caller has gone and it is never computed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from service.artifact import Array, Arrays, Graph
from service.errors import EngineFailed, Late, NotReady, Overloaded, Problem
from service.lanes import Lanes

log = logging.getLogger(__name__)

Compute = Callable[[str, Mapping[str, Array]], Arrays]


@dataclass(frozen=True, slots=True)
class Answer:
    """One ticket's outputs, and the seconds from its arrival to its first piece, and from there to its last."""

    outputs: Arrays
    queued: float
    computed: float


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one call to the engine was; metrics are made of these."""

    graph: str
    tickets: int
    decoder_rows: int
    seconds: float
    waiting: int


@dataclass(eq=False, slots=True)
class Ticket:
    """One caller's rows, where its reply goes, and how far it has been cut."""

    rows: Arrays
    bank: Array | None
    key: object
    count: int
    draws: int
    deadline: float
    reply: asyncio.Future[Answer]
    row: int = 0
    draw: int = 0
    pending: int = 0
    arrived: float = field(default_factory=time.perf_counter)  # finer than the loop's clock, which is for deadlines
    started: float = math.nan
    outputs: Arrays = field(default_factory=dict)

    @property
    def uncut(self) -> int:
        """Decoder rows that no piece has taken yet."""
        return (self.count - self.row) * self.draws - self.draw

    def span(self, size: int) -> tuple[int, int]:
        """The draws that the next piece covers: all of them where a row's draws fit into a batch."""
        return self.draw, min(self.draws, self.draw + size)

    def cut(self, size: int, room: int) -> Piece | None:
        """The next piece that fits the room, or None."""
        first, last = self.span(size)
        width = last - first
        take = min(self.count - self.row, room // width) if self.draws <= size else int(width <= room)
        if take < 1:
            return None
        piece = Piece(self, slice(self.row, self.row + take), slice(first, last))
        self.draw = 0 if last == self.draws else last
        self.row += take if self.draw == 0 else 0
        self.pending += 1
        return piece


@dataclass(frozen=True, slots=True)
class Piece:
    """Some rows of a ticket at some of its draws."""

    ticket: Ticket
    rows: slice
    draws: slice

    @property
    def count(self) -> int:
        """Rows in the piece."""
        return int(self.rows.stop - self.rows.start)

    @property
    def cost(self) -> int:
        """Decoder rows in the piece."""
        return self.count * int(self.draws.stop - self.draws.start)


class Batcher:
    """The waiting room of one graph. Run `serve` in a task group; `submit` from anywhere on its loop.

    size: decoder rows in one call to the engine. room: decoder rows that may wait.
    """

    def __init__(
        self,
        graph: Graph,
        compute: Compute,
        lanes: Lanes,
        *,
        size: int,
        room: int,
        pace: float = 0.0,
        report: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        self._graph = graph
        self._compute = compute
        self._lanes = lanes
        self._size = size
        self._room = room
        self._pace = pace  # seconds a decoder row, the best seen: an estimate that a stall can't poison
        self._report = report
        self._queue: deque[Ticket] = deque()
        self._resting: list[Ticket] = []  # tickets that were cut last and are not done; they queue up behind newcomers
        self._held: set[Ticket] = set()  # tickets that aren't settled
        self._waiting = 0  # decoder rows that no call has taken
        self._arrival = asyncio.Event()
        self._closed = False

    @property
    def waiting(self) -> int:
        """Decoder rows that wait."""
        return self._waiting

    async def submit(
        self, rows: Arrays, *, bank: Array | None = None, key: object = None, deadline: float = math.inf
    ) -> Answer:
        """Have rows computed; all arrays of `rows` share their first axis.

        bank is what all rows share; tickets with equal keys have equal banks and may run together. deadline is in
        the loop's clock. Raises Overloaded, Late, NotReady, or EngineFailed.
        """
        ticket = self._ticket(rows, bank, key, deadline)
        self._admit(ticket)
        self._held.add(ticket)
        self._queue.append(ticket)
        self._waiting += ticket.uncut
        self._arrival.set()
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                return await ticket.reply
        except TimeoutError:
            raise Late("the deadline passed before the answer was ready") from None
        finally:
            self._forget(ticket)

    def _ticket(self, rows: Arrays, bank: Array | None, key: object, deadline: float) -> Ticket:
        loop = asyncio.get_running_loop()
        draws = len(bank) if bank is not None else 1
        if self._graph.drawn:
            draws = rows[self._graph.drawn[0]].shape[1]
        count = len(next(iter(rows.values())))
        return Ticket(rows, bank, key, count, draws, deadline, loop.create_future())

    def _admit(self, ticket: Ticket) -> None:
        """Refuse at the door what there is no room for, or no time."""
        if self._closed:
            raise NotReady("the model is being put away")
        if self._waiting and self._waiting + ticket.uncut > self._room:
            wait = max(1.0, self._waiting * self._pace / self._lanes.count)
            raise Overloaded(f"{self._waiting} of {self._room} decoder rows are waiting already", retry_after=wait)
        need = (self._waiting + ticket.uncut) * self._pace / self._lanes.count
        if asyncio.get_running_loop().time() + need > ticket.deadline:
            raise Late(f"the deadline can't be met: about {need:.3g} s of work come first", retry_after=max(1.0, need))

    def _forget(self, ticket: Ticket) -> None:
        """The caller has its answer or has gone: what is left of the ticket is dropped and its room given back."""
        self._held.discard(ticket)
        if not ticket.reply.done():
            ticket.reply.cancel()
        if ticket.uncut:
            self._waiting -= ticket.uncut
            (self._queue if ticket in self._queue else self._resting).remove(ticket)
            ticket.row, ticket.draw = ticket.count, 0

    async def serve(self) -> None:
        """Answer tickets until cancelled; then settle whoever is left."""
        try:
            async with asyncio.TaskGroup() as calls:
                while True:
                    await self._arrival.wait()
                    await self._lanes.take()
                    if batch := self._cut():
                        calls.create_task(self._answer(batch))
                    else:
                        self._lanes.give()
        finally:
            self.close()

    def close(self) -> None:
        """Refuse newcomers and settle everyone who waits."""
        self._closed = True
        for ticket in list(self._held):
            _fail(ticket, NotReady("the model was put away before it reached these rows"))

    def _cut(self) -> list[Piece]:
        """The next batch: the first ticket that is still wanted, and all others that can share its call."""
        batch: list[Piece] = []
        passed: list[Ticket] = []
        self._queue.extend(self._resting)
        self._resting = []
        room = self._size
        now = asyncio.get_running_loop().time()
        while self._queue and room > 0:
            ticket = self._queue.popleft()
            if not self._wanted(ticket, now):
                continue
            piece = ticket.cut(self._size, room) if not batch or self._together(batch[0], ticket) else None
            if piece is None:
                passed.append(ticket)
                continue
            batch.append(piece)
            room -= piece.cost
            self._waiting -= piece.cost
            ticket.started = time.perf_counter() if math.isnan(ticket.started) else ticket.started
            if ticket.uncut:
                self._resting.append(ticket)
        self._queue.extendleft(reversed(passed))
        if not self._queue and not self._resting:
            self._arrival.clear()
        return batch

    def _wanted(self, ticket: Ticket, now: float) -> bool:
        """Whether a ticket is still to be computed; one that expired or failed gives its room back here."""
        if not ticket.reply.done() and now >= ticket.deadline:
            _fail(ticket, Late("the deadline passed while the rows waited"))
        if not ticket.reply.done():
            return True
        self._waiting -= ticket.uncut
        ticket.row, ticket.draw = ticket.count, 0
        return False

    def _together(self, piece: Piece, ticket: Ticket) -> bool:
        """Whether a ticket's next piece can share a call: the same bank, at the same draws."""
        return (piece.draws.start, piece.draws.stop) == ticket.span(self._size) and piece.ticket.key == ticket.key

    async def _answer(self, batch: list[Piece]) -> None:
        """Compute a batch and hand each piece its part; if it fails, find whose fault it was."""
        try:
            await self._run(batch)
        except Exception as error:
            await self._blame(batch, error)
        finally:
            self._lanes.give()

    async def _run(self, batch: list[Piece]) -> None:
        started = time.perf_counter()
        outputs = await self._lanes.run(lambda: self._call(batch))
        seconds = time.perf_counter() - started
        cost = sum(piece.cost for piece in batch)
        self._pace = min(self._pace, seconds / cost) if self._pace else seconds / cost
        self._report(BatchReport(self._graph.name, len(batch), cost, seconds, self._waiting))
        row = 0
        for piece in batch:
            _hand(piece, {name: array[row : row + piece.count] for name, array in outputs.items()}, self._graph)
            row += piece.count

    def _call(self, batch: list[Piece]) -> Arrays:
        """On a lane: stack the pieces, run the graph, and see that every output has a row for each that went in."""
        feeds = {
            name: np.concatenate([_part(piece, name, self._graph) for piece in batch]) for name in self._graph.rows
        }
        if self._graph.bank:
            bank = batch[0].ticket.bank
            feeds[self._graph.bank] = np.ascontiguousarray(bank[batch[0].draws]) if bank is not None else np.empty(0)
        outputs = self._compute(self._graph.name, feeds)
        if outputs.keys() != self._graph.outputs.keys():
            raise EngineFailed(f"{self._graph.name}: it gives {sorted(outputs)}, not {sorted(self._graph.outputs)}")
        count = sum(piece.count for piece in batch)
        if any(len(array) != count for array in outputs.values()):
            raise EngineFailed(f"{self._graph.name}: {count} rows went in and another number came out")
        return outputs

    async def _blame(self, batch: list[Piece], error: Exception) -> None:
        """Fail the culprit and answer the rest: each piece of a failed batch is computed alone."""
        if len(batch) == 1:
            log.error("%s failed", self._graph.name, exc_info=error)
            _fail(batch[0].ticket, error if isinstance(error, Problem) else EngineFailed(str(error)))
            return
        for piece in batch:
            try:
                await self._run([piece])
            except Exception as alone:
                await self._blame([piece], alone)


def _part(piece: Piece, name: str, graph: Graph) -> Array:
    array = piece.ticket.rows[name][piece.rows]
    return array[:, piece.draws] if name in graph.drawn else array


def _hand(piece: Piece, part: Arrays, graph: Graph) -> None:
    """Put a piece's answers in their places; with the last piece the ticket is answered."""
    ticket = piece.ticket
    ticket.pending -= 1
    if ticket.reply.done():
        return
    for name, array in part.items():
        drawn = graph.outputs[name] == "nk"
        if name not in ticket.outputs:
            lead = (ticket.count, ticket.draws) if drawn else (ticket.count,)
            ticket.outputs[name] = np.empty((*lead, *array.shape[len(lead) :]), array.dtype)
        where = (piece.rows, piece.draws) if drawn else piece.rows
        ticket.outputs[name][where] = array
    if not ticket.uncut and not ticket.pending:
        ticket.reply.set_result(
            Answer(ticket.outputs, ticket.started - ticket.arrived, time.perf_counter() - ticket.started)
        )


def _fail(ticket: Ticket, error: Problem) -> None:
    if not ticket.reply.done():
        ticket.reply.set_exception(error)

"""The waiting room: many callers' rows → one call → each caller's rows. Knows one kind of call, not what it means.

No timer. A batch is whatever is waiting when a lane comes free, and it is cut after the turn is taken, so load
alone makes batches and a lone caller never waits for company. Room, cost and pieces are counted in decoder rows
(rows × draws). A large ticket is cut into engine-sized pieces, along rows and then along draws; after each it queues
up behind those who came meanwhile, so small tickets wait for one piece of it and not for all.

A batch that takes less than it takes to wake a thread twice is computed on the loop itself, where everything that came
in the same turn of the loop shares it.

Every ticket is settled exactly once: answered, failed, expired, or its caller has gone and it is never computed.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.artifact import Arrays
from service.batcher.tickets import Answer, Piece, Tell, Ticket, Work, hand, part_of
from service.cost import Cost
from service.errors import EngineFailed, Late, NotReady, Overloaded, Problem
from service.lanes import Lanes

log = logging.getLogger(__name__)

PRUDENCE = 1.5  # times what those before a newcomer have cost of late that they are taken to need, by its deadline


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What one call was; metrics are made of these."""

    graph: str
    tickets: int
    decoder_rows: int
    seconds: float
    waiting: int


class Batcher:
    """The waiting room of one work. Run `serve` in a task group; `submit` or `post` from anywhere on its loop.

    size: decoder rows in one call. room: decoder rows that may wait. patience: seconds that a newcomer may have to wait
    for its turn. inline: seconds up to which a batch is computed on the loop itself.
    """

    def __init__(
        self,
        work: Work,
        lanes: Lanes,
        *,
        size: int,
        room: int,
        cost: Cost | None = None,
        patience: float = math.inf,
        inline: float = 0.0,
        report: Callable[[BatchReport], None] = lambda _: None,
    ) -> None:
        self.size = size
        self._work = work
        self._lanes = lanes
        self._room = room
        self._cost = cost or Cost()
        self._patience = patience
        self._inline = inline
        self._report = report
        self._queue: deque[Ticket] = deque()
        self._resting: list[Ticket] = []  # tickets that were cut last and are not done; they queue up behind newcomers
        self._held: set[Ticket] = set()  # tickets that aren't settled
        self._waiting = 0  # decoder rows that no call has taken
        self._turns = 0  # of these, the decoder rows of every ticket's next piece: what a newcomer waits for
        self.beside = 0  # decoder rows that wait to become a ticket: they count like those that wait
        self._asked = self._woken = False
        self._closed = False
        self._broken: asyncio.Future[None] | None = None

    @property
    def waiting(self) -> int:
        """Decoder rows that wait."""
        return self._waiting + self.beside

    @property
    def turn(self) -> float:
        """Seconds until the turn comes of who waits behind all others, those beside too, by what calls have cost."""
        return self._before(self._turns + self.beside)

    def _before(self, rows: int) -> float:
        """Seconds that decoder rows take which come before a newcomer's, on all lanes at once.

        Fewer calls than lanes, too: once they have begun it begins itself, and lanes come free one after the other.
        """
        return self._cost.seconds(rows, math.ceil(rows / self.size)) / self._lanes.count

    async def submit(self, rows: Arrays, *, bank: Any = None, key: object = None, deadline: float = math.inf) -> Answer:
        """Have rows computed; all arrays of `rows` share their first axis.

        bank is what all rows share; tickets with equal keys have equal banks and may run together. deadline is in
        the loop's clock. Raises Overloaded, Late, NotReady, or EngineFailed.
        """
        reply: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def tell(found: Answer | Problem) -> None:
            if reply.done():
                return
            if isinstance(found, Answer):
                reply.set_result(found)
            else:
                reply.set_exception(found)

        ticket = self.post(rows, tell, bank=bank, key=key, deadline=deadline)
        try:
            async with asyncio.timeout_at(None if math.isinf(deadline) else deadline):
                return await reply
        except TimeoutError:
            raise Late("the deadline passed before the answer was ready") from None
        finally:
            self.drop(ticket)

    def post(
        self, rows: Arrays, tell: Tell, *, bank: Any = None, key: object = None, deadline: float = math.inf
    ) -> Ticket:
        """The same for who would rather be told than wait. `drop` the ticket when it is no longer wanted."""
        draws = len(bank) if bank is not None else 1
        if self._work.drawn:
            draws = rows[self._work.drawn[0]].shape[1]
        ticket = Ticket(rows, bank, key, len(next(iter(rows.values()))), draws, deadline, tell, self._held)
        self._admit(ticket)
        self._held.add(ticket)
        self._queue.append(ticket)
        self._waiting += ticket.uncut
        self._turns += min(ticket.uncut, self.size)
        self._wake()
        return ticket

    def at_once(self, rows: Arrays, *, bank: Any, cost: int) -> Answer | None:
        """Compute on the loop, without a ticket, what costs so many decoder rows. Whatever the call raises is raised.

        None where others wait, or a lane is to compute it: then `post` it.
        """
        if self._queue or self._resting or self._closed or self._broken is None or cost > self._quick():
            return None
        started = time.perf_counter()
        pieces = {name: (array,) for name, array in rows.items()}
        outputs = self._lanes.here(lambda: self._work.compute(pieces, bank, slice(None)))
        seconds = time.perf_counter() - started
        self._hold(outputs, len(next(iter(rows.values()))))
        # What is learnt of it waits for the next turn of the loop: the answer goes first.
        asyncio.get_running_loop().call_soon(self._guarded, self._done, outputs, bank, 1, cost, seconds)
        return Answer(outputs, 0.0, seconds)

    def check(self, rows: int = 0, deadline: float = math.inf) -> None:
        """Refuse at the door what there is no room for, or would wait too long for its turn; rows: decoder rows.

        With a deadline also what would be late before its turn comes, by the loop's clock.
        """
        if self._closed:
            raise NotReady("the model is being put away")
        waiting = self.waiting
        if waiting and deadline < math.inf:
            self._hold_to(deadline, self._before(self._turns), 0.0)  # as a ticket that is posted now
        if waiting and (wait := self.turn) > self._patience:
            said = f"newcomers wait {wait:.2g} s for their turn, more than {self._patience:.2g} s"
            raise Overloaded(said, retry_after=max(1.0, wait - self._patience))
        if waiting and waiting + rows > self._room:
            wait = max(1.0, self._cost.seconds(waiting) / self._lanes.count)
            raise Overloaded(f"{waiting} of {self._room} decoder rows are waiting already", retry_after=wait)

    def _admit(self, ticket: Ticket) -> None:
        """Refuse at the door what there is no room for, or no time."""
        self.check(ticket.uncut)
        if math.isinf(ticket.deadline):
            return
        pieces = math.ceil(ticket.uncut / self.size)
        own = self._cost.seconds(ticket.uncut, pieces) / min(self._lanes.count, pieces)
        self._hold_to(ticket.deadline, self._wait(ticket), own)

    def _hold_to(self, deadline: float, wait: float, own: float) -> None:
        """Late where a deadline can't be met by what calls have cost of late; seconds before one's turn, and after."""
        if asyncio.get_running_loop().time() + wait * PRUDENCE + own > deadline:
            need = wait + own
            raise Late(f"the deadline can't be met: about {need:.3g} s of work come first", retry_after=max(1.0, need))

    def _wait(self, ticket: Ticket) -> float:
        """Seconds that come before a newcomer's: tickets take turns, so it waits for no more of each than it brings."""
        own = ticket.uncut
        before = min(self._waiting, self._turns if own <= self.size else own * (len(self._queue) + len(self._resting)))
        return self._before(before)

    def drop(self, ticket: Ticket) -> None:
        """The caller has its answer or has gone: what is left of the ticket is dropped and its room given back."""
        ticket.let_go()
        if ticket.uncut:
            (self._queue if ticket in self._queue else self._resting).remove(ticket)
            self._abandon(ticket)

    def _abandon(self, ticket: Ticket) -> None:
        """Nothing more of a ticket is computed."""
        self._waiting -= ticket.uncut
        self._turns -= min(ticket.uncut, self.size)
        ticket.row, ticket.draw = ticket.count, 0

    async def serve(self) -> None:
        """Answer tickets until closed or cancelled; then settle whoever is left."""
        if self._closed:
            return
        self._broken = asyncio.get_running_loop().create_future()
        self._wake()
        try:
            await self._broken
        finally:
            self.close()

    def close(self) -> None:
        """Refuse newcomers and settle everyone who waits; `serve` ends."""
        self._closed = True
        if self._broken is not None and not self._broken.done():
            self._broken.set_result(None)
        for ticket in list(self._held):
            ticket.settle(NotReady("the model was put away before it reached these rows"))

    # ------------------------------------------------------------ turns

    def _wake(self) -> None:
        """Take a turn once everything that came in this turn of the loop is here."""
        if not self._woken and self._broken is not None:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._guarded, self._turn)

    def _guarded(self, step: Callable[..., None], *arguments: Any) -> None:
        """A step of the batcher's own; a bug in one ends `serve`, loudly."""
        try:
            step(*arguments)
        except Exception as error:
            if self._broken is None or self._broken.done():
                raise
            self._broken.set_exception(error)

    def _turn(self) -> None:
        """Compute here what is quick, and ask for a lane for the rest."""
        self._woken = False
        if not (self._queue or self._resting):
            return
        if self._waiting <= self._quick():
            if batch := self._cut(self.size):
                self._compute_here(batch)
            if self._queue or self._resting:
                self._wake()
        elif not self._asked:
            self._asked = True
            self._lanes.ask(lambda: self._guarded(self._granted))

    def _quick(self) -> int:
        """Decoder rows that are computed sooner than a thread is woken for them."""
        return min(self.size, self._cost.within(self._inline)) if self._inline else 0

    def _granted(self) -> None:
        self._asked = False
        batch: list[Piece] = []
        try:
            batch = self._cut(self.size)
        finally:
            if not batch:  # whatever went wrong here, other engines compute on this lane too
                self._lanes.give()
        if not batch:
            return
        started = time.perf_counter()

        def done(outputs: Arrays, error: BaseException | None) -> None:
            self._lanes.give()
            self._guarded(self._finish, batch, outputs, error, time.perf_counter() - started)

        self._lanes.start(lambda: self._call(batch), done)
        if self._queue or self._resting:
            self._wake()

    def _compute_here(self, batch: list[Piece]) -> None:
        started = time.perf_counter()
        outputs: Arrays = {}
        error: Exception | None = None
        try:
            outputs = self._lanes.here(lambda: self._call(batch))
        except Exception as failure:
            error = failure
        self._finish(batch, outputs, error, time.perf_counter() - started)

    # ------------------------------------------------------------ batches

    def _cut(self, room: int) -> list[Piece]:
        """The next batch: the first ticket that is still wanted, and all others that can share its call."""
        batch: list[Piece] = []
        passed: list[Ticket] = []
        if self._resting:
            self._queue.extend(self._resting)
            self._resting = []
        now = asyncio.get_running_loop().time()
        clock = time.perf_counter()
        while self._queue and room > 0:
            ticket = self._queue.popleft()
            if not self._wanted(ticket, now):
                continue
            before = min(ticket.uncut, self.size)
            piece = ticket.cut(self.size, room) if not batch or self._together(batch[0], ticket) else None
            if piece is None:
                passed.append(ticket)
                continue
            batch.append(piece)
            room -= piece.cost
            self._waiting -= piece.cost
            self._turns += min(ticket.uncut, self.size) - before
            ticket.started = clock if math.isnan(ticket.started) else ticket.started
            if ticket.uncut:
                self._resting.append(ticket)
        self._queue.extendleft(reversed(passed))
        return batch

    def _wanted(self, ticket: Ticket, now: float) -> bool:
        """Whether a ticket is still to be computed; one that expired or failed gives its room back here."""
        if not ticket.settled and now + self._last_call(ticket) < ticket.deadline:
            return True
        self._abandon(ticket)  # before anybody is told: who is may drop it at once, and it is in no queue here
        ticket.settle(Late("the deadline passed while the rows waited, or would before they are computed"))
        return False

    def _last_call(self, ticket: Ticket) -> float:
        """Seconds of the call that a ticket's last piece is likely to share: what is late is not worth computing."""
        if math.isinf(ticket.deadline) or ticket.uncut > self.size:
            return 0.0
        return self._cost.seconds(min(self.size, max(ticket.uncut, self._waiting)))

    def _together(self, piece: Piece, ticket: Ticket) -> bool:
        """Whether a ticket's next piece can share a call: the same bank, at the same draws."""
        return piece.ticket.key == ticket.key and (piece.draws.start, piece.draws.stop) == ticket.span(self.size)

    def _call(self, batch: list[Piece]) -> Arrays:
        """One call for a batch; every output must have a row for each that went in."""
        names = batch[0].ticket.rows
        rows = {name: [part_of(piece, name, self._work) for piece in batch] for name in names}
        outputs = self._work.compute(rows, batch[0].ticket.bank, batch[0].draws)
        self._hold(outputs, sum(piece.count for piece in batch))
        return outputs

    def _hold(self, outputs: Arrays, count: int) -> None:
        if any(len(array) != count for array in outputs.values()):
            raise EngineFailed(f"{self._work.name}: {count} rows went in and another number came out")

    def _finish(self, batch: list[Piece], outputs: Arrays, error: BaseException | None, seconds: float) -> None:
        """Hand each piece its part; if the call failed, find whose fault it was."""
        if error is not None:
            self._blame(batch, error)
            return
        self._done(outputs, batch[0].ticket.bank, len(batch), sum(piece.cost for piece in batch), seconds)
        row = 0
        for piece in batch:
            hand(piece, {name: array[row : row + piece.count] for name, array in outputs.items()}, self._work)
            row += piece.count

    def _done(self, outputs: Arrays, bank: Any, tickets: int, cost: int, seconds: float) -> None:
        """A call succeeded: learn from it, and tell who counts and who watches."""
        self._cost.learn(cost, seconds)
        self._report(BatchReport(self._work.name, tickets, cost, seconds, self._waiting))
        self._work.finished(outputs, bank)

    def _blame(self, batch: list[Piece], error: BaseException) -> None:
        """Fail the culprit and answer the rest: each piece of a failed batch is computed alone."""
        if len(batch) == 1:
            log.error("%s failed", self._work.name, exc_info=error)
            batch[0].ticket.settle(error if isinstance(error, Problem) else EngineFailed(str(error)))
            return
        for piece in batch:
            self._lanes.ask(lambda piece=piece: self._alone(piece))  # type: ignore[misc]

    def _alone(self, piece: Piece) -> None:
        if piece.ticket.settled:  # its caller has gone meanwhile, or has its answer
            asyncio.get_running_loop().call_soon(self._lanes.give)  # not at once: others' turns would nest in this one
            return
        started = time.perf_counter()

        def done(outputs: Arrays, error: BaseException | None) -> None:
            self._lanes.give()
            self._guarded(self._finish, [piece], outputs, error, time.perf_counter() - started)

        self._lanes.start(lambda: self._call([piece]), done)

"""Tickets: callers' rows, cut into pieces and put together again. Knows no queue and no clock but when it began."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from service.artifact import Array, Arrays
from service.errors import Problem


class Work(ABC):
    """What a batcher has done: named arrays of several tickets in, and for each of their rows an answer out.

    `drawn` are the inputs whose second axis is the draws, `wide` the outputs that have one. A work without either is
    never cut along its draws.
    """

    name: str
    drawn: tuple[str, ...] = ()
    wide: frozenset[str] = frozenset()

    @abstractmethod
    def compute(self, rows: Mapping[str, Sequence[Array]], bank: Any, draws: slice) -> Arrays:
        """One call; blocks. `bank` is what the batch's tickets share, `draws` those of it that are wanted."""

    def finished(self, outputs: Arrays, bank: Any) -> None:  # noqa: B027  most have nothing to do
        """A call is done; on the loop, before its tickets are told."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One ticket's outputs, and the seconds from its arrival to its first piece, and from there to its last."""

    outputs: Arrays
    queued: float
    computed: float


Tell = Callable[[Answer | Problem], None]


def _nobody(_: Answer | Problem) -> None:
    """Whom a ticket tells that is settled."""


@dataclass(eq=False, slots=True)
class Ticket:
    """One caller's rows, whom to tell, and how far it has been cut."""

    rows: Arrays
    bank: Any
    key: object
    count: int
    draws: int
    deadline: float
    tell: Tell
    held: set[Ticket]  # those of its room that aren't settled; it is one of them until it is
    row: int = 0
    draw: int = 0
    pending: int = 0
    settled: bool = False
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

    def let_go(self) -> None:
        """Nobody is to be told any more."""
        self.settled, self.tell = True, _nobody
        self.held.discard(self)

    def settle(self, found: Answer | Problem) -> None:
        """Tell the caller, once."""
        if not self.settled:
            tell = self.tell
            self.let_go()  # what it tells holds who holds it: a cycle
            tell(found)


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


def part_of(piece: Piece, name: str, work: Work) -> Array:
    """A piece's share of one of its ticket's arrays."""
    array = piece.ticket.rows[name][piece.rows]
    return array[:, piece.draws] if name in work.drawn else array


def hand(piece: Piece, part: Arrays, work: Work) -> None:
    """Put a piece's answers in their places; with the last piece the ticket is answered."""
    ticket = piece.ticket
    ticket.pending -= 1
    if ticket.settled:
        return
    if piece.count == ticket.count and piece.draws.stop - piece.draws.start == ticket.draws:
        ticket.outputs = part  # all of it, as it is
    else:
        _place(piece, part, work)
    if not ticket.uncut and not ticket.pending:
        computed = time.perf_counter() - ticket.started
        ticket.settle(Answer(ticket.outputs, ticket.started - ticket.arrived, computed))


def _place(piece: Piece, part: Arrays, work: Work) -> None:
    ticket = piece.ticket
    if ticket.outputs:  # what one piece lacks, the whole lacks
        part = {name: array for name, array in part.items() if name in ticket.outputs}
        ticket.outputs = {name: ticket.outputs[name] for name in part}
    for name, array in part.items():
        drawn = name in work.wide
        if name not in ticket.outputs:
            lead = (ticket.count, ticket.draws) if drawn else (ticket.count,)
            ticket.outputs[name] = np.empty((*lead, *array.shape[len(lead) :]), array.dtype)
        where = (piece.rows, piece.draws) if drawn else piece.rows
        ticket.outputs[name][where] = array

"""The express: small scores that came together, read, computed and answered together. Knows no connection's protocol.

What one request costs in Python is mostly the number of steps, and nearly all of them can be taken for a batch at once:
rows are checked together, appraised in one ticket, and turned into numbers of an answer together. Whatever isn't as
usual (a value off the support, a field that is rare, a full room) is handed back to its connection, which answers it
step by step: so there is one place that refuses, and here is none.
"""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections import deque
from itertools import chain
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from service import operations
from service.appraisal import Yardstick
from service.artifact import Array
from service.door import Era
from service.errors import Problem
from service.http.exchange import Held, Memory
from service.http.scores import Columns, Score, plain
from service.http.telemetry import Books, Sitting
from service.models import Model, Models

if TYPE_CHECKING:
    from service.http.front import Connection

log = logging.getLogger(__name__)

SWEEP = 0.25  # seconds between looks for those who have waited for too long
PARSING = 0.001  # seconds of reading bodies after which a turn of the loop ends
TOGETHER = 262_144  # numbers of rows after which a turn's are enough: more would be copied for no company
LARGE = 65_536  # bytes of a body that is read while a lane computes, and not only once it is free


class Speaker(Protocol):
    """How scores are asked for and answered in one of our protocols, of one model by its path.

    largest: bytes of a body that takes the express, which is read in less than a millisecond.
    """

    largest: int

    def model(self) -> Model:
        """The model that is asked."""

    def held(self, length: int) -> int:
        """The most bytes that a body of this length and what is read of it hold."""

    def spaces(self, length: int) -> int:
        """How many spaces before a body of this length have what lies in it aligned."""

    def read(self, model: Model, body: bytes, spaces: int) -> tuple[Score, Array, Any]:
        """What is asked, the rows as they were sent, and what the answer's form depends on; the body begins with so
        many spaces. Whatever it raises, the request is read again where refusals are made."""

    def write(self, columns: Columns, start: int, stop: int, entry: Entry) -> tuple[bytes, bytes]:
        """The answer's own headers and its body, from the rows of some columns that are the request's."""

    def forget(self) -> None:
        """Keep nothing of any model: one is put away."""

    def count(self, sitting: Sitting, seconds: float) -> None:
        """Note that requests were answered, which took so long to write, all of them together."""


class Entry:
    """One request: where it came from, its bytes, when it came, and what was read of it."""

    __slots__ = (
        *(
            "_room",
            "_rows",
            "arrived",
            "asked",
            "body",
            "connection",
            "era",
            "form",
            "gone",
            "held",
            "keep_alive",
            "known",
            "rows",
            "sitting",
            "ticket",
        ),
    )
    asked: Score
    rows: Array
    form: Any
    sitting: Sitting
    era: Era
    body: bytes  # once it is whole, behind the spaces that its head has known

    def __init__(self, connection: Connection, known: Known) -> None:
        self.connection, self.known = connection, known
        self.arrived = time.perf_counter()
        self.gone = False
        self.keep_alive = True
        self.ticket: operations.Ticket | None = None
        self.held = Held(known.counter.memory)
        self._room: operations.Batcher | None = None
        self._rows = 0

    def wait(self, room: operations.Batcher, rows: int) -> None:
        """It waits to become part of a ticket, for one row until it is known for how many."""
        self._room, self._rows = room, rows
        room.beside += rows

    def enter(self) -> None:
        """It doesn't wait any more."""
        if self._room is not None:
            self._room.beside -= self._rows
            self._room = None

    def let_go(self) -> None:
        """It is settled, and holds nothing any more."""
        self.enter()
        self.gone = True
        self.held.resize(0)


class Known:
    """A request's head that was seen before, on any connection: what it says, and who answers it."""

    __slots__ = ("counter", "heads", "held", "large", "length", "query", "route", "spaces")

    def __init__(self, route: Any, heads: dict[bytes, bytes], query: bytes, length: int, counter: Counter) -> None:
        self.route, self.heads, self.query, self.length, self.counter = route, heads, query, length, counter
        self.large = length >= LARGE
        self.held = counter.speaker.held(length)
        self.spaces = b" " * counter.speaker.spaces(length)


class Counter:
    """Where requests of one path wait, and are answered together."""

    def __init__(
        self, speaker: Speaker, books: Books, models: Models, memory: Memory, timeout: float, lanes: int
    ) -> None:
        self.speaker = speaker
        self.memory = memory
        self._models = models
        self._found: tuple[int, weakref.ref[Model]] | None = None  # whom the speaker asks, as long as nothing changes
        self._books = books
        self._timeout = timeout
        self._most = lanes  # tickets at once: what comes meanwhile makes the next
        self._waiting: deque[Entry] = deque()
        self._out: dict[operations.Ticket, set[Entry]] = {}  # tickets, and who still waits for each
        self._tickets = 0
        self._woken = self._sweeping = False

    def add(self, entry: Entry) -> None:
        """A request is whole."""
        try:
            model = self._model()
            model.scores.check(model.draws)
            entry.held.resize(entry.known.held)
        except Exception:  # what is wrong is said step by step
            self._hand_back([entry])
            return
        entry.wait(model.scores, model.draws)
        self._waiting.append(entry)
        self._wake()
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP, self._sweep)

    def _model(self) -> Model:
        if self._found and self._found[0] == self._models.changes and (model := self._found[1]()):
            return model
        model = self.speaker.model()
        self._found = self._models.changes, weakref.ref(model)
        return model

    def forget(self) -> None:
        """A model was put away: nothing of any is kept."""
        self._found = None
        self.speaker.forget()

    def drop(self, entry: Entry) -> None:
        """Its caller has gone: what nobody else waits for is never computed."""
        entry.let_go()
        entry.body = b""  # it may stand among those who wait until a lane is free
        self._books.gone(entry.known.route.path, entry.era)
        self._leave(entry)

    def _leave(self, entry: Entry) -> None:
        """Someone doesn't wait for a ticket any more; the last one who leaves drops it."""
        ticket = entry.ticket
        here = self._out.get(ticket) if ticket else None
        if ticket is None or here is None or entry not in here:
            return
        here.remove(entry)
        if not here:
            del self._out[ticket]
            entry.sitting.model.scores.drop(ticket)
            self._done()

    def _wake(self) -> None:
        if not self._woken and self._tickets < self._most + self._waiting[0].known.large:
            self._woken = True
            asyncio.get_running_loop().call_soon(self._turn)

    def _turn(self) -> None:
        """Read what waits, and have as much of it appraised as one call takes."""
        self._woken = False
        if not self._waiting:
            return
        try:
            model = self._model()
            door = model.scores
        except Exception:
            self._hand_back([self._waiting.popleft() for _ in range(len(self._waiting))])
            return
        # Rows of one dtype alone are stacked: NumPy would make another of two, and what is refused alone must be here.
        groups: dict[tuple[int, int, np.dtype[Any]], list[Entry]] = {}
        cost, numbers, started = 0, 0, time.perf_counter()
        while self._waiting and cost < door.size and numbers < TOGETHER and time.perf_counter() - started < PARSING:
            entry = self._waiting.popleft()
            entry.enter()
            if entry.gone:
                continue
            try:
                read = self.speaker.read(model, entry.body, len(entry.known.spaces))
                entry.asked, entry.rows, entry.form = read
                if entry.known.large:  # narrow numbers become wider ones
                    wide = np.dtype(model.manifest.event_dtype).itemsize
                    entry.held.resize(max(entry.known.held, len(entry.body) + entry.rows.size * wide))
            except Exception:
                self._hand_back([entry])
                continue
            draws = entry.asked.draws or model.draws
            seed = model.seed if entry.asked.seed is None else entry.asked.seed
            cost += len(entry.rows) * draws
            numbers += entry.rows.size
            groups.setdefault((seed, draws, entry.rows.dtype), []).append(entry)
        parse = (time.perf_counter() - started) / max(1, sum(map(len, groups.values())))
        for (seed, draws, _), entries in groups.items():
            self._post(model, model.kept(seed, draws, served=True), entries, parse)
        if self._waiting:
            self._wake()

    def _post(self, model: Model, by: Yardstick | None, entries: list[Entry], parse: float) -> None:
        """Check the rows of some requests together, and have them appraised."""
        door, x = model.scores, None
        if by is not None and len(by) <= door.size:
            usual: list[Entry] = []
            other: list[Entry] = []
            for entry in entries:
                (usual if plain(model, by, entry.asked) else other).append(entry)
            self._hand_back(other)
            if not (entries := usual):
                return
            x = self._admitted(model, entries)
            if x is None and len(entries) > 1:  # somebody's rows aren't as they should be
                good = [entry for entry in entries if self._admitted(model, [entry]) is not None]
                self._hand_back([entry for entry in entries if entry not in good])
                entries = good
                x = self._admitted(model, entries) if entries else None
        if x is None or by is None:
            self._hand_back(entries)
            return
        rows, standard = x, by
        sitting = Sitting(model, parse)

        def told(found: operations.Answer | Problem) -> None:
            self._told(entries, sitting, standard, rows, found)

        try:
            answer = door.at_once({"x": x}, bank=by, cost=len(x) * len(by))
        except Exception as error:  # whose rows are at fault is found step by step
            log.debug("handed back: %s", error)
            self._hand_back(entries)
            return
        if answer:
            self._settle(entries, sitting, by, x, answer)
            return
        try:
            rest = self._timeout - (time.perf_counter() - min(entry.arrived for entry in entries))
            deadline = asyncio.get_running_loop().time() + rest
            ticket = door.post({"x": x}, told, bank=by, key=by, deadline=deadline)
        except Problem:
            self._hand_back(entries)
            return
        self._tickets += 1
        for entry in entries:
            entry.ticket, entry.sitting = ticket, sitting
        self._out[ticket] = set(entries)

    def _admitted(self, model: Model, entries: list[Entry]) -> Array | None:
        """The rows of some requests as the graphs take them; None where they aren't as usual."""
        try:
            stacked = entries[0].rows if len(entries) == 1 else np.concatenate([entry.rows for entry in entries])
            return operations.admit(stacked, model.manifest)
        except Exception:  # whatever it is, it is said step by step
            return None

    def _done(self) -> None:
        self._tickets -= 1
        if self._waiting:
            self._wake()

    def _told(
        self, entries: list[Entry], sitting: Sitting, by: Yardstick, x: Array, found: operations.Answer | Problem
    ) -> None:
        """Answer everyone of a ticket who is still there."""
        ticket = entries[0].ticket
        assert ticket is not None  # it is told of after it was posted
        del self._out[ticket]  # who left before isn't answered twice: they are gone
        for entry in entries:
            entry.ticket = None
        self._done()
        if isinstance(found, Problem):
            self._hand_back(entries)
            return
        self._settle(entries, sitting, by, x, found)

    def _settle(
        self, entries: list[Entry], sitting: Sitting, by: Yardstick, x: Array, found: operations.Answer
    ) -> None:
        # Whoever can't be answered like this, or has become late, is met by itself.
        try:
            self._answer(entries, sitting, Columns(sitting.model, by, x, found.outputs), found)
        except Exception as error:
            log.debug("handed back: %s", error)
        self._hand_back([entry for entry in entries if not entry.gone])

    def _answer(self, entries: list[Entry], sitting: Sitting, columns: Columns, found: operations.Answer) -> None:
        start, began = 0, time.perf_counter()
        sitting.queued, sitting.computed = found.queued, found.computed
        try:
            for entry in entries:
                stop = start + len(entry.rows)
                if not entry.gone and time.perf_counter() - entry.arrived < self._timeout:
                    heads, body = self.speaker.write(columns, start, stop, entry)
                    entry.let_go()  # whatever comes now, it has its answer
                    seconds = time.perf_counter() - entry.arrived
                    sitting.note(stop - start, seconds, columns.flagged(start, stop, entry.asked.alpha))
                    timing = sitting.timing(seconds)
                    self._books.door.go(entry.era)
                    entry.connection.answered(entry, heads, body, timing)
                start = stop
        finally:
            # Written down in the next turn of the loop: other answers of this one go first.
            asyncio.get_running_loop().call_soon(self._write_down, sitting, time.perf_counter() - began)

    def _write_down(self, sitting: Sitting, seconds: float) -> None:
        self._books.close_many("score", sitting.model.manifest.name, sitting)
        self.speaker.count(sitting, seconds)

    def _hand_back(self, entries: list[Entry]) -> None:
        """Have requests answered one by one, where what is wrong with them is said."""
        for entry in entries:
            if entry.gone:  # answered by now, or without a caller
                continue
            self._books.door.go(entry.era)
            entry.let_go()
            entry.connection.step_by_step(entry)
            entry.body = b""  # as in drop

    def _sweep(self) -> None:
        """Hand back who has waited for too long: they are told that they are late."""
        self._sweeping = bool(self._waiting or self._out)
        if not self._sweeping:
            return
        loop = asyncio.get_running_loop()
        loop.call_later(SWEEP, self._sweep)
        before = time.perf_counter() - self._timeout
        every = chain(self._waiting, *self._out.values())
        late = [entry for entry in every if entry.arrived < before and not entry.gone]
        for entry in late:
            self._leave(entry)
        self._hand_back(late)

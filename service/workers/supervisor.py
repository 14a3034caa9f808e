"""The supervisor: the parent of all workers. It forks them, replaces them, and ends with them; it serves nothing.

    porter ──▶ first generation ──SIGHUP──▶ next generation ──▶ …
       what serves leaves once all of the next generation are ready; they listen once it doesn't any more

It has no thread, since it forks, and never waits but in one place.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator

import numpy as np

from service.errors import Problem
from service.settings import Settings
from service.workers.channel import Message
from service.workers.estate import Refuse
from service.workers.member import BEAT, Member
from service.workers.nursery import Nursery, Process
from service.workers.stock import Stock

log = logging.getLogger(__name__)

STEADY = 10.0  # seconds that a worker lives before its death is no longer one of a row
IN_A_ROW = 5  # deaths of one seat after which there is no point in another
FIRST_WAIT = 0.1  # seconds before a seat is filled again after the second death of a row; then twice as long each time
PORTER_GRACE = 0.5  # seconds that the porter's connections have, for what they are about to ask
STALLED_LIMIT = 1.0  # seconds that a worker with a stalled engine has for its other callers
DEAF_WITHIN = 1.0  # seconds that those who leave have to stop listening, before others listen beside them
STARTS_WITHIN = 60.0  # seconds that a process has for its first sign of life
SLACK = 3.0  # seconds past all its limits after which a process is killed


class Supervisor:
    """Keeps a seat filled for each listener until it is told to stop.

    work is what a process does, and its status; refuse makes the answer to callers of a worker that died.
    """

    def __init__(
        self,
        settings: Settings,
        stock: Stock,
        listeners: list[socket.socket],
        work: Callable[[Member], int],
        refuse: Refuse,
    ) -> None:
        self._settings = settings
        self._stock = stock
        self._nursery = Nursery(listeners, settings.models, work, refuse)
        self._living = self._nursery.living
        self._seats = self._nursery.seats
        self._greeted = not settings.welcome
        self._greeter: Process | None = None
        self._opening: Generator[None, None, Stock] | None = None
        self._rising: Stock | None = None
        self._served = False  # whether a generation has ever served
        self._again = False  # SIGHUP came while a generation was rising
        self._due: dict[tuple[int, bool], float] = {}  # when to fill a seat, and whether of the rising generation
        self._deaths: dict[int, int] = {}  # in a row, by seat
        self._replaced = 0
        self._fault: str | None = None
        self._draining = False
        self._changes: dict[int, tuple[Process, int, set[int]]] = {}  # calibrations that not all have, by number
        self._changed = 0
        self._recalibrated: set[tuple[str, int]] = set()  # models that were calibrated since the last SIGHUP
        self._news: set[int] = set()  # tags of watches that have seen rows since their last mention
        self._told = 0.0

    def run(self) -> int:
        """Serve until told to stop; the exit status."""
        with self._nursery.open() as woken:
            self._fork(0, None)  # the porter: it answers at every seat until workers do
            self._opening = self._stock.restocked()
            while not self._draining or self._living:
                self._turn(woken)
            self._settle(woken)
        if self._fault:
            print(f"vae-serve: {self._fault}", file=sys.stderr)  # noqa: T201  the last word is for whoever started us
        return 1 if self._fault else 0

    # ------------------------------------------------------------ the one place that waits

    def _turn(self, woken: socket.socket) -> None:
        """Wait for something to happen, no longer than a beat, and see to all that has."""
        poll = select.poll()
        channels = {process.channel.fileno(): process for process in self._living.values()}
        for handle in (woken.fileno(), *channels):
            poll.register(handle, select.POLLIN)
        for handle, _ in poll.poll(0 if self._opening else BEAT * 1e3):
            if handle == woken.fileno():
                woken.recv(4096)
            else:
                self._hear(channels[handle])
        self._heed()
        self._reap()
        self._open()
        self._promote()
        self._look_after()
        self._tell()

    def _settle(self, woken: socket.socket) -> None:
        """The last workers have ended: give their heirs a moment, if they have anybody to answer."""
        end = time.monotonic() + SLACK
        while self._nursery.heirs and time.monotonic() < end:
            if select.select([woken], [], [], BEAT)[0]:
                woken.recv(4096)
            self._reap()

    def _heed(self) -> None:
        """Do what signals ask for."""
        signals, self._nursery.signals = self._nursery.signals, []
        for number in signals:
            if number == signal.SIGHUP:
                self._reload()
            else:
                self._stop(signal.Signals(number))

    def _fork(self, number: int, stock: Stock | None) -> None:
        """Fill a seat, or fork the porter where there is no stock."""
        self._nursery.fork(number, stock)
        self._told = 0.0

    # ------------------------------------------------------------ generations

    def _reload(self) -> None:
        """Open what lies in the folder now, and have it served by new workers."""
        if self._draining:
            return
        if self._opening or self._rising:
            self._again = True
            return
        log.info("SIGHUP: looking at the models again")
        self._recalibrated.clear()
        self._opening = self._stock.restocked()

    def _open(self) -> None:
        """Open one more artifact of those that are to be opened; after the last, fork who is to serve them."""
        if self._opening is None:
            return
        began, heard, stock = time.monotonic(), list(self._living.values()), None
        try:
            next(self._opening)
        except StopIteration as done:
            self._opening, stock = None, done.value
        except Problem as error:
            self._opening = None
            self._fail(str(error))
        except Exception:
            self._opening = None
            log.exception("the models can't be looked at; what is served stays")
        for process in heard:  # nobody was listened to meanwhile
            process.heard += time.monotonic() - began
        if stock:  # not where it was caught: all that those who are forked there ever log would begin with it
            self._rise(stock)

    def _rise(self, stock: Stock) -> None:
        if self._served and (stock.served(), stock.tags) == (self._stock.served(), self._stock.tags):
            log.info("nothing has changed")
            return
        for key in self._recalibrated:
            stock.adopt(key, self._stock)
        self._rising = stock
        for number in range(self._seats):
            self._fork(number, stock)

    def _promote(self) -> None:
        """Once all of the next generation are ready, have the one before leave, and then these listen."""
        if self._rising is None:
            return
        risen = [process for process in self._living.values() if process.stock is self._rising]
        before = [process for process in self._living.values() if process.stock is not self._rising]
        if len(risen) < self._seats or not all(process.ready for process in risen):
            return
        for process in before:
            if not process.leaving:
                self._send_away(process, PORTER_GRACE if process.stock is None else self._grace, self._limit)
        if all(process.deaf for process in before) or time.monotonic() > max(p.left for p in before) + DEAF_WITHIN:
            self._succeed(risen)

    def _succeed(self, risen: list[Process]) -> None:
        """The next generation is the one that serves."""
        self._stock, self._rising, self._served = self._rising or self._stock, None, True
        self._due.clear()
        for process in risen:
            process.channel.send("listen")
        log.info("%d workers serve", self._seats)
        if self._again:
            self._again = False
            self._reload()

    def _send_away(self, process: Process, grace: float, limit: float) -> None:
        """Have a process go without refusing anybody."""
        process.leaving, process.left = True, time.monotonic()
        process.deadline = process.left + grace + limit + SLACK
        process.channel.send("leave", grace=grace, limit=limit)

    @property
    def _grace(self) -> float:
        return self._settings.drain_grace_ms / 1e3

    @property
    def _limit(self) -> float:
        return self._settings.drain_limit_ms / 1e3

    # ------------------------------------------------------------ deaths

    def _reap(self) -> None:
        """See who has died, and have the seat filled again."""
        for process, code in self._nursery.ended():
            self._bury(process, code)

    def _bury(self, process: Process, code: int) -> None:
        with contextlib.suppress(EOFError):
            for message in process.channel.receive():  # its last words: scores, mostly
                self._take(process, message)
        for change in list(self._changes):
            self._has(change, process.pid)
        self._told = 0.0
        if self._draining:
            self._nursery.close_seat(process.number)
        elif process.leaving or process.stock is None:
            log.info("%s has left", process)
        else:
            self._replace_dead(process, signal.Signals(-code).name if code < 0 else f"status {code}")

    def _replace_dead(self, process: Process, how: str) -> None:
        now, number = time.monotonic(), process.number
        self._replaced += 1
        in_a_row = self._deaths.get(number, 0) + 1 if now - process.born < STEADY else 1
        self._deaths[number] = in_a_row
        log.error("%s died: %s", process, how)
        if in_a_row < IN_A_ROW:
            wait = FIRST_WAIT * 2 ** (in_a_row - 2) if in_a_row > 1 else 0.0
            self._due[number, process.stock is self._rising] = now + wait
        elif process.stock is self._rising and self._served:
            self._abandon()
        else:
            self._fail(f"worker {number} died {in_a_row} times in a row, the last time by {how}; the log says more")

    def _abandon(self) -> None:
        """The next generation doesn't live: keep the one that serves."""
        log.error("the new workers die; those before go on serving what they served")
        for process in self._living.values():
            if process.stock is self._rising:
                process.leaving = True
                os.kill(process.pid, signal.SIGKILL)
        self._rising = None
        self._due = {seat: due for seat, due in self._due.items() if not seat[1]}
        self._deaths.clear()

    # ------------------------------------------------------------ looking after the living

    def _look_after(self) -> None:
        """Fill seats that are due, and end what is past its time."""
        now = time.monotonic()
        for (number, rising), due in list(self._due.items()):
            if due <= now:
                del self._due[number, rising]
                self._fork(number, (self._rising if rising else None) or self._stock)
        stall = max(self._settings.stall_ms / 1e3, 10 * BEAT)
        for process in list(self._living.values()):
            silent = now - process.heard > (stall if process.ready else max(stall, STARTS_WITHIN))
            silent = silent and not process.leaving
            if silent:
                log.error("%s gives no sign of life and is killed", process)
            if silent or now > process.deadline:
                process.deadline = float("inf")
                os.kill(process.pid, signal.SIGKILL)

    def _replace_living(self, process: Process, why: str, limit: float) -> None:
        """Fill a seat whose worker lives, and then have that one go."""
        if process.leaving or self._draining or process.stock is not self._stock:
            return
        log.warning("%s %s and is replaced", process, why)
        self._replaced += 1
        self._fork(process.number, self._stock)
        self._send_away(process, min(self._grace, limit), limit)

    # ------------------------------------------------------------ messages

    def _hear(self, process: Process) -> None:
        with contextlib.suppress(EOFError):  # then it has died, or will have in a moment
            for message in process.channel.receive():
                self._take(process, message)

    def _take(self, process: Process, message: Message) -> None:
        process.heard = time.monotonic()
        said = message.facts
        match message.kind:
            case "beat":
                if said["computing"] > self._settings.stall_ms / 1e3:
                    self._replace_living(process, f"has been computing for {said['computing']:.0f} s", STALLED_LIMIT)
            case "ready":
                process.ready = True
                if process.stock is self._stock:
                    process.channel.send("listen")
            case "deaf":
                process.deaf = True
            case "serves":
                process.serves = True
                self._told = 0.0
                self._greet(process)
            case "greeted":
                self._greeted = True
            case "scores":
                if self._stock.see(said["tag"], np.frombuffer(message.payload)):
                    self._news.add(said["tag"])
            case "terminated":
                self._replace_living(process, "was sent SIGTERM", self._limit)
            case "heir":
                self._nursery.heirs.add(said["pid"])
            case "calibrated":
                self._calibrated(process, (said["key"][0], said["key"][1]), said["serial"])
            case "has":
                self._has(said["change"], process.pid)

    def _greet(self, process: Process) -> None:
        """Have the welcome printed, once in the group's life."""
        waits = self._greeter is not None and self._greeter.pid in self._living
        if not self._greeted and not waits and process.stock is not None:
            self._greeter = process
            process.channel.send("greet")

    def _calibrated(self, caller: Process, key: tuple[str, int], serial: int) -> None:
        """Have every worker take up the calibration that the state keeps for a model now."""
        opened = self._stock.recalibrated(key)
        if opened is None:
            caller.channel.send("told", serial=serial)
            return
        self._recalibrated.add(key)
        if self._rising:
            self._rising.adopt(key, self._stock)
        self._changed += 1
        having = [process for process in self._living.values() if process.stock is not None]
        self._changes[self._changed] = (caller, serial, {process.pid for process in having})
        source = self._stock.source
        for process in having:
            process.channel.send(
                "changed",
                key=key,
                digest=opened.digest,
                tag=self._stock.tags[key],
                change=self._changed,
                state=str(source.state),
                false_alarm=source.false_alarm,
            )

    def _has(self, change: int, pid: int) -> None:
        """A worker has a calibration, or is no more; after the last, whoever calibrated is told."""
        if change not in self._changes:
            return
        caller, serial, missing = self._changes[change]
        missing.discard(pid)
        if not missing:
            del self._changes[change]
            caller.channel.send("told", serial=serial)

    def _tell(self) -> None:
        """Once a beat, say what the watches and the group have come to."""
        now = time.monotonic()
        for process in self._living.values():
            process.channel.flush()
        if self._told and not self._news:
            return
        if self._told and now - self._told < BEAT:
            return
        self._told = now
        serving = [one for one in self._living.values() if one.serves and one.stock and not one.leaving]
        pids, heirs = list(self._living), list(self._nursery.heirs)
        for process in self._living.values():
            process.channel.send("group", pids=pids, heirs=heirs, serving=len(serving), replaced=self._replaced)
            for tag in self._news:
                if watched := self._stock.watch(tag):
                    process.channel.mention("watch", tag=tag, **watched)
        self._news.clear()

    # ------------------------------------------------------------ the end

    def _stop(self, which: signal.Signals) -> None:
        """SIGTERM drains, with its grace; ^C drains without; either, again, ends it now."""
        if self._draining:
            log.warning("%s again: ending now", which.name)
            self._end("end", SLACK)
            return
        log.info("%s", which.name)
        self._drain(self._grace if which == signal.SIGTERM else 0.0)

    def _drain(self, grace: float) -> None:
        self._draining, self._opening, self._rising = True, None, None
        self._due.clear()
        self._end("drain", grace + self._limit + 1.0 + SLACK, {"grace": grace})
        for number in range(self._seats):
            self._nursery.close_seat(number)

    def _end(self, kind: str, within: float, facts: dict[str, float] | None = None) -> None:
        for process in self._living.values():
            process.channel.send(kind, **(facts or {}))
            process.deadline = time.monotonic() + within

    def _fail(self, fault: str) -> None:
        """There is no point in going on: end, with a status that says so."""
        log.critical("%s", fault)
        self._fault = self._fault or fault
        if not self._draining:
            self._drain(0.0)

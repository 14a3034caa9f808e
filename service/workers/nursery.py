"""The nursery: where processes of a group are forked, and what they share. Knows neither when nor why.

It holds one listening socket for each seat, so that connections that wait at a worker that died wait for the next one.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client.multiprocess import mark_process_dead

from service.debts import Debts
from service.engine import ARENAS
from service.metrics.group import count_interrupted
from service.models import find
from service.workers import heir
from service.workers.channel import Channel
from service.workers.estate import Estate, Refuse
from service.workers.member import Member
from service.workers.stock import Stock

log = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(eq=False)
class Process:
    """One that was forked, as the supervisor knows it. Its stock is None for the porter."""

    pid: int
    number: int
    slot: int
    channel: Channel
    stock: Stock | None
    born: float
    heard: float
    ready: bool = False
    serves: bool = False
    leaving: bool = False
    deaf: bool = False  # it leaves, and takes no more connections
    left: float = 0.0
    deadline: float = float("inf")

    def __str__(self) -> str:
        return f"{'the porter' if self.stock is None else f'worker {self.number}'} (pid {self.pid})"


class Nursery:
    """Forks processes that do their work at a seat, and knows who lives. models is where the porter looks for names."""

    def __init__(
        self, listeners: list[socket.socket], models: Path, work: Callable[[Member], int], refuse: Refuse
    ) -> None:
        self.seats = len(listeners)
        self.living: dict[int, Process] = {}
        self.heirs: set[int] = set()  # of the living, and of who died lately
        self.signals: list[int] = []
        self._listeners = dict(enumerate(listeners))
        self._models = models
        self._work = work
        self._refuse = refuse
        self._wakers = socket.socketpair()
        self._folder = tempfile.TemporaryDirectory(prefix="vae-serve-")

    @contextlib.contextmanager
    def open(self) -> Generator[socket.socket, None, None]:
        """Note signals, and whose child ends; what is given can be read once there was one."""
        woken, waker = self._wakers
        for end in self._wakers:
            end.setblocking(False)
        before = signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda number, _: self.signals.append(number))
        signal.signal(signal.SIGCHLD, lambda *_: None)  # only to be woken
        try:
            with self._folder:
                count_interrupted(Path(self._folder.name), 0)  # so that the series begins before the first of them
                yield woken
        finally:
            signal.set_wakeup_fd(before)

    def fork(self, number: int, stock: Stock | None) -> Process:
        """A process for a seat, or the porter, who is at every seat and has no stock."""
        ours, theirs = Channel.pair()
        slots = {process.slot for process in self.living.values()}
        slot = next(slot for slot in range(len(slots) + 1) if slot not in slots)
        sys.stdout.flush()
        sys.stderr.flush()
        gc.collect()
        ARENAS.give_back()  # what nobody uses would be had once more by each who begins to
        gc.freeze()  # the collector would write into every page that it looks at
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        pid = os.fork()
        if pid == 0:
            self._be(number, slot, theirs, stock, ours)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        theirs.close()
        now = time.monotonic()
        self.living[pid] = process = Process(pid, number, slot, ours, stock, now, now)
        log.info("started %s", process)
        return process

    def _be(self, number: int, slot: int, channel: Channel, stock: Stock | None, ours: Channel) -> None:
        """Be the process that was forked, and never return."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            for name in (signal.SIGINT, signal.SIGHUP):
                signal.signal(name, signal.SIG_IGN)  # a terminal sends them to all; the supervisor tells us
            for name in (signal.SIGTERM, signal.SIGCHLD):
                signal.signal(name, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            ours.close()
            for process in self.living.values():
                process.channel.close()  # or nobody would ever hear that the supervisor is gone
            for waker in self._wakers:
                waker.close()
            kept = [number] if stock else list(self._listeners)
            for other, listener in self._listeners.items():
                if other not in kept:
                    listener.close()
            listeners = [self._listeners[other] for other in kept]
            keys = stock.entries if stock else find(self._models)
            debts = self._engage(f"worker {number} (pid {os.getpid()})", channel, listeners) if stock else None
            member = Member(number, slot, channel, listeners, stock, keys, Path(self._folder.name), debts)
            status = self._work(member)
            if member.bereaved:  # not sooner: what is answered until then is counted there
                shutil.rmtree(self._folder.name, ignore_errors=True)
        except BaseException:
            log.critical("this process died", exc_info=True)
        finally:
            logging.shutdown()
            sys.stdout.flush()
            os._exit(status)  # nothing of the supervisor's is to be cleared up here

    def _engage(self, name: str, channel: Channel, listeners: list[socket.socket]) -> Debts | None:
        """In a worker: give it an heir, who answers its callers if it dies; what it owes them is noted from then on."""
        debts = Debts()
        ports = {listener.getsockname()[1] for listener in listeners}
        pid = heir.engage(name, Estate(debts, ports, self._refuse, self._count))
        if pid is None:
            return None
        channel.send("heir", pid=pid)
        return debts

    def _count(self, told: int) -> None:
        """Count requests that an heir answered."""
        with contextlib.suppress(OSError):  # the group has ended and its folder with it, or the disk is full
            count_interrupted(Path(self._folder.name), told)

    def ended(self) -> Generator[tuple[Process, int], None, None]:
        """Who has ended since, and how: a status, or a signal's number below 0."""
        while self.living or self.heirs:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.heirs.clear()  # one that went before it was heard of
                return
            if pid == 0:
                return
            self.heirs.discard(pid)
            if process := self.living.pop(pid, None):
                yield process, os.waitstatus_to_exitcode(status)
                process.channel.close()
                mark_process_dead(process.slot, path=self._folder.name)  # type: ignore[no-untyped-call]

    def close_seat(self, number: int) -> None:
        """Once nobody accepts at a seat any more, refuse its newcomers, who would wait for nobody."""
        held = any(process.number == number or process.stock is None for process in self.living.values())
        if not held and (listener := self._listeners.pop(number, None)):
            listener.close()

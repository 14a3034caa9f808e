"""The estate: the descriptors that a worker left when it died. Callers who are owed an answer get one; all is closed.

Nothing here waits for a caller: who doesn't take an answer, or sends on and on, is let go after a while.
"""

from __future__ import annotations

import fcntl
import logging
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.debts import ALL, Debts

log = logging.getLogger(__name__)

GRACE = 0.1  # seconds in which who was owed nothing may yet have asked something
SILENT = 2.0  # seconds without a byte after which a caller is let go that has its answer
LONGEST = 30.0  # seconds that a caller has in all, to send the rest of what the answer is to
ACKED, RECEIVED, KNOWN = 120, 128, 136  # where struct tcp_info has what was acknowledged and received, and past that
CLOSE_WAIT = 8
PART = 262_144  # bytes that are read at once

Refuse = Callable[[bool], bytes]


@dataclass(eq=False)
class Left:
    """A connection that was left. rest: what it is still to be sent; None as long as it is owed nothing."""

    caller: socket.socket
    v2: bool
    until: float
    rest: bytes | None = None


class Estate:
    """All that a process leaves. ports are those that it serves.

    refuse makes the whole answer, to a request of /v2 or another; count is told how many there were.
    """

    def __init__(self, debts: Debts, ports: set[int], refuse: Refuse, count: Callable[[int], None]) -> None:
        self._debts, self._ports, self._refuse, self._count = debts, ports, refuse, count
        self._left: dict[int, Left] = {}
        self._waits = select.poll()
        self._told = self._cut = 0

    def settle(self, name: str) -> None:
        """Answer, close, and go through with it. The log is let go as soon as there is nothing more to say."""
        for descriptor in sorted(int(path.name) for path in Path("/proc/self/fd").iterdir()):
            if descriptor > 2:
                self._look(descriptor)
        began = time.monotonic()
        while any(left.rest is None for left in self._left.values()):
            self._turn(began)
        if self._told:
            self._count(self._told)
        if self._told or self._cut:
            log.warning("answered 503 to %d callers of %s, and cut off %d", self._told, name, self._cut)
        os.closerange(0, 3)
        while self._left:
            self._turn(began)

    def _look(self, descriptor: int) -> None:
        """Close what is no caller's; answer a caller who is owed an answer."""
        try:
            caller = socket.socket(fileno=descriptor)
        except OSError:
            with suppress(OSError):
                os.close(descriptor)
            return
        try:
            self._judge(caller)
        except OSError:  # it is no connection, or isn't any more
            caller.close()

    def _judge(self, caller: socket.socket) -> None:
        line = self._debts.line(caller.fileno())
        if caller.family not in (socket.AF_INET, socket.AF_INET6) or caller.getsockname()[1] not in self._ports:
            caller.close()
            return
        caller.getpeername()
        caller.setblocking(False)
        standing = line.standing(*passed(caller))
        if standing == "broken":
            self._cut += 1
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            caller.close()  # with a reset: nobody takes what it got for an answer
            return
        self._left[caller.fileno()] = left = Left(caller, line.v2, time.monotonic() + GRACE)
        self._waits.register(caller, select.POLLIN)
        if standing == "owed":
            self._tell(left)
        elif line.heard == ALL:
            self._end(left)
        self._read(left)

    def _tell(self, left: Left) -> None:
        self._told += 1
        left.rest = self._refuse(left.v2)
        self._send(left)

    def _send(self, left: Left) -> None:
        """Send what goes, and say that there is no more after the last of it."""
        assert left.rest
        try:
            left.rest = left.rest[left.caller.send(left.rest) :]
        except BlockingIOError:
            pass
        except OSError:
            self._let_go(left)
            return
        if left.rest:
            left.until = time.monotonic() + SILENT
            self._waits.modify(left.caller, select.POLLIN | select.POLLOUT)
        else:
            self._end(left)

    def _end(self, left: Left) -> None:
        """Say that there is no more to come; what comes from there is thrown away."""
        left.rest, left.until = b"", time.monotonic() + SILENT
        self._waits.modify(left.caller, select.POLLIN)
        with suppress(OSError):
            left.caller.shutdown(socket.SHUT_WR)

    def _read(self, left: Left) -> None:
        """Read what there is and throw it away: what is closed with bytes unread is reset, and its answer with it."""
        try:
            part = left.caller.recv(PART)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        if not part:
            self._let_go(left)
            return
        if left.rest is None:
            if not (part := part.lstrip(b"\r\n")):  # empty lines ask nothing
                return
            left.v2 = b" /v2/" in part.partition(b"\r\n")[0]
            self._tell(left)
        left.until = time.monotonic() + SILENT

    def _let_go(self, left: Left) -> None:
        if self._left.pop(left.caller.fileno(), None):
            self._waits.unregister(left.caller)
            left.caller.close()

    def _turn(self, began: float) -> None:
        """See to callers of whom something is heard, and then let those go whose time is over."""
        soonest = min((left.until for left in self._left.values()), default=0.0)
        for descriptor, what in self._waits.poll(max(0.0, soonest - time.monotonic()) * 1e3):
            left = self._left[descriptor]
            if what & select.POLLOUT and left.rest:
                self._send(left)
            if descriptor in self._left and what & ~select.POLLOUT:
                self._read(left)
        now = time.monotonic()
        for left in list(self._left.values()):
            if min(left.until, began + LONGEST) <= now:
                self._let_go(left)


def passed(caller: socket.socket) -> tuple[int, int]:
    """Bytes that a process has sent on a connection and read from it; both as far as the kernel had them from it.

    OSError where the kernel doesn't say.
    """
    while True:
        acked = _told_of(caller)[1]
        waits = _count(caller, termios.TIOCOUTQ)
        state, again, received = _told_of(caller)
        if acked == again:
            break
    ended = state == CLOSE_WAIT  # then the end was counted as a byte
    return acked + waits, received - ended - _count(caller, termios.FIONREAD)


def _told_of(caller: socket.socket) -> tuple[int, int, int]:
    """State, bytes acknowledged, bytes received; see tcp(7)."""
    found = caller.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, KNOWN)
    return found[0], *struct.unpack("=QQ", found[ACKED:KNOWN])


def _count(caller: socket.socket, what: int) -> int:
    return int(struct.unpack("i", fcntl.ioctl(caller, what, bytes(4)))[0])

"""Debts: what is owed on each connection of a process, noted in memory that outlives it. Knows no process or protocol.

A process that dies may have read requests that it didn't answer, and made answers that it didn't send. How many bytes
it read and sent the kernel knows; how many of those it read had been answered, and how many it meant to send, is noted
here. The difference is what is owed.
"""

from __future__ import annotations

import mmap
import resource
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

NUMBERS = struct.Struct("=QQQ")  # before, said, heard
FORM = NUMBERS.size
SIZE = 32  # bytes of a connection's line
ALL = 2**64 - 1  # heard, where the request was answered before it was whole: what comes is thrown away
MOST = 2**20  # lines at most; what nobody writes to takes no memory

Standing = Literal["owed", "even", "broken"]
Note = Callable[[int, int, int], None]


@dataclass(frozen=True, slots=True)
class Line:
    """What is noted of a connection, in bytes since its beginning.

    before: meant to be sent before the last answer; said: with it; heard: read when it was made. v2: the protocol that
    was last spoken.
    """

    before: int
    said: int
    heard: int
    v2: bool

    def standing(self, sent: int, read: int) -> Standing:
        """How a connection stands that so many bytes were sent on and read from in truth.

        owed: a request has no byte of an answer. even: there is none. broken: an answer has begun and didn't end.
        """
        if sent < self.said:
            return "owed" if sent == self.before else "broken"
        if sent > self.said:
            return "even"  # nothing was noted, or it was ending
        return "owed" if read > self.heard else "even"


class Debts:
    """A line for each descriptor that a process may have. A process that is forked from it sees what it notes."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._count = MOST if soft == resource.RLIM_INFINITY else min(soft, MOST)
        self._memory = mmap.mmap(-1, self._count * SIZE)

    def opened(self, descriptor: int) -> Note | None:
        """A connection begins: what notes before, said and heard on its line; None where there is no line for it."""
        if not 0 <= descriptor < self._count:
            return None
        self.closed(descriptor)
        return partial(NUMBERS.pack_into, self._memory, descriptor * SIZE)

    def speaks(self, descriptor: int, v2: bool) -> None:
        """Note the protocol that is spoken on a connection."""
        self._memory[descriptor * SIZE + FORM] = v2

    def closed(self, descriptor: int) -> None:
        """Nothing is owed on a connection any more."""
        self._memory[descriptor * SIZE : (descriptor + 1) * SIZE] = bytes(SIZE)

    def line(self, descriptor: int) -> Line:
        """What is noted of a connection."""
        if not 0 <= descriptor < self._count:
            return Line(0, 0, 0, False)
        at = descriptor * SIZE
        before, said, heard = NUMBERS.unpack_from(self._memory, at)
        return Line(before, said, heard, bool(self._memory[at + FORM]))

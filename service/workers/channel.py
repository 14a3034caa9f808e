"""The channel: messages between the supervisor and one process that it forked. Knows nothing of what they mean."""

from __future__ import annotations

import contextlib
import json
import socket
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LARGEST = 131_072  # bytes of a message; a Unix socket takes 200 KB at once


@dataclass(frozen=True, slots=True)
class Message:
    """What it is, what it says, and bytes that come with it."""

    kind: str
    facts: dict[str, Any]
    payload: bytes = b""


class Channel:
    """One end of a pair. Nothing here ever waits; what doesn't go now is kept, and goes with the next `flush`."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        self._kept: deque[bytes] = deque()

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two ends. Messages stay whole and in order; when one end is gone, the other hears that."""
        ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in ends:
            end.setblocking(False)
        return cls(ends[0]), cls(ends[1])

    def fileno(self) -> int:
        """What to wait on for messages."""
        return self._end.fileno()

    def send(self, kind: str, payload: bytes = b"", /, **facts: Any) -> None:
        """Send a message now or later, after those before it."""
        self._kept.append(json.dumps([kind, facts]).encode() + b"\n" + payload)
        self.flush()

    def mention(self, kind: str, **facts: Any) -> None:
        """Send a message that a later one replaces: not at all while others wait to go."""
        if not self._kept:
            self.send(kind, **facts)

    def flush(self) -> None:
        """Send what was kept; what is meant for an end that is gone goes nowhere."""
        while self._kept:
            try:
                self._end.send(self._kept[0])
            except BlockingIOError:
                return
            except OSError:
                self._kept.clear()
                return
            self._kept.popleft()

    def receive(self) -> Iterator[Message]:
        """What has come, without waiting; EOFError when the other end is gone."""
        while True:
            try:
                content = self._end.recv(LARGEST)
            except BlockingIOError:
                return
            except ConnectionError:
                content = b""
            if not content:
                raise EOFError
            head, _, payload = content.partition(b"\n")
            kind, facts = json.loads(head)
            yield Message(kind, facts, payload)

    def close(self) -> None:
        """Let this end go."""
        with contextlib.suppress(OSError):
            self._end.close()

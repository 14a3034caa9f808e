"""Sparing: so many lines of the log in a second, and then a count. Knows nothing of what is logged."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

SECOND = 1.0


class Sparing:
    """Lets so many lines of a kind through in a second; of the rest it says, once the second is over, how many.

    Whoever can have a line written can have thousands written: the disk is to stay free, and the loop quick.
    """

    def __init__(self, most: int, say: Callable[[str, int], None]) -> None:
        self._most, self._say = most, say
        self._counts: dict[str, int] = {}
        self._began = -math.inf
        self._telling: asyncio.TimerHandle | None = None

    def admits(self, kind: str) -> bool:
        """Whether a line of a kind is written; to be asked on the event loop."""
        loop = asyncio.get_running_loop()
        if self._telling is None and loop.time() >= self._began + SECOND:
            self._counts, self._began = {}, loop.time()
        count = self._counts[kind] = self._counts.get(kind, 0) + 1
        if count > self._most and self._telling is None:
            self._telling = loop.call_at(self._began + SECOND, self.tell)
        return count <= self._most

    def tell(self) -> None:
        """Say what was left out, and begin again; also to be called at the end."""
        if self._telling is not None:
            self._telling.cancel()
        counts, self._counts, self._telling = self._counts, {}, None
        self._began = -math.inf
        for kind, count in counts.items():
            if count > self._most:
                self._say(kind, count - self._most)

"""An engine: one artifact's sessions, and rows → answers. Knows no request, and nothing of who computes when."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import numpy as np
import onnxruntime as ort

from service.artifact import Array, Arrays
from service.engine.cuda import GATE, Runtime
from service.engine.memory import ARENAS
from service.errors import EngineFailed, EngineLost


@dataclass(frozen=True)
class Engine:
    """One artifact's sessions. `device` is where they really are; `fallback` says why that is not what was wanted.

    runtime is CUDA's, where they are on it: it knows whether the device is lost to this process.
    """

    device: Literal["cpu", "cuda"]
    providers: list[str]
    fallback: str | None
    sessions: dict[str, ort.InferenceSession] = field(repr=False)
    runtime: Runtime | None = field(default=None, repr=False, kw_only=True)

    @cached_property
    def names(self) -> Mapping[str, list[str]]:
        """What each graph gives, in its order."""
        return {name: [output.name for output in session.get_outputs()] for name, session in self.sessions.items()}

    @property
    def lost(self) -> str | None:
        """Why no call can succeed any more in this process, if that is so."""
        return self.runtime.fault if self.runtime else None

    def clock(self) -> float:
        """What a call is timed by: on the CPU, seconds of the thread that makes it, and computes.

        Not those in which it waits for its turn. While the service starts others import and open, and whoever comes out
        of the runtime waits for Python's lock for 5 ms, which is more than most calls take.
        """
        return time.thread_time() if self.device == "cpu" else time.perf_counter()

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Run one graph; blocks. EngineFailed says what the runtime said."""
        names = self.names[graph]
        try:
            return dict(zip(names, self.sessions[graph].run(names, feeds), strict=True))
        except Exception as error:  # the runtime's exceptions share no base class
            raise failure(graph, error, self.runtime) from error

    def run(
        self, graph: str, pieces: Mapping[str, Sequence[Array]], shared: Mapping[str, Array], step: int = sys.maxsize
    ) -> Arrays:
        """Run one graph on the rows of several tickets, copied once: pieces by input, and what all of them share.

        No more than `step` rows at a time.
        """
        count = sum(map(len, next(iter(pieces.values()))))
        if count <= step:
            return self.compute(graph, {name: joined(parts) for name, parts in pieces.items()} | dict(shared))
        found = []
        for start in range(0, count, step):
            rows = slice(start, start + step)
            feeds = {name: joined(list(within(parts, rows))) for name, parts in pieces.items()}
            found.append(self.compute(graph, feeds | dict(shared)))
        return {name: np.concatenate([outputs[name] for outputs in found]) for name in found[0]}

    def release(self) -> None:
        """Let go of all that it has memory in, whoever still has the engine; no call may follow.

        Blocks while another engine is being captured, which what is freed on the device would spoil.
        """
        with GATE.together():
            self._let_go()
        ARENAS.give_back()

    def _let_go(self) -> None:
        self.sessions.clear()


def joined(parts: Sequence[Array]) -> Array:
    """Parts one below the other; one that is contiguous is taken as it is."""
    return np.concatenate(parts) if len(parts) > 1 else np.ascontiguousarray(parts[0])


def within(parts: Sequence[Array], rows: slice) -> Iterator[Array]:
    """What some of all rows are made of, part by part.

    >>> [part.tolist() for part in within([np.arange(3), np.arange(3, 5), np.arange(5, 9)], slice(1, 5))]
    [[1, 2], [3, 4]]
    """
    begins = 0
    for part in parts:
        first, last = max(rows.start - begins, 0), min(rows.stop - begins, len(part))
        begins += len(part)
        if first < last:
            yield part[first:last]


def failure(graph: str, error: Exception, runtime: Runtime | None) -> EngineFailed:
    """What a failed call is to us: these rows' failure, or the end of the device for this process."""
    if runtime and (fault := runtime.lost()):
        return EngineLost(f"{graph}: {error}; {fault}")
    return EngineFailed(f"{graph}: {error}")

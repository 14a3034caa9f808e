"""The bucketed engine: an engine that runs every batch at one of a few shapes, in buffers that are made once."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from service.artifact import Array, Arrays
from service.engine.plain import Engine, failure
from service.engine.stage import Stage


@dataclass(frozen=True, slots=True)
class Bucketed(Engine):
    """An engine whose graphs have stages. On the CPU its answers are, bit by bit, those of an engine without."""

    stages: dict[str, Stage] = field(repr=False, kw_only=True)

    def clock(self) -> float:
        """See Engine: here another thread computes."""
        return time.perf_counter()

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Run one graph; blocks."""
        rows = self.stages[graph].graph.rows
        pieces = {name: [array] for name, array in feeds.items() if name in rows}
        return self._staged(graph, pieces, {name: array for name, array in feeds.items() if name not in rows})

    def run(
        self,
        graph: str,
        pieces: Mapping[str, Sequence[Array]],
        shared: Mapping[str, Array],
        step: int = sys.maxsize,  # noqa: ARG002  a bucket has a size of its own
    ) -> Arrays:
        """Run one graph on the rows of several tickets, each copied once, into the bucket."""
        return self._staged(graph, pieces, shared)

    def _let_go(self) -> None:
        self.stages.clear()
        self.sessions.clear()

    def _staged(self, graph: str, pieces: Mapping[str, Sequence[Array]], shared: Mapping[str, Array]) -> Arrays:
        try:
            return self.stages[graph].run(pieces, shared)
        except Exception as error:  # the runtime's exceptions share no base class
            raise failure(graph, error, self.runtime) from error

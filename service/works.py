"""Works: what the batchers of a model have done: its graphs as they are, and a whole appraisal. Knows no caller."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from service.appraisal import Yardstick, appraise
from service.artifact import Array, Arrays, Artifact, Graph, Manifest
from service.batcher import Work
from service.cost import Cost
from service.engine import Engine
from service.errors import EngineFailed

SCORE = "score"  # the door to a whole appraisal, beside those to the graphs
WARM = 64  # decoder rows, at the most, in the larger of the calls that a graph's cost is first taken from
TAKEN = 3  # calls of each size after a first, of which the fastest counts
LONG = 0.01  # seconds of calls that are enough, however few or small: what disturbs one is little beside that
ENDLESS = 1 << 40
# What a run is cut to on a CPU: what lies between a graph's layers then stays in the core's own cache, and the memory
# that a session keeps for it stays small. Measured on the benchmarks' models; with fewer rows, matrices are too thin.
TILE_SECONDS, TILE_LEAST, TILE_MOST = 0.002, 16, 128


class GraphWork(Work):
    """One graph, as it is, run on so many decoder rows at a time; see `tile`."""

    def __init__(self, graph: Graph, engine: Engine, tile: int = ENDLESS) -> None:
        self.name, self._tile = graph.name, tile
        self.drawn = graph.drawn
        self.wide = frozenset(name for name, lead in graph.outputs.items() if lead == "nk")
        self._graph, self._engine = graph, engine

    def compute(self, rows: Mapping[str, Sequence[Array]], bank: Any, draws: slice) -> Arrays:
        """Run the graph on the rows of several tickets, stacked."""
        shared = {self._graph.bank: np.ascontiguousarray(bank[draws])} if self._graph.bank else {}
        drawn = rows[self.drawn[0]][0].shape[1] if self.drawn else len(next(iter(shared.values()), (None,)))
        outputs = self._engine.run(self.name, rows, shared, max(TILE_LEAST, self._tile // drawn))
        if outputs.keys() != self._graph.outputs.keys():
            raise EngineFailed(f"{self.name}: it gives {sorted(outputs)}, not {sorted(self._graph.outputs)}")
        count = sum(len(part) for part in next(iter(rows.values())))
        if any(len(array) != count for array in outputs.values()):
            raise EngineFailed(f"{self.name}: {count} rows went in and another number came out")
        return outputs


class Appraising(Work):
    """elbo.onnx, encoder.onnx where a score needs it, and all that is said of a row by default; never cut by draws."""

    name = SCORE

    def __init__(self, engine: Engine, manifest: Manifest, tile: int = ENDLESS) -> None:
        self._elbo = GraphWork(manifest.graphs["elbo"], engine, tile)
        self._encoder = GraphWork(manifest.graphs["encoder"], engine, tile)
        self._manifest = manifest

    def compute(self, rows: Mapping[str, Sequence[Array]], bank: Yardstick, _: slice) -> Arrays:
        """Appraise the rows of several tickets by the yardstick that they share."""
        stacked = rows["x"] if len(rows["x"]) == 1 else [np.concatenate(rows["x"])]
        outputs = self._elbo.compute({"x": stacked}, bank.bank.noise, slice(None))
        return appraise(stacked[0], outputs, self._posterior, self._manifest, bank)

    def _posterior(self, x: Array) -> Arrays:
        try:
            return self._encoder.compute({"x": [x]}, None, slice(None))
        except EngineFailed:
            raise
        except Exception as error:  # whatever it is, it is no fault of the bound's
            raise EngineFailed(f"encoder: {error}") from error

    def finished(self, outputs: Arrays, bank: Yardstick) -> None:
        """Show the watch for drift what was served."""
        if bank.notice:
            bank.notice(outputs)


def cost(found: Artifact, engine: Engine, name: str) -> Cost:
    """What calls of golden rows cost, one row and many; it also warms the graph."""
    graph = found.manifest.graphs[name]
    feeds = {key: found.golden[f"{name}.{key}"] for key in graph.rows}
    draws = feeds[graph.drawn[0]].shape[1] if graph.drawn else 1
    if graph.bank:
        feeds[graph.bank] = found.golden[f"{name}.{graph.bank}"]
        draws = len(feeds[graph.bank])

    def least(count: int) -> float:
        stacked = {key: _repeat(array, count) if key in graph.rows else array for key, array in feeds.items()}
        times = [_timed(engine, name, stacked)]
        while len(times) <= TAKEN and sum(times) < LONG:
            times.append(_timed(engine, name, stacked))
        return min(times[1:] or times)  # the first pays for what later ones find ready, which is little if it is long

    alone = least(1)
    many = max(2, min(WARM // draws, int(LONG / max(alone, 1e-9))))
    return Cost.measured([(draws, alone), (many * draws, least(many))])


def tile(cost: Cost, engine: Engine) -> int:
    """How many decoder rows a graph is run on at a time; a row's bits don't depend on that."""
    if engine.device != "cpu":
        return ENDLESS
    return max(TILE_LEAST, min(TILE_MOST, cost.within(TILE_SECONDS)))


def _timed(engine: Engine, name: str, feeds: Arrays) -> float:
    started = engine.clock()
    engine.compute(name, feeds)
    return engine.clock() - started


def _repeat(rows: Array, count: int) -> Array:
    return np.resize(rows, (count, *rows.shape[1:]))

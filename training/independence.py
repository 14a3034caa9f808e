"""Row independence: a row's numbers are the same bits whatever batch it is in. Knows neither torch nor the runtime."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.artifact import Arrays, Graph
from service.errors import ArtifactRefused

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], Arrays]

PROMISE = (
    "bitwise, on the CPU provider with one intra-op thread: every window of 1 to 9 rows and draws, at addresses off "
    "alignment, and batches of 64 and 300 rows, each against the others"
)
FEW, ODD = 9, 7


def check(graph: Graph, run: Run, feeds: Arrays) -> None:
    """Refuse a graph in which any cut of rows or draws changes any bit. feeds: many rows, and at least 9 draws."""
    rows = len(feeds[graph.rows[0]])
    few = run(cut(graph, feeds, slice(0, FEW), slice(0, FEW)))
    for taken, drawn in _cuts(graph):
        _compare(graph, run(cut(graph, feeds, taken, drawn)), few, taken, drawn)
    for size in (64, rows):
        whole = run(cut(graph, feeds, slice(0, size), slice(0, FEW)))
        _compare(graph, {name: value[:FEW] for name, value in whole.items()}, few, slice(0, FEW), slice(0, FEW))
        for start in range(FEW, size, ODD):
            taken = slice(start, min(size, start + ODD))
            _compare(graph, run(cut(graph, feeds, taken, slice(0, FEW))), whole, taken, slice(0, FEW))


def cut(graph: Graph, feeds: Mapping[str, Array], rows: slice, draws: slice) -> Arrays:
    """Some rows and draws of a graph's inputs, each copied to an address of its own, one element off alignment."""
    some = {}
    for name, value in feeds.items():
        if name == graph.bank:
            part = value[draws]
        elif name in graph.drawn:
            part = value[rows, draws]
        else:
            part = value[rows]
        some[name] = displaced(part)
    return some


def displaced(values: Array) -> Array:
    """A C-ordered copy that begins one element after where the allocator would have it."""
    room = np.empty(values.size + 1, values.dtype)
    room[1:] = values.reshape(-1)
    return room[1:].reshape(values.shape)


def _cuts(graph: Graph) -> Iterator[tuple[slice, slice]]:
    """Every row alone, every number of rows, windows at odd offsets; and the same of draws where there are any."""
    few = slice(0, FEW)
    windows = [slice(start, start + size) for size in range(1, FEW + 1) for start in range(0, FEW - size + 1)]
    yield from ((window, few) for window in windows)
    if graph.bank or graph.drawn:
        yield from ((few, window) for window in windows)
        yield from ((window, window) for window in windows)


def _compare(graph: Graph, found: Arrays, whole: Arrays, rows: slice, draws: slice) -> None:
    """Refuse unless `found` is, bit by bit, that part of `whole`."""
    for name, axes in graph.outputs.items():
        drawn = axes == "nk"
        wanted = whole[name][rows, draws] if drawn else whole[name][rows]
        if found[name].shape != wanted.shape or found[name].tobytes() != wanted.tobytes():
            raise ArtifactRefused(
                f"{graph.name}.{name}: rows {rows.start}–{rows.stop - 1}"
                + (f", draws {draws.start}–{draws.stop - 1}" if drawn else "")
                + " have other bits by themselves than in a larger batch"
            )

"""The grid: the few shapes that a graph is ever run at, and how rows and draws are cut and padded to them.

A shape costs: memory in the arena, the choice of a convolution's algorithm, a CUDA graph. So rows are padded to one of
a few buckets, and draws to a power of two or to the calibrated number. Knows no session and no memory.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from service.artifact import Array, Graph

STEP = 4  # between automatic buckets: padding makes a batch at most four times as large, and ten graphs are few
DRAWS = 16  # draws that a graph is prepared for where the artifact has no calibration to say
SLOT_BYTES = 64 * 2**20  # about what one batch's arrays may take, in and out: wide outputs are cut into more batches

Axes = Literal["n", "k", "nk"]


@dataclass(frozen=True, slots=True)
class Plan:
    """How graphs are run: buckets of rows ("auto": on CUDA alone), decoder rows in a call, and what CUDA is given.

    graphs: whether CUDA graphs are captured. memory: bytes that one session's arena may take; None: no bound. draws:
    what graphs are prepared for; None: the calibrated number.
    """

    buckets: Literal["auto", "off"] | tuple[int, ...] = "auto"
    size: int = 1024
    graphs: bool = True
    memory: int | None = None
    draws: int | None = None

    def rows(self, device: Literal["cpu", "cuda"]) -> tuple[int, ...] | None:
        """The buckets on a device, ascending; None for none. 1 is always one of them.

        >>> Plan().rows("cuda"), Plan().rows("cpu")
        ((1, 4, 16, 64, 256, 1024), None)
        >>> Plan(buckets=(100, 10)).rows("cpu")
        (1, 10, 100)
        """
        if self.buckets == "off" or (self.buckets == "auto" and device == "cpu"):
            return None
        if self.buckets == "auto":
            return tuple(STEP**power for power in range(self.size.bit_length()) if STEP**power <= self.size)
        return tuple(sorted({1, *self.buckets}))


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a graph: its dtype, the axes that lead it, and the shape of what follows them."""

    dtype: str
    axes: Axes
    event: tuple[int, ...]

    def shape(self, rows: int, draws: int) -> tuple[int, ...]:
        """Its whole shape."""
        lead = {"n": (rows,), "k": (draws,), "nk": (rows, draws)}[self.axes]
        return (*lead, *self.event)

    @property
    def bytes(self) -> int:
        """What it takes for one row and one draw."""
        return int(self.dtype[2:]) * math.prod(self.event)


@dataclass(frozen=True, slots=True)
class Layout:
    """What goes into a graph and comes out of it."""

    inputs: Mapping[str, Port]
    outputs: Mapping[str, Port]


def layout(graph: Graph, golden: Mapping[str, Array]) -> Layout:
    """A graph's layout, as its golden arrays have it."""

    def port(name: str, axes: Axes) -> Port:
        array = golden[f"{graph.name}.{name}"]
        return Port(array.dtype.str, axes, array.shape[len(axes) :])

    inputs = {name: port(name, "nk" if name in graph.drawn else "n") for name in graph.rows}
    banks = {graph.bank: port(graph.bank, "k")} if graph.bank else {}
    return Layout(inputs | banks, {name: port(name, axes) for name, axes in graph.outputs.items()})


@dataclass(frozen=True, slots=True)
class Tile:
    """Some rows and draws of what is asked, and the shape that they are run at."""

    rows: slice
    draws: slice
    shape: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Grid:
    """The shapes (rows, draws) of a graph: no more than `most` rows each, nor `size` decoder rows.

    >>> grid = Grid((1, 8, 64), (1, 2, 4, 6), most=80, size=100)
    >>> grid.shape(3, 5), grid.shape(9, 5), grid.shape(65, 1)
    ((8, 6), (16, 6), (80, 1))
    >>> [(tile.rows, tile.draws, tile.shape) for tile in grid.tiles(17, 8)]  # doctest: +NORMALIZE_WHITESPACE
    [(slice(0, 16, None), slice(0, 6, None), (16, 6)), (slice(16, 17, None), slice(0, 6, None), (1, 6)),
     (slice(0, 17, None), slice(6, 8, None), (50, 2))]
    """

    rows: tuple[int, ...]
    draws: tuple[int, ...]
    most: int
    size: int

    def buckets(self, draws: int) -> tuple[int, ...]:
        """The buckets of rows at so many draws: those that fit, and the largest that does."""
        return _buckets(self.rows, max(1, min(self.most, self.size // draws)))

    def shape(self, rows: int, draws: int) -> tuple[int, int]:
        """The least shape that holds so many rows and draws, which must not be more than the largest."""
        width = self.draws[bisect.bisect_left(self.draws, draws)]
        buckets = self.buckets(width)
        return buckets[bisect.bisect_left(buckets, rows)], width

    def tiles(self, rows: int, draws: int) -> Iterator[Tile]:
        """Rows and draws, cut to what the largest shapes hold."""
        for first in range(0, draws, self.draws[-1]):
            last = min(draws, first + self.draws[-1])
            _, width = self.shape(1, last - first)
            step = self.buckets(width)[-1]
            for start in range(0, rows, step):
                stop = min(rows, start + step)
                yield Tile(slice(start, stop), slice(first, last), self.shape(stop - start, last - first))


@lru_cache(maxsize=1024)
def _buckets(rows: tuple[int, ...], largest: int) -> tuple[int, ...]:
    return tuple(sorted({bucket for bucket in rows if bucket <= largest} | {largest}))


def grid(graph: Graph, layout: Layout, rows: tuple[int, ...], size: int, calibrated: int) -> Grid:
    """A graph's grid: of as many decoder rows as a call may have, and as fit a slot."""
    ports = (*layout.inputs.values(), *layout.outputs.values())
    most, largest = (
        max(1, min(size, SLOT_BYTES // max(1, sum(port.bytes for port in ports if port.axes == axes))))
        for axes in ("n", "nk")
    )
    if not graph.bank and not graph.drawn:
        return Grid(rows, (1,), most, most)
    powers = {2**power for power in range(largest.bit_length()) if 2**power <= largest}
    return Grid(rows, tuple(sorted(powers | {min(calibrated, largest)})), min(most, largest), largest)

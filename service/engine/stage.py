"""The stage: one graph's session with its slots; many threads bring batches, and each is run at a shape of the grid.

A thread fills a slot while another's batch is computed, and empties it while the next one's is. On CUDA all runs of a
session are one thread's: its captured graphs belong to the thread that captured them, and it has one stream anyway.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort

from service.artifact import Array, Arrays, Graph
from service.engine import golden
from service.engine.cuda import GATE, Gate
from service.engine.grid import Grid, Layout, Tile
from service.engine.slot import Buffers, Rows, Shape, Slot
from service.errors import ArtifactRefused

PAIR = 2  # slots on a device: one whose batch is computed, one that is filled or emptied


class Uncaptured(Exception):
    """A CUDA graph could not be captured, or answers wrong; the session is not to be used any more."""


class Stage:
    """One graph at the shapes of its grid."""

    def __init__(
        self,
        graph: Graph,
        session: ort.InferenceSession,
        layout: Layout,
        grid: Grid,
        buffers: Callable[[], Buffers],
        *,
        slots: int | None = None,
        thread: ThreadPoolExecutor | None = None,
        gate: Gate = GATE,
    ) -> None:
        """slots: how many there may be; None: one for each thread that asks. thread: where the session is run."""
        self.graph, self.grid = graph, grid
        self._session, self._layout, self._buffers = session, layout, buffers
        self._limit, self._thread, self._gate = slots, thread, gate
        self._free: list[Slot] = []
        self._made = 0
        self._returned = threading.Condition()

    def run(self, rows: Rows, shared: Mapping[str, Array]) -> Arrays:
        """The graph's answers to all rows, at all draws. Rows and draws are cut where they are more than fit."""
        count, draws = self._measure(rows, shared)
        if not count:
            return {name: np.empty(port.shape(0, draws), port.dtype) for name, port in self._layout.outputs.items()}
        if not draws:
            return self._without_draws(rows, count)
        parts = [(tile, self._tile(rows, shared, tile)) for tile in self.grid.tiles(count, draws)]
        return parts[0][1] if len(parts) == 1 else self._joined(parts, count, draws)

    def _measure(self, rows: Rows, shared: Mapping[str, Array]) -> tuple[int, int]:
        """How many rows and draws; ValueError where arrays aren't as the graph takes them, or don't go together."""
        given = {**rows, **{name: [array] for name, array in shared.items()}}
        if given.keys() != self._layout.inputs.keys():
            raise ValueError(f"it takes {', '.join(self._layout.inputs)}, not {', '.join(given)}")
        lengths: dict[str, set[int]] = {"n": set(), "k": set()}
        for name, port in self._layout.inputs.items():
            dtype, lead = np.dtype(port.dtype), len(port.axes)
            for part in given[name]:
                if part.dtype != dtype or part.shape[lead:] != port.event or part.ndim < lead:
                    raise ValueError(f"{name} is {part.dtype} {part.shape}, not {dtype} ({port.axes}, *{port.event})")
            if "n" in port.axes:
                lengths["n"].add(sum(len(part) for part in given[name]))
            if "k" in port.axes:
                lengths["k"] |= {part.shape[lead - 1] for part in given[name]}
        for axis, found_lengths in lengths.items():
            if len(found_lengths) > 1:
                raise ValueError(f"inputs differ in {axis}: {', '.join(map(str, sorted(found_lengths)))}")
        return lengths["n"].pop(), lengths["k"].pop() if lengths["k"] else 1

    def _without_draws(self, rows: Rows, count: int) -> Arrays:
        """What doesn't depend on draws, by one draw of zeros that is then left out: no shape of the grid has none."""
        inputs, outputs = self._layout.inputs, self._layout.outputs
        one = {name: np.zeros(port.shape(count, 1), port.dtype) for name, port in inputs.items() if "k" in port.axes}
        banks = {name: array for name, array in one.items() if inputs[name].axes == "k"}
        drawn = {name: [array] for name, array in one.items() if name not in banks}
        answers = self.run({**rows, **drawn}, banks)
        return {name: array[:, :0] if outputs[name].axes == "nk" else array for name, array in answers.items()}

    def _tile(self, rows: Rows, shared: Mapping[str, Array], tile: Tile) -> Arrays:
        with self._gate.together(), self._slot() as slot:
            slot.fill(rows, shared, tile)
            slot.run(tile.shape, self._on)
            return slot.empty(tile)

    def _joined(self, parts: list[tuple[Tile, Arrays]], count: int, draws: int) -> Arrays:
        ports = self._layout.outputs
        whole = {name: np.empty(port.shape(count, draws), port.dtype) for name, port in ports.items()}
        for tile, answers in parts:
            for name, array in answers.items():
                where = (tile.rows, tile.draws) if ports[name].axes == "nk" else tile.rows
                whole[name][where] = array
        return whole

    def _on(self, call: Callable[[], None]) -> None:
        """Make a call to the session where such calls are made."""
        if self._thread:
            self._thread.submit(call).result()
        else:
            call()

    @contextmanager
    def _slot(self) -> Iterator[Slot]:
        slot = self._take()
        try:
            yield slot
        finally:
            with self._returned:
                self._free.append(slot)
                self._returned.notify()

    def _take(self) -> Slot:
        """A free slot; a new one where there may be more; else wait for one."""
        with self._returned:
            self._returned.wait_for(lambda: self._free or self._limit is None or self._made < self._limit)
            if self._free:
                return self._free.pop()
            self._made += 1
        return Slot(self._session, self._layout, self.grid, self._buffers())

    def warm(self, arrays: Mapping[str, Array], stated: Mapping[str, float], draws: int, *, capture: bool) -> None:
        """Run every bucket at so many draws, in every slot that there is to be, and hold it to the golden rows.

        The largest first, so that the arena grows once. With capture each is captured as a CUDA graph: Uncaptured
        where one can't be, or answers wrong. ArtifactRefused where an answer is off without.
        """
        _, width = self.grid.shape(1, min(draws, self.grid.draws[-1]))
        shapes = [(bucket, width) for bucket in reversed(self.grid.buckets(width))]
        given = {name: arrays[f"{self.graph.name}.{name}"] for name in (*self._layout.inputs, *self._layout.outputs)}
        with self._gate.together():
            slots = [self._take() for _ in range(self._limit or 1)]
        for number, slot in enumerate(slots):
            for place, shape in enumerate(shapes):
                if capture:
                    self._capture(slot, shape, 1 + number * len(shapes) + place, given, stated)
                else:
                    self._check(slot, shape, given, stated)
        with self._returned:
            self._free.extend(slots)

    def _check(self, slot: Slot, shape: Shape, given: Mapping[str, Array], stated: Mapping[str, float]) -> None:
        """Hold one shape to the golden rows and draws, over again until it is full."""
        tile = Tile(slice(0, shape[0]), slice(0, shape[1]), shape)
        try:
            with self._gate.together():
                self._fill(slot, tile, given)
                slot.run(shape, self._on)
                answers = slot.empty(tile)
        except Exception as error:  # the runtime's exceptions share no base class
            raise ArtifactRefused(f"{self.graph.file} fails on its golden rows") from error
        right = {name: tiled(given[name], port.axes, shape) for name, port in self._layout.outputs.items()}
        golden.hold(answers, right, self.graph, stated)

    def _capture(
        self, slot: Slot, shape: Shape, graph_id: int, given: Mapping[str, Array], stated: Mapping[str, float]
    ) -> None:
        """Capture one shape, with nobody else on the device, and hold it to the golden rows.

        It is captured on other rows and draws than it is checked on, so that it is seen to read its buffers.
        """
        tile = Tile(slice(0, shape[0]), slice(0, shape[1]), shape)
        slot.bind(shape, graph_id)
        try:
            with self._gate.together():
                self._fill(slot, tile, {name: np.roll(array, 1, 0) for name, array in given.items()})
            with self._gate.alone():
                slot.run(shape, self._on)
            self._check(slot, shape, given, stated)
        except Exception as error:  # the runtime's exceptions share no base class
            reason = f"{shape[0]} rows of {shape[1]} draws could not be captured: {error.__cause__ or error}"
            raise Uncaptured(reason) from error

    def _fill(self, slot: Slot, tile: Tile, given: Mapping[str, Array]) -> None:
        inputs = self._layout.inputs.items()
        whole = {name: tiled(given[name], port.axes, tile.shape) for name, port in inputs}
        shared = {name: whole[name] for name, port in inputs if port.axes == "k"}
        slot.fill({name: [array] for name, array in whole.items() if name not in shared}, shared, tile)


def tiled(array: Array, axes: str, shape: Shape) -> Array:
    """Rows and draws over again until there are as many as a shape has."""
    lengths = dict(zip("nk", shape, strict=True))
    for place, axis in enumerate(axes):
        array = np.take(array, np.arange(lengths[axis]) % array.shape[place], axis=place)
    return np.ascontiguousarray(array)

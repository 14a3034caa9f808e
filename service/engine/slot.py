"""A slot: one batch's buffers, made once, and how it comes in, is run and goes out. Knows one graph, and no queue.

Rows are copied once, from where requests left them into the buffer that the session (or the device's copy engine)
reads. A buffer serves every shape of the grid, so it begins at one address for all of them, as CUDA graphs want it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import onnxruntime as ort

from service.artifact import Array, Arrays
from service.engine.cuda import DOWN, UP, Runtime
from service.engine.grid import Grid, Layout, Port, Tile
from service.engine.plain import within

Shape = tuple[int, int]
Rows = Mapping[str, Sequence[Array]]
UNCAPTURED = "-1"  # the run option's word for: no CUDA graph


@dataclass(frozen=True, slots=True)
class Buffer:
    """Bytes that we can read and write, and the address of the session's side of them; keeps: what owns that side."""

    host: Array
    address: int
    keeps: object = None


class Buffers(Protocol):
    """Where a slot's buffers are, and the copies between their two sides; each returns when it is done."""

    kind: str

    def take(self, size: int) -> Buffer:
        """A buffer of so many bytes."""

    def upload(self, parts: Sequence[tuple[Buffer, int]]) -> None:
        """Copy the first bytes of buffers to the session's side."""

    def download(self, parts: Sequence[tuple[Buffer, int]]) -> None:
        """Copy them back."""


class HostBuffers:
    """Memory that a CPU session reads and writes itself, so that nothing is copied."""

    kind = "cpu"

    def take(self, size: int) -> Buffer:
        """Plain memory, zeros."""
        host = np.zeros(size, np.uint8)
        return Buffer(host, host.ctypes.data)

    def upload(self, parts: Sequence[tuple[Buffer, int]]) -> None:
        """Nothing to do."""

    def download(self, parts: Sequence[tuple[Buffer, int]]) -> None:
        """Nothing to do."""


class DeviceBuffers:
    """Pinned memory, as much of it on the device, and a stream for the copies between them."""

    def __init__(self, runtime: Runtime, kind: str = "cuda") -> None:
        """kind: the device's name to the session's bindings."""
        self.kind = kind
        self._runtime = runtime
        self._stream = runtime.stream()

    def take(self, size: int) -> Buffer:
        """Both sides."""
        block = self._runtime.memory(size)
        host = self._runtime.pinned(size)
        host[:] = 0
        return Buffer(host, block.address, block)

    def upload(self, parts: Sequence[tuple[Buffer, int]]) -> None:
        """All copies at once, and one wait."""
        for buffer, size in parts:
            self._runtime.copy(buffer.address, buffer.host.ctypes.data, size, UP, self._stream)
        self._runtime.wait(self._stream)

    def download(self, parts: Sequence[tuple[Buffer, int]]) -> None:
        """All copies at once, and one wait."""
        for buffer, size in parts:
            self._runtime.copy(buffer.host.ctypes.data, buffer.address, size, DOWN, self._stream)
        self._runtime.wait(self._stream)


@dataclass(frozen=True, slots=True)
class Bound:
    """A shape of a slot: its arrays as views of the buffers, and the binding of the same to the session."""

    inputs: Arrays
    outputs: Arrays
    binding: ort.IOBinding
    options: ort.RunOptions


class Slot:
    """The buffers of one batch of one graph. One thread at a time has it."""

    def __init__(self, session: ort.InferenceSession, layout: Layout, grid: Grid, buffers: Buffers) -> None:
        self._session, self._layout, self._buffers = session, layout, buffers
        lead = {"n": grid.most, "k": grid.draws[-1], "nk": grid.size}
        ports = {**layout.inputs, **layout.outputs}
        self._taken = {name: buffers.take(max(1, lead[port.axes] * port.bytes)) for name, port in ports.items()}
        self._bound: dict[Shape, Bound] = {}
        self._banks: dict[str, Shape] = {}  # the shape at which a bank was sent last

    def bind(self, shape: Shape, graph_id: int | None = None) -> Bound:
        """A shape, bound the first time it is asked for; graph_id: of the CUDA graph that it is to be captured as."""
        if shape not in self._bound or graph_id is not None:
            self._bound[shape] = self._bind(shape, UNCAPTURED if graph_id is None else str(graph_id))
        return self._bound[shape]

    def _bind(self, shape: Shape, graph_id: str) -> Bound:
        binding, options = self._session.io_binding(), ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", graph_id)
        views: tuple[Arrays, Arrays] = ({}, {})
        sides = ((self._layout.inputs, binding.bind_input), (self._layout.outputs, binding.bind_output))
        for (ports, bind), kept in zip(sides, views, strict=True):
            for name, port in ports.items():
                kept[name] = self._view(name, port, shape)
                bind(name, self._buffers.kind, 0, np.dtype(port.dtype), kept[name].shape, self._taken[name].address)
        return Bound(*views, binding, options)

    def _view(self, name: str, port: Port, shape: Shape) -> Array:
        whole = port.shape(*shape)
        size = math.prod(whole) * np.dtype(port.dtype).itemsize
        return self._taken[name].host[:size].view(port.dtype).reshape(whole)

    def fill(self, rows: Rows, shared: Mapping[str, Array], tile: Tile) -> None:
        """Copy a tile's rows and banks in, pad them to its shape, and send them to the session's side."""
        bound = self.bind(tile.shape)
        changed = []
        for name, port in self._layout.inputs.items():
            view = bound.inputs[name]
            if port.axes != "k":
                copy_rows(view, rows[name], tile, drawn=port.axes == "nk")
            elif self._banks.get(name) == tile.shape and holds(view, shared[name][tile.draws]):
                continue
            else:
                self._banks.pop(name, None)  # until it is there on both sides
                copy_draws(view, shared[name][tile.draws])
            changed.append(name)
        self._buffers.upload([(self._taken[name], bound.inputs[name].nbytes) for name in changed])
        self._banks |= {name: tile.shape for name in changed if self._layout.inputs[name].axes == "k"}

    def run(self, shape: Shape, on: Callable[[Callable[[], None]], None]) -> None:
        """Run what was filled in; `on` says where the call is made."""
        bound = self._bound[shape]
        on(lambda: self._session.run_with_iobinding(bound.binding, bound.options))

    def empty(self, tile: Tile) -> Arrays:
        """The tile's answers, copied out without the padding."""
        bound = self._bound[tile.shape]
        self._buffers.download([(self._taken[name], view.nbytes) for name, view in bound.outputs.items()])
        rows, draws = tile.rows.stop - tile.rows.start, tile.draws.stop - tile.draws.start
        return {
            name: (view[:rows, :draws] if self._layout.outputs[name].axes == "nk" else view[:rows]).copy()
            for name, view in bound.outputs.items()
        }


def copy_rows(view: Array, parts: Sequence[Array], tile: Tile, *, drawn: bool) -> None:
    """A tile's rows of all parts, one below the other; the rest of the view repeats the last row and the last draw.

    Padding is a valid row, never what the memory held: not-a-numbers would slow a kernel, and rows of nothing could
    fail where rows of data don't.
    """
    rows, draws = tile.rows.stop - tile.rows.start, tile.draws.stop - tile.draws.start
    taken = [part[:, tile.draws] if drawn else part for part in within(parts, tile.rows)]
    np.concatenate(taken, out=view[:rows, :draws] if drawn else view[:rows], casting="no")
    if drawn:
        view[:rows, draws:] = view[:rows, draws - 1 : draws]
    view[rows:] = view[rows - 1]


def holds(view: Array, bank: Array) -> bool:
    """Whether a bank is there already: told by its values, for it may be made anew, lie elsewhere, or have changed."""
    return view.dtype == bank.dtype and np.array_equal(view[: len(bank)], bank)


def copy_draws(view: Array, bank: Array) -> None:
    """A bank's draws; the rest of the view repeats the last."""
    np.copyto(view[: len(bank)], bank, casting="no")
    view[len(bank) :] = view[len(bank) - 1]

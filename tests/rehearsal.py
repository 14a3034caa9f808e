"""A rehearsal of CUDA on the CPU: libcudart's functions on plain memory, and sessions that say what they were asked.

What goes to a device, comes from it, and is captured there is then the same code as on one; only the arithmetic isn't.
"""

# ruff: noqa: N802, N815  # the library's names

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import onnxruntime as ort
import pytest

from service.artifact import Graph
from service.engine import CUDA, cuda, opening, sessions
from service.engine.cuda import Runtime
from service.engine.sessions import OnCuda
from service.engine.slot import DeviceBuffers


class Library:
    """libcudart, whose device is a part of this process's memory. `sticky` is the error that stays, once it is set."""

    def __init__(self) -> None:
        self.sticky = 0
        self.once = 0  # an error that is told once
        self.refused = 0  # copies that will fail
        self.up = self.down = 0  # bytes copied
        self.blocks: dict[int, object] = {}

    def cudaMalloc(self, to: Any, size: ctypes.c_size_t) -> int:
        """A block."""
        block = (ctypes.c_uint8 * size.value)()
        ctypes.memset(block, 0xFF, size.value)  # not-a-numbers, wherever a float is read that nobody wrote
        self.blocks[ctypes.addressof(block)] = block
        to._obj.value = ctypes.addressof(block)
        return self.sticky

    def cudaHostAlloc(self, to: Any, size: ctypes.c_size_t, flags: ctypes.c_uint) -> int:
        """The same."""
        assert flags.value == 0
        return self.cudaMalloc(to, size)

    def cudaFree(self, block: ctypes.c_void_p) -> int:
        """Gone; freeing twice is a KeyError."""
        assert block.value
        del self.blocks[block.value]
        return 0

    cudaFreeHost = cudaFree

    def cudaStreamCreateWithFlags(self, to: Any, flags: ctypes.c_uint) -> int:
        """A handle."""
        assert flags.value == 1
        to._obj.value = 1
        return self.sticky

    def cudaStreamDestroy(self, _: ctypes.c_void_p) -> int:
        """Nothing."""
        return 0

    def cudaMemcpyAsync(self, to: Any, source: Any, size: Any, way: Any, stream: ctypes.c_void_p) -> int:
        """Copied at once."""
        assert stream.value == 1
        if self.refused:
            self.refused -= 1
            return 2
        ctypes.memmove(to.value, source.value, size.value)
        self.up += size.value if way.value == 1 else 0
        self.down += size.value if way.value == 2 else 0
        return self.sticky

    def cudaStreamSynchronize(self, _: ctypes.c_void_p) -> int:
        """Done already."""
        return self.sticky

    def cudaDeviceSynchronize(self) -> int:
        """An error that is told once, or the one that stays."""
        once, self.once = self.once, 0
        return once or self.sticky

    def cudaGetLastError(self) -> int:
        """The same."""
        return self.cudaDeviceSynchronize()


class Session:
    """A session on the CPU that passes for one on CUDA, and remembers its runs: graph id, and the thread it was on."""

    def __init__(self, session: ort.InferenceSession, way: OnCuda) -> None:
        self.session, self.way = session, way
        self.runs: list[tuple[str, str]] = []
        self.before: Callable[[str], None] = lambda _: None
        self.stale = False  # whether a captured graph answers what it answered when it was captured
        self.inside = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self.session, name)

    def get_providers(self) -> list[str]:
        """What it passes for."""
        return [CUDA, *self.session.get_providers()]

    def run_with_iobinding(self, binding: ort.IOBinding, options: ort.RunOptions) -> None:
        """Run, alone."""
        graph_id = options.get_run_config_entry("gpu_graph_id")
        captured = graph_id != "-1" and graph_id in {other for other, _ in self.runs}
        self.runs.append((graph_id, threading.current_thread().name))
        self.inside += 1
        assert self.inside == 1
        try:
            self.before(graph_id)
            if not (captured and self.stale):
                self.session.run_with_iobinding(binding, options)
        finally:
            self.inside -= 1


@contextmanager
def rehearsed(
    refuses: Callable[[Graph, OnCuda, str], Exception | None], stale: str = ""
) -> Iterator[tuple[Library, dict[str, Session]]]:
    """Opening on CUDA opens on the CPU; `refuses` says how a run fails, of which graph, opened how, with which id.

    stale: the name of a graph that, captured, doesn't read its inputs any more.
    """
    library, opened = Library(), dict[str, Session]()

    def session_of(graph: Graph, content: bytes, way: OnCuda | None = None, weights: bytes | None = None) -> Any:
        if way is None:
            return sessions.open_session(graph, content, None, weights)
        made = Session(sessions.open_session(graph, content, None, weights), way)

        def before(graph_id: str) -> None:
            if error := refuses(graph, way, graph_id):
                raise error

        made.before, made.stale = before, graph.name == stale
        opened[graph.name] = made
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(opening, "_require_cuda", lambda: None)
        patch.setattr(cuda, "load", lambda: Runtime(library))
        patch.setattr(opening, "open_session", session_of)
        patch.setattr(sessions, "has_convolutions", lambda _: True)
        patch.setattr(opening, "DeviceBuffers", partial(DeviceBuffers, kind="cpu"))
        yield library, opened

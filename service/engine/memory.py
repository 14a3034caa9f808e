"""Memory: what the runtime and the C library take and keep. Knows no graph but one, and no row.

Both keep what was once needed, for the next time. Kept for each session and each thread, it grows with whatever first
meets a large batch, for days; kept for the process, it is what the calls that run at one time need, and no more.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from functools import cached_property
from typing import Literal

import numpy as np
import onnxruntime as ort

log = logging.getLogger(__name__)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
M_ARENA_MAX = -8  # of mallopt(3)
# A graph that passes a vector on: something must be run for the runtime to give memory back.
NOTHING = (
    b'\x08\x08:9\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x01gZ\x10\n\x01x\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01n'
    b"b\x10\n\x01y\x12\x0b\n\t\x08\x01\x12\x05\n\x03\x12\x01nB\x02\x10\r"
)


class Arenas:
    """One arena a device for all sessions of the process that may share it, each made when first asked for.

    A session that captures CUDA graphs keeps its own. A captured graph holds addresses of memory that its arena takes
    for free, and would write into what another session has been given of it; for the same reason no arena on a device
    is ever shrunk.
    """

    def __init__(self) -> None:
        self._making = threading.Lock()
        self._made: dict[str, bool] = {}  # the runtime's environment is one a process, and takes an allocator once

    def has(self, device: Literal["Cpu", "Cuda"], most: int | None = None) -> bool:
        """Whether there is one on a device, of so many bytes at most, or of as many as are asked for."""
        with self._making:
            if device not in self._made:
                self._made[device] = self._make(device, most or 0)
            return self._made[device]

    def _make(self, device: str, most: int) -> bool:
        info = ort.OrtMemoryInfo(device, ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        try:
            if device == "Cpu":
                ort.create_and_register_allocator(info, None)
            else:
                exact = ort.OrtArenaCfg({"max_mem": most, "arena_extend_strategy": 1})  # as much as is asked for
                ort.create_and_register_allocator_v2(CUDA, info, {}, exact)
        except Exception as error:  # the runtime's exceptions share no base class
            log.warning("each graph has an arena of its own on %s: %s", device, error)
            return False
        return True

    def give_back(self) -> None:
        """Give back to the system what nobody uses now: of the CPU's arena, and of what glibc keeps.

        glibc keeps most of a model that was opened on one thread and freed on another: mnist loaded and unloaded 120
        times stayed below 235 MB with this, and reached 465 MB without.
        """
        if self._made.get("Cpu"):
            try:
                self._shrink()
            except Exception as error:  # what is kept is used again
                log.warning("the arena on the CPU isn't shrunk: %s", error)
        if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:  # others do so by themselves
            trim(0)

    def _shrink(self) -> None:
        options = ort.RunOptions()
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._nothing.run(None, {"x": np.zeros(1, np.float32)}, options)

    @cached_property
    def _nothing(self) -> ort.InferenceSession:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.use_env_allocators", "1")
        return ort.InferenceSession(NOTHING, options, providers=[CPU])


ARENAS = Arenas()


def bound_heaps(most: int) -> None:
    """Have glibc's threads share so many heaps, where it would make eight a core; before there are threads.

    Each keeps the most that its threads have ever had at once.
    """
    if (set_option := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        set_option(M_ARENA_MAX, most)

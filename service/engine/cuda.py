"""The CUDA runtime, as far as buffers and copies need it, and who may touch the device. Knows no graph and no row.

onnxruntime's Python gives neither pinned memory nor a copy that lets go of the interpreter's lock; a dozen functions of
libcudart, the same since CUDA 5, give both. The library is the one that onnxruntime's own CUDA provider has loaded.
"""

from __future__ import annotations

import ctypes
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from service.artifact import Array
from service.errors import DeviceUnavailable

LIBRARIES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so")
NON_BLOCKING = 1  # a stream that doesn't wait for the legacy default stream, nor it for this one
UP, DOWN = 1, 2  # cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost


Library = Any  # libcudart as ctypes has it, or what stands in for it: every function returns a status, 0 for well


class Runtime:
    """libcudart. `fault` says why the device is lost to this process, once it is."""

    def __init__(self, library: Library) -> None:
        self._library = library
        self.fault: str | None = None

    def pinned(self, size: int) -> Array:
        """Page-locked host memory, from which the device copies by itself; (size,) bytes, freed with the array."""
        address = self._allocated("cudaHostAlloc", size, ctypes.c_uint(0))
        block = (ctypes.c_uint8 * size).from_address(address)
        _freed_with(block, self._library.cudaFreeHost, ctypes.c_void_p(address))
        return np.frombuffer(memoryview(block), np.uint8)

    def memory(self, size: int) -> Memory:
        """Device memory, freed with what is returned."""
        return Memory(self._allocated("cudaMalloc", size), self._library)

    def stream(self) -> Stream:
        """A stream of its own for copies, which then run beside the sessions' work."""
        handle = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(handle), ctypes.c_uint(NON_BLOCKING))
        return Stream(handle, self._library)

    def copy(self, to: int, source: int, size: int, way: int, stream: Stream) -> None:
        """Begin a copy; `wait` for it."""
        given = (ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size), ctypes.c_int(way))
        self._call("cudaMemcpyAsync", *given, stream.handle)

    def wait(self, stream: Stream) -> None:
        """Block until a stream has done all that it was given; other threads go on."""
        self._call("cudaStreamSynchronize", stream.handle)

    def lost(self) -> str | None:
        """Why the device is lost, if it is: asked after a failure, and not from inside the gate.

        Some errors (an illegal address, a failed launch, a device off the bus) stay with the process: every later call
        returns them, and only a new process is rid of them. Others are told once. So it is asked twice, and while
        nothing is captured, which would be spoilt by it and answer with an error of its own.
        """
        with GATE.together():
            self._library.cudaGetLastError()
            self._library.cudaDeviceSynchronize()
            code = int(self._library.cudaDeviceSynchronize())
        if code:
            self.fault = self.fault or f"the CUDA device is lost to this process (error {code}); it must be restarted"
        return self.fault

    def _allocated(self, name: str, size: int, *more: Any) -> int:
        address = ctypes.c_void_p()
        self._call(name, ctypes.byref(address), ctypes.c_size_t(size), *more)
        if address.value is None:
            raise DeviceUnavailable(f"{name} gave nothing for {size} bytes")
        return address.value

    def _call(self, name: str, *given: Any) -> None:
        if code := int(getattr(self._library, name)(*given)):
            raise RuntimeError(f"CUDA error {code} from {name}")


class Memory:
    """A block of device memory."""

    def __init__(self, address: int, library: Library) -> None:
        self.address = address
        _freed_with(self, library.cudaFree, ctypes.c_void_p(address))


class Stream:
    """An order of work on the device."""

    def __init__(self, handle: ctypes.c_void_p, library: Library) -> None:
        self.handle = handle
        _freed_with(self, library.cudaStreamDestroy, handle)


def _freed_with(owner: object, free: Callable[[ctypes.c_void_p], int], handle: ctypes.c_void_p) -> None:
    """Free with its owner; not at the end of the process, which frees all, and whose device may be lost."""
    weakref.finalize(owner, free, handle).atexit = False


def load() -> Runtime:
    """The CUDA runtime that onnxruntime's provider is linked against; DeviceUnavailable where none is loaded."""
    for name in LIBRARIES:
        try:
            return Runtime(ctypes.CDLL(name))
        except OSError:
            continue
    raise DeviceUnavailable("the CUDA runtime library (libcudart) can't be loaded")


class Gate:
    """Many may work on the device at once, or one that must be alone.

    onnxruntime captures a graph in CUDA's global mode, in which an allocation or a copy by any other thread of the
    process spoils the capture: a model that is being loaded holds the others up for the milliseconds it takes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._working = 0
        self._alone = False

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work beside others."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Work with nobody else at it; newcomers wait, and whoever is at it is waited for."""
        with self._changed:
            self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            self._changed.wait_for(lambda: not self._working)
        try:
            yield
        finally:
            with self._changed:
                self._alone = False
                self._changed.notify_all()


GATE = Gate()  # one a process, as the device's context is

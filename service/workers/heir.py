"""The heir: a process beside a worker that has the same descriptors, and nothing to do until the worker dies.

    supervisor ──fork──▶ worker ──clone──▶ heir        one table of descriptors for the two of them

What a worker accepts is the heir's too, and what it closes is closed. When the worker has died, its connections are
still open, and the heir answers on them whom the worker owed an answer; then it closes everything and goes. While the
worker lives it must neither open nor close a descriptor.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import platform
import select
import signal
import sys

from service.workers.estate import Estate

log = logging.getLogger(__name__)

CLONE = {"x86_64": 56, "aarch64": 220, "riscv64": 220}  # the number of the system call
CLONE_FILES, CLONE_PARENT = 0x400, 0x8000


def engage(name: str, estate: Estate) -> int | None:
    """Have an heir from now on; its process id, or None where that can't be had here.

    For a process without other threads that isn't what started the group: the heir becomes its sibling.
    """
    try:
        worker = os.pidfd_open(os.getpid())
        pid = _clone()
    except (OSError, AttributeError, KeyError) as error:  # an old kernel, or one that isn't asked
        log.warning("if %s dies, its callers will be cut off: it can't have an heir here: %r", name, error)
        return None
    if pid == 0:
        _be(name, worker, estate)
    return pid


def _clone() -> int:
    """What os.fork does, but with one table of descriptors, and as a child of this process's parent; 0 in the child."""
    libc = ctypes.PyDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    number, flags = CLONE[platform.machine()], CLONE_FILES | CLONE_PARENT | signal.SIGCHLD
    python = ctypes.pythonapi
    for hook in (python.PyOS_BeforeFork, python.PyOS_AfterFork_Child, python.PyOS_AfterFork_Parent):
        hook.restype = None
    python.PyOS_BeforeFork()
    pid = int(libc.syscall(*map(ctypes.c_long, (number, flags, 0, 0, 0, 0))))
    if pid == 0:
        python.PyOS_AfterFork_Child()
        return 0
    error = ctypes.get_errno()
    python.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(error, os.strerror(error))
    return pid


def _be(name: str, worker: int, estate: Estate) -> None:
    """Be the heir, and never return."""
    gc.disable()  # what it collects may have had a descriptor that is another's now
    try:
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)  # whatever ends the worker ends this
        waits = select.poll()
        waits.register(worker, select.POLLIN)
        waits.poll()
        os.close(worker)  # where the table is full, there must be room to look at it
        estate.settle(name)
    except BaseException:
        log.critical("the heir of %s died", name, exc_info=True)
    finally:
        sys.stderr.flush()
        os._exit(0)  # nothing of the worker's is to be cleared up here

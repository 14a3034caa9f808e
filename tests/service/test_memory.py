"""Memory: what is kept is what calls that run at one time need, and not what each graph and thread once needed."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    not Path("/proc/self/smaps_rollup").exists(), reason="asks the kernel for a process's memory"
)

OWN = """
from pathlib import Path

def own():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))
"""
ENGINES = """
import numpy as np
from service import artifact, engine

tiny = artifact.read(Path("exported_models/tiny/1"))
engines = [engine.open_engine(tiny) for _ in range(3)]
x, noise = np.resize(tiny.golden["elbo.x"], (256, 8, 8)), np.zeros((128, 2), np.float32)
before = own()
for one in engines:
    one.compute("elbo", {"x": x, "noise": noise})
    print(own() - before)
for one in engines:
    one.release()
print(own() - before)
"""
THREADS = """
import ctypes, os, threading
from service import engine

engine.bound_heaps(2)
all_here = threading.Barrier(6)

def work():
    all_here.wait()
    kept = [bytes(2000) for _ in range(100)]
    all_here.wait()

threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
library = ctypes.CDLL(None)
library.fdopen.restype = ctypes.c_void_p
told, tells = os.pipe()
stream = ctypes.c_void_p(library.fdopen(tells, b"w"))
library.malloc_info(0, stream)
library.fclose(stream)
print(open(told).read().count("<heap "))
"""


def said(code: str) -> list[int]:
    """The numbers that a fresh process prints."""
    command = [sys.executable, "-c", OWN + code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    return [int(word) for word in done.stdout.split()]


def test_graphs_on_the_cpu_compute_in_the_same_memory() -> None:
    """What one needed for a large call serves the next: memory doesn't grow with each that first meets one.

    It is given back with what is put away.
    """
    first, *_, last, released = said(ENGINES)
    assert first > 20_000
    assert last < 1.2 * first
    assert released < 0.2 * first


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="asks glibc for its heaps")
def test_threads_share_as_many_heaps_as_they_are_given() -> None:
    """Each heap keeps what its threads once needed, and a thread more would be a heap more."""
    assert said(THREADS) == [2]

"""The group: how processes that serve one port count together, in files that whoever is asked adds up.

Knows Prometheus, and none of our instruments but the one that it counts in for who has died.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry, values
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CPU = "process_cpu_seconds"
REQUESTS = "vae_serve_requests", "Requests answered", ("operation", "model", "status")
FILES = "counter", "histogram", "gauge_livesum", "gauge_max"  # kinds of numbers that we have, one file each
LARGEST = 2**24  # bytes of such a file: 80,000 series or so; what nobody writes to takes no room


@dataclass(frozen=True, slots=True)
class Group:
    """How the processes that serve one port count together.

    folder is where their files are, and slot the number of this one's: no two that live have the same, and whoever gets
    one after another goes on counting where it ended. processes gives what is said of them together.
    """

    folder: Path
    slot: int
    processes: Callable[[], Iterable[Metric]]


class Kept:
    """A number that is written into the group's files when that is asked for, and not each time it changes.

    One in a file takes five times as long to change as one in memory. All of ours are changed by the event loop. files
    are this process's, by kind.
    """

    _multiprocess = True
    files: ClassVar[dict[str, MmapedDict]]
    changed: ClassVar[set[Kept]] = set()

    def __init__(self, kind: str, *known: Any, multiprocess_mode: str = "", **_: Any) -> None:
        self._file = self.files[f"{kind}_{multiprocess_mode}" if multiprocess_mode else kind]
        self._key = mmap_key(*known)
        self._value: float = self._file.read_value(self._key)[0]  # type: ignore[no-untyped-call]

    def inc(self, amount: float) -> None:
        """Add."""
        self._value += amount
        self.changed.add(self)

    def set(self, value: float, timestamp: float | None = None) -> None:  # noqa: ARG002  ours have none
        """Replace."""
        self._value = value
        self.changed.add(self)

    def get(self) -> float:
        """What it is."""
        return self._value

    def set_exemplar(self, exemplar: object) -> None:
        """Nobody reads one here."""

    def get_exemplar(self) -> None:
        """There is none."""

    @classmethod
    def write(cls) -> None:
        """Write what has changed."""
        changed, cls.changed = cls.changed, set()
        for number in changed:
            number._file.write_value(number._key, number._value, 0.0)  # type: ignore[no-untyped-call]


def counts(group: Group) -> Collector:
    """Have this process count in the group's files from now on; what adds them up."""
    Kept.files = {kind: _file(group.folder / f"{kind}_{group.slot}.db") for kind in FILES}
    values.ValueClass = Kept
    return _Files(group.folder)


def merged(counts: Collector, group: Group) -> CollectorRegistry:
    """A registry of these, and of what is said of the processes together."""
    merged = CollectorRegistry()
    merged.register(counts)
    merged.register(_Processes(group.processes))
    return merged


def _file(path: Path) -> MmapedDict:
    """A file of numbers, as large as it gets: to make it larger takes a descriptor, and there may be none left then."""
    if not path.exists():
        begun = path.with_suffix(".new")
        with begun.open("wb") as file:
            file.truncate(LARGEST)
        begun.rename(path)  # whoever reads meanwhile finds none, or one that can be read
    return MmapedDict(str(path))  # type: ignore[no-untyped-call]


def count_interrupted(folder: Path, count: int) -> None:
    """Count requests that another process answered for one of a group that had died; that one has no metrics."""
    turn = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)  # another may count at the same time
        name, said, labels = REQUESTS
        file = _file(folder / "counter_heirs.db")
        key = mmap_key(name, f"{name}_total", list(labels), ["interrupted", "", "503"], said)
        counted = file.read_value(key)[0]  # type: ignore[no-untyped-call]
        file.write_value(key, counted + count, 0.0)  # type: ignore[no-untyped-call]
        file.close()  # type: ignore[no-untyped-call]
    finally:
        os.close(turn)


class _Files(Collector):
    """What the processes have counted, added up, with the CPU time of their parent."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        """Read the files; OSError where that can't be done, since what is left out would look like nothing."""
        try:
            files = [str(path) for path in self._folder.iterdir() if path.suffix == ".db"]
            found = MultiProcessCollector.merge(files)  # type: ignore[no-untyped-call]
        except FileNotFoundError:
            return  # the group has ended, and its folder with it
        for metric in found:
            if metric.name == CPU:
                parent = _said(os.getppid()).get(f"{CPU}_total", 0.0)
                metric.samples = [one._replace(value=one.value + parent) for one in metric.samples]
            yield metric


class _Processes(Collector):
    """What is said of the group's processes together."""

    def __init__(self, ask: Callable[[], Iterable[Metric]]) -> None:
        self._ask = ask

    def collect(self) -> Iterable[Metric]:
        """Ask."""
        return self._ask()


def processes(pids: Iterable[int], parent: int, heirs: Iterable[int]) -> Iterable[Metric]:
    """What ProcessCollector says of one process, of a parent and its children together.

    Memory that they share is counted once: resident is the sum of their proportional shares, and those of heirs, who
    are nothing but a share of somebody else's memory and descriptors.
    """
    alive = [found for pid in (parent, *pids) if (found := _said(pid))]
    sums = {
        "process_virtual_memory_bytes": "Virtual memory size in bytes.",
        "process_open_fds": "Number of open file descriptors.",
    }
    for name, said in sums.items():
        yield GaugeMetricFamily(name, said, value=sum(found.get(name, 0.0) for found in alive))
    resident = sum(proportional(pid) for pid in (parent, *pids, *heirs))
    yield GaugeMetricFamily("process_resident_memory_bytes", "Resident memory size in bytes.", value=resident)
    for name, said in {
        "process_start_time_seconds": "Start time of the process since unix epoch in seconds.",
        "process_max_fds": "Maximum number of open file descriptors.",
    }.items():
        yield GaugeMetricFamily(name, said, value=min((found[name] for found in alive if name in found), default=0.0))


def _said(pid: int) -> dict[str, float]:
    """What ProcessCollector says of a process; nothing where it is gone."""
    collector = ProcessCollector(pid=lambda: pid, registry=None)
    return {sample.name: sample.value for metric in collector.collect() for sample in metric.samples}


def proportional(pid: int) -> float:
    """Bytes of memory that are a process's: its own, and its share of those that it shares; 0 where it is gone."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(float(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))

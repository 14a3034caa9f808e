"""Metrics: every instrument, declared here and nowhere else. Knows Prometheus, and nothing of requests or rows.

In a group of processes that serve one port, counts are kept in files, one for each process and kind, and whoever is
asked adds them up. What is so now (what is served, what p-values rest on) is said by the process that answers.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

CPU = "process_cpu_seconds"
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
OBSERVED = 1024  # observations of one kind that are kept until somebody looks, at most
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Batches:
    """The instruments of one graph's engine calls."""

    sizes: Histogram
    tickets: Counter
    seconds: Histogram
    waiting: Gauge
    calls: Counter


@dataclass(frozen=True, slots=True)
class Group:
    """How the processes that serve one port count together.

    folder is where their files are, and slot the number of this one's: no two that live have the same, and whoever gets
    one after another goes on counting where it ended. processes gives what is said of them together.
    """

    folder: Path
    slot: int
    processes: Callable[[], Iterable[Metric]]


class _Kept:
    """A number that is written into the group's files when that is asked for, and not each time it changes.

    One in a file takes five times as long to change as one in memory. All of ours are changed by the event loop.
    """

    _multiprocess = True
    stored: ClassVar[Any]
    changed: ClassVar[set[_Kept]] = set()

    def __init__(self, *known: Any, **more: Any) -> None:
        self._stored = self.stored(*known, **more)
        self._value: float = self._stored.get()

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
            number._stored.set(number._value)


class Now(Gauge):
    """A gauge of what is so now, filled by the process that answers; other processes' say nothing more."""

    def _metric_init(self) -> None:
        self._value = values.MutexValue(  # type: ignore[no-untyped-call]
            self._type, self._name, self._name, self._labelnames, self._labelvalues, self._documentation
        )

    def clear(self) -> None:
        """Forget every series."""
        with self._lock:
            self._metrics = {}


class Metrics:
    """All instruments of one process, in a registry of their own, or of one in a group."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self, group: Group | None = None) -> None:
        # a second series for each counter, that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._owed: dict[Counter, float] = {}
        self._seen: dict[Histogram, list[float]] = {}
        self._set: dict[Gauge, float] = {}
        self._batches: dict[tuple[str, str, str], Batches] = {}
        self.reading = asyncio.Lock()  # held by who shows what is so now, until that is written
        self._reader = ThreadPoolExecutor(1, "metrics")
        self._merged = _merged(group) if group else None
        now = self._merged or registry
        self._cpu: Counter | None = None
        self._used = 0.0
        if group:
            self._cpu = Counter(CPU, "Total user and system CPU time spent in seconds.", registry=registry)
        else:
            ProcessCollector(registry=registry)
        PlatformCollector(registry=now)
        self.requests = Counter(
            "vae_serve_requests", "Requests answered", ["operation", "model", "status"], registry=registry
        )
        self.seconds = Histogram(
            "vae_serve_request_seconds",
            "From a request's headers to the end of its answer",
            ["operation"],
            buckets=SECONDS,
            registry=registry,
        )
        self.rows = Counter("vae_serve_rows", "Rows answered", ["operation", "model"], registry=registry)
        self.inside = Gauge(
            "vae_serve_requests_inside", "Requests being answered", registry=registry, multiprocess_mode="livesum"
        )
        self.batch = Histogram(
            "vae_serve_batch_decoder_rows",
            "Decoder rows (rows × draws) in an engine call",
            ["model", "graph"],
            buckets=SIZES,
            registry=registry,
        )
        self.tickets = Counter(
            "vae_serve_batch_tickets",
            "Requests' pieces that shared engine calls",
            ["model", "graph"],
            registry=registry,
        )
        self.infer = Histogram(
            "vae_serve_infer_seconds", "An engine call", ["model", "graph"], buckets=SECONDS, registry=registry
        )
        self.waiting = Gauge(
            "vae_serve_waiting_decoder_rows",
            "Decoder rows waiting",
            ["model", "graph"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.anomalies = Counter(
            "vae_serve_anomalies", "Scored rows flagged at the alpha of their request", ["model"], registry=registry
        )
        self.model = Now(
            "vae_serve_model_info", "1 for each model served", ["model", "version", "device"], registry=now
        )
        self.refused = Now(
            "vae_serve_model_refused",
            "1 for each version on disk that was refused; the log says why",
            ["model", "version"],
            registry=now,
        )
        self.fallback = Now(
            "vae_serve_device_fallback",
            "1 where CUDA was wanted and the CPU is used",
            ["model", "version"],
            registry=now,
        )
        self.engine_calls = Counter(
            "vae_serve_engine_calls", "Engine calls", ["model", "version", "graph"], registry=registry
        )
        self._declare_inferences()
        of = ["model", "version"]
        self.calibration_rows = Now(
            "vae_serve_calibration_rows",
            "Rows that p-values rest on; source: artifact, or state where it was calibrated while serving",
            [*of, "source"],
            registry=now,
        )
        self.drift_log_wealth = Now(
            "vae_serve_drift_log_wealth", "What a bet against the calibration has won, in nats", of, registry=now
        )
        self.drift_rows = Now("vae_serve_drift_rows", "Rows that the watch for drift has seen", of, registry=now)
        self.drift_alarm = Now(
            "vae_serve_drift_alarm",
            "1 once drift was found, until the model is calibrated again",
            of,
            registry=now,
        )
        self.ready = Now("vae_serve_ready", "1 when every required model has answered its golden rows", registry=now)

    def share(self) -> None:
        """Let the group's other processes see what was counted here since."""
        self.flush()
        if self._cpu:
            used = sum(os.times()[:2])
            self._cpu.inc(used - self._used)
            self._used = used
            _Kept.write()

    def batches(self, model: str, version: str, graph: str) -> Batches:
        """The instruments of a graph's calls, found once: they are used at every call."""
        found = self._batches.get((model, version, graph))
        if found is None:
            of = (model, graph)
            found = self._batches[model, version, graph] = Batches(
                self.batch.labels(*of),
                self.tickets.labels(*of),
                self.infer.labels(*of),
                self.waiting.labels(*of),
                self.engine_calls.labels(model, version, graph),
            )
        return found

    def _declare_inferences(self) -> None:
        """What the Open Inference Protocol's statistics are made of."""
        of, registry = ["model", "version", "operation"], self.registry
        self.inferences = Counter(
            "vae_serve_inferences", "Requests over /v2: success or fail", [*of, "outcome"], registry=registry
        )
        self.inference_seconds = Counter(
            "vae_serve_inference_seconds",
            "Of requests over /v2: in all (success, fail), and the stages of those that succeeded",
            [*of, "stage"],
            registry=registry,
        )
        self.inference_rows = Counter("vae_serve_inference_rows", "Rows answered over /v2", of, registry=registry)
        self.inference_last = Gauge(
            "vae_serve_inference_last_timestamp_seconds",
            "When /v2 answered last, Unix time",
            of,
            registry=registry,
            multiprocess_mode="max",
        )

    def read(self, *labels: str, name: str) -> dict[tuple[str, ...], float]:
        """The values of one series by those labels, in their order; what is read is what /metrics would say."""
        self.share()
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for metric in (self._merged or self.registry).collect()
            for sample in metric.samples
            if sample.name == name
        }

    def forget(self, gauge: Gauge, *labels: str) -> None:
        """Let a series go; in a group none has to, since what a worker serves stays as it is."""
        if self._merged is None:
            gauge.remove(*labels)

    def later(self, counter: Counter, amount: float = 1.0) -> None:
        """Count something by the next time that somebody looks: a tenth of the cost of counting it now."""
        self._owed[counter] = self._owed.get(counter, 0.0) + amount

    def observe(self, histogram: Histogram, *amounts: float) -> None:
        """The same of observations."""
        seen = self._seen.setdefault(histogram, [])
        seen.extend(amounts)
        if len(seen) >= OBSERVED:
            del self._seen[histogram]
            observe_all(histogram, seen)

    def set(self, gauge: Gauge, value: float) -> None:
        """The same of what is so now."""
        self._set[gauge] = value

    def flush(self) -> None:
        """Count what is owed."""
        owed, self._owed = self._owed, {}
        for counter, amount in owed.items():
            counter.inc(amount)
        seen, self._seen = self._seen, {}
        for histogram, amounts in seen.items():
            observe_all(histogram, amounts)
        now, self._set = self._set, {}
        for gauge, value in now.items():
            gauge.set(value)

    async def text(self) -> bytes:
        """All of it, as Prometheus reads it: thousands of lines, of which the loop writes a metric's at a time."""
        self.share()
        registry, parts = self._merged or self.registry, []
        loop = asyncio.get_running_loop()
        # On a thread of its own: it reads others' files and /proc, and whoever watches isn't to wait for other work.
        for metric in await loop.run_in_executor(self._reader, lambda: list(registry.collect())):
            parts.append(generate_latest(_One(metric)))
            await asyncio.sleep(0)
        return b"".join(parts)


def observe_all(histogram: Histogram, amounts: Sequence[float]) -> None:
    """Observe many at once, at the cost of about one: by the library's own parts, which it has no public way to."""
    counts: dict[int, int] = {}
    for amount in amounts:
        at = bisect_left(histogram._upper_bounds, amount)
        counts[at] = counts.get(at, 0) + 1
    for at, count in counts.items():
        histogram._buckets[at].inc(count)
    histogram._sum.inc(sum(amounts))


def _merged(group: Group) -> CollectorRegistry:
    """Have this process count in the group's files from now on; a registry that adds them up."""
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(group.folder)
    _Kept.stored = values.MultiProcessValue(lambda: group.slot)  # type: ignore[no-untyped-call]
    values.ValueClass = _Kept
    merged = CollectorRegistry()
    merged.register(_Files(str(group.folder)))
    merged.register(_Processes(group.processes))
    return merged


class _Files(Collector):
    """What the processes have counted, added up, with the CPU time of their parent."""

    def __init__(self, folder: str) -> None:
        self._files = MultiProcessCollector(None, path=folder)  # type: ignore[no-untyped-call]

    def collect(self) -> Iterable[Metric]:
        """Read the files."""
        for metric in self._files.collect():  # type: ignore[no-untyped-call]
            if metric.name == CPU:
                parent = _said(os.getppid()).get(f"{CPU}_total", 0.0)
                metric.samples = [one._replace(value=one.value + parent) for one in metric.samples]
            yield metric


class _One(CollectorRegistry):
    """A registry of one metric, as it is."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """It."""
        yield self._metric


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

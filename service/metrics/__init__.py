"""Metrics: every instrument, declared here and nowhere else. Knows Prometheus, and nothing of requests or rows.

In a group of processes that serve one port, counts are kept in files, one for each process and kind, and whoever is
asked adds them up. What is so now (what is served, what p-values rest on) is said by the process that answers.
"""

from __future__ import annotations

import asyncio
import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from service.metrics.group import CPU, REQUESTS, Group, Kept, counts, merged

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
        self._counts = counts(group) if group else None
        self._merged = merged(self._counts, group) if self._counts and group else None
        now = self._merged or registry
        self._cpu: Counter | None = None
        self._used = 0.0
        if group:
            self._cpu = Counter(CPU, "Total user and system CPU time spent in seconds.", registry=registry)
        else:
            ProcessCollector(registry=registry)
        PlatformCollector(registry=now)
        self.requests = Counter(*REQUESTS, registry=registry)
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
            Kept.write()

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

    async def read(self, **wanted: Sequence[str]) -> dict[str, dict[tuple[str, ...], float]]:
        """The values of some series, each by the labels that are said, in their order; /metrics would say the same."""
        self.share()
        counts = self._counts or self.registry.restricted_registry(wanted)
        found: dict[str, dict[tuple[str, ...], float]] = {name: {} for name in wanted}
        for metric in await self._aside(lambda: list(counts.collect())):
            for sample in metric.samples:
                if labels := wanted.get(sample.name):
                    found[sample.name][tuple(sample.labels[label] for label in labels)] = sample.value
        return found

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
        for metric in await self._aside(lambda: list(registry.collect())):
            parts.append(generate_latest(_One(metric)))
            await asyncio.sleep(0)
        return b"".join(parts)

    async def _aside(self, collect: Callable[[], list[Metric]]) -> list[Metric]:
        """On a thread of its own: it reads files of others and /proc, and who watches isn't to wait for other work."""
        return await asyncio.get_running_loop().run_in_executor(self._reader, collect)


def observe_all(histogram: Histogram, amounts: Sequence[float]) -> None:
    """Observe many at once, at the cost of about one: by the library's own parts, which it has no public way to."""
    counts: dict[int, int] = {}
    for amount in amounts:
        at = bisect_left(histogram._upper_bounds, amount)
        counts[at] = counts.get(at, 0) + 1
    for at, count in counts.items():
        histogram._buckets[at].inc(count)
    histogram._sum.inc(sum(amounts))


class _One(CollectorRegistry):
    """A registry of one metric, as it is."""

    def __init__(self, metric: Metric) -> None:
        super().__init__()
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """It."""
        yield self._metric

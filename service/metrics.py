"""Metrics: every instrument, declared here and nowhere else. Knows Prometheus, and nothing of requests or rows."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


@dataclass(frozen=True, slots=True)
class Batches:
    """The instruments of one graph's engine calls."""

    sizes: Histogram
    tickets: Counter
    seconds: Histogram
    waiting: Gauge
    calls: Counter


class Metrics:
    """All instruments of one process, in a registry of their own."""

    content_type = "text/plain; version=0.0.4; charset=utf-8"

    def __init__(self) -> None:
        # a second series for each counter, that nobody reads
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self._owed: dict[Counter, float] = {}
        self._batches: dict[tuple[str, str, str], Batches] = {}
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
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
        self.inside = Gauge("vae_serve_requests_inside", "Requests being answered", registry=registry)
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
            "vae_serve_waiting_decoder_rows", "Decoder rows waiting", ["model", "graph"], registry=registry
        )
        self.anomalies = Counter(
            "vae_serve_anomalies", "Scored rows flagged at the alpha of their request", ["model"], registry=registry
        )
        self.model = Gauge(
            "vae_serve_model_info", "1 for each model served", ["model", "version", "device"], registry=registry
        )
        self.refused = Gauge(
            "vae_serve_model_refused",
            "1 for each version on disk that was refused; the log says why",
            ["model", "version"],
            registry=registry,
        )
        self.fallback = Gauge(
            "vae_serve_device_fallback",
            "1 where CUDA was wanted and the CPU is used",
            ["model", "version"],
            registry=registry,
        )
        self.engine_calls = Counter(
            "vae_serve_engine_calls", "Engine calls", ["model", "version", "graph"], registry=registry
        )
        self._declare_inferences()
        of = ["model", "version"]
        self.calibration_rows = Gauge(
            "vae_serve_calibration_rows",
            "Rows that p-values rest on; source: artifact, or state where it was calibrated while serving",
            [*of, "source"],
            registry=registry,
        )
        self.drift_log_wealth = Gauge(
            "vae_serve_drift_log_wealth", "What a bet against the calibration has won, in nats", of, registry=registry
        )
        self.drift_rows = Gauge("vae_serve_drift_rows", "Rows that the watch for drift has seen", of, registry=registry)
        self.drift_alarm = Gauge(
            "vae_serve_drift_alarm",
            "1 once drift was found, until the model is calibrated again",
            of,
            registry=registry,
        )
        self.ready = Gauge(
            "vae_serve_ready", "1 when every required model has answered its golden rows", registry=registry
        )

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
        self.flush()
        return {
            tuple(sample.labels[label] for label in labels): sample.value
            for metric in self.registry.collect()
            for sample in metric.samples
            if sample.name == name
        }

    def later(self, counter: Counter, amount: float = 1.0) -> None:
        """Count something by the next time that somebody looks, or by `flush`: a tenth of the cost of counting it now."""
        self._owed[counter] = self._owed.get(counter, 0.0) + amount

    def flush(self) -> None:
        """Count what is owed."""
        owed, self._owed = self._owed, {}
        for counter, amount in owed.items():
            counter.inc(amount)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        self.flush()
        return generate_latest(self.registry)

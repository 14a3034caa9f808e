"""Tally: what the statistics extension counts, kept in our metrics and read back from them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from service.http.telemetry import Sitting, Visit
from service.http.v2.served import GRAPHS, Served
from service.metrics import Metrics

STAGES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
NEVER = {"count": 0, "ns": 0}  # what a cache would count; clients read it whether there is one or not


class Counters:
    """The counters of one model, looked up once."""

    def __init__(self, metrics: Metrics, where: tuple[str, str, str]) -> None:
        self.seconds = {stage: metrics.inference_seconds.labels(*where, stage) for stage in STAGES}
        self.counts = {outcome: metrics.inferences.labels(*where, outcome) for outcome in ("success", "fail")}
        self.rows = metrics.inference_rows.labels(*where)
        self.last = metrics.inference_last.labels(*where)


@dataclass(slots=True)
class Tally:
    """Counts inferences by artifact, version and operation: a model's two names are one model."""

    metrics: Metrics
    _counters: dict[tuple[str, str, str], Counters] = field(default_factory=dict)

    def _of(self, served: Served) -> Counters:
        where = key(served)
        if (found := self._counters.get(where)) is None:
            found = self._counters[where] = Counters(self.metrics, where)
        return found

    def succeeded(self, served: Served, visit: Visit, written: float) -> None:
        """Count an answer; written is the seconds that its bytes took."""
        counters = self._of(served)
        count, seconds = self.metrics.later, counters.seconds
        count(counters.counts["success"])
        count(counters.rows, visit.rows)
        counters.last.set(time.time())
        count(seconds["success"], time.perf_counter() - visit.arrived)
        count(seconds["queue"], visit.errand.queued)
        count(seconds["compute_input"], visit.parse)
        count(seconds["compute_infer"], visit.errand.computed)
        count(seconds["compute_output"], written)

    def succeeded_many(self, served: Served, sitting: Sitting, written: float) -> None:
        """Count answers that were computed together; written is the seconds that the bytes of all took."""
        counters, count = self._of(served), self.metrics.later
        answers, seconds = len(sitting.seconds), counters.seconds
        count(counters.counts["success"], answers)
        count(counters.rows, sitting.rows)
        counters.last.set(time.time())
        count(seconds["success"], sum(sitting.seconds))
        count(seconds["queue"], answers * sitting.queued)
        count(seconds["compute_input"], answers * sitting.parse)
        count(seconds["compute_infer"], answers * sitting.computed)
        count(seconds["compute_output"], written)

    def failed(self, served: Served, visit: Visit) -> None:
        """Count a request that wasn't answered, whosever fault it was."""
        counters = self._of(served)
        counters.counts["fail"].inc()
        counters.seconds["fail"].inc(time.perf_counter() - visit.arrived)

    async def statistics(self, models: Iterable[Served]) -> dict[str, Any]:
        """The answer to a request for statistics."""
        of = ("model", "version", "operation")
        found = await self.metrics.read(
            vae_serve_inferences_total=(*of, "outcome"),
            vae_serve_inference_seconds_total=(*of, "stage"),
            vae_serve_inference_rows_total=of,
            vae_serve_inference_last_timestamp_seconds=of,
            vae_serve_engine_calls_total=("model", "version", "graph"),
        )
        counted, seconds, rows, last, calls = found.values()
        return {
            "model_stats": [
                {
                    "name": served.name,
                    "version": served.version,
                    "last_inference": round(last.get(key(served), 0.0) * 1e3),
                    "inference_count": round(rows.get(key(served), 0.0)),
                    "execution_count": round(calls.get((*key(served)[:2], GRAPHS[served.operation.name]), 0.0)),
                    "inference_stats": _stages(key(served), counted, seconds),
                    "batch_stats": [],
                }
                for served in models
            ]
        }


def key(served: Served) -> tuple[str, str, str]:
    """What a model is counted by."""
    return served.model.manifest.name, served.version, served.operation.name


def _stages(
    where: tuple[str, str, str],
    counted: Mapping[tuple[str, ...], float],
    seconds: Mapping[tuple[str, ...], float],
) -> dict[str, dict[str, int]]:
    """How often each stage was gone through, and for how many nanoseconds in all; the last five are of successes."""
    found = {}
    for stage in STAGES:
        count = counted.get((*where, "fail" if stage == "fail" else "success"), 0.0)
        found[stage] = {"count": round(count), "ns": round(seconds.get((*where, stage), 0.0) * 1e9)}
    return found | {"cache_hit": NEVER, "cache_miss": NEVER}

"""Standing: what a model's p-values rest on, and the watch over the scores it has served. Knows no graph, no HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service import drift, noise
from service.artifact import Artifact, Calibration, Manifest
from service.calibration import Reference, fit
from service.drift import Watch
from service.errors import ArtifactRefused

log = logging.getLogger(__name__)

Doubles = NDArray[np.float64]


def now() -> datetime:
    """The time, as the catalogue says it."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Standing:
    """A calibration in use: its facts, its reference scores, the bank they were made with, and what is watched.

    since is when it came into use. watch is None where drift isn't watched.
    """

    facts: Calibration
    reference: Reference = field(repr=False)
    bank: noise.Bank = field(repr=False)
    watch: Watch | None = field(repr=False)
    since: datetime = field(default_factory=now)

    async def watched(self, scores: Doubles, manifest: Manifest) -> None:
        """Show the watch scores that were served, in the order in which they came; the loop has its turns between."""
        if self.watch is None:
            return
        for start in range(0, len(scores), drift.BLOCK):
            if start:
                await asyncio.sleep(0)
            if self.watch.see(scores[start : start + drift.BLOCK]):
                _raise_alarm(self.watch, self.since, manifest)


@dataclass(slots=True)
class Footing:
    """The standing that a model is on; None where it isn't calibrated. A request keeps the one it began with."""

    now: Standing | None


def from_artifact(found: Artifact, false_alarm: float = 0.0) -> Standing | None:
    """The calibration that an artifact has; ArtifactRefused where its estimator isn't what its draws are.

    false_alarm bounds the probability that drift is ever called where there is none; 0: it isn't watched.
    """
    facts = found.manifest.calibration
    if facts is None or found.calibration is None:
        return None
    bank = noise.Bank(facts.seed, found.calibration["noise"].astype(np.float32), noise.groups(facts.draws))
    if facts.estimator != (wanted := estimator(bank)):
        raise ArtifactRefused(f"calibration.estimator is {facts.estimator}; {facts.draws} draws are {wanted}")
    reference = fit(found.calibration["scores"])
    return Standing(facts, reference, bank, watch(reference, false_alarm))


def watch(reference: Reference, false_alarm: float) -> Watch | None:
    """A watch over the scores that a reference is of; None for a false-alarm rate of 0."""
    return Watch(reference.scores, false_alarm) if false_alarm > 0 else None


def estimator(bank: noise.Bank) -> Literal["sobol_scrambles_4", "plain"]:
    """What a manifest calls the way in which a bank's draws are made."""
    return "sobol_scrambles_4" if len(bank.groups) < bank.draws else "plain"


def _raise_alarm(watch: Watch, since: datetime, manifest: Manifest) -> None:
    """Say once, for whoever is woken by it, what it means and what to do."""
    low, high = watch.recent() or (math.nan, math.nan)
    log.warning(
        "drift: %s/%s: the %d rows scored since %s are not like its calibration rows (e-value over %.0f). Of late the "
        "calibration's lowest 5 %% of scores came %.1f times as often as is due, its highest 5 %% %.1f times. p-values "
        "may not mean what they say: see what changed in the rows that are sent, then calibrate again or fit again",
        manifest.name,
        manifest.version,
        watch.rows,
        since.isoformat(),
        math.exp(watch.threshold),
        low,
        high,
    )

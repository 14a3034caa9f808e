"""Footing: what a model's p-values rest on, and the watch over the scores it has served. Knows no graph, no HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service import artifact, calibration, drift, noise
from service.artifact import Artifact, Manifest
from service.calibration import References
from service.drift import Watch
from service.errors import ArtifactRefused

log = logging.getLogger(__name__)

Doubles = NDArray[np.float64]


def now() -> datetime:
    """The time, as the catalogue says it."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Footing:
    """A calibration in use: its reference scores, the bank they were made with, and the watch over what is served.

    since is when it came into use. watch is None where drift isn't watched.
    """

    references: References = field(repr=False)
    bank: noise.Bank = field(repr=False)
    watch: Watch | None = field(repr=False)
    since: datetime = field(default_factory=now)

    async def watched(self, scores: Doubles, manifest: Manifest) -> None:
        """Show the watch what was served of the score that anomalies are told by, in the order in which it came.

        The loop has its turns between.
        """
        if self.watch is None:
            return
        scores = _risen(self.references, scores)
        for start in range(0, len(scores), drift.BLOCK):
            if start:
                await asyncio.sleep(0)
            if self.watch.see(scores[start : start + drift.BLOCK]):
                _raise_alarm(self.watch, self.since, manifest)


def from_artifact(found: Artifact, false_alarm: float = 0.0) -> Footing | None:
    """The calibration that an artifact has; ArtifactRefused where its estimator isn't what its draws are.

    false_alarm bounds the probability that drift is ever called where there is none; 0: it isn't watched.
    """
    facts = found.manifest.calibration
    if facts is None or found.calibration is None:
        return None
    bank = noise.Bank(facts.seed, found.calibration["noise"].astype(np.float32), noise.groups(facts.draws))
    if facts.estimator != (wanted := estimator(bank)):
        raise ArtifactRefused(f"calibration.estimator is {facts.estimator}; {facts.draws} draws are {wanted}")
    names = {name: score.strange for name, score in facts.named.items()}
    try:
        references = calibration.from_arrays(found.calibration, names, facts.chosen)
    except ValueError as error:
        raise ArtifactRefused(f"{artifact.CALIBRATION}: {error}") from error
    return Footing(references, bank, watch(references, false_alarm))


def watch(references: References, false_alarm: float) -> Watch | None:
    """A watch over the score that anomalies are told by; None for a false-alarm rate of 0."""
    if not false_alarm > 0:
        return None
    return Watch(np.sort(_risen(references, references.scores[references.chosen].scores)), false_alarm)


def _risen(references: References, scores: Doubles) -> Doubles:
    """The score that anomalies are told by, turned so that low is strange, as it is for the watch."""
    return scores if references.scores[references.chosen].strange == "low" else -scores


def estimator(bank: noise.Bank) -> Literal["sobol_scrambles_4", "plain"]:
    """What a manifest calls the way in which a bank's draws are made."""
    return "sobol_scrambles_4" if len(bank.groups) < bank.draws else "plain"


def _raise_alarm(watch: Watch, since: datetime, manifest: Manifest) -> None:
    """Say once, for whoever is woken by it, what it means and what to do."""
    low, high = watch.recent() or (math.nan, math.nan)
    log.warning(
        "drift: %s/%s: the %d rows scored since %s are not like its calibration rows (e-value over %.0f). Of late scores "
        "like the calibration's strangest 5 %% came %.1f times as often as is due, like its least strange 5 %% %.1f times. "
        "p-values may not mean what they say: see what changed in the rows that are sent, then calibrate or fit again",
        manifest.name,
        manifest.version,
        watch.rows,
        since.isoformat(),
        math.exp(watch.threshold),
        low,
        high,
    )

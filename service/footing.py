"""Footing: what a model's p-values rest on, and the watch over the scores it has served. Knows no graph, no HTTP."""

from __future__ import annotations

import asyncio
import logging
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service import artifact, calibration, drift, noise, state
from service.appraisal import P
from service.artifact import Arrays, Artifact, Calibration, Manifest
from service.calibration import References
from service.drift import Watch, Watching
from service.errors import ArtifactRefused

log = logging.getLogger(__name__)

Source = Literal["artifact", "state"]
Doubles = NDArray[np.float64]


def now() -> datetime:
    """The time, as the catalogue says it."""
    return datetime.now(UTC).replace(microsecond=0)


@dataclass(frozen=True, slots=True)
class Footing:
    """A calibration in use: its reference scores, the bank they were made with, and the watch over what is served.

    It is the artifact's, or was made while serving, and is in use here since then. watch is None where drift isn't
    watched. complete says that none of its rows had a missing value, so that rows which have aren't like them.
    """

    source: Source
    references: References = field(repr=False)
    bank: noise.Bank = field(repr=False)
    watch: Watching | None = field(repr=False)
    complete: bool
    made: datetime | None = None
    since: datetime = field(default_factory=now)

    def notice(self, manifest: Manifest, appraised: Arrays) -> None:
        """Show the watch what was served of the score that anomalies are told by, in the order in which it came.

        The loop has its turns between. A row that no reference row is like has no p-value, and isn't shown.
        """
        chosen = self.references.chosen
        if self.watch is None or chosen not in appraised:
            return
        odd = np.isnan(appraised[P + chosen])
        self._show_in_turns(_risen(self.references, np.where(odd, np.nan, appraised[chosen])), manifest)

    def _show_in_turns(self, scores: Doubles, manifest: Manifest) -> None:
        self.show(scores[: drift.BLOCK], manifest)
        if len(scores) > drift.BLOCK:
            asyncio.get_running_loop().call_soon(self._show_in_turns, scores[drift.BLOCK :], manifest)

    def show(self, scores: Doubles, manifest: Manifest) -> None:
        """The same of scores that are turned so that low is strange, at once; it needs no event loop."""
        if self.watch and self.watch.see(scores):
            _raise_alarm(self.watch, self.since, manifest)


def find(found: Artifact, digest: str, folder: Path | None = None, false_alarm: float = 0.0) -> Footing | None:
    """What p-values rest on: the calibration that the state keeps for a manifest's digest, else the artifact's.

    One in the state that isn't what it must be is refused with a line in the log. ArtifactRefused where the artifact's
    own isn't. false_alarm bounds the probability that drift is ever called where there is none; 0: it isn't watched.
    """
    own = found.manifest.calibration
    ours = _checked("artifact", own, found.calibration, false_alarm) if own and found.calibration else None
    if folder is None:
        return ours
    try:
        if stored := state.read(folder, digest, found.manifest):
            return _checked("state", stored.facts.calibration, stored.arrays, false_alarm, stored.facts.made)
    except ArtifactRefused as error:
        which = "the artifact's own is used" if ours else "there is no other"
        name, version = found.manifest.name, found.manifest.version
        log.error("%s/%s: its calibration in the state was refused and %s: %s", name, version, which, error)
    return ours


def renewed(references: References, bank: noise.Bank, false_alarm: float, made: datetime, *, complete: bool) -> Footing:
    """A calibration that is made now, with a watch that begins anew."""
    return Footing("state", references, bank, watch(references, false_alarm), complete, made, made)


def _checked(
    source: Source, facts: Calibration, arrays: Arrays, false_alarm: float, made: datetime | None = None
) -> Footing:
    """A calibration from facts and arrays; ArtifactRefused where they aren't of one estimator or of known scores."""
    bank = noise.Bank(facts.seed, arrays["noise"].astype(np.float32), noise.groups(facts.draws))
    wanted = estimator(bank)
    # The stored noise is used as it is, so a bank made as they once were, of Sobol scrambles, is as good as ever.
    if facts.estimator != wanted and (facts.estimator, wanted) != ("sobol_scrambles_4", "frames_4"):
        raise ArtifactRefused(f"calibration.estimator is {facts.estimator}; {facts.draws} draws are {wanted}")
    names = {name: score.strange for name, score in facts.named.items()}
    try:
        references = calibration.from_arrays(arrays, names, facts.chosen)
    except ValueError as error:
        raise ArtifactRefused(f"{artifact.CALIBRATION}: {error}") from error
    return Footing(source, references, bank, watch(references, false_alarm), facts.complete, made)


def watch(references: References, false_alarm: float) -> Watch | None:
    """A watch over the score that anomalies are told by; None for a false-alarm rate of 0."""
    if not false_alarm > 0:
        return None
    return Watch(np.sort(_risen(references, references.scores[references.chosen].scores)), false_alarm)


def _risen(references: References, scores: Doubles) -> Doubles:
    """The score that anomalies are told by, turned so that low is strange, as it is for the watch."""
    return scores if references.scores[references.chosen].strange == "low" else -scores


def estimator(bank: noise.Bank) -> Literal["frames_4", "plain"]:
    """What a manifest calls the way in which a bank's draws are made."""
    return "frames_4" if len(bank.groups) < bank.draws else "plain"


def _raise_alarm(watch: Watching, since: datetime, manifest: Manifest) -> None:
    """Say once, for whoever is woken by it, what it means and what to do."""
    strange, typical = watch.recent() or (math.nan, math.nan)
    log.warning(
        "drift: %s/%s: the %d rows scored since %s are not like its calibration rows (a bet on that has won %.1f nats, "
        "and %.1f tell). Of late there were %.1f times as many rows as is due like the calibration's strangest 5 %%, "
        "and %.1f times as many like its least strange 5 %%. p-values may not mean what they say: see what changed in "
        "the rows that are sent, then calibrate or fit again",
        manifest.name,
        manifest.version,
        watch.rows,
        since.isoformat(),
        watch.log_wealth,
        watch.threshold,
        strange,
        typical,
    )

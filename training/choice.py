"""The choice: which score anomalies are told by, from validation rows and the strangers made of them. Knows no model.

A score is worth the area under its ROC curve, a stranger's chance of being stranger than a typical row, averaged over
kinds of strangers. What is fitted for a score is fitted on other rows than it is judged on. The elbo is taken unless
another is better by more than two standard errors and by 0.02: strangers are stand-ins for what will come, which a
smaller difference on them says little about, and the elbo alone is about a stated density.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from service import anomaly
from service.anomaly import Doubles, Statistics
from service.artifact import Choice

FOLDS = 5
FEWEST = 20  # validation rows; by fewer nothing can be told
SURE, MARGIN = 2.0, 0.02  # standard errors, and AUROC, that a score has to be better by than the elbo


@dataclass(frozen=True, slots=True)
class Worth:
    """What a score is worth by each kind of stranger, and what each row adds to the mean of these, (rows,)."""

    areas: Mapping[str, float]
    influence: Doubles

    @property
    def mean(self) -> float:
        """The area averaged over kinds."""
        return float(np.mean(list(self.areas.values())))

    @property
    def said(self) -> str:
        """The mean, and the kind that the score does worst on."""
        worst = min(self.areas, key=lambda kind: self.areas[kind])
        return f"{self.mean:.3f} (least {self.areas[worst]:.3f}, {worst})"


def choose(typical: Statistics, strangers: Mapping[str, Statistics]) -> Choice:
    """The score that anomalies are told by; stranger i of each kind is made of typical row i."""
    rows = len(typical.elbo)
    if rows < FEWEST:
        return Choice(score="elbo", why=f"{rows} validation rows are too few to choose by")
    worths = {name: worth(found) for name, found in judged(typical, strangers).items()}
    elbo = worths.pop("elbo")
    gains = {name: (found.mean - elbo.mean, error(found, elbo)) for name, found in worths.items()}
    best = max(gains, key=lambda name: (needed(gains[name]) < gains[name][0], gains[name][0]))
    told = (
        f"telling rows from {len(strangers)} kinds of strangers made of {rows} validation rows, the elbo has a mean "
        f"AUROC of {elbo.said} and {best} of {worths[best].said}: {gains[best][0]:+.3f} ± {gains[best][1]:.3f}"
    )
    if needed(gains[best]) < gains[best][0]:
        return Choice(score=best, why=told)
    return Choice(
        score="elbo", why=f"{told}; to be taken instead a score has to be better by 0.02 and by two such errors"
    )


def needed(gain: tuple[float, float]) -> float:
    """What a gain has to be above, given its error."""
    return max(SURE * gain[1], MARGIN)


def judged(typical: Statistics, strangers: Mapping[str, Statistics]) -> dict[str, dict[str, tuple[Doubles, Doubles]]]:
    """How strange typical rows and strangers are, by score and kind; what scores need is fitted on the other folds."""
    folds = np.arange(len(typical.elbo)) % FOLDS
    fitted = [anomaly.fit(anomaly.picked(typical, np.flatnonzero(folds != fold))) for fold in range(FOLDS)]

    def strange(found: Statistics) -> dict[str, Doubles]:
        each = [anomaly.values(found, parameters) for parameters in fitted]
        rows = np.arange(len(folds))
        own = {name: np.stack([scores[name] for scores in each])[folds, rows] for name in each[0]}
        return {name: np.nan_to_num(anomaly.strangeness(name, own[name]), nan=-np.inf) for name in own}

    usual = strange(typical)
    kinds = {kind: strange(found) for kind, found in strangers.items()}
    return {name: {kind: (usual[name], found[name]) for kind, found in kinds.items()} for name in usual}


def worth(found: Mapping[str, tuple[Doubles, Doubles]]) -> Worth:
    """What one score is worth, from how strange it calls rows and strangers of each kind."""
    shares = {kind: (above(other, usual), 1.0 - above(usual, other)) for kind, (usual, other) in found.items()}
    areas = {kind: float(first.mean()) for kind, (first, _) in shares.items()}
    parts = [first + second - 2 * first.mean() for first, second in shares.values()]
    return Worth(areas, np.mean(parts, axis=0))


def above(values: Doubles, floors: Doubles) -> Doubles:
    """For each floor the share of values above it, ties counted half.

    >>> above(np.array([1.0, 2.0, 2.0, 3.0]), np.array([2.0, 0.0]))
    array([0.5, 1. ])
    """
    ordered = np.sort(values)
    places = np.searchsorted(ordered, floors, "left") + np.searchsorted(ordered, floors, "right")
    return np.asarray(1.0 - places / (2 * len(values)), np.float64)


def error(one: Worth, other: Worth) -> float:
    """The standard error of a difference of two scores' worth on the same rows (DeLong et al. 1988)."""
    difference = one.influence - other.influence
    return float(difference.std(ddof=1) / np.sqrt(len(difference)))

"""Calibration: where a score stands among the scores of held-out rows. Pure NumPy; knows nothing of models.

Conformal p-values (Bates et al. 2023, Testing for outliers with conformal p-values): for a row exchangeable with
the n reference rows, P(p ≤ α) ≤ α exactly, whatever the model. A calibration belongs to one estimator (the graph,
the noise bank and so the number of draws); with another it is about another number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service import anomaly

Doubles = NDArray[np.float64]
Correction = Literal["none", "simes"]

TWENTIETH, NORMAL_TWENTIETH = 0.95, 1.6448536269514722  # a quantile, and how far out a standard normal has it
LEAST_SCALE = 0.01  # nats; terms that hardly vary are not measured by less


@dataclass(frozen=True, slots=True)
class Reference:
    """The scores of n held-out rows, ascending, (n,) float64, in nats, and which end of them is strange."""

    scores: Doubles
    strange: anomaly.Strange = "low"

    @property
    def smallest_p(self) -> float:
        """The least p-value that n reference rows can give."""
        return 1.0 / (len(self.scores) + 1)


@dataclass(frozen=True, slots=True)
class Spread:
    """Where one kind of explanation's terms lie among held-out rows, and how far apart.

    centre is the median, scale the way from there to the strangest twentieth over 1.645: a standard deviation where
    terms are normal, and the tail that matters where they aren't. At least 0.01 nats.
    """

    centre: Doubles
    scale: Doubles


@dataclass(frozen=True, slots=True)
class References:
    """All that a calibration holds: a reference a score, what was fitted, and how explanations' terms are spread.

    chosen names the score that anomalies are told by. feature: of log-likelihood terms, (*event), low is strange;
    latent: of KL terms, (d,), high is strange.
    """

    scores: Mapping[str, Reference]
    fitted: Mapping[str, anomaly.Parameters] = field(default_factory=dict)
    feature: Spread | None = None
    latent: Spread | None = None
    chosen: str = "elbo"

    @property
    def n(self) -> int:
        """How many held-out rows there are."""
        return len(self.scores[self.chosen].scores)


def fit(scores: Doubles, strange: anomaly.Strange = "low") -> Reference:
    """A reference from the scores of held-out rows; a score that isn't a number is refused."""
    if len(scores) == 0 or np.isnan(scores).any():
        raise ValueError("a calibration needs at least one held-out row, and a score for each")
    return Reference(np.sort(np.asarray(scores, np.float64)), strange)


def p_values(reference: Reference, scores: Doubles) -> Doubles:
    """p = (1 + #{reference as strange as score, or stranger}) / (n + 1); small for strange rows; NaN for NaN.

    >>> p_values(fit(np.array([1.0, 2.0, 3.0])), np.array([-9.0, 2.0, np.nan]))
    array([0.25, 0.75,  nan])
    >>> p_values(fit(np.array([1.0, 2.0, 3.0]), "high"), np.array([-9.0, 2.0, np.inf]))
    array([1.  , 0.75, 0.25])
    """
    n = len(reference.scores)
    if reference.strange == "low":
        beyond = reference.scores.searchsorted(scores, side="right") + 1.0
    else:
        beyond = (n + 1.0) - reference.scores.searchsorted(scores, side="left")
    beyond /= n + 1
    absent = np.isnan(scores)
    if absent.any():
        beyond[absent] = np.nan
    return np.asarray(beyond, np.float64)


def threshold(reference: Reference, alpha: float) -> float:
    """Rows that are strictly stranger than this have p ≤ alpha; infinite where n is too small for any to have.

    >>> threshold(fit(np.arange(1.0, 100.0)), 0.05), threshold(fit(np.arange(1.0, 100.0), "high"), 0.05)
    (5.0, 95.0)
    """
    rank = math.floor(alpha * (len(reference.scores) + 1) + 1e-9)
    if reference.strange == "low":
        return float(reference.scores[rank - 1]) if rank >= 1 else -math.inf
    return float(reference.scores[-rank]) if rank >= 1 else math.inf


# ---------------------------------------------------------------- many rows at once


def correct(p: Doubles, n: int, confidence: float) -> Doubles:
    """p-values that hold for this calibration set, not on average over such sets: Simes' (Bates et al. 2023, § 3.2).

    With probability ≥ confidence over calibration sets of n rows, P(p ≤ α | the set) ≤ α for every α at once.
    NaN for NaN.
    """
    ladder = np.append(_simes(n, 1.0 - confidence), 1.0)
    rank = np.rint(np.nan_to_num(p, nan=1.0) * (n + 1)).astype(np.int64)
    return np.asarray(np.where(np.isnan(p), np.nan, ladder[rank - 1]), np.float64)


def _simes(n: int, delta: float) -> Doubles:
    """b_1 ≤ … ≤ b_n, which the order statistics of n uniforms all exceed with probability ≥ 1 − delta; k = n/2."""
    k = max(1, n // 2)
    steps = np.arange(n, 0, -1)  # i of b_{n+1−i}
    factorials = np.append(0.0, np.cumsum(np.log(np.arange(1.0, n + 1))))  # log 0!, log 1!, …, log n!
    falling = factorials[steps] - factorials[np.maximum(steps - k, 0)]  # log i(i−1)…(i−k+1)
    logs = np.where(steps >= k, falling - (factorials[n] - factorials[n - k]), -np.inf)
    return np.asarray(-np.expm1((math.log(delta) + logs) / k), np.float64)


def discoveries(p: Doubles, q: float) -> list[bool | None]:
    """Which rows Benjamini & Hochberg (1995) call anomalies at level q; None where p is NaN, which is no test.

    On conformal p-values of independent rows the false discovery rate is ≤ q (Bates et al. 2023, Theorem 2).

    >>> discoveries(np.array([0.01, 0.02, 0.9, np.nan]), 0.1)
    [True, True, False, None]
    """
    tests = np.sort(p[~np.isnan(p)])
    steps = q * np.arange(1, len(tests) + 1) / max(1, len(tests)) * (1 + 1e-12)  # p that are equal to a step pass it
    passed = np.flatnonzero(tests <= steps)
    most = tests[passed[-1]] if len(passed) else -1.0
    return [None if math.isnan(value) else bool(value <= most) for value in p.tolist()]


def fewest_discoveries(rows: int, smallest_p: float, q: float) -> int:
    """How many of some rows must be found together, at least, for any to be found at level q.

    >>> fewest_discoveries(1000, 1 / 1001, 0.1), fewest_discoveries(1000, 1 / 10_000, 0.1)
    (10, 1)
    """
    return max(1, math.ceil(rows * smallest_p / q - 1e-9))


def fewest_references(rows: int, q: float) -> int:
    """How many calibration rows a lone discovery among some rows needs at level q.

    >>> fewest_references(1000, 0.1)
    9999
    """
    return max(1, math.ceil(rows / q - 1 - 1e-9))


# ---------------------------------------------------------------- explanations


def spread(terms: Doubles, strange: anomaly.Strange) -> Spread:
    """The spread of held-out rows' terms, (n, …) → (…)."""
    centre = np.median(terms, axis=0)
    tail = np.quantile(terms, TWENTIETH if strange == "high" else 1 - TWENTIETH, axis=0)
    return Spread(centre, np.maximum(np.abs(tail - centre) / NORMAL_TWENTIETH, LEAST_SCALE))


def deviations(found: Spread, terms: Doubles, strange: anomaly.Strange) -> Doubles:
    """How many scales terms lie from the centre, (rows, …), greater is stranger."""
    away = (terms - found.centre) / found.scale
    return away if strange == "high" else -away


# ---------------------------------------------------------------- on disk


def arrays(references: References) -> dict[str, Doubles]:
    """A calibration as the arrays of calibration.npz, the bank's noise aside."""
    named = {_stored(name): reference.scores for name, reference in references.scores.items()}
    for name, parameters in references.fitted.items():
        named |= {f"fitted.{name}.{key}": array for key, array in parameters.items()}
    for of, found in (("feature", references.feature), ("latent", references.latent)):
        if found is not None:
            named |= {f"terms.{of}.centre": found.centre, f"terms.{of}.scale": found.scale}
    return named


def from_arrays(stored: Mapping[str, Doubles], names: Mapping[str, anomaly.Strange], chosen: str) -> References:
    """A calibration from the arrays of calibration.npz; ValueError for a score that isn't known as it is stored."""
    for name, strange in names.items():
        kind = anomaly.KINDS.get(name)
        if kind is None or kind.strange != strange:
            raise ValueError(f"there is no score {name} whose {strange} end is strange")
        wanted = {f"fitted.{name}.{key}": shape for key, shape in kind.fitted.items()}
        if wanted != {key: array.shape for key, array in stored.items() if key.startswith(f"fitted.{name}.")}:
            raise ValueError(f"what was fitted for {name} is not {', '.join(wanted) or 'nothing'}")
    return References(
        {name: fit(stored[_stored(name)], strange) for name, strange in names.items()},
        {
            n: {key: stored[f"fitted.{n}.{key}"] for key in anomaly.KINDS[n].fitted}
            for n in names
            if anomaly.KINDS[n].fitted
        },
        _spread(stored, "feature"),
        _spread(stored, "latent"),
        chosen,
    )


def _stored(name: str) -> str:
    """What a score's reference is called in calibration.npz."""
    return "scores" if name == "elbo" else f"scores.{name}"


def _spread(stored: Mapping[str, Doubles], of: str) -> Spread | None:
    if f"terms.{of}.centre" not in stored:
        return None
    return Spread(stored[f"terms.{of}.centre"], stored[f"terms.{of}.scale"])

"""Calibration: where a score stands among the scores of held-out rows. Pure NumPy; knows nothing of models.

Conformal p-values (Bates et al. 2023, Testing for outliers with conformal p-values): for a row exchangeable with
the n reference rows, P(p ≤ α) ≤ α exactly, whatever the model. A calibration belongs to one estimator (the graph,
the noise bank and so the number of draws); with another it is about another number.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Reference:
    """The scores of n held-out rows, ascending, (n,) float64, in nats."""

    scores: Doubles

    @property
    def smallest_p(self) -> float:
        """The least p-value that n reference rows can give."""
        return 1.0 / (len(self.scores) + 1)


def fit(scores: Doubles) -> Reference:
    """A reference from the scores of held-out rows; a score that isn't a number is refused."""
    if len(scores) == 0 or np.isnan(scores).any():
        raise ValueError("a calibration needs at least one held-out row, and a score for each")
    return Reference(np.sort(np.asarray(scores, np.float64)))


def p_values(reference: Reference, scores: Doubles) -> Doubles:
    """p = (1 + #{reference ≤ score}) / (n + 1); small for rows less likely than the held-out ones; NaN for NaN.

    >>> p_values(fit(np.array([1.0, 2.0, 3.0])), np.array([-9.0, 2.0, np.nan]))
    array([0.25, 0.75,  nan])
    """
    below = np.searchsorted(reference.scores, scores, side="right")
    p = (1.0 + below) / (len(reference.scores) + 1)
    return np.asarray(np.where(np.isnan(scores), np.nan, p), np.float64)


def threshold(reference: Reference, alpha: float) -> float:
    """Rows that score strictly below this have p ≤ alpha; −inf where n is too small for any to have.

    >>> threshold(fit(np.arange(1.0, 100.0)), 0.05)
    5.0
    """
    rank = int(np.floor(alpha * (len(reference.scores) + 1) + 1e-9))
    return float(reference.scores[rank - 1]) if rank >= 1 else -np.inf

"""Conformal p-values: exact laws, whatever the scores' distribution."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from service import calibration


@pytest.mark.parametrize("shape", ["normal", "cauchy", "discrete"])
@pytest.mark.parametrize("n", [9, 99, 500])
def test_p_values_of_exchangeable_rows_are_super_uniform(shape: str, n: int) -> None:
    """P(p ≤ α) ≤ α over calibrations and rows, with equality but for ties where α(n+1) is whole."""
    g = np.random.default_rng(n)

    def draw(size: int) -> calibration.Doubles:
        if shape == "discrete":
            return g.integers(0, 5, size).astype(np.float64)
        return g.normal(size=size) if shape == "normal" else g.standard_cauchy(size)

    p = np.array([calibration.p_values(calibration.fit(draw(n)), draw(1))[0] for _ in range(4000)])
    for alpha in (0.1, 0.5):
        below = int((p <= alpha + 1e-12).sum())
        assert stats.binomtest(below, len(p), alpha, alternative="greater").pvalue > 1e-4
        if shape != "discrete":
            exact = np.floor(alpha * (n + 1) + 1e-9) / (n + 1)
            assert stats.binomtest(below, len(p), exact).pvalue > 1e-4


def test_the_realised_false_alarm_rate_is_beta_distributed() -> None:
    """With one calibration set, the rate at level α is Beta(⌊(n+1)α⌋, n+1−⌊(n+1)α⌋) (Bates et al. 2023)."""
    g = np.random.default_rng(0)
    n, alpha = 199, 0.05
    rates = [stats.norm.cdf(calibration.threshold(calibration.fit(g.normal(size=n)), alpha)) for _ in range(800)]
    law = stats.beta(10, 190)
    assert stats.kstest(rates, law.cdf).pvalue > 1e-4


@given(
    arrays(np.float64, st.integers(1, 40), elements=st.floats(-1e6, 1e6)),
    st.floats(0.01, 0.99),
    st.floats(-1e6, 1e6),
)
def test_the_threshold_is_where_p_crosses_alpha(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], alpha: float, row: float
) -> None:
    """p ≤ α exactly for rows below the threshold."""
    reference = calibration.fit(scores)
    p = calibration.p_values(reference, np.array([row]))[0]
    if abs(p - alpha) > 1e-9:
        assert (p <= alpha) == (row < calibration.threshold(reference, alpha))
    assert p >= reference.smallest_p


def test_a_score_of_minus_infinity_is_as_unlikely_as_can_be_and_nan_says_nothing() -> None:
    """An overflowing row gets the smallest p; a score that isn't a number gets none."""
    reference = calibration.fit(np.arange(9.0))
    assert calibration.p_values(reference, np.array([-np.inf, np.nan]))[0] == 0.1
    assert np.isnan(calibration.p_values(reference, np.array([np.nan]))[0])


@pytest.mark.parametrize("scores", [[], [1.0, np.nan]])
def test_a_reference_is_made_of_numbers(scores: list[float]) -> None:
    """No rows, or a score that isn't a number, make no reference."""
    with pytest.raises(ValueError, match="held-out row"):
        calibration.fit(np.array(scores))

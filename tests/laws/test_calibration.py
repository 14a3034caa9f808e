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


@given(arrays(np.float64, st.integers(1, 40), elements=st.integers(-5, 5)), st.floats(0.01, 0.99))
def test_a_high_score_is_a_low_one_turned_round(
    scores: np.ndarray[tuple[int], np.dtype[np.float64]], alpha: float
) -> None:
    """The same p-values and thresholds for the scores' negatives, ties and all."""
    low, high = calibration.fit(-scores), calibration.fit(scores, "high")
    rows = np.arange(-6.0, 7.0)
    np.testing.assert_array_equal(calibration.p_values(low, -rows), calibration.p_values(high, rows))
    assert calibration.threshold(low, alpha) == -calibration.threshold(high, alpha)


@pytest.mark.parametrize("n", [1, 2, 20, 99])
@pytest.mark.parametrize("confidence", [0.9, 0.5])
def test_corrected_p_values_hold_for_the_calibration_set_at_hand(n: int, confidence: float) -> None:
    """P(for some α, P(p ≤ α | calibration set) > α) ≤ 1 − confidence; without correction it is nearly 1."""
    sets = np.sort(np.random.default_rng(n).random((4000, n)), axis=1)  # scores as their own chances, which is general
    p = np.arange(1, n + 1) / (n + 1)
    corrected = calibration.correct(p, n, confidence)
    # p is at most the i-th value exactly where a row's chance is below the i-th smallest reference chance
    broken = int((sets > corrected + 1e-12).any(1).sum())
    assert stats.binomtest(broken, len(sets), 1 - confidence, alternative="greater").pvalue > 1e-4
    if n > 2:
        assert (sets > p).any(1).mean() > 0.6


def test_a_correction_keeps_the_order_and_what_is_no_number() -> None:
    """Greater p-values stay greater, 1 stays 1, NaN stays NaN."""
    corrected = calibration.correct(np.append(np.arange(1, 101) / 100, np.nan), 99, 0.9)
    assert (np.diff(corrected[:-1]) >= 0).all()
    assert corrected[99] == 1
    assert np.isnan(corrected[-1])


@pytest.mark.parametrize("strange", [0, 10])
def test_the_false_discovery_rate_is_kept(strange: int) -> None:
    """The mean share of false ones among discoveries is ≤ q, over calibrations and batches of rows."""
    generator, q, shares = np.random.default_rng(strange), 0.2, []
    for _ in range(2500):
        reference = calibration.fit(generator.normal(size=199))
        rows = np.concatenate([generator.normal(size=30), generator.normal(-4, 1, size=strange)])
        flags = np.array(calibration.discoveries(calibration.p_values(reference, rows), q))
        shares.append(flags[:30].sum() / max(1, flags.sum()))
    assert stats.ttest_1samp(shares, q, alternative="greater").pvalue > 1e-4
    assert np.mean(shares) > 0.05  # it isn't kept by finding nothing


@given(arrays(np.float64, st.integers(1, 30), elements=st.floats(0.001, 1)), st.floats(0.01, 0.9))
def test_discoveries_are_benjamini_and_hochberg_s(p: np.ndarray[tuple[int], np.dtype[np.float64]], q: float) -> None:
    """As SciPy adjusts p-values: a discovery is one whose adjusted p is at most q."""
    adjusted = stats.false_discovery_control(p)
    flags = calibration.discoveries(p, q)
    for flag, value in zip(flags, adjusted, strict=True):
        if abs(value - q) > 1e-9:
            assert flag == (value <= q)


def test_the_fewest_discoveries_are_what_can_be_found() -> None:
    """With so many rows at the smallest p some are found, with one fewer none."""
    for rows, n, q in ((1000, 999, 0.1), (500, 99, 0.2), (40, 399, 0.05), (10, 1000, 0.1)):
        smallest = 1 / (n + 1)
        fewest = calibration.fewest_discoveries(rows, smallest, q)
        for count in (fewest - 1, fewest):
            p = np.ones(rows)
            p[: min(count, rows)] = smallest
            assert any(calibration.discoveries(p, q)) == (count == fewest and fewest <= rows and count > 0)
    n = calibration.fewest_references(1000, 0.1)
    assert [calibration.fewest_discoveries(1000, 1 / (n + 1 - less), 0.1) for less in (0, 1)] == [1, 2]


def test_a_spread_is_a_standard_deviation_where_terms_are_normal() -> None:
    """And greater deviations are stranger, at whichever end that is; what hardly varies is measured by 0.01 nats."""
    terms = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 2))
    for strange, sign in (("low", -1), ("high", 1)):
        found = calibration.spread(terms, strange)  # type: ignore[arg-type]  # a loop over the literals
        np.testing.assert_allclose(found.centre, 3, atol=0.15)
        np.testing.assert_allclose(found.scale, 2, rtol=0.1)
        away = calibration.deviations(found, np.array([[7.0, 3.0]]), strange)  # type: ignore[arg-type]
        np.testing.assert_allclose(away, [[sign * 2, 0]], atol=0.3)
    assert (calibration.spread(np.zeros((9, 2)), "low").scale == 0.01).all()


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

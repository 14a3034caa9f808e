"""Anomaly scores: their formulas against others', and that p-values of every one are super-uniform."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special, stats

from service import anomaly, calibration
from service.anomaly import Doubles, Statistics


def drawn(generator: np.random.Generator, rows: int) -> Statistics:
    """Statistics that depend on one another and are skewed, as a model's are."""
    size = generator.gamma(2.0, size=rows)
    log_likelihood = -50 - 20 * size + generator.normal(size=rows)
    kl = 3 + size + generator.exponential(size=rows)
    norms = size + 0.1 * generator.normal(size=rows), generator.lognormal(size=rows)
    return Statistics(log_likelihood - kl, log_likelihood, kl, generator.exponential(size=rows), *norms)


@pytest.mark.parametrize("name", anomaly.KINDS)
def test_p_values_of_every_score_are_super_uniform(name: str) -> None:
    """P(p ≤ α) ≤ α over validation rows, calibrations and rows, whatever was fitted on the validation rows."""
    generator = np.random.default_rng(1)
    n, p = 39, []
    for _ in range(1000):
        fitted = anomaly.fit(drawn(generator, 30))
        reference = calibration.fit(anomaly.values(drawn(generator, n), fitted)[name], anomaly.KINDS[name].strange)
        p.append(calibration.p_values(reference, anomaly.values(drawn(generator, 1), fitted)[name])[0])
    for alpha in (0.1, 0.5):
        below = int((np.array(p) <= alpha + 1e-12).sum())
        assert stats.binomtest(below, len(p), alpha).pvalue > 1e-4  # α (n+1) is whole, so it is α exactly


def test_the_density_of_states_is_a_gaussian_s() -> None:
    """log N(s; m, C) as SciPy has it, with the covariance that the whitening stands for."""
    found = drawn(np.random.default_rng(0), 300)
    fitted = anomaly.fit(found)["density_of_states"]
    states = np.stack(found.states or (), axis=-1)
    inverse = np.linalg.inv(fitted["whitening"])
    law = stats.multivariate_normal(states.mean(0), inverse @ inverse.T)
    got = anomaly.values(found, {"density_of_states": fitted})["density_of_states"]
    np.testing.assert_allclose(got, law.logpdf(states), rtol=1e-9)
    plain = stats.multivariate_normal(states.mean(0), np.cov(states.T, bias=True)).logpdf(states)
    assert np.corrcoef(got, plain)[0, 1] > 0.95  # 300 rows shrink the covariance a little


@pytest.mark.parametrize("rows", [2, 3, 5])
def test_few_or_equal_rows_still_have_a_density(rows: int) -> None:
    """Where rows are fewer than statistics, or one never varies, the covariance is shrunk until it has an inverse."""
    found = drawn(np.random.default_rng(rows), rows)
    flat = Statistics(found.elbo, found.log_likelihood, found.kl, found.iwae_gap, np.ones(rows), np.ones(rows))
    for typical in (found, flat):
        scores = anomaly.values(typical, anomaly.fit(typical))
        assert np.isfinite(scores["density_of_states"]).all()


def test_the_iwae_gap_is_jensen_s() -> None:
    """log Σ a w − Σ a log w with any weights, without overflow, and 0 where all draws weigh the same."""
    generator = np.random.default_rng(0)
    log_weight = generator.normal(size=(50, 16)) * 30 - 4000
    weights = generator.dirichlet(np.ones(16))
    wanted = special.logsumexp(log_weight, b=weights, axis=-1) - log_weight @ weights
    np.testing.assert_allclose(anomaly.iwae_gap(log_weight, weights), wanted, rtol=1e-9)
    np.testing.assert_allclose(anomaly.iwae_gap(np.full((1, 16), -7e5), weights), 0, atol=1e-12)


def test_a_gap_below_what_doubles_can_show_makes_no_row_typical() -> None:
    """At −1e66 nats all draws weigh the same to a double: no gap is given, and the row is as strange as can be."""
    far = np.array([[-1e66] * 16, [-1e66] * 8 + [-2e66] * 8, [-40.0] * 16])
    gap = anomaly.iwae_gap(far, np.full(16, 1 / 16))
    assert np.isnan(gap[0])
    assert gap[1] > 1e65
    assert gap[2] == 0
    reference = calibration.fit(np.arange(1.0, 20.0), "high")
    elbo = far.mean(-1)
    values = anomaly.values(Statistics(elbo, elbo, np.zeros(3), gap), {})
    assert calibration.p_values(reference, values["iwae_gap"]).tolist() == [0.05, 0.05, 1.0]


def test_a_row_s_scores_do_not_depend_on_its_neighbours() -> None:
    """To the last bit, for any rows beside it and any number of them."""
    generator = np.random.default_rng(2)
    found, log_weight, vectors = drawn(generator, 67), generator.normal(size=(67, 18)), generator.normal(size=(67, 5))
    fitted = anomaly.fit(found)

    def scores(places: np.ndarray[tuple[int], np.dtype[np.int64]]) -> dict[str, Doubles]:
        values = anomaly.values(anomaly.picked(found, places), fitted)
        gap = anomaly.iwae_gap(log_weight[places], np.full(18, 1 / 18))
        return {**values, "gap": gap, "norm": anomaly.norm(vectors[places])}

    together = scores(np.arange(67))
    for count in (1, 2, 7, 33):
        places = generator.integers(0, 67, count)
        for name, values in scores(places).items():
            np.testing.assert_array_equal(values, together[name][places])


def test_a_row_without_likelihood_is_as_strange_as_can_be() -> None:
    """elbo −inf: by every score that has no number for it the p-value is the least there is; NaN stays NaN."""
    found = drawn(np.random.default_rng(3), 50)
    fitted = anomaly.fit(found)
    lost, unknown = np.array([-np.inf]), np.array([np.nan])
    rows = Statistics(lost, lost, np.array([5.0]), unknown, np.array([1.0]), np.array([1.0]))
    references = {n: calibration.fit(v, anomaly.KINDS[n].strange) for n, v in anomaly.values(found, fitted).items()}
    for name, value in anomaly.values(rows, fitted).items():
        p = calibration.p_values(references[name], value)[0]
        assert p == 1 / 51 or name == "kl"  # whose value is a number
    nothing = Statistics(unknown, unknown, unknown, unknown, unknown, unknown)
    for name, value in anomaly.values(nothing, fitted).items():
        assert np.isnan(calibration.p_values(references[name], value)).all()

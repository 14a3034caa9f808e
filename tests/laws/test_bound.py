"""The bound against exact truth: a linear-Gaussian VAE, whose ELBO and evidence have closed forms, in float64."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from service import noise, scoring
from service.scoring import Doubles


@dataclass(frozen=True)
class LinearGaussian:
    """z ~ N(0, I_d), x|z ~ N(Wz + b, s²I_D), and q = N(m, diag v) for one x; Tipping & Bishop 1999."""

    W: Doubles
    b: Doubles
    s: float
    x: Doubles
    m: Doubles
    v: Doubles

    @property
    def kl(self) -> float:
        """KL(q ‖ p(z))."""
        return float(0.5 * np.sum(self.v + self.m**2 - 1 - np.log(self.v)))

    @property
    def log_likelihood(self) -> float:
        """E_q[log p(x|z)], exact."""
        D = len(self.x)
        r = self.x - self.b - self.W @ self.m
        spread = np.sum(self.v * np.sum(self.W**2, 0))
        return float(-D / 2 * np.log(2 * np.pi * self.s**2) - (r @ r + spread) / (2 * self.s**2))

    @property
    def evidence(self) -> float:
        """log p(x), exact."""
        covariance = self.W @ self.W.T + self.s**2 * np.eye(len(self.x))
        return float(stats.multivariate_normal(self.b, covariance).logpdf(self.x))

    def at(self, epsilon: Doubles) -> Doubles:
        """log p(x|z) at z = m + √v·ε; (draws,)."""
        z = self.m + np.sqrt(self.v) * epsilon
        return np.asarray(np.sum(stats.norm.logpdf(self.x, z @ self.W.T + self.b, self.s), -1))


def model(d: int, D: int = 12, seed: int = 0, off: float = 0.0) -> LinearGaussian:
    """A random model, a row from it, and the best diagonal q, moved away from it by `off` of its scales."""
    g = np.random.default_rng([seed, d])
    W, b, s = g.normal(size=(D, d)) / np.sqrt(d), g.normal(size=D), 0.7
    x = W @ g.normal(size=d) + b + s * g.normal(size=D)
    M = W.T @ W + s**2 * np.eye(d)
    v = s**2 / np.diag(M)
    m = np.linalg.solve(M, W.T @ (x - b))
    return LinearGaussian(W, b, s, x, m + off * np.sqrt(v), v)


def score(truth: LinearGaussian, seed: int, draws: int) -> scoring.Bound:
    """The row's bound, with the noise bank of a seed."""
    bank = noise.bank(seed, draws, len(truth.m))
    return scoring.bound(truth.at(bank.noise.astype(np.float64))[None], np.array([truth.kl]), bank)


CASES = [(1, 16, 0.0), (2, 16, 0.0), (8, 16, 0.0), (8, 64, 0.5), (2, 18, 0.5), (2, 8, 0.0), (4, 37, 1.0)]


@pytest.mark.parametrize(("d", "draws", "off"), CASES)
def test_the_bound_is_unbiased_and_its_interval_covers(d: int, draws: int, off: float) -> None:
    """Over noise banks the mean is exact, and a 95 % t-interval holds the truth as often as it says, or more."""
    truth = model(d, off=off)
    exact = truth.log_likelihood - truth.kl
    found = [score(truth, seed, draws) for seed in range(300)]
    elbo = np.array([bound.elbo[0] for bound in found])
    error = np.array([bound.error[0] for bound in found])
    assert stats.ttest_1samp(elbo, exact).pvalue > 1e-4
    held = np.abs(elbo - exact) <= stats.t.ppf(0.975, found[0].error_df) * error
    # Few plain draws of a skewed quantity cover a little less than a t-interval promises.
    promised = 0.95 if draws >= noise.FEWEST_FRAMED else 0.92
    assert stats.binomtest(int(held.sum()), len(held), promised, alternative="less").pvalue > 1e-4


@pytest.mark.parametrize(("d", "draws", "times"), [(2, 16, 1.5), (2, 64, 4), (8, 16, 2.5), (8, 64, 8), (32, 64, 3)])
def test_a_bank_beats_plain_draws(d: int, draws: int, times: float) -> None:
    """At equal decoder calls the variance is so many times smaller than with independent draws, beyond chance.

    This decoder has strong interactions between latents, which is the hard case; the F-test allows for 200 seeds.
    """
    truth = model(d, D=30)
    count = 200
    framed = np.var([score(truth, seed, draws).elbo[0] for seed in range(count)], ddof=1)
    g = np.random.default_rng(1)
    plain = np.var(truth.at(g.normal(size=(20_000, d))), ddof=1) / draws
    assert stats.chi2.sf((count - 1) * framed * times / plain, count - 1) > 1e-4


@pytest.mark.parametrize("d", [1, 2, 8])
def test_what_is_left_over_is_the_gap(d: int) -> None:
    """log p(x) − ELBO = KL(q(z|x) ‖ p(z|x)) ≥ 0, and the gap grows by ½‖off‖² weighted by the posterior precision."""
    near, far = model(d), model(d, off=1.0)
    M = (near.W.T @ near.W + near.s**2 * np.eye(d)) / near.s**2  # the posterior's precision
    shift = far.m - near.m
    gaps = [truth.evidence - (truth.log_likelihood - truth.kl) for truth in (near, far)]
    assert gaps[0] > -1e-12
    assert gaps[1] - gaps[0] == pytest.approx(0.5 * shift @ M @ shift, rel=1e-9)


def test_one_draw_has_no_error_and_says_so() -> None:
    """With a single draw the error can't be estimated: NaN with 0 degrees of freedom, not 0."""
    found = score(model(2), 0, 1)
    assert np.isnan(found.error[0])
    assert found.error_df == 0


@pytest.mark.parametrize("draws", [1, 2, 15, 16, 17, 18, 64, 100])
def test_elbo_is_its_two_terms_as_doubles(draws: int) -> None:
    """elbo == log_likelihood − kl to the last bit, and the weights of the draws give the same mean."""
    truth = model(3)
    bank = noise.bank(5, draws, 3)
    values = truth.at(bank.noise.astype(np.float64))
    found = score(truth, 5, draws)
    assert found.elbo[0] == found.log_likelihood[0] - found.kl[0]
    assert bank.weights.sum() == pytest.approx(1, abs=1e-14)
    assert found.log_likelihood[0] == pytest.approx(bank.weights @ values, rel=1e-13)


@pytest.mark.parametrize("draws", [1, 7, 16, 18, 64])
def test_a_rows_bound_does_not_depend_on_its_place(draws: int) -> None:
    """The same to the last bit, alone or anywhere among others."""
    bank = noise.bank(0, draws, 2)
    values = np.random.default_rng(0).normal(-800, 30, (257, draws))
    kl = np.random.default_rng(1).gamma(3, size=257)
    together = scoring.bound(values, kl, bank)
    for index in (0, 1, 100, 255, 256):
        alone = scoring.bound(values[index : index + 1].copy(), kl[index : index + 1], bank)
        assert alone.elbo[0] == together.elbo[index]
        assert np.array_equal(alone.error[0], together.error[index], equal_nan=True)


def test_an_error_below_what_doubles_can_show_is_not_given() -> None:
    """Group means that are equal since doubles near −1e66 can't differ by less say nothing of their error."""
    means = np.array([[-1e66] * 4, [-1e66, -2e66, -1e66, -2e66], [0.0] * 4, [-np.inf] * 4, [-1.0, -2.0, -1.0, -2.0]])
    error = scoring.standard_error(means)
    assert np.isnan(error[[0, 3]]).all()
    np.testing.assert_allclose(error[[1, 2, 4]], [np.sqrt(1 / 12) * 1e66, 0.0, np.sqrt(1 / 12)])

"""Laws of every family: normalised, exact far out, with the mean it states, and drawn from as it says, twice."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any, cast

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest
import torch
from scipy import special, stats

from service import families, noise
from service.artifact import FAMILIES, Manifest
from tests.laws.families import BINOMIAL, CASES, INFLATED, ORDINAL, POISSON, STUDENT, Case, Doubles, one
from training.likelihoods import NegativeBinomial
from training.likelihoods.base import halves, lgamma, log1p, softplus

DRAWS = 20_000


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    """Each of the cases."""
    return CASES[request.param]


def test_no_family_is_left_out() -> None:
    """Each family of the manifest has a case, and says there what it says in torch."""
    assert {case.likelihood.family for case in CASES.values()} == set(FAMILIES)
    for case in CASES.values():
        likelihood = case.likelihood
        stated = (likelihood.base_measure, likelihood.support.kind, list(likelihood.parameter_names))
        assert stated == tuple(FAMILIES[likelihood.family])  # type: ignore[index]  # one of the names
        assert set(case.parameters) == set(likelihood.parameter_names)


def test_it_sums_or_integrates_to_one(case: Case) -> None:
    """Over all levels, over counts to where nothing is left, or over the reals."""
    assert case.expectation(np.ones_like) == pytest.approx(1, abs=2e-9)


def test_its_mean_is_its_expectation(case: Case) -> None:
    """`mean` is Σ x P(x) or ∫ x p(x) dx."""
    expected = case.expectation(lambda x: x)
    assert case.mean() == pytest.approx(expected, rel=2e-6, abs=1e-9)


def test_its_draws_follow_it(case: Case) -> None:
    """Torch's draws and the service's are both on the support, and a test of each against exp(log_prob) is passed."""
    for draws in (case.draws(DRAWS, 5), served(case, DRAWS, 6)):
        assert not case.likelihood.support.off(draws).any()
        assert p_value(case, draws) > 1e-3


def served(case: Case, count: int, seed: int) -> Doubles:
    """The service's draws at a case's parameters, as its decoder would give them."""
    manifest = manifest_of(case)
    each = {name: np.repeat(value.numpy(), count, 0) for name, value in case.parameters.items()}
    return np.asarray(families.draw(manifest, each, noise.generator(seed)), np.float64)


def manifest_of(case: Case) -> Manifest:
    """What a draw needs of a manifest."""
    likelihood = case.likelihood
    fields = {"family": likelihood.family, "support": likelihood.support, "blocks": None, "event_dtype": "float64"}
    return cast(Manifest, SimpleNamespace(**fields))


def p_value(case: Case, draws: Doubles) -> float:
    """Of a chi-square test over the values, or over the pieces of a quadrature."""
    if case.likelihood.base_measure == "lebesgue":
        edges, mass = case.pieces()
    else:
        values = case.values()
        mass, edges = np.exp(case.log_prob(values)), np.append(values, values[-1] + 0.5) - 1e-9
    return _chi_square(np.histogram(draws, edges)[0], mass * len(draws))


def _chi_square(found: Any, expected: Doubles) -> float:
    """Neighbouring values are taken together until 8 draws are expected of each."""
    bins = np.minimum(np.cumsum(expected) // 8, expected.sum() // 8 - 1).astype(int)
    grouped, wanted = np.bincount(bins, found), np.bincount(bins, expected)
    grouped, wanted = grouped[wanted > 0], wanted[wanted > 0]
    if len(wanted) < 2:
        return 1.0 if (found[expected < 1e-12] == 0).all() else 0.0
    return float(stats.chisquare(grouped, wanted * grouped.sum() / wanted.sum()).pvalue)


def test_a_rows_draw_does_not_depend_on_the_rows_after_it(case: Case) -> None:
    """The first of many draws are those that a shorter request is given."""
    assert (served(case, 50, 7)[:20] == served(case, 20, 7)).all()


def test_gradients_are_finite_however_absurd_the_row(case: Case) -> None:
    """At the ends of the support the log-likelihood and its gradient are numbers, so training can come back."""
    ends: dict[str, list[float]] = {
        "real": [-1e9, 1e9],
        "positive": [1e-300, 1e300],
        "counts": [0.0, 1e7],
        "unit": [0, 1],
    }
    support = case.likelihood.support
    x = ends.get(support.kind) or list(support.levels[:2])
    parameters = {name: value.clone().requires_grad_() for name, value in case.parameters.items()}
    log_prob = case.likelihood.log_prob(torch.tensor(x, dtype=torch.float64).unsqueeze(-1), parameters)
    assert torch.isfinite(log_prob).all()
    learned = [value for name, value in parameters.items() if name != "knots"]  # those are the fitted rows'
    for gradient in torch.autograd.grad(log_prob.sum(), learned):
        assert torch.isfinite(gradient).all()


def test_log_gamma_holds_to_counts_of_a_million() -> None:
    """Within 3e-11 up to 1e4 and 1e-8 up to 1e6, against 40 digits."""
    for low, high, within in ((-3, 4, 4e-11), (4, 6, 1e-8)):
        y = np.logspace(low, high, 400)
        exact = np.array([float(mpmath.loggamma(mpmath.mpf(value))) for value in y])
        assert np.abs(lgamma(torch.from_numpy(y)).numpy() - exact).max() < within


def test_small_and_large_arguments_keep_their_digits() -> None:
    """log1p at 1e-18 and softplus at ±800, where a plain log(1 + u) has nothing left."""
    u = torch.from_numpy(np.logspace(-300, 300, 500))
    np.testing.assert_allclose(log1p(u), np.log1p(u.numpy()), rtol=4e-16)
    a = torch.from_numpy(np.linspace(-700, 800, 1501))
    np.testing.assert_allclose(softplus(a), np.logaddexp(0, a.numpy()), rtol=4e-16)
    assert halves(torch.ones(3, 5, dtype=torch.float64)).tolist() == [5.0] * 3


def test_counts_agree_with_scipy() -> None:
    """Poisson and negative binomial, to 1e-9 of log P, at counts to 2e4 and far in their tails."""
    x = np.array([0, 1, 2, 7, 100, 2_000, 20_000], np.float64)
    for rate in (1e-4, 0.5, 30.0, 2e4):
        found = Case(POISSON, one(rate=rate)).log_prob(x)
        np.testing.assert_allclose(found, stats.poisson.logpmf(x, rate), rtol=1e-9, atol=1e-9)
        for theta in (1e-3, 0.3, 12.0, 1e4):
            found = Case(BINOMIAL, one(rate=rate, concentration=theta)).log_prob(x)
            exact = special.gammaln(x + theta) - special.gammaln(theta) - special.gammaln(x + 1)
            exact += special.xlog1py(-theta, rate / theta) - special.xlog1py(x, theta / rate)
            np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9)


def test_the_negative_binomial_tends_to_the_poisson() -> None:
    """At θ = 1e6 it holds to 60 digits' arithmetic within 2e-8 nats, where float32 has 9 % of mass too much."""
    for x, rate in itertools.product((0, 3, 200, 20_000), (0.1, 5.0, 2e4)):
        with mpmath.workdps(60):
            theta, mu = mpmath.mpf(10) ** 6, mpmath.mpf(rate)
            exact = mpmath.loggamma(x + theta) - mpmath.loggamma(theta) - mpmath.loggamma(x + 1)
            exact += theta * mpmath.log(theta / (theta + mu)) + x * mpmath.log(mu / (theta + mu))
        found = Case(BINOMIAL, one(rate=rate, concentration=1e6)).log_prob([float(x)])[0]
        assert found == pytest.approx(float(exact), abs=2e-8, rel=1e-12)


def test_zeros_are_a_mixture_of_two() -> None:
    """log P(0) = log(π + (1 − π) NB(0)), also where either is e^−700 of the other."""
    for logits, rate in itertools.product((-700.0, -30.0, 0.0, 30.0, 700.0), (0.1, 1e3)):
        parameters = one(rate=rate, concentration=0.7, inflation_logits=logits)
        plain = Case(BINOMIAL, one(rate=rate, concentration=0.7)).log_prob([0.0, 4.0])
        inflated, counted = -np.logaddexp(0, -logits), -np.logaddexp(0, logits)
        found = Case(INFLATED, parameters).log_prob([0.0, 4.0])
        assert found == pytest.approx([np.logaddexp(inflated, counted + plain[0]), counted + plain[1]], rel=1e-13)


def test_heavy_tails_agree_with_scipy() -> None:
    """Student's t to 1e-10 at a billion scales from its middle, and from 2.05 degrees of freedom to 200."""
    x = np.array([0.0, 0.1, -3.0, 50.0, -1e5, 1e9])
    for df in (2.05, 7.0, 200.0):
        found = Case(STUDENT, one(loc=0.5, scale=0.2, df=df)).log_prob(x)
        np.testing.assert_allclose(found, stats.t.logpdf(x, df, 0.5, 0.2), rtol=1e-10)


def test_the_ordinal_is_exact_in_its_tails() -> None:
    """It agrees with 60-digit arithmetic where a difference of sigmoids has nothing left, to −800 nats."""
    cuts = [-2.0, -1.5, 0.0, 0.001, 2.0, 4.0]
    for loc, (place, x) in itertools.product(
        (-800.0, -3.0, 0.0, 60.0, 800.0), enumerate((-1, -0.5, 0, 0.5, 1, 1.5, 2))
    ):
        with mpmath.workdps(800):
            edges = [mpmath.mpf("-inf"), *map(mpmath.mpf, cuts), mpmath.mpf("inf")]
            upper, lower = (1 / (1 + mpmath.exp(-(edges[place + i] - loc))) for i in (1, 0))
            exact = float(mpmath.log(upper - lower))
        found = Case(ORDINAL, one(loc=loc, cutpoints=cuts)).log_prob([x])[0]
        assert found == pytest.approx(exact, rel=1e-10, abs=1e-12), (loc, x)


def test_a_concentration_begins_where_the_rows_have_it() -> None:
    """mean + mean²/θ is the variance of the fitted rows; at rows that vary less, θ is large and still a number."""
    rows = np.random.default_rng(0).negative_binomial(40, 0.3, (5_000, 1)).astype(np.float64)
    theta = NegativeBinomial(rows).parameters_of(torch.zeros(1, 1, 1))["concentration"].item()
    assert rows.mean() + rows.mean() ** 2 / theta == pytest.approx(rows.var(), rel=1e-4)
    assert (
        1e4 < NegativeBinomial(np.full((9, 1), 3.0)).parameters_of(torch.zeros(1, 1, 1))["concentration"].item() < 1e6
    )


@pytest.mark.parametrize("far", [1e155, 1e300, -1e308])
def test_a_value_whose_square_overflows_is_the_least_likely_of_all(far: float) -> None:
    """Student's t gives −∞, as the Normal does: the least score there is, and not one that is no number."""
    assert Case(STUDENT, one(loc=0.0, scale=1.0, df=4.0)).log_prob([far])[0] == -np.inf

"""The evidence against exact truth: linear-Gaussian VAEs and factor analysis, and posteriors that aren't normal."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from benchmarks.linear import Linear, made
from service import evidence
from service.evidence import Estimate, Plan, tails
from service.evidence.estimate import certified, controlled, log_mean
from service.evidence.proposal import Doubles, Normal, Proposal, Singles, transposed
from service.evidence.search import adapt

CASES = {
    "good": {},
    "narrow": {"stretch": 0.5, "shift": 1.0},
    "wide": {"stretch": 2.0, "shift": 0.5},
    "sharp": {"noise": 0.1},
    "factors": {"noise": (0.2, 1.5), "stretch": 0.7, "shift": 0.5},
}


def planned(draws: int, latent_size: int, seed: int = 0) -> Plan:
    """How so many calls are spent where the bound takes 16 of them."""
    plan = evidence.plan(draws, 16, seed, latent_size)
    assert plan is not None
    return plan


def estimated(model: Linear, x: Doubles, seed: int = 0, draws: int = 4096) -> Estimate:
    """The evidence of rows under a linear model, whose own numbers are made row by row."""
    d = model.W.shape[1]
    mean = np.concatenate([model.mean(row[None]) for row in x])
    scale = np.broadcast_to(model.scale, (len(x), d))

    def joint(z: Singles) -> Doubles:
        return np.concatenate([model.joint(row[None], at[None]) for row, at in zip(x, z, strict=True)])

    return evidence.evaluate(joint, mean, scale, planned(draws, d, seed))


@pytest.mark.parametrize("d", [1, 2, 8, 16])
@pytest.mark.parametrize("case", CASES)
def test_the_evidence_is_within_a_fiftieth_of_a_nat_of_exact(d: int, case: str) -> None:
    """For a good q and for bad ones, and the error says how near."""
    model = made(d, **CASES[case])  # type: ignore[arg-type]
    x = model.sample(4, 5)
    found = estimated(model, x)
    off = found.log_evidence - model.evidence(x)
    assert found.reliable.all()
    assert np.abs(off).max() < 0.02
    assert (np.abs(off) < 3 * evidence.widening(found.groups - 1) * found.error + 1e-6).all()
    assert (found.lower_bound < model.evidence(x)).all()
    assert (found.lower_bound > model.evidence(x) - 0.5).all()


def test_the_evidence_of_32_latents_too() -> None:
    """The whole quadratic has 561 coefficients then."""
    model = made(32, stretch=0.6, shift=0.7)
    x = model.sample(2, 5)
    found = estimated(model, x)
    assert found.reliable.all()
    assert np.abs(found.log_evidence - model.evidence(x)).max() < 0.02


def test_many_latents_are_answered_and_flagged() -> None:
    """With 70 latents and a bad q the draws are too few, and the row says so; the bound holds all the same."""
    model = made(70, D=96, stretch=2.0, shift=0.5)
    x = model.sample(1, 5)
    found = estimated(model, x, draws=1024)
    assert not found.reliable.any()
    assert np.isnan(found.error).all()
    assert (found.lower_bound < model.evidence(x)).all()


# ---------------------------------------------------------------- the parts


def from_q(model: Linear, x: Doubles, draws: int, seed: int) -> Doubles:
    """Log weights of plain draws from q, (rows, draws)."""
    m, s = model.mean(x), model.scale
    epsilon = np.random.default_rng(seed).standard_normal((draws, len(s)))
    z = m[:, None] + s * epsilon
    return np.asarray(model.joint(x, z) - np.sum(stats.norm.logpdf(z, m[:, None], s), -1))


@pytest.mark.parametrize("d", [2, 8])
def test_a_q_whose_weights_have_no_variance_is_found_out_and_overcome(d: int) -> None:
    """2Λ − V⁻¹ not positive definite: k̂ of q's own draws is past 0.7; the adapted proposal's is not."""
    model = made(d, stretch=0.4, shift=0.5)
    x = model.sample(6, 2)
    A = 2 * model.precision - np.diag(1 / model.scale**2)
    assert np.linalg.eigvalsh(A).min() < 0
    plain = evidence.estimate(from_q(model, x, 2448, 3), 16, 0.95)
    assert (plain.pareto_k > 0.7).all()
    assert not plain.reliable.any()
    assert np.isnan(plain.error).all()
    adapted = estimated(model, x)
    assert adapted.reliable.all()
    assert np.abs(adapted.log_evidence - model.evidence(x)).max() < 0.02


@pytest.mark.parametrize("k", [-0.4, 0.1, 0.5, 0.8, 1.2])
def test_the_tails_shape_is_told(k: float) -> None:
    """k̂ of weights whose tail is a Pareto's, over repetitions: near k, drawn to 0.5 by the prior of ten draws."""
    size = 10_000
    weights = stats.genpareto.rvs(k, size=(40, size), random_state=np.random.default_rng(1))
    _, found = tails.smooth(np.log(weights))
    n = tails.tail_size(size)
    expected = (n * k + 5.0) / (n + 10.0)
    assert stats.ttest_1samp(found, expected).pvalue > 1e-3 or abs(found.mean() - expected) < 0.03


def test_smoothing_keeps_what_is_not_the_tail() -> None:
    """The tail's weights become quantiles, rising and none above the largest; the others are as they were."""
    weights = np.random.default_rng(2).standard_normal((3, 1000))
    smoothed, _ = tails.smooth(weights)
    ordered = np.sort(weights, -1)
    size = tails.tail_size(1000)
    assert_array_equal(smoothed[:, :-size], ordered[:, :-size])
    assert (np.diff(smoothed[:, -size:]) >= 0).all()
    assert (smoothed <= ordered[:, -1:]).all()
    assert_allclose(smoothed[:, -size:-10], ordered[:, -size:-10], atol=0.3)


def test_equal_weights_have_no_tail() -> None:
    """All draws count, the estimate is exact, and it is reliable."""
    found = evidence.estimate(np.full((1, 160), -3.0), 16, 0.95)
    assert_allclose(found.log_evidence, -3.0, atol=1e-15)
    assert_allclose(found.effective_draws, 160.0)
    assert found.reliable.all()


def test_where_p_is_a_mixture_of_the_parts_the_estimate_is_exact() -> None:
    """Control variates: each part's density integrates to one, and that is known."""
    parts = (Normal(np.zeros((1, 2)), np.ones((1, 2))), Normal(np.ones((1, 2)), np.full((1, 2), 0.5)))
    proposal = Proposal(parts, np.array([[0.3, 0.7]]))
    plan = planned(600, 2)
    z = transposed(proposal.draw(*plan.estimate()))
    pieces = proposal.log_parts(z)
    density = proposal.log_density(z)
    weights = np.log(0.9 * np.exp(pieces[:, 0]) / 0.3 + 2.1 * np.exp(pieces[:, 1]) / 0.7) - density
    controls = np.exp(pieces[:, 1:] - density[:, None]) - 0.7
    found, error = controlled(weights, controls, plan.groups, log_mean(weights), np.ones(1))
    assert_allclose(found, math.log(3.0), atol=1e-5)
    assert error[0] < 1e-5


def test_the_raw_estimate_is_unbiased_given_its_proposal() -> None:
    """Fresh draws at the last stage: over their seeds the mean of p̂ is p(x)."""
    model = made(4, stretch=0.6, shift=1.0)
    x = model.sample(1, 3)
    process = adapt(model.mean(x), np.broadcast_to(model.scale, (1, 4)), planned(512, 4))
    proposal = evidence.driven(process, lambda z: model.joint(x, z))
    ratios = []
    for seed in range(100):
        plan = planned(512, 4, seed)
        draws = proposal.draw(*plan.estimate())
        weights = model.joint(x, draws) - proposal.log_density(transposed(draws))
        ratios.append(np.exp(log_mean(weights) - model.evidence(x))[0])
    assert stats.ttest_1samp(ratios, 1.0).pvalue > 1e-3
    assert np.std(ratios) < 0.1


@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_the_certified_bound_holds_as_often_as_it_says(confidence: float) -> None:
    """Over seeds, with a wide q, few draws, and weights whose variance is infinite: no theorem on means is needed."""
    model = made(2, stretch=0.35, shift=1.0)
    x = model.sample(1, 4)
    exact = model.evidence(x)
    means = [log_mean(from_q(model, x, 320, seed).reshape(1, 16, 20)) for seed in range(600)]
    broken = sum(bool((certified(mean, confidence) > exact).any()) for mean in means)
    assert stats.binomtest(broken, 600, 1 - confidence, alternative="greater").pvalue > 1e-3


def test_the_certified_bound_is_sharp_where_weights_are_bad() -> None:
    """At M = 1 a half of the worst case is reached: p̂ is 2p(x) every other time, and δ = 1/2 allows just that."""
    twice = np.array([[math.log(2.0)]])
    assert_allclose(certified(twice, 0.5), 0.0, atol=1e-15)


# ---------------------------------------------------------------- posteriors that aren't normal


def folded(d: int, width: float) -> tuple[Callable[[Singles], Doubles], float]:
    """x₁ ~ N(z₁², width²) and x_j ~ N(z_j, ¼): two modes, at ±√x₁; log p(x, z) of one row, and log p(x)."""
    x = np.array([4.0, *np.random.default_rng(1).normal(size=d - 1)])

    def joint(z: Singles) -> Doubles:
        first = stats.norm.logpdf(x[0], z[..., 0].astype(float) ** 2, width)
        rest = np.sum(stats.norm.logpdf(x[1:], z[..., 1:].astype(float), 0.5), -1)
        return np.asarray(first + rest + np.sum(stats.norm.logpdf(z.astype(float)), -1))

    grid = np.linspace(-8, 8, 100_001)
    integral = stats.norm.pdf(x[0], grid**2, width) * stats.norm.pdf(grid)
    rest = np.sum(stats.norm.logpdf(x[1:], 0.0, math.sqrt(1.25)))
    return joint, math.log(integral.sum() * (grid[1] - grid[0])) + float(rest)


@pytest.mark.parametrize("d", [2, 8])
@pytest.mark.parametrize("width", [0.1, 0.3])
def test_a_posterior_of_two_modes_is_found(d: int, width: float) -> None:
    """q lies between the two modes and reaches both, as a q that was fitted to both would."""
    joint, exact = folded(d, width)
    centre = np.array([0.0, *np.random.default_rng(1).normal(size=d - 1) / 1.25])
    scale = np.array([0.9, *np.full(d - 1, math.sqrt(0.2))])
    found = evidence.evaluate(joint, centre[None], scale[None], planned(4096, d))
    assert found.reliable.all()
    assert abs(found.log_evidence[0] - exact) < 0.02


def test_a_second_mode_that_q_does_not_reach_is_found_by_the_prior() -> None:
    """q sits on one of the two, which the textbook's estimate would never leave."""
    joint, exact = folded(2, 0.3)
    centre, scale = np.array([[2.0, 0.28]]), np.array([[0.075, 0.45]])
    found = evidence.evaluate(joint, centre, scale, planned(4096, 2))
    assert abs(found.log_evidence[0] - exact) < 0.02
    assert found.reliable.all()


# ---------------------------------------------------------------- rows that can't be scored, and rows' independence


def test_a_row_without_numbers_costs_the_others_nothing() -> None:
    """NaN, +∞, −∞ and −10³⁰⁰: flagged, without a warning, and beside them the same bits as alone."""
    model = made(3)
    x = model.sample(5, 6)
    bad = np.array([0.0, np.nan, np.inf, -np.inf, -1e300])
    mean = np.concatenate([model.mean(row[None]) for row in x])

    def joint(z: Singles) -> Doubles:
        each = [model.joint(row[None], at[None])[0] + worse for row, at, worse in zip(x, z, bad, strict=True)]
        return np.stack(each)

    found = evidence.evaluate(joint, mean, np.broadcast_to(model.scale, (5, 3)), planned(600, 3))
    assert found.reliable.tolist() == [True, False, False, False, False]
    assert np.isfinite(found.log_evidence).tolist() == [True, False, False, False, True]
    alone = estimated(model, x[:1], draws=600)
    assert_array_equal(found.log_evidence[:1], alone.log_evidence)


@pytest.mark.parametrize("d", [1, 2, 5, 12])
@pytest.mark.parametrize("steepness", [0.0, 1e3, 1e9, 1e15])
def test_no_shape_of_the_joint_fails_a_request(d: int, steepness: float) -> None:
    """Flat, a spike, a cliff, and a q that is no number: every row is answered, and the good one has its bits."""
    model = made(d)
    x = model.sample(1, 6)
    mean = np.concatenate([model.mean(x), *[np.full((1, d), value) for value in (0.3, 0.0, np.nan, 1e30)]])
    scale = np.concatenate([model.scale[None], *[np.full((1, d), value) for value in (1e-9, 1.0, np.inf, 1e-30)]])

    def joint(z: Singles) -> Doubles:
        wide = z.astype(float)
        spike, cliff = -steepness * np.abs(wide[1] - 0.3).sum(-1), np.where(wide[2, :, 0] > 2, 0.0, -steepness)
        flat = np.zeros(z.shape[1])
        return np.stack([model.joint(x, z[:1])[0], spike, cliff, flat, flat])

    with np.errstate(over="ignore"):
        found = evidence.evaluate(joint, mean, scale, planned(600, d))
    assert found.reliable[0]
    assert_array_equal(found.log_evidence[:1], estimated(model, x, draws=600).log_evidence)


@pytest.mark.parametrize(("d", "draws"), [(1, 600), (2, 4096), (5, 1000), (8, 700), (12, 2000), (33, 600)])
def test_a_rows_numbers_are_the_same_bits_in_any_company(d: int, draws: int) -> None:
    """Every field, alone, in pairs at odd offsets, and all together."""
    model = made(d, stretch=0.8, shift=0.3)
    x = model.sample(7, 8)
    together = estimated(model, x, draws=draws)
    for rows in (slice(0, 1), slice(3, 5), slice(6, 7)):
        some = estimated(model, x[rows], draws=draws)
        for name in ("log_evidence", "error", "lower_bound", "pareto_k", "effective_draws", "reliable"):
            assert_array_equal(getattr(some, name), getattr(together, name)[rows])


@pytest.mark.parametrize("draws", [512, 513, 1000, 4096, 16_384])
def test_every_call_is_accounted_for(draws: int) -> None:
    """The bound's, the stages' and the last stage's calls are as many as were asked for, to the last one."""
    plan = planned(draws, 3)
    seen: list[int] = []

    def joint(z: Singles) -> Doubles:
        seen.append(z.shape[1])
        return np.asarray(stats.norm.logpdf(z.astype(float)).sum(-1))

    evidence.evaluate(joint, np.zeros((1, 3)), np.ones((1, 3)), plan)
    assert plan.elbo + sum(seen) == plan.draws == draws
    assert seen == [*plan.stages, plan.last]

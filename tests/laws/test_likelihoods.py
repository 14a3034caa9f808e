"""Laws of the likelihoods: each is normalised, exact far out in its tails, and draws what it says it draws."""

from __future__ import annotations

import itertools

import mpmath  # type: ignore[import-untyped]  # comes with torch
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from training.config import Unusable
from training.likelihoods import (
    Bernoulli,
    DiscretisedLogistic,
    Likelihood,
    Normal,
    Parameters,
    QuantileNormal,
    softclip,
)

LEVELS = [(0.0, 1.0, 1.0), (0.0, 16.0, 1.0), (0.0, 255.0, 1.0), (-3.0, 3.0, 0.5)]
LOCS = [-1e6, -40.0, 0.0, 0.3, 7.5, 128.0, 254.9, 1e4]
SCALES = [0.02, 0.1, 0.5, 1.0, 7.0, 300.0, 1e4]


def double(value: float) -> torch.Tensor:
    """One number, (1,) float64."""
    return torch.tensor([value], dtype=torch.float64)


def grid(levels: tuple[float, float, float]) -> torch.Tensor:
    """All levels, (levels, 1)."""
    lowest, highest, step = levels
    return torch.arange(lowest, highest + step / 2, step, dtype=torch.float64).unsqueeze(-1)


@pytest.mark.parametrize("levels", LEVELS)
def test_the_discretised_logistic_sums_to_one(levels: tuple[float, float, float]) -> None:
    """Its mass over all levels is 1, wherever the location lies and however wide it is."""
    family, x = DiscretisedLogistic(levels), grid(levels)
    for loc, scale in itertools.product(LOCS, SCALES):
        mass = family.log_prob(x, {"loc": double(loc), "scale": double(scale)}).exp().sum()
        assert mass.item() == pytest.approx(1, abs=1e-10), (loc, scale)


def test_the_discretised_logistic_is_exact_in_its_tails() -> None:
    """It agrees with 60-digit arithmetic where a difference of sigmoids has nothing left, at −796 nats and beyond."""
    family = DiscretisedLogistic((0.0, 255.0, 1.0))
    for x, loc, scale in itertools.product((0.0, 1.0, 100.0, 254.0, 255.0), LOCS, SCALES):
        found = family.log_prob(double(x), {"loc": double(loc), "scale": double(scale)}).item()
        assert found == pytest.approx(_exact(x, loc, scale), rel=1e-10, abs=1e-12), (x, loc, scale)
    far = family.log_prob(double(240.0), {"loc": double(0.5), "scale": double(0.3)}).item()
    assert far < -796


def _exact(x: float, loc: float, scale: float) -> float:
    """log(σ(a) − σ(b)) on levels 0 … 255, in as many digits as it takes."""
    with mpmath.workdps(60):
        a, b = ((mpmath.mpf(x) + h - mpmath.mpf(loc)) / mpmath.mpf(scale) for h in (0.5, -0.5))
        if x == 0:
            return float(-mpmath.log1p(mpmath.exp(-a)))
        if x == 255:
            return float(-mpmath.log1p(mpmath.exp(b)))
        if a + b > 0:  # the same by symmetry, where there is something left to subtract
            a, b = -b, -a
        return float(
            mpmath.log(mpmath.exp(a) - mpmath.exp(b)) - mpmath.log1p(mpmath.exp(a)) - mpmath.log1p(mpmath.exp(b))
        )


def test_float32_parameters_cost_little() -> None:
    """With float32 parameters the sum over a picture stays within 5e-6 of Σ|terms| of float64."""
    family = DiscretisedLogistic((0.0, 255.0, 1.0))
    generator = torch.Generator().manual_seed(0)
    heads = 2 * torch.randn((64, 2, 784), generator=generator)
    x = torch.randint(0, 256, (64, 784), generator=generator).double()
    found = family.log_prob(x, family.parameters_of(heads))
    exact = family.log_prob(x, family.parameters_of(heads.double()))
    assert found.dtype == torch.float64
    assert ((found - exact).sum(-1).abs() <= 5e-6 * exact.abs().sum(-1)).all()


@pytest.mark.parametrize("levels", LEVELS)
def test_the_mean_of_the_discretised_logistic_is_its_expectation(levels: tuple[float, float, float]) -> None:
    """`mean` is Σ v·P(v), not the location, which may lie far outside the levels."""
    family, x = DiscretisedLogistic(levels), grid(levels)
    for loc, scale in itertools.product(LOCS, SCALES):
        parameters = {"loc": double(loc), "scale": double(scale)}
        expected = (x * family.log_prob(x, parameters).exp()).sum().item()
        assert family.mean(parameters).item() == pytest.approx(expected, abs=1e-8), (loc, scale)


@pytest.mark.parametrize("logit", [-800.0, -20.0, -1.0, 0.0, 3.0, 40.0, 800.0])
def test_the_bernoulli_sums_to_one(logit: float) -> None:
    """P(0) + P(1) = 1, the mean is P(1), and certainty is never −inf."""
    family, parameters = Bernoulli(), {"logits": double(logit)}
    log_mass = family.log_prob(torch.tensor([[0.0], [1.0]], dtype=torch.float64), parameters)
    assert log_mass.exp().sum().item() == pytest.approx(1, abs=1e-12)
    assert family.mean(parameters).item() == pytest.approx(log_mass[1].exp().item(), abs=1e-12)
    assert torch.isfinite(log_mass).all()


def table() -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    """Three columns in very different units."""
    draws = np.random.default_rng(0).standard_normal((200, 3))
    return np.asarray(draws * (1e-3, 1.0, 5e4) + (0.1, -7.0, 1e6))


def test_the_normal_is_a_density_in_the_units_of_the_data() -> None:
    """It is SciPy's normal density at its own parameters, and integrates to 1 over x as sent."""
    family = Normal(table())
    parameters = family.parameters_of(torch.tensor([[[0.3, -1.2, 2.5]]]))
    loc, scale = (parameters[name].detach().numpy().reshape(-1) for name in ("loc", "scale"))
    x = torch.from_numpy(table()[:50] * 1.5)
    found = family.log_prob(x, parameters).detach().numpy()
    np.testing.assert_allclose(found, stats.norm.logpdf(x.numpy(), loc, scale), rtol=1e-12, atol=1e-12)
    for column in range(3):

        def density(value: float, column: int = column) -> float:
            row = torch.full((1, 3), value, dtype=torch.float64)
            return float(family.log_prob(row, parameters)[0, column].detach().exp())

        ends = loc[column] - 12 * scale[column], loc[column] + 12 * scale[column]
        assert integrate.quad(density, *ends)[0] == pytest.approx(1, abs=1e-8)


def test_a_column_that_never_varies_is_refused() -> None:
    """A constant column has no scale to be learned, and is named."""
    rows = table()
    rows[:, 1] = 3.0
    with pytest.raises(Unusable, match="column 1 never varies"):
        Normal(rows)


DISCRETE: list[tuple[Likelihood, Parameters, int]] = [
    (Bernoulli(), {"logits": double(-1.3)}, 1),
    (DiscretisedLogistic((0.0, 16.0, 1.0)), {"loc": double(5.2), "scale": double(1.7)}, 16),
    (DiscretisedLogistic((0.0, 16.0, 1.0)), {"loc": double(-2.0), "scale": double(3.0)}, 16),
    (DiscretisedLogistic((0.0, 4.0, 1.0)), {"loc": double(9.0), "scale": double(6.0)}, 4),
]


@pytest.mark.parametrize(("family", "parameters", "highest"), DISCRETE)
def test_discrete_draws_follow_the_mass(family: Likelihood, parameters: Parameters, highest: int) -> None:
    """A chi-square test of 40,000 draws against exp(log_prob) doesn't reject."""
    generator = torch.Generator().manual_seed(5)
    each = {name: value.expand(40_000, 1) for name, value in parameters.items()}
    draws = family.sample(each, generator).long().reshape(-1)
    counts = np.bincount(draws.numpy(), minlength=highest + 1)
    mass = family.log_prob(torch.arange(highest + 1.0, dtype=torch.float64).unsqueeze(-1), parameters).exp()
    expected = mass.reshape(-1).numpy() * counts.sum()
    rare = expected < 5
    if rare.any():
        counts, expected = (np.append(v[~rare], v[rare].sum()) for v in (counts, expected))
    assert stats.chisquare(counts, expected).pvalue > 1e-3


def test_normal_draws_follow_the_density() -> None:
    """A Kolmogorov–Smirnov test of 20,000 draws a column doesn't reject."""
    family = Normal(table())
    with torch.no_grad():
        parameters = family.parameters_of(torch.tensor([0.5, -0.5, 0.0]).expand(20_000, 1, 3))
        draws = family.sample(parameters, torch.Generator().manual_seed(6)).numpy()
    scale = parameters["scale"].numpy()
    for column in range(3):
        loc = parameters["loc"][0, column].item()
        assert stats.kstest(draws[:, column], stats.norm(loc, scale[column]).cdf).pvalue > 1e-3


def test_scales_are_bounded_smoothly() -> None:
    """A soft bound rises everywhere between its ends, so a gradient is left where a clamp has none."""
    raw = torch.linspace(-12, 9, 200, dtype=torch.float64, requires_grad=True)
    bounded = softclip(raw, -6.0, 2.0)
    (slope,) = torch.autograd.grad(bounded.sum(), raw)
    assert (slope > 0).all()
    assert -6 < bounded.min().item() < bounded.max().item() < 2


def test_quantiles_give_a_density_in_the_units_of_the_data_whatever_its_shape() -> None:
    """Two humps, a long tail, two values alone: it integrates to 1 in x as sent, and fits better than a normal."""
    random = np.random.default_rng(0)
    humps = np.where(random.random(500) < 0.5, -3, 3) + 0.2 * random.standard_normal(500)
    rows = np.column_stack((1e6 * humps, np.exp(2 * random.standard_normal(500)), np.repeat([0.0, 1.0], 250)))
    quantile, normal = (
        family.log_prob(torch.from_numpy(rows), family.parameters_of(torch.zeros(1, 1, 3))).detach().numpy().mean(0)
        for family in (QuantileNormal(rows), Normal(rows))
    )
    assert (quantile > normal + 0.2).all()
    for column in range(3):
        family = QuantileNormal(rows[:, [column]])
        parameters = family.parameters_of(torch.zeros(1, 1, 1))
        knots = family.knots.numpy().reshape(-1)
        low, high = knots[0] - 40 * (knots[1] - knots[0]), knots[-1] + 40 * (knots[-1] - knots[-2])
        edges = np.array([low, *knots, high])
        x = np.concatenate([np.linspace(edges[i], edges[i + 1], 4001) for i in range(len(edges) - 1)])
        middle = torch.from_numpy((x[1:] + x[:-1]) / 2).unsqueeze(-1)  # no jump lies within a step
        density = family.log_prob(middle, parameters).detach().exp().numpy().reshape(-1)
        assert (density * np.diff(x)).sum() == pytest.approx(1, abs=1e-5)

"""Cases of every family at stated parameters, which the laws are held for; and the sums and quadratures over x."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.likelihoods import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretisedLogistic,
    Likelihood,
    LogNormal,
    NegativeBinomial,
    Normal,
    Ordinal,
    Parameters,
    Poisson,
    QuantileNormal,
    StudentT,
    ZeroInflatedNegativeBinomial,
)

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A family at parameters for one number of x. counts: between which a sum over counts has all of the mass."""

    likelihood: Likelihood
    parameters: Parameters
    counts: tuple[int, int] = (0, 0)

    def log_prob(self, x: Any) -> Doubles:
        """log p at each x."""
        rows = torch.as_tensor(np.asarray(x, np.float64).reshape(-1, 1))
        with torch.no_grad():
            return np.asarray(self.likelihood.log_prob(rows, self.parameters).reshape(-1))

    def mean(self) -> float:
        """E[x], as the family says."""
        with torch.no_grad():
            return float(self.likelihood.mean(self.parameters).reshape(-1)[0])

    def draws(self, count: int, seed: int) -> Doubles:
        """Draws of torch's."""
        shared = {"scale", "df", "concentration", "cutpoints", "knots"}
        each = {
            name: value if name in shared else value.expand(count, *value.shape[1:])
            for name, value in self.parameters.items()
        }
        draws = self.likelihood.sample(each, torch.Generator().manual_seed(seed))
        return np.asarray(draws.double().reshape(-1))

    def values(self) -> Doubles:
        """All values with a mass, or the counts that matter."""
        if self.likelihood.support.kind == "counts":
            return np.arange(*self.counts, dtype=np.float64)
        lowest, highest, step = self.likelihood.support.levels
        return np.arange(lowest, highest + step / 2, step)

    def expectation(self, of: Callable[[Doubles], Doubles]) -> float:
        """E[of(x)], by a sum or by quadrature in a coordinate in which nothing is far."""
        if self.likelihood.base_measure == "counting":
            x = self.values()
            return float((of(x) * np.exp(self.log_prob(x))).sum())
        return float(self.pieces(of)[1].sum())

    def pieces(self, of: Callable[[Doubles], Doubles] = np.ones_like) -> tuple[Doubles, Doubles]:
        """The ends of 400 pieces of the support, (401,), and ∫ of(x) p(x) dx over each, by 10 Gauss nodes."""
        to_x, slope, ends = coordinate(self)
        edges = np.linspace(*ends, 401)
        nodes, weights = np.polynomial.legendre.leggauss(10)
        half = np.diff(edges)[:, None] / 2
        t = edges[:-1, None] + half + half * nodes
        x = to_x(t.reshape(-1))
        integrand = (of(x) * np.exp(self.log_prob(x)) * slope(t.reshape(-1))).reshape(t.shape)
        return to_x(edges), np.asarray((integrand * weights * half).sum(1))


Coordinate = tuple[Callable[[Doubles], Doubles], Callable[[Doubles], Doubles], tuple[float, float]]


def coordinate(case: Case) -> Coordinate:
    """x of t, dx/dt, and the ends of t, for a family with a density."""
    if case.likelihood.support.kind == "unit":
        return lambda t: t, np.ones_like, (0.0, 1.0)
    loc, scale = (float(case.parameters[name].reshape(-1)[0]) for name in ("loc", "scale"))
    if case.likelihood.support.kind == "positive":
        return np.exp, np.exp, (loc - 14 * scale, loc + 14 * scale)
    if isinstance(case.likelihood, QuantileNormal):
        return bent(case.parameters["knots"].reshape(-1).numpy(), loc, scale)
    if isinstance(case.likelihood, Normal):
        return lambda t: loc + scale * t, lambda t: np.full_like(t, scale), (-14.0, 14.0)
    return lambda t: loc + scale * np.sinh(t), lambda t: scale * np.cosh(t), (-20.0, 20.0)  # its tails are powers


def bent(knots: Doubles, loc: float, scale: float) -> Coordinate:
    """Through the knots: 400 pieces of t, at whose ends the density's jumps must lie, so each knot is at a whole t."""
    pieces = len(knots) - 1
    places = np.linspace(-2.5, 2.5, len(knots))
    ends = loc - 14 * scale, loc + 14 * scale
    low, high = min(ends[0], -2.6), max(ends[1], 2.6)
    inner = (400 - 100) // pieces * pieces  # 50 pieces and more on either side
    left = (400 - inner) // 2
    knot_t = np.concatenate(([0], left + np.arange(pieces + 1) * (inner // pieces), [400.0]))
    slopes = np.diff(knots) / np.diff(places)
    outer = [knots[0] + slopes[0] * (low - places[0]), *knots, knots[-1] + slopes[-1] * (high - places[-1])]
    x = np.array(outer)

    def slope(t: Doubles) -> Doubles:
        piece = np.clip(np.searchsorted(knot_t, t, side="right") - 1, 0, len(knot_t) - 2)
        return np.asarray((np.diff(x) / np.diff(knot_t))[piece])

    return lambda t: np.interp(t, knot_t, x), slope, (0.0, 400.0)


def one(**values: float | list[float]) -> Parameters:
    """Parameters for one number of x, float64: (1,), or with a last axis (1, levels)."""
    return {name: torch.tensor([value], dtype=torch.float64) for name, value in values.items()}


ROWS = np.array([[1.0], [2.0], [4.0]])  # what a likelihood is built on, where its parameters are given anyway
LEVELS = (-1.0, 2.0, 0.5)
CODES = np.array([[-1.0], [0.0], [2.0]])

KNOTS = [-3.0, -2.9, -2.5, -1.0, 0.0, 0.2, 0.3, 0.31, 2.0, 50.0, 60.0]
QUANTILE = QuantileNormal(np.array(KNOTS)[:, None], knots=len(KNOTS))
QUANTILE.lay(torch.tensor([KNOTS], dtype=torch.float64))
NORMAL, STUDENT, LOGNORMAL = Normal(ROWS), StudentT(ROWS), LogNormal(ROWS)
POISSON, BINOMIAL, INFLATED = Poisson(ROWS), NegativeBinomial(ROWS), ZeroInflatedNegativeBinomial(ROWS)
CATEGORICAL, ORDINAL = Categorical(LEVELS), Ordinal(LEVELS, CODES)

CASES: dict[str, Case] = {
    "bernoulli": Case(Bernoulli(), one(logits=-1.3)),
    "discretised logistic": Case(DiscretisedLogistic((0.0, 16.0, 1.0)), one(loc=5.2, scale=1.7)),
    "categorical": Case(CATEGORICAL, one(logits=[0.3, -2.0, 1.0, 5.0, -9.0, 4.0, 2.0])),
    "categorical, nearly sure": Case(CATEGORICAL, one(logits=[0.0, 90.0, -50.0, 0.0, 0.0, 0.0, 60.0])),
    "ordinal": Case(ORDINAL, one(loc=0.4, cutpoints=[-2.0, -1.5, 0.0, 0.001, 2.0, 4.0])),
    "ordinal, far out": Case(ORDINAL, one(loc=-60.0, cutpoints=[-2.0, -1.5, 0.0, 0.1, 2.0, 4.0])),
    "normal": Case(NORMAL, one(loc=3.0, scale=0.01)),
    "student t": Case(STUDENT, one(loc=-2.0, scale=0.3, df=3.5)),
    "student t, nearly normal": Case(STUDENT, one(loc=1e3, scale=30.0, df=190.0)),
    "lognormal": Case(LOGNORMAL, one(loc=0.5, scale=0.8)),
    "lognormal, wide": Case(LOGNORMAL, one(loc=-3.0, scale=2.0)),
    "quantile normal": Case(QUANTILE, one(loc=0.3, scale=0.8, knots=KNOTS)),
    "quantile normal, within a piece": Case(QUANTILE, one(loc=-0.9, scale=0.05, knots=KNOTS)),
    "quantile normal, past the last knot": Case(QUANTILE, one(loc=4.0, scale=0.7, knots=KNOTS)),
    "poisson, small": Case(POISSON, one(rate=0.03), (0, 30)),
    "poisson": Case(POISSON, one(rate=7.5), (0, 100)),
    "poisson, large": Case(POISSON, one(rate=2e4), (18_500, 21_500)),
    "negative binomial": Case(BINOMIAL, one(rate=6.0, concentration=1.7), (0, 400)),
    "negative binomial, heavy": Case(BINOMIAL, one(rate=20.0, concentration=0.05), (0, 14_000)),
    "negative binomial, large": Case(BINOMIAL, one(rate=1e4, concentration=400.0), (5_000, 16_000)),
    "negative binomial, nearly poisson": Case(BINOMIAL, one(rate=2e4, concentration=1e6), (18_500, 21_500)),
    "zero-inflated": Case(INFLATED, one(rate=6.0, concentration=1.7, inflation_logits=-0.4), (0, 400)),
    "zero-inflated, hardly": Case(INFLATED, one(rate=6.0, concentration=1.7, inflation_logits=-60.0), (0, 400)),
    "zero-inflated, nearly sure": Case(INFLATED, one(rate=6.0, concentration=1.7, inflation_logits=45.0), (0, 400)),
    "continuous bernoulli": Case(ContinuousBernoulli(), one(logits=2.0)),
    "continuous bernoulli, flat": Case(ContinuousBernoulli(), one(logits=1e-9)),
    "continuous bernoulli, nearly flat": Case(ContinuousBernoulli(), one(logits=-0.19999)),
    "continuous bernoulli, steep": Case(ContinuousBernoulli(), one(logits=-80.0)),
}

"""Quantile: p(x|z) of real x of any shape, by way of its quantiles. Knows no data but the rows that it is fitted to."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from service.artifact import FURTHEST_KNOT, Support
from training.likelihoods.base import Parameters, aligned, halves, together
from training.likelihoods.located import Normal, Scale

Doubles = NDArray[np.float64]

NEAREST = 1e-4  # knots, as a share of the distance from the first to the last: equal values have equal quantiles
# Φ(−a) = ½ erfc(a/√2), erfc by a Chebyshev fit within 1.2e-7 of its value (Press et al. 1992, Numerical Recipes §6.2)
ERFC = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)


class QuantileNormal(Normal):
    """Real x of any shape, a density. y = T(x), and log p(x) = log Normal(y; loc, scale) + log T′(x), the Jacobian.

    T is continuous, rising and linear between knots: x_i, the quantile of the fitted rows at Φ(y_i), goes to y_i, and
    the y_i are evenly spaced from −2.5 to 2.5; the first and the last piece go on for ever. So T maps the real line
    onto itself, p integrates to 1 whatever the knots are, and draws are T⁻¹ of a normal's.

    Parameters: loc and scale of y, and the knots x_i, the same for every row, with a last axis for them, in the units
    of x. Support: the real line, Lebesgue measure. The mean is E[T⁻¹(y)], of which each bend is a rectified normal.
    """

    family, parameter_names = "quantile_normal", ("loc", "scale", "knots")
    base_measure, support = "lebesgue", Support(kind="real")
    knots: Tensor
    targets: Tensor

    def __init__(
        self, fitted: Doubles, smallest_scale: float = 0.05, scale: Scale = "feature", knots: int = 16
    ) -> None:
        """fitted: the rows to be fitted, (n, D). smallest_scale: in standard deviations of y."""
        targets = np.linspace(-FURTHEST_KNOT, FURTHEST_KNOT, knots)
        places = torch.from_numpy(apart(np.quantile(fitted, special.ndtr(targets), axis=0).T))
        y = transformed(torch.from_numpy(fitted), places)[0]
        super().__init__(y.numpy(), smallest_scale, scale)
        self.register_buffer("knots", places)
        self.register_buffer("targets", torch.from_numpy(targets), persistent=False)

    def parameter_shape(self, name: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The knots have an axis of their own."""
        return (*event_shape, self.knots.shape[-1]) if name == "knots" else event_shape

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """y in standard deviations of the fitted rows' y from their mean, cut at ±50."""
        return super().standardised(transformed(x.double(), self.knots)[0], dtype)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """Location and scale of y; the knots are (D, knots) and the same for every row."""
        return {**super().parameters_of(heads), "knots": self.knots}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """The normal's at y, and the log of T's slope at x."""
        y, log_slope = transformed(x.double(), parameters["knots"].double())
        return super().log_prob(y, parameters) + log_slope

    def mean(self, parameters: Parameters) -> Tensor:
        """x_0 + s_0 (loc − y_0) + Σ (s_i − s_(i−1)) E[max(0, y − y_i)], s_i the slopes of T⁻¹."""
        loc, scale = together(parameters)
        knots = parameters["knots"].double()
        slopes = _widths(knots) / (self.targets[1] - self.targets[0])
        bends = slopes[..., 1:] - slopes[..., :-1]
        rectified = aligned(_rectified, loc.unsqueeze(-1) - self.targets[1:-1], scale.unsqueeze(-1).expand(
            *scale.shape, len(self.targets) - 2))  # fmt: skip
        return knots[..., 0] + slopes[..., 0] * (loc - self.targets[0]) + halves(bends * rectified)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """T⁻¹ of a normal draw."""
        y = super().sample(parameters, generator)
        knots = parameters["knots"].double()
        return _along(y, self.targets.expand(knots.shape), knots)


def apart(knots: Doubles) -> Doubles:
    """Knots, (D, knots), moved up where two are nearer than a slope can bear.

    >>> apart(np.array([[0.0, 0.0, 0.5, 1.0]])).tolist()
    [[0.0, 0.0001, 0.5, 1.0]]
    """
    nearest = NEAREST * np.maximum(knots[:, -1] - knots[:, 0], np.finfo(np.float64).tiny)
    found = knots.copy()
    for i in range(1, knots.shape[1]):
        found[:, i] = np.maximum(found[:, i], found[:, i - 1] + nearest)
    return found


def transformed(x: Tensor, knots: Tensor) -> tuple[Tensor, Tensor]:
    """y = T(x) and log T′(x); x (…, D), knots (…, D, knots), both float64."""
    targets = torch.linspace(-FURTHEST_KNOT, FURTHEST_KNOT, knots.shape[-1], dtype=torch.float64)
    step = 2 * FURTHEST_KNOT / (knots.shape[-1] - 1)
    log_slopes = math.log(step) - aligned(torch.log, _widths(knots))
    passed = (x.unsqueeze(-1) >= knots[..., 1:-1]).double()
    log_slope = log_slopes[..., 0] + halves(passed * (log_slopes[..., 1:] - log_slopes[..., :-1]))
    return _along(x, knots, targets.expand(knots.shape)), log_slope


def _along(x: Tensor, of: Tensor, to: Tensor) -> Tensor:
    """The piecewise linear map that takes the knots `of` to the knots `to`, its ends going on for ever."""
    before, after = _widths(of), _widths(to)
    share = ((x.unsqueeze(-1) - of[..., :-1]) / before).clamp(0.0, 1.0)
    under = (x - of[..., 0]).clamp(max=0.0) * (after[..., 0] / before[..., 0])
    over = (x - of[..., -1]).clamp(min=0.0) * (after[..., -1] / before[..., -1])
    return to[..., 0] + halves(share * after) + under + over


def _widths(knots: Tensor) -> Tensor:
    """The distances between neighbours."""
    return knots[..., 1:] - knots[..., :-1]


def _rectified(loc: Tensor, scale: Tensor) -> Tensor:
    """E[max(0, loc + scale·ε)] = max(0, loc) + scale (φ(a) − a Φ(−a)), a = |loc|/scale."""
    a = loc.abs() / scale
    t = 1.0 / (1.0 + 0.5 * (a / math.sqrt(2)))
    power = torch.zeros_like(t)
    for coefficient in reversed(ERFC):
        power = power * t + coefficient
    density = torch.exp(-0.5 * a * a)
    tail = 0.5 * t * density * torch.exp(power)
    return loc.clamp(min=0.0) + scale * (density / math.sqrt(2 * math.pi) - a * tail)

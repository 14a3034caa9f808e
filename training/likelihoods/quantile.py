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
Line = dict[str, Tensor]
LINE = (
    *("left", "inner", "first", "last", "widths", "under", "over", "log_slope", "log_bends", "under_back"),
    *("over_back", "bends", "targets", "inner_targets", "step"),
)

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

    def __init__(
        self, fitted: Doubles, smallest_scale: float = 0.05, scale: Scale = "feature", knots: int = 16
    ) -> None:
        """fitted: the rows to be fitted, (n, D). smallest_scale: in standard deviations of y."""
        targets = np.linspace(-FURTHEST_KNOT, FURTHEST_KNOT, knots)
        places = torch.from_numpy(apart(np.quantile(fitted, special.ndtr(targets), axis=0).T))
        super().__init__(_forward(torch.from_numpy(fitted), laid(places)).numpy(), smallest_scale, scale)
        self.lay(places)

    def lay(self, knots: Tensor) -> None:
        """T by its knots, (D, knots). What follows from them is stored: a graph has no constants to make of others."""
        self.register_buffer("knots", knots)
        for name, value in laid(knots).items():
            self.register_buffer(f"line_{name}", value, persistent=False)

    @property
    def _line(self) -> Line:
        """What follows from the knots."""
        return {name: self.get_buffer(f"line_{name}") for name in LINE}

    def parameter_shape(self, name: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The knots have an axis of their own."""
        return (*event_shape, self.knots.shape[-1]) if name == "knots" else event_shape

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """y in standard deviations of the fitted rows' y from their mean, cut at ±50."""
        return super().standardised(_forward(x.double(), self._line), dtype)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """Location and scale of y; the knots are (D, knots) and the same for every row."""
        return {**super().parameters_of(heads), "knots": self.knots}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """The normal's at y, and the log of T's slope at x."""
        x, line = x.double(), self._line
        passed = (x.unsqueeze(-1) >= line["inner"]).double()
        log_slope = line["log_slope"] + halves(passed * line["log_bends"])
        return super().log_prob(_forward(x, line), parameters) + log_slope

    def mean(self, parameters: Parameters) -> Tensor:
        """x_0 + s_0 (loc − y_0) + Σ (s_i − s_(i−1)) E[max(0, y − y_i)], s_i the slopes of T⁻¹."""
        loc, scale = together(parameters)
        line = self._line
        past = loc.unsqueeze(-1) - line["inner_targets"]
        rectified = aligned(_rectified, past, scale.unsqueeze(-1).expand(past.shape))
        return line["first"] + line["under_back"] * (loc + FURTHEST_KNOT) + halves(line["bends"] * rectified)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """T⁻¹ of a normal draw."""
        y, line = super().sample(parameters, generator), self._line
        share = ((y.unsqueeze(-1) - line["targets"]) / line["step"]).clamp(0.0, 1.0)
        outside = line["under_back"] * (y + FURTHEST_KNOT).clamp(max=0.0)
        outside = outside + line["over_back"] * (y - FURTHEST_KNOT).clamp(min=0.0)
        return line["first"] + halves(share * line["widths"]) + outside


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


def laid(knots: Tensor) -> Line:
    """What T and its inverse are made of, each (D,) or (D, pieces) or (D, bends); all float64."""
    count = knots.shape[-1]
    step = 2 * FURTHEST_KNOT / (count - 1)
    targets = torch.linspace(-FURTHEST_KNOT, FURTHEST_KNOT, count, dtype=torch.float64)
    widths = knots.diff(dim=-1)
    log_slopes = math.log(step) - widths.log()
    line = {
        "left": knots[:, :-1],
        "inner": knots[:, 1:-1],
        "first": knots[:, 0],
        "last": knots[:, -1],
        "widths": widths,
        "under": step / widths[:, 0],
        "over": step / widths[:, -1],
        "log_slope": log_slopes[:, 0],
        "log_bends": log_slopes.diff(dim=-1),
        "under_back": widths[:, 0] / step,
        "over_back": widths[:, -1] / step,
        "bends": widths.diff(dim=-1) / step,
        "targets": targets[:-1],
        "inner_targets": targets[1:-1],
        "step": torch.tensor(step, dtype=torch.float64),
    }
    return {name: value.contiguous() for name, value in line.items()}


def _forward(x: Tensor, line: Line) -> Tensor:
    """y = T(x), (…, D)."""
    share = ((x.unsqueeze(-1) - line["left"]) / line["widths"]).clamp(0.0, 1.0)
    outside = (x - line["first"]).clamp(max=0.0) * line["under"] + (x - line["last"]).clamp(min=0.0) * line["over"]
    return line["step"] * halves(share) - FURTHEST_KNOT + outside


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

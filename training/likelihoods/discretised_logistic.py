"""Discretised logistic: p(x|z) of x on evenly spaced levels. Knows no data set."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from service.artifact import Support
from training.config import Unusable
from training.likelihoods.base import Likelihood, Parameters, aligned, softclip, softplus, together, uniforms

LEVELS_AT_ONCE = 16  # of the sum that is the mean; bounds its memory


class DiscretisedLogistic(Likelihood):
    """x on levels lowest, lowest + step, …, highest, a mass: a logistic variable rounded to the nearest level.

    With h = step/2, a = (x + h − loc)/scale, b = (x − h − loc)/scale:

        P(x) = σ(a) − σ(b);   σ(a) at the lowest level, 1 − σ(b) at the highest   (the edges are open, so it sums to 1)
        log P(x) = −softplus(−a) − softplus(b) + log(1 − e^(b−a))                 exact, with no difference of sigmoids

    b − a = −step/scale, whose logarithm is taken in float64. Parameters: loc and scale, in the units of x. Counting
    measure over the levels. Kingma et al. 2016 (Improved variational inference with inverse autoregressive flow),
    Salimans et al. 2017 (PixelCNN++), whose clamped form this is not.
    """

    family, parameter_names, heads = "discretised_logistic", ("loc", "scale"), 2
    base_measure = "counting"
    units = "nats; log of a probability mass over the levels of x"

    def __init__(self, levels: tuple[float, float, float], smallest_scale: float = 0.1) -> None:
        """levels: (lowest, highest, step). smallest_scale: in steps."""
        super().__init__()
        self.lowest, self.highest, self.step = levels
        self.support = Support(kind="levels", lowest=levels[0], highest=levels[1], step=levels[2])
        self.middle, self.reach = (self.lowest + self.highest) / 2, (self.highest - self.lowest) / 2
        count = (self.highest - self.lowest) / self.step + 1
        self.bounds = math.log(smallest_scale), math.log(2 * count)
        self.usual = math.log(max(count / 8, 1.0))  # the log scale, in steps, that a fresh decoder begins near

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The levels as −1 … 1."""
        return (x.to(dtype) - self.middle) / self.reach

    def parameters_of(self, heads: Tensor) -> Parameters:
        """Two heads: the location in half ranges from the middle, and the log scale in steps, softly bounded."""
        loc = self.middle + self.reach * heads[..., 0, :]
        scale = self.step * torch.exp(softclip(heads[..., 1, :] + self.usual, *self.bounds))
        return {"loc": loc, "scale": scale}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """−[x < highest] softplus(−a) − [x > lowest] softplus(b) + [neither edge] log(1 − e^(b−a))."""
        loc, scale = parameters["loc"], parameters["scale"]
        return aligned(self._log_mass, x.to(loc.dtype), loc, scale)

    def _log_mass(self, x: Tensor, loc: Tensor, scale: Tensor) -> Tensor:
        above, below = x > self.lowest, x < self.highest
        residual = x - loc
        a, b = (residual + self.step / 2) / scale, (residual - self.step / 2) / scale
        tails = below.to(loc.dtype) * softplus(-a) + above.to(loc.dtype) * softplus(b)
        inside = torch.log(1.0 - torch.exp(-self.step / scale.double()))
        return (above & below).double() * inside - tails.double()

    def mean(self, parameters: Parameters) -> Tensor:
        """lowest + step · Σ P(x ≥ v) over the levels v above the lowest; exact, some levels at a time."""
        return aligned(self._expectation, parameters["loc"], parameters["scale"])

    def _expectation(self, loc: Tensor, scale: Tensor) -> Tensor:
        edges = torch.arange(self.lowest + self.step / 2, self.highest, self.step, dtype=loc.dtype, device=loc.device)
        edges = F.pad(edges, (0, -len(edges) % LEVELS_AT_ONCE), value=math.inf)  # no mass is above infinity
        tails = torch.zeros_like(loc).unsqueeze(-2)
        for some in torch.split(edges, LEVELS_AT_ONCE):
            u = (loc.unsqueeze(-2) - some.unsqueeze(-1)) / (2.0 * scale.unsqueeze(-2))  # (…, levels, D)
            tails = tails + (0.5 + 0.5 * torch.tanh(u))  # σ(2u); the runtime's own sigmoid is cut off at −18
        while tails.shape[-2] > 1:  # by halves: the runtime's sum over an inner axis differs for a lone row
            first, second = tails.chunk(2, dim=-2)
            tails = first + second
        return self.lowest + self.step * tails.squeeze(-2)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """A logistic draw, loc + scale·logit(u), rounded to the nearest level."""
        loc, scale = together(parameters)
        u = uniforms(loc.shape, generator)
        steps = torch.round((loc + scale * torch.logit(u) - self.lowest) / self.step)
        return (self.lowest + self.step * steps).clamp(self.lowest, self.highest)

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse values between levels or outside them."""
        if (self.support.off(rows) | ~np.isfinite(rows)).any():
            raise Unusable(f"likelihood discretised_logistic: the data leaves the levels {self.lowest:g}, "
                           f"{self.lowest + self.step:g}, …, {self.highest:g}")  # fmt: skip

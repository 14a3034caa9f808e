"""Normal: p(x|z) of real x. Knows no data set but the rows that it is to be fitted to."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.config import Unusable
from training.likelihoods.base import FURTHEST, Likelihood, Parameters, aligned, softclip, together


class Normal(Likelihood):
    """Real x, a density: log p(x) = −½((x − loc)/scale)² − log scale − ½ log 2π, in float64.

    The decoder gives loc in standard deviations of the fitted rows from their mean; scale is one learned number a
    feature, the same for every z (a learned σ: Rybkin et al. 2021, Simple and effective VAE training with calibrated
    decoders). Both are turned into the units of x before the density is taken, which is the Jacobian of the
    standardisation. Support: the real line, Lebesgue measure; parameters in the units of x.
    """

    family, parameter_names, heads, base_measure = "normal", ("loc", "scale"), 1, "lebesgue"
    units = "nats; log of a probability density in the units of x as sent"
    centre: Tensor
    spread: Tensor

    def __init__(self, fitted: NDArray[np.float64], smallest_scale: float = 0.05) -> None:
        """fitted: the rows to be fitted, (n, D). smallest_scale: in their standard deviations."""
        super().__init__()
        spread = fitted.std(0)
        if not (spread > 0).all():
            raise Unusable(f"likelihood normal: column {int(np.argmin(spread))} never varies among the fitted rows")
        self.register_buffer("centre", torch.from_numpy(fitted.mean(0)))
        self.register_buffer("spread", torch.from_numpy(spread))
        self.raw_scale = nn.Parameter(torch.zeros(len(spread)))
        self.bounds = math.log(smallest_scale), math.log(3.0)

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Standard deviations from the mean, cut at ±50: q stays finite for absurd rows, and any q gives a bound."""
        return ((x.double() - self.centre) / self.spread).clamp(-FURTHEST, FURTHEST).to(dtype)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """One head, the location; scale is (D,) and the same for every row."""
        scale = self.spread * torch.exp(softclip(self.raw_scale.double(), *self.bounds))
        return {"loc": self.centre + self.spread * heads[..., 0, :].double(), "scale": scale}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """−½((x − loc)/scale)² − log scale − ½ log 2π."""
        scale = parameters["scale"].double()
        residual = (x.double() - parameters["loc"].double()) / scale
        return -0.5 * residual * residual - (aligned(torch.log, scale) + 0.5 * math.log(2 * math.pi))

    def mean(self, parameters: Parameters) -> Tensor:
        """The location."""
        return parameters["loc"]

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """loc + scale·ε."""
        loc, scale = together(parameters)
        return loc + scale * torch.randn(loc.shape, dtype=torch.float64, generator=generator)

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse what isn't a finite number."""
        if not np.isfinite(rows).all():
            raise Unusable("likelihood normal: the data holds a value that isn't a finite number")

"""Continuous Bernoulli: p(x|z) of x between 0 and 1. Knows no data set."""

from __future__ import annotations

import torch
from torch import Tensor

from service.artifact import Support
from training.likelihoods.base import Likelihood, Parameters, aligned, uniforms

NEAR = 0.2  # |logits| below which series are taken: what they leave out is below 2e-16


class ContinuousBernoulli(Likelihood):
    """x between 0 and 1, a density, e^(l·x) made to integrate to 1. With h = |l|/2, in float64:

        log p(x) = l (x − ½) − log(sinh(h)/h)
        log(sinh(h)/h) = h + log((1 − e^(−2h))/2h)         and near 0   h²/6 − h⁴/180 + h⁶/2835 − h⁸/37800

    Parameters: logits l, dimensionless: log λ/(1 − λ) of the source, whose C(λ) this is. Support [0, 1], Lebesgue
    measure. The mean is ½ + ½(coth(l/2) − 2/l), not σ(l). Loaiza-Ganem & Cunningham 2019 (The continuous Bernoulli).
    """  # fmt: skip

    family, parameter_names, heads = "continuous_bernoulli", ("logits",), 1
    base_measure, support = "lebesgue", Support(kind="unit")
    units = "nats; log of a probability density over [0, 1]"

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """0 … 1 as −1 … 1."""
        return 2.0 * x.to(dtype) - 1.0

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The one head is the logits."""
        return {"logits": heads[..., 0, :].double()}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """l (x − ½) − log(sinh(h)/h)."""
        logits = parameters["logits"].double()
        return logits * (x.double() - 0.5) - aligned(_log_sinhc, logits)

    def mean(self, parameters: Parameters) -> Tensor:
        """½ + ½(coth(l/2) − 2/l)."""
        return aligned(_mean, parameters["logits"].double())

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """The inverse of the CDF at −|l|, turned round where l is above 0."""
        logits = parameters["logits"].double()
        u = uniforms(logits.shape, generator)
        slope = -logits.abs().clamp(min=1e-6)
        x = torch.log1p(u * torch.expm1(slope)) / slope
        return torch.where(logits > 0, 1.0 - x, x).clamp(0.0, 1.0)


def _log_sinhc(logits: Tensor) -> Tensor:
    """log(sinh(l/2)/(l/2))."""
    near = logits.abs() < NEAR
    square = torch.where(near, logits * logits / 4, 0.0)
    series = square * (1 / 6 - square * (1 / 180 - square * (1 / 2835 - square / 37800)))
    width = torch.where(near, 1.0, logits.abs())
    return torch.where(near, series, width / 2 + torch.log((1.0 - torch.exp(-width)) / width))


def _mean(logits: Tensor) -> Tensor:
    """½ + ½(coth(h) − 1/h) at h = l/2; near 0 the bracket is h/3 − h³/45 + 2h⁵/945 − h⁷/4725 + 2h⁹/93555."""
    near = logits.abs() < NEAR
    h = torch.where(near, 1.0, logits / 2)
    small = torch.where(near, logits / 2, 0.0)
    square = small * small
    inner = 2 / 945 - square * (1 / 4725 - square * (2 / 93555))
    series = small * (1 / 3 - square * (1 / 45 - square * inner))
    return 0.5 + 0.5 * torch.where(near, series, 1.0 / torch.tanh(h) - 1.0 / h)

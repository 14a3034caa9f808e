"""Counts: p(x|z) of x = 0, 1, 2, …, without a highest. Knows no data set but the rows that it is to be fitted to.

All in float64: at counts of 2e4 float32 loses 0.05 nats of a constant, and at a concentration of 1e6 it has 9 % of
mass too much. What depends on x alone is computed once a row, whatever the draws.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.artifact import Support
from training.likelihoods.base import (
    FURTHEST,
    Likelihood,
    Parameters,
    aligned,
    lgamma,
    log1p,
    softclip,
    softplus,
    uniforms,
)

Doubles = NDArray[np.float64]

FURTHEST_RATE = 20.0  # of log rate from its middle, soft
CONCENTRATION = math.log(1e-3), math.log(1e6)  # at the greatest it is a Poisson to five digits


class Counts(Likelihood):
    """Counts by their rate, the expectation of x before any inflation; the decoder gives its logarithm.

    log rate is in standard deviations of log(1 + x) of the fitted rows from its mean, bounded softly at ±20 nats.
    Support {0, 1, 2, …}, counting measure.
    """

    base_measure, support = "counting", Support(kind="counts")
    units = "nats; log of a probability mass over the counts 0, 1, 2, …"
    centre: Tensor
    spread: Tensor

    def __init__(self, fitted: Doubles) -> None:
        """fitted: the rows to be fitted, (n, D)."""
        super().__init__()
        logs = np.log1p(fitted)
        spread = logs.std(0)
        self.register_buffer("centre", torch.from_numpy(logs.mean(0)))
        self.register_buffer("spread", torch.from_numpy(np.where(spread > 0, spread, 1.0)))

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Standard deviations of log(1 + x) from its mean, cut at ±50."""
        logs = aligned(torch.log, x.double() + 1.0)
        return ((logs - self.centre) / self.spread).clamp(-FURTHEST, FURTHEST).to(dtype)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The first head is the rate."""
        return {"rate": aligned(_rate, heads[..., 0, :].double(), self.centre, self.spread)}

    def mean(self, parameters: Parameters) -> Tensor:
        """The rate."""
        return parameters["rate"]


class Poisson(Counts):
    """Counts whose variance is their mean, a mass: log P(x) = x log rate − rate − log Γ(x + 1).

    Parameter: rate, in counts.
    """

    family, parameter_names, heads = "poisson", ("rate",), 1

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """x log rate − rate − log Γ(x + 1)."""
        return aligned(_poisson, x.double(), parameters["rate"].double())

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """A Poisson draw."""
        return torch.poisson(parameters["rate"].double(), generator=generator)


class NegativeBinomial(Counts):
    """Counts of variance rate + rate²/θ, a mass: a Poisson whose rate is a gamma of shape θ = concentration.

        log P(x) = log Γ(x + θ) − log Γ(θ) − log Γ(x + 1) − θ log1p(rate/θ) − x log1p(θ/rate)

    which tends to the Poisson as θ grows, with no difference that loses digits. θ is one learned number a feature,
    softly bounded between 1e-3 and 1e6. Parameters: rate, in counts, and concentration, dimensionless. Lopez et al.
    2018 (Deep generative modeling for single-cell transcriptomics).
    """  # fmt: skip

    family, heads = "negative_binomial", 1
    parameter_names: tuple[str, ...] = ("rate", "concentration")

    def __init__(self, fitted: Doubles) -> None:
        super().__init__(fitted)
        self.raw_concentration = nn.Parameter(torch.zeros(len(self.spread)))

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The rate; and the concentration, which is (D,) and the same for every row."""
        concentration = aligned(_concentration, self.raw_concentration.double())
        return {**super().parameters_of(heads), "concentration": concentration}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """The constants of x and θ, less θ log1p(rate/θ) + x log1p(θ/rate)."""
        return aligned(_negative_binomial, x.double(), *(parameters[name].double() for name in self.parameter_names))

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """A Poisson draw at a gamma draw."""
        rate = parameters["rate"].double()
        theta = parameters["concentration"].double().expand(rate.shape)
        gamma = torch._standard_gamma(theta, generator=generator)
        return torch.poisson(gamma * rate / theta, generator=generator)


class ZeroInflatedNegativeBinomial(NegativeBinomial):
    """Counts with more zeros than a negative binomial NB has, a mass: with π = σ(inflation_logits),

        P(0) = π + (1 − π) NB(0),   P(x) = (1 − π) NB(x)

    P(0) as a sum of logarithms' exponentials, max + softplus(−|difference|). Parameters: those of NB, and
    inflation_logits, dimensionless; the mean is (1 − π) rate. Lambert 1992 (Zero-inflated Poisson regression).
    """  # fmt: skip

    family, heads = "zero_inflated_negative_binomial", 2
    parameter_names = ("rate", "concentration", "inflation_logits")

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The second head is the inflation's logits."""
        return {**super().parameters_of(heads), "inflation_logits": heads[..., 1, :].double()}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """log(π + (1 − π) NB(0)) at 0, log(1 − π) + log NB(x) elsewhere."""
        return aligned(_zero_inflated, x.double(), *(parameters[name].double() for name in self.parameter_names))

    def mean(self, parameters: Parameters) -> Tensor:
        """(1 − π) rate."""
        return (0.5 - 0.5 * aligned(torch.tanh, 0.5 * parameters["inflation_logits"])) * parameters["rate"]

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """0 with probability π, a draw of NB otherwise."""
        logits = parameters["inflation_logits"].double()
        zero = torch.logit(uniforms(logits.shape, generator)) < logits
        return torch.where(zero, 0.0, super().sample(parameters, generator))


def _rate(head: Tensor, centre: Tensor, spread: Tensor) -> Tensor:
    """From standard deviations of log(1 + x)."""
    return torch.exp(centre + FURTHEST_RATE * torch.tanh(spread * head / FURTHEST_RATE))


def _concentration(raw: Tensor) -> Tensor:
    """Softly between its bounds."""
    return torch.exp(softclip(raw, *CONCENTRATION))


def _poisson(x: Tensor, rate: Tensor) -> Tensor:
    """The log mass of a Poisson, elementwise."""
    return x * torch.log(rate) - rate - lgamma(x + 1.0)


def _negative_binomial(x: Tensor, rate: Tensor, theta: Tensor) -> Tensor:
    """The log mass of a negative binomial, elementwise."""
    constant = lgamma(x + theta) - lgamma(theta) - lgamma(x + 1.0)
    return constant - theta * log1p(rate / theta) - x * log1p(theta / rate)


def _zero_inflated(x: Tensor, rate: Tensor, theta: Tensor, logits: Tensor) -> Tensor:
    """The log mass of a negative binomial with zeros besides, elementwise."""
    counted = _negative_binomial(x, rate, theta) - softplus(logits)
    inflated = -softplus(-logits)
    either = torch.maximum(counted, inflated) + softplus(-(counted - inflated).abs())
    return torch.where(x == 0.0, either, counted)

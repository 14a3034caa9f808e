"""Located: p(x|z) with a location from the decoder and a scale. Knows no data set but the rows that it is fitted to."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.artifact import Support
from training.config import Unusable
from training.likelihoods.base import FURTHEST, Likelihood, Parameters, aligned, lgamma, log1p, softclip, together

Doubles = NDArray[np.float64]
Scale = Literal["shared", "feature", "decoder"]

LARGEST_SCALE = math.log(3.0)  # in standard deviations of the fitted rows
DF = math.log(2.05), math.log(200.0)  # of Student's t: above 2, so that it has a mean and a variance
USUAL_DF = math.log(10.0)
FURTHEST_LOG = 50.0  # of a lognormal's location from the middle: its mean stays a finite number


class Located(Likelihood):
    """x by a location and a scale, in standard deviations of the fitted rows from their mean.

    scale="feature": one learned number a feature, the same for every z (a learned σ: Rybkin et al. 2021, Simple and
    effective VAE training with calibrated decoders). "shared": one learned number for all features, which then share
    their unit too, as pixels do. "decoder": a second head, so that it depends on z.
    """

    centre: Tensor
    spread: Tensor

    def __init__(self, fitted: Doubles, smallest_scale: float = 0.05, scale: Scale = "feature") -> None:
        """fitted: the rows to be fitted, (n, D). smallest_scale: in their standard deviations."""
        super().__init__()
        spread = fitted.std(0)
        if scale == "shared":
            spread = np.full_like(spread, np.sqrt(np.mean(spread**2)))
        if not (spread > 0).all():
            raise Unusable(
                f"likelihood {self.family}: column {int(np.argmin(spread))} never varies among the fitted rows"
            )
        self.register_buffer("centre", torch.from_numpy(fitted.mean(0)))
        self.register_buffer("spread", torch.from_numpy(spread))
        self.heads = 2 if scale == "decoder" else 1
        if scale != "decoder":
            self.raw_scale = nn.Parameter(torch.zeros(1 if scale == "shared" else len(spread)))
        self.bounds = math.log(smallest_scale), LARGEST_SCALE

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Standard deviations from the mean, cut at ±50: q stays finite for absurd rows, and any q gives a bound."""
        return ((x.double() - self.centre) / self.spread).clamp(-FURTHEST, FURTHEST).to(dtype)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The location and the scale; the scale is (D,) where it is the same for every row."""
        return {"loc": self.centre + self.spread * heads[..., 0, :].double(), "scale": self._scale(heads)}

    def _scale(self, heads: Tensor) -> Tensor:
        """In the units of x, (D,) or (…, D)."""
        raw = self.raw_scale.expand(self.spread.shape) if self.heads == 1 else heads[..., 1, :]
        return self.spread * aligned(self._in_deviations, raw.double())

    def _in_deviations(self, raw: Tensor) -> Tensor:
        return torch.exp(softclip(raw, *self.bounds))

    def mean(self, parameters: Parameters) -> Tensor:
        """The location."""
        return parameters["loc"]


class Normal(Located):
    """Real x, a density: log p(x) = −½((x − loc)/scale)² − log scale − ½ log 2π, in float64.

    Location and scale are turned into the units of x before the density is taken, which is the Jacobian of the
    standardisation. Support: the real line, Lebesgue measure; parameters in the units of x.
    """

    family = "normal"
    parameter_names: tuple[str, ...] = ("loc", "scale")
    base_measure, support = "lebesgue", Support(kind="real")
    units = "nats; log of a probability density in the units of x as sent"

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """−½((x − loc)/scale)² − log scale − ½ log 2π."""
        return _normal(x.double(), parameters)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """loc + scale·ε."""
        loc, scale = together(parameters)
        return loc + scale * torch.randn(loc.shape, dtype=torch.float64, generator=generator)


class StudentT(Located):
    """Real x with heavy tails, a density. With r = (x − loc)/scale and ν = df, in float64:

        log p(x) = log Γ((ν + 1)/2) − log Γ(ν/2) − ½ log νπ − log scale − ½(ν + 1) log1p(r²/ν)

    df is one learned number a feature, softly bounded between 2.05 and 200: above 2, so that mean and variance
    exist. Support: the real line, Lebesgue measure; loc and scale in the units of x. Lange et al. 1989 (Robust
    statistical modeling using the t distribution).
    """  # fmt: skip

    family, parameter_names = "student_t", ("loc", "scale", "df")
    base_measure, support = "lebesgue", Support(kind="real")
    units = "nats; log of a probability density in the units of x as sent"

    def __init__(self, fitted: Doubles, smallest_scale: float = 0.05, scale: Scale = "feature") -> None:
        super().__init__(fitted, smallest_scale, scale)
        self.raw_df = nn.Parameter(torch.zeros(len(self.spread)))

    def parameters_of(self, heads: Tensor) -> Parameters:
        """Location, scale, and the degrees of freedom, which are (D,) and the same for every row."""
        df = aligned(lambda raw: torch.exp(softclip(raw + USUAL_DF, *DF)), self.raw_df.double())
        return {**super().parameters_of(heads), "df": df}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """The constants of df and scale, less ½(ν + 1) log1p(r²/ν)."""
        return aligned(_student_t, x.double(), *(parameters[name].double() for name in self.parameter_names))

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """loc + scale·ε·√(ν/χ²_ν)."""
        loc, scale = together(parameters)
        df = parameters["df"].double().expand(loc.shape)
        gamma = torch._standard_gamma(df / 2, generator=generator)  # χ²_ν/2
        return loc + scale * torch.randn(loc.shape, dtype=torch.float64, generator=generator) * (df / 2 / gamma).sqrt()


class LogNormal(Located):
    """Positive x, a density: log p(x) = log Normal(log x; loc, scale) − log x, in float64; −log x is the Jacobian.

    Parameters: loc and scale of log x. Support: x > 0, Lebesgue measure, in the units of x. The mean is
    exp(loc + scale²/2).
    """

    family, parameter_names = "lognormal", ("loc", "scale")
    base_measure, support = "lebesgue", Support(kind="positive")
    units = "nats; log of a probability density in the units of x as sent"

    def __init__(self, fitted: Doubles, smallest_scale: float = 0.05, scale: Scale = "feature") -> None:
        super().__init__(np.log(fitted), smallest_scale, scale)

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Standard deviations of log x from its mean, cut at ±50."""
        return super().standardised(aligned(torch.log, x.double()), dtype)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """Location and scale of log x, the location softly bounded."""
        moved = aligned(torch.tanh, heads[..., 0, :].double() * (self.spread / FURTHEST_LOG))
        return {"loc": self.centre + FURTHEST_LOG * moved, "scale": self._scale(heads)}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """The normal's at log x, less log x."""
        log_x = aligned(torch.log, x.double())
        return _normal(log_x, parameters) - log_x

    def mean(self, parameters: Parameters) -> Tensor:
        """exp(loc + scale²/2)."""
        loc, scale = together(parameters)
        return aligned(torch.exp, loc + 0.5 * scale * scale)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """exp(loc + scale·ε)."""
        loc, scale = together(parameters)
        return torch.exp(loc + scale * torch.randn(loc.shape, dtype=torch.float64, generator=generator))


def _normal(x: Tensor, parameters: Parameters) -> Tensor:
    """The log density of a normal, elementwise."""
    scale = parameters["scale"].double()
    residual = (x - parameters["loc"].double()) / scale
    return -0.5 * residual * residual - (aligned(torch.log, scale) + 0.5 * math.log(2 * math.pi))


def _student_t(x: Tensor, loc: Tensor, scale: Tensor, df: Tensor) -> Tensor:
    """The log density of Student's t, elementwise."""
    r = (x - loc) / scale
    constant = lgamma((df + 1.0) / 2) - lgamma(df / 2) - 0.5 * torch.log(df * math.pi) - torch.log(scale)
    return constant - 0.5 * (df + 1.0) * log1p(r * r / df)

"""Likelihoods: p(x|z) given the decoder's heads, one family a class. Knows no network.

Events are flat here: x and each parameter end in an axis of D numbers, with whatever leading axes broadcast.
log_prob is elementwise and float64; what float32 can't hold to 5e-6 of the sum is computed in float64, so that an
exported graph does the same. Scales are bounded smoothly, never clamped: a clamp has no gradient and saturates
exactly on anomalies.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from service.artifact import Support
from training import config
from training.config import Unusable
from training.data import DataSet

Parameters = dict[str, Tensor]

BLOCK = 16  # Softplus, Log and sums over whole blocks give a row the same bits wherever it lies in a batch
FURTHEST = 50.0  # in standard deviations: as far as a real value moves the encoder; the likelihood sees all of it
LEVELS_AT_ONCE = 16  # of the sum that is a discretised logistic's mean; bounds its memory


def aligned(function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
    """An elementwise function, applied to last axes that are filled up with ones to whole blocks."""
    width = tensors[0].shape[-1]
    over = -width % BLOCK
    if over == 0:
        return function(*tensors)
    return function(*(F.pad(tensor, (0, over), value=1.0) for tensor in tensors))[..., :width]


def total(terms: Tensor) -> Tensor:
    """The sum over the last axis, in float64 and over whole blocks."""
    return F.pad(terms.double(), (0, -terms.shape[-1] % BLOCK)).sum(-1)


def softclip(raw: Tensor, low: float, high: float) -> Tensor:
    """A smooth, strictly rising map of the real line onto (low, high), with slope 1 at the middle."""
    middle, half = (low + high) / 2, (high - low) / 2
    return middle + half * torch.tanh((raw - middle) / half)


def softplus(a: Tensor) -> Tensor:
    """log(1 + eᵃ). torch's own is linear from 20 on, which float64 can tell; float32 can't."""
    return F.softplus(a, threshold=40.0 if a.dtype == torch.float64 else 20.0)


class Likelihood(nn.Module, ABC):
    """p(x|z), factorised over the D numbers of an event.

    parameter_names: as on the wire. heads: how many numbers the decoder gives for each number of x.
    base_measure: what log p is a mass ("counting") or a density ("lebesgue") against.
    """

    family: str
    parameter_names: tuple[str, ...]
    heads: int
    base_measure: str
    units: str

    @abstractmethod
    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x as the encoder wants it: about 0, of order 1."""

    @abstractmethod
    def parameters_of(self, heads: Tensor) -> Parameters:
        """The decoder's heads, (…, heads, D), as parameters in the units of x, each broadcastable to (…, D)."""

    @abstractmethod
    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """log p of each number of x, in nats, float64."""

    @abstractmethod
    def mean(self, parameters: Parameters) -> Tensor:
        """The expectation of x."""

    @abstractmethod
    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """A draw of x."""

    @abstractmethod
    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse rows off the support, with the reason."""


def build(wanted: config.Family, data: DataSet) -> Likelihood:
    """The likelihood that a run names, for the data that it names; Unusable where the two don't go together."""
    match wanted:
        case config.Bernoulli():
            likelihood: Likelihood = Bernoulli()
        case config.DiscretisedLogistic():
            likelihood = DiscretisedLogistic(_levels(data.support), wanted.smallest_scale)
        case config.Normal():
            if data.support.kind != "real":
                raise Unusable("likelihood normal: a density over data of whole levels can grow without bound; use "
                               "discretised_logistic")  # fmt: skip
            likelihood = Normal(data.splits["fit"].reshape(len(data.splits["fit"]), -1), wanted.smallest_scale)
    for rows in data.splits.values():
        likelihood.check(rows)
    return likelihood


def _levels(support: Support) -> tuple[float, float, float]:
    """The lowest and highest level and the step between; Unusable where the data has none."""
    if support.lowest is None or support.highest is None or support.step is None:
        raise Unusable("likelihood discretised_logistic: needs data of whole levels; use normal for real values")
    return support.lowest, support.highest, support.step


def _together(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """loc and scale in float64, of one shape."""
    loc = parameters["loc"].double()
    return loc, parameters["scale"].double().expand(loc.shape)


class Bernoulli(Likelihood):
    """Binary x, a mass: P(x) = σ(l)ˣ σ(−l)¹⁻ˣ, so log P(x) = −softplus((1 − 2x) l).

    Parameters: logits l = log P(1)/P(0), dimensionless. Support {0, 1}, counting measure. Grey pixels are refused:
    over [0, 1] the formula integrates to less than 1, so it is no density (Loaiza-Ganem & Cunningham 2019, The
    continuous Bernoulli).
    """

    family, parameter_names, heads, base_measure = "bernoulli", ("logits",), 1, "counting"
    units = "nats; log of a probability mass over the values 0 and 1"

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """0 and 1 as −1 and 1."""
        return 2.0 * x.to(dtype) - 1.0

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The one head is the logits."""
        return {"logits": heads[..., 0, :]}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """−softplus((1 − 2x) l)."""
        logits = parameters["logits"]
        return -aligned(softplus, (1.0 - 2.0 * x.to(logits.dtype)) * logits).double()

    def mean(self, parameters: Parameters) -> Tensor:
        """P(1) = ½ + ½ tanh(l/2)."""
        return 0.5 + 0.5 * torch.tanh(0.5 * parameters["logits"])

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """1 with probability P(1)."""
        return torch.bernoulli(self.mean(parameters), generator=generator)

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse anything but 0 and 1."""
        if not np.isin(rows, (0, 1)).all():
            raise Unusable("likelihood bernoulli: the data holds values other than 0 and 1, to which it gives no mass; "
                           "binarise the data, or use discretised_logistic")  # fmt: skip


class DiscretisedLogistic(Likelihood):
    """x on levels lowest, lowest + step, …, highest, a mass: a logistic variable rounded to the nearest level.

    With h = step/2, a = (x + h − loc)/scale, b = (x − h − loc)/scale:

        P(x) = σ(a) − σ(b);   σ(a) at the lowest level, 1 − σ(b) at the highest   (the edges are open, so it sums to 1)
        log P(x) = −softplus(−a) − softplus(b) + log(1 − e^(b−a))                 exact, with no difference of sigmoids

    b − a = −step/scale, whose logarithm is taken in float64. Parameters: loc and scale, in the units of x. Counting
    measure over the levels. Kingma et al. 2016 (Improved variational inference with inverse autoregressive flow),
    Salimans et al. 2017 (PixelCNN++), whose clamped form this is not.
    """

    family, parameter_names, heads, base_measure = "discretised_logistic", ("loc", "scale"), 2, "counting"
    units = "nats; log of a probability mass over the levels of x"

    def __init__(self, levels: tuple[float, float, float], smallest_scale: float = 0.1) -> None:
        """levels: (lowest, highest, step). smallest_scale: in steps."""
        super().__init__()
        self.lowest, self.highest, self.step = levels
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
        loc, scale = _together(parameters)
        u = torch.rand(loc.shape, dtype=torch.float64, generator=generator)
        steps = torch.round((loc + scale * torch.logit(u) - self.lowest) / self.step)
        return (self.lowest + self.step * steps).clamp(self.lowest, self.highest)

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse values between levels or outside them."""
        steps = (rows.astype(np.float64) - self.lowest) / self.step
        if rows.min() < self.lowest or rows.max() > self.highest or (steps != np.round(steps)).any():
            raise Unusable(f"likelihood discretised_logistic: the data leaves the levels {self.lowest:g}, "
                           f"{self.lowest + self.step:g}, …, {self.highest:g}")  # fmt: skip


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
        loc, scale = _together(parameters)
        return loc + scale * torch.randn(loc.shape, dtype=torch.float64, generator=generator)

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse what isn't a finite number."""
        if not np.isfinite(rows).all():
            raise Unusable("likelihood normal: the data holds a value that isn't a finite number")

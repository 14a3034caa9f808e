"""Categories: p(x|z) of x among few levels, in no order or in one. Knows no data set but the rows it is fitted to."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from service.artifact import Support
from training.embeddings import OneHot
from training.likelihoods.base import (
    Likelihood,
    Parameters,
    aligned,
    halves,
    softclip,
    softplus,
    uniforms,
)

Levels = tuple[float, float, float]

GAP = math.log(1e-3), math.log(1e2)  # between neighbouring cutpoints, soft


class Categories(Likelihood):
    """x on levels lowest, lowest + step, …, highest, with a last axis for them in one of the parameters.

    named: the encoder is given 1 for the level that x has and 0 for the others.
    """

    base_measure = "counting"
    units = "nats; log of a probability mass over the levels of x"
    named = True
    codes: Tensor

    def __init__(self, levels: Levels) -> None:
        """levels: (lowest, highest, step)."""
        super().__init__()
        self.lowest, self.highest, self.step = levels
        self.count = round((self.highest - self.lowest) / self.step) + 1
        self.support = Support(kind="levels", lowest=levels[0], highest=levels[1], step=levels[2])
        self.register_buffer("codes", torch.arange(self.count, dtype=torch.float64), persistent=False)

    def input_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One number for each level of each number of x."""
        return (math.prod(event_shape) * self.count,) if self.named else event_shape

    def by_level(self) -> None:
        """By name."""
        self.named = True

    def one_hot(self, event_shape: tuple[int, ...]) -> tuple[OneHot, ...]:
        """All that the encoder is given."""
        return (OneHot(0, math.prod(event_shape), self.count),) if self.named else ()

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """1 for the level that x has, 0 for the others, (…, D·levels); or the levels as −1 … 1."""
        if self.named:
            return self._is(x, self.codes).to(dtype).flatten(-2)
        return ((2.0 * x.double() - self.lowest - self.highest) / (self.highest - self.lowest)).to(dtype)

    def _is(self, x: Tensor, codes: Tensor) -> Tensor:
        """Whether x is at the levels of these codes, 0 … levels − 1; (…, D, codes)."""
        return torch.round((x.double() - self.lowest) / self.step).unsqueeze(-1) == codes


class Categorical(Categories):
    """x among levels without an order, a mass: log P(v) = l_v − log Σ_u e^(l_u), in float64.

    Parameters: logits, dimensionless, with a last axis for the levels. Counting measure over the levels. The mean is
    that of the levels as numbers, which says something only where they are two; the logits say it all. The encoder
    is given 1 for the level that x has and 0 for the others.
    """

    family, parameter_names = "categorical", ("logits",)

    def __init__(self, levels: Levels) -> None:
        super().__init__(levels)
        self.heads = self.count

    def parameter_shape(self, name: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002
        """Logits for each level."""
        return (*event_shape, self.count)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The heads are the logits."""
        return {"logits": heads.transpose(-1, -2).double()}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """The logit of x's level, less the log of the sum."""
        logits, greatest, mass = _unnormalised(parameters["logits"])
        chosen = halves(self._is(x, self.codes).double() * logits)
        return chosen - greatest - aligned(torch.log, halves(mass))

    def mean(self, parameters: Parameters) -> Tensor:
        """Σ v·P(v)."""
        _, _, mass = _unnormalised(parameters["logits"])
        return self.lowest + self.step * halves(mass * self.codes) / halves(mass)

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """The level whose logit with Gumbel noise is the greatest."""
        logits = parameters["logits"].double()
        gumbel = -torch.log(-torch.log(uniforms(logits.shape, generator)))
        return self.lowest + self.step * (logits + gumbel).argmax(-1).double()


class Ordinal(Categories):
    """x among levels in an order, a mass: a logistic variable around loc, cut at rising cutpoints c_0 < c_1 < ….

        P(v_k) = σ(c_k − loc) − σ(c_(k−1) − loc);   open at the edges, so it sums to 1
        log P(v_k) = −softplus(−a) − softplus(b) + log(1 − e^(b−a)),   a = c_k − loc, b = c_(k−1) − loc

    exact, with no difference of sigmoids; a − b is the gap of the cutpoints, of which the logarithm is taken once a
    row. Parameters: loc, in logistic units, from the decoder, and cutpoints, learned, the same for every row, with a
    last axis for the levels but one. Counting measure. McCullagh 1980 (Regression models for ordinal data). The
    encoder is given the levels as −1 … 1, unless it has an embedding of them.
    """  # fmt: skip

    family, parameter_names, heads, named = "ordinal", ("loc", "cutpoints"), 1, False
    usual: Tensor

    def __init__(self, levels: Levels, fitted: NDArray[np.float64]) -> None:
        """fitted: the rows to be fitted, (n, D); their frequencies are where the cutpoints begin."""
        super().__init__(levels)
        middle = self.lowest + self.step * (np.arange(self.count - 1) + 0.5)
        below = (fitted[:, :, None] < middle).mean(0)  # (D, levels − 1)
        share = (below * len(fitted) + np.arange(1, self.count)) / (len(fitted) + self.count)
        cuts = np.log(share) - np.log1p(-share)
        self.first_cut = nn.Parameter(torch.from_numpy(cuts[:, :1]).float())
        self.raw_gaps = nn.Parameter(torch.zeros(cuts.shape[0], self.count - 2))
        self.register_buffer("usual", torch.from_numpy(np.log(np.diff(cuts, axis=1))))

    def parameter_shape(self, name: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """A cutpoint between each two levels."""
        return (*event_shape, self.count - 1) if name == "cutpoints" else event_shape

    def parameters_of(self, heads: Tensor) -> Parameters:
        """One head, the location; the cutpoints are (D, levels − 1) and the same for every row."""
        gaps = torch.exp(softclip(self.raw_gaps.double() + self.usual, *GAP))
        cutpoints = torch.cat((self.first_cut.double(), gaps), -1).cumsum(-1)
        return {"loc": heads[..., 0, :].double(), "cutpoints": cutpoints}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """−[x < highest] softplus(−a) − [x > lowest] softplus(b) + [neither edge] log(1 − e^(b−a))."""
        loc, cutpoints = parameters["loc"].double(), parameters["cutpoints"].double()
        above, below = x.double() > self.lowest, x.double() < self.highest
        upper = halves(self._is(x, self.codes[:-1]).double() * cutpoints)  # c_k, 0 at the highest level
        lower = halves(self._is(x, self.codes[1:]).double() * cutpoints)  # c_(k−1), 0 at the lowest
        return aligned(_cut, loc, upper, lower, above.double(), below.double())

    def mean(self, parameters: Parameters) -> Tensor:
        """lowest + step · Σ P(x > v) over the levels v below the highest."""
        over = (parameters["loc"].double().unsqueeze(-1) - parameters["cutpoints"].double()) / 2
        return self.lowest + self.step * halves(0.5 + 0.5 * aligned(torch.tanh, over))

    def sample(self, parameters: Parameters, generator: torch.Generator) -> Tensor:
        """How many cutpoints lie below a logistic draw around loc."""
        loc = parameters["loc"].double()
        latent = loc + torch.logit(uniforms(loc.shape, generator))
        return self.lowest + self.step * (latent.unsqueeze(-1) > parameters["cutpoints"].double()).sum(-1).double()


def _cut(loc: Tensor, upper: Tensor, lower: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """The log mass of a logistic variable between two cutpoints. above, below: 1 where there are levels so; else 0."""
    inner = above * below
    inside = inner * torch.log(1.0 - torch.exp(-torch.where(inner > 0, upper - lower, 1.0)))
    return inside - below * softplus(loc - upper) - above * softplus(lower - loc)


def _unnormalised(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits (…, D, levels) in float64, the greatest of each (…, D), and e^(logit − greatest)."""
    logits = logits.double()
    greatest = logits.amax(-1)
    return logits, greatest, aligned(torch.exp, logits - greatest.unsqueeze(-1))

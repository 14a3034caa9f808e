"""Base: what a likelihood is, and the arithmetic that all of them share. Knows no family.

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

from service.artifact import Measure, Support
from training.config import Unusable
from training.embeddings import OneHot

Parameters = dict[str, Tensor]

BLOCK = 16  # Softplus, Log and sums over whole blocks give a row the same bits wherever it lies in a batch
LARGE = 1e17  # 1 + u is u from here on
FURTHEST = 50.0  # in standard deviations: as far as a value moves the encoder; the likelihood sees all of it


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


def halves(terms: Tensor) -> Tensor:
    """The sum over the last axis by halves: additions alone, whose bits depend on no batch."""
    size = terms.shape[-1]
    terms = F.pad(terms, (0, (1 << (size - 1).bit_length()) - size))
    while terms.shape[-1] > 1:
        first, second = terms.chunk(2, dim=-1)
        terms = first + second
    return terms.squeeze(-1)


def log1p(u: Tensor) -> Tensor:
    """log(1 + u) in float64 for u ≥ 0, to the last digits: u log(w)/(w − 1) at w = 1 + u as it is rounded (Kahan)."""
    w = 1.0 + u
    rounded = w - 1.0
    lost, large = rounded == 0.0, u > LARGE  # where w − 1 is 0, or w is u, an infinite one too
    near = u * torch.log(w) / torch.where(lost | large, 1.0, rounded)
    return torch.where(large, torch.log(w), torch.where(lost, u, near))


def softplus(a: Tensor) -> Tensor:
    """log(1 + eᵃ). In float64 ½(a + |a|) + log1p(e^−|a|), since the runtime's own is of float32 alone."""
    if a.dtype == torch.float64:
        return 0.5 * (a + a.abs()) + log1p(torch.exp(-a.abs()))
    return F.softplus(a)


def lgamma(y: Tensor) -> Tensor:
    """log Γ(y) for y > 0, in float64: Stirling's series at y + 8, less the log of y(y + 1)…(y + 7).

    ONNX has no such operation. Within 3e-11 of the truth up to 1e4, and within 1e-9 up to 1e6.
    """
    shifted, pair = y + 8.0, y * (y + 7.0)
    product = pair * (pair + 6.0) * (pair + 10.0) * (pair + 12.0)  # of y(y + 7), (y + 1)(y + 6), …
    inverse = 1.0 / shifted
    square = inverse * inverse
    series = inverse * (1 / 12 - square * (1 / 360 - square * (1 / 1260 - square * (1 / 1680 - square / 1188))))
    stirling = (shifted - 0.5) * torch.log(shifted) - shifted + 0.5 * math.log(2 * math.pi) + series
    return stirling - torch.log(product)


class Likelihood(nn.Module, ABC):
    """p(x|z), factorised over the D numbers of an event.

    parameter_names: as on the wire. heads: how many numbers the decoder gives for each number of x.
    base_measure: what log p is a mass ("counting") or a density ("lebesgue") against. support: where it has any.
    """

    family: str
    parameter_names: tuple[str, ...]
    heads: int
    base_measure: Measure
    support: Support
    units: str

    def head_shape(self, size: int) -> tuple[int, int]:
        """The decoder's heads for events of so many numbers; (heads, D)."""
        return self.heads, size

    def input_shape(self, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of what the encoder is given: the event's, where each number of it becomes one number."""
        return event_shape

    def by_level(self) -> None:
        """Give the encoder levels by name wherever they could be, for an embedding; `one_hot` then says where."""

    def one_hot(self, event_shape: tuple[int, ...]) -> tuple[OneHot, ...]:  # noqa: ARG002  for others
        """Where in what the encoder is given are levels by name: 1 at the one that x has, and 0 at the others."""
        return ()

    def parameter_shape(self, name: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:  # noqa: ARG002  for others
        """The shape of a parameter for one row: the event's, unless a family has more to say of each number."""
        return event_shape

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

    def check(self, rows: NDArray[np.generic]) -> None:
        """Refuse rows off the support, with the reason."""
        if not np.isfinite(rows).all():
            raise Unusable(f"likelihood {self.family}: the data holds a value that isn't a finite number")
        if (off := self.support.off(rows)).any():
            found = f"the data holds {rows[off][0]:g}, off its support: {self.support.words}"
            raise Unusable(f"likelihood {self.family}: {found}")


def uniforms(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Uniform draws in float64, never 0."""
    return torch.rand(shape, dtype=torch.float64, generator=generator).clamp(min=1e-300)


def together(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """loc and scale in float64, of one shape."""
    loc = parameters["loc"].double()
    return loc, parameters["scale"].double().expand(loc.shape)

"""Base: what a likelihood is, and the arithmetic that all of them share. Knows no family.

Events are flat here: x and each parameter end in an axis of D numbers, with whatever leading axes broadcast.
log_prob is elementwise and float64; what float32 can't hold to 5e-6 of the sum is computed in float64, so that an
exported graph does the same. Scales are bounded smoothly, never clamped: a clamp has no gradient and saturates
exactly on anomalies.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

Parameters = dict[str, Tensor]

BLOCK = 16  # Softplus, Log and sums over whole blocks give a row the same bits wherever it lies in a batch
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


def together(parameters: Parameters) -> tuple[Tensor, Tensor]:
    """loc and scale in float64, of one shape."""
    loc = parameters["loc"].double()
    return loc, parameters["scale"].double().expand(loc.shape)

"""Kernels: a normal at every fitted row, all of one shape; the most local density there is, as k-NN is among distances.

p(u) = 1/n Σ_i N(u; u_i, h²((1 − s) I + s C)), C the rows' covariance. Width h and share s are those of the highest
leave-one-out likelihood: what a row is under the kernels of all others. Knows nothing of VAEs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

Doubles = NDArray[np.float64]

ROUND = (0.0,)  # shares of the rows' covariance: none
SHAPED = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
WIDTHS = tuple(np.geomspace(0.05, 2.0, 16).tolist())  # in standard deviations; far narrower ones are for repeated rows
BLOCK = 256  # rows at once: always as many, so that a row's bits don't depend on its company
CHECKED = 400  # rows whose likelihood decides, at most
LEAST = -1e4  # nats: a lone row far out is not to decide the width


@dataclass(frozen=True, slots=True)
class Kernels:
    """Fitted kernels. axes (D, D) takes rows to where kernels are round and of unit width; centres (n, D) are there."""

    axes: Tensor
    centres: Tensor
    log_volume: float  # of axes: log |det|

    def bounds(self, u: Tensor) -> Doubles:
        """log p of each row, (1, n), exactly; u (n, D), float64, in standard deviations."""
        padded = nn.functional.pad(u, (0, 0, 0, -len(u) % BLOCK))
        parts = [self._log_density(block) for block in torch.split(padded, BLOCK)]
        return np.asarray(torch.cat(parts)[: len(u)].numpy()[None], np.float64)

    def _log_density(self, u: Tensor) -> Tensor:
        """log p of a block, (BLOCK,)."""
        together = torch.logsumexp(-0.5 * _squares(u @ self.axes, self.centres), 1)
        return together + _constant(len(self.centres), u.shape[1]) + self.log_volume


def fit(u: Tensor, shares: tuple[float, ...], seed: int) -> tuple[Kernels, Doubles]:
    """Kernels at rows, u (n, D), of the likeliest shape, and leave-one-out log densities of some rows, (1, rows)."""
    variances, directions = torch.linalg.eigh(u.T @ u / len(u))
    checked = torch.randperm(len(u), generator=torch.Generator().manual_seed(seed))[:CHECKED]
    shapes = [directions / torch.sqrt(1.0 - share + share * variances.clamp(min=0.0)) for share in shares]
    left_out = [density for shape in shapes for density in _left_out(u @ shape, checked, _log_volume(shape))]
    best = int(np.argmax([float(density.mean()) for density in left_out]))
    axes = shapes[best // len(WIDTHS)] / WIDTHS[best % len(WIDTHS)]
    return Kernels(axes, u @ axes, _log_volume(axes)), np.asarray(left_out[best].numpy()[None], np.float64)


def _left_out(v: Tensor, checked: Tensor, log_volume: float) -> list[Tensor]:
    """log p of some rows under the kernels of all others, (rows,), a width each; v (n, D), where kernels are round."""
    squares = _squares(v[checked], v)
    squares[torch.arange(len(checked)), checked] = math.inf
    n, columns = v.shape
    found = []
    for width in WIDTHS:
        together = torch.logsumexp(-0.5 * squares / width**2, 1) - columns * math.log(width)
        found.append((together + _constant(n - 1, columns) + log_volume).clamp(min=LEAST))
    return found


def _log_volume(axes: Tensor) -> float:
    """log |det axes|."""
    return float(torch.linalg.slogdet(axes).logabsdet)


def _squares(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances, (rows, n), by squares multiplied out."""
    return ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2.0 * a @ b.T).clamp(min=0.0)


def _constant(n: int, columns: int) -> float:
    """log 1/n (2π)^−D/2."""
    return -math.log(n) - 0.5 * columns * math.log(2.0 * math.pi)

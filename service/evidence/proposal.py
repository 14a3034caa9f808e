"""Proposal: a mixture of normals a row, drawn from and evaluated. Knows nothing of what it is a proposal for.

Draws lie along the last axis, (rows, d, draws): sums over the latents then run over rows of memory, in an order that
does not depend on how many rows there are. All arrays are float64 and every row's numbers are its own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Singles = NDArray[np.float32]

LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class Normal:
    """One normal a row, at several scales: a scale mixture, whose tails are as heavy as its widest part.

    centre: (rows, d). root: of its covariance, (rows, d, d) lower triangular, or (rows, d) where that is diagonal.
    """

    centre: Doubles
    root: Doubles
    scales: tuple[float, ...] = (1.0,)

    def inflated(self, factor: float) -> Normal:
        """The same with its covariance times a factor."""
        return Normal(self.centre, math.sqrt(factor) * self.root, self.scales)

    def at_scales(self, *scales: float) -> Normal:
        """The same at these scales."""
        return Normal(self.centre, self.root, scales)

    def at(self, noise: Doubles) -> Iterator[Doubles]:
        """The points that standard normal noise (d, draws), the same for every row, means at each scale."""
        spread = self.root[:, :, None] * noise if self.root.ndim == 2 else self.root @ noise
        return (self.centre[:, :, None] + scale * spread for scale in self.scales)

    def whitened(self, z: Doubles) -> Doubles:
        """z as the noise that it would have come from at scale 1, (rows, d, draws)."""
        away = z - self.centre[:, :, None]
        if self.root.ndim == 2:
            away /= self.root[:, :, None]
            return away
        return np.asarray(np.linalg.inv(self.root) @ away)

    def log_densities(self, z: Doubles) -> list[Doubles]:
        """log N(z) at each scale, (rows, d, draws) → (rows, draws) each."""
        white = self.whitened(z)
        white *= white
        squares = white.sum(1)
        diagonal = self.root if self.root.ndim == 2 else np.diagonal(self.root, axis1=1, axis2=2)
        constant = np.log(diagonal).sum(-1)[:, None] + 0.5 * z.shape[1] * LOG_2PI
        return [(-0.5 / s**2) * squares - (constant + z.shape[1] * math.log(s)) for s in self.scales]


def log_densities(normals: tuple[Normal, ...], z: Doubles) -> Doubles:
    """log N(z) of every normal at every scale, (rows, d, draws) → (rows, parts, draws)."""
    return np.stack([part for normal in normals for part in normal.log_densities(z)], axis=1)


@dataclass(frozen=True, slots=True)
class Proposal:
    """Normals, each at its scales, and what share of the draws each of those parts has; shares (rows, parts)."""

    normals: tuple[Normal, ...]
    shares: Doubles

    def draw(self, uniform: Doubles, noise: Doubles) -> Singles:
        """Draws as a graph takes them, (rows, draws, d) float32.

        uniform (draws,) chooses each draw's part and noise (d, draws) its place in it, for every row alike.
        """
        starts = np.cumsum(self.shares, axis=1) - self.shares  # (rows, parts)
        parts = itertools.chain.from_iterable(normal.at(noise) for normal in self.normals)
        z = next(parts)
        for start, part in zip(starts.T[1:], parts, strict=True):
            z = np.where((uniform >= start[:, None])[:, None], part, z)
        return np.ascontiguousarray(z.transpose(0, 2, 1), np.float32)

    def log_parts(self, z: Doubles) -> Doubles:
        """log(share · density) of each part, (rows, d, draws) → (rows, parts, draws)."""
        return log_densities(self.normals, z) + np.log(self.shares)[:, :, None]

    def log_density(self, z: Doubles) -> Doubles:
        """The log of the mixture's density, (rows, d, draws) → (rows, draws)."""
        return log_sum(self.log_parts(z))


def log_sum(values: Doubles) -> Doubles:
    """log Σ exp over the second axis, (rows, terms, draws) → (rows, draws); −inf where every term is."""
    top = values.max(1)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(safe + np.log(np.exp(values - safe[:, None]).sum(1)))


def transposed(draws: Singles) -> Doubles:
    """Draws as a graph took them, (rows, draws, d), as the proposals' (rows, d, draws): what was rounded stays so."""
    return np.ascontiguousarray(draws.transpose(0, 2, 1), np.float64)

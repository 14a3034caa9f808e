"""Proposal: a mixture of normals a row, drawn from and evaluated. Knows nothing of what it is a proposal for.

Draws lie along the last axis, (rows, d, draws): sums over the latents then run over rows of memory, whose order does
not depend on how many rows there are. All arrays are float64 and every row's numbers are its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
Singles = NDArray[np.float32]

LOG_2PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class Component:
    """One normal a row: its share of the draws (rows,), its centre (rows, d) and a root of its covariance.

    root: (rows, d, d) lower triangular, or (rows, d) where the covariance is diagonal.
    """

    share: Doubles
    centre: Doubles
    root: Doubles

    def widened(self, factor: float, share: float) -> Component:
        """The same normal at another scale, with a share of its share."""
        return Component(self.share * share, self.centre, self.root * factor)

    def at(self, noise: Doubles) -> Doubles:
        """The points that standard normal noise (d, draws), the same for every row, stands for: (rows, d, draws)."""
        spread = self.root[:, :, None] * noise if self.root.ndim == 2 else self.root @ noise
        return np.asarray(self.centre[:, :, None] + spread)

    def log_density(self, z: Doubles) -> Doubles:
        """log N(z), (rows, d, draws) → (rows, draws)."""
        away = z - self.centre[:, :, None]
        if self.root.ndim == 2:
            white, diagonal = away / self.root[:, :, None], self.root
        else:
            white, diagonal = np.linalg.inv(self.root) @ away, np.diagonal(self.root, axis1=1, axis2=2)
        constant = np.log(diagonal).sum(-1) + 0.5 * z.shape[1] * LOG_2PI
        white *= white
        return np.asarray(-0.5 * white.sum(1) - constant[:, None])


@dataclass(frozen=True, slots=True)
class Proposal:
    """A mixture of components whose shares sum to one in every row."""

    components: tuple[Component, ...]

    def draw(self, uniform: Doubles, noise: Doubles) -> Singles:
        """Draws as a graph takes them, (rows, draws, d) float32.

        uniform (draws,) chooses each draw's component and noise (d, draws) its place in it, for every row alike.
        """
        ends = np.cumsum([component.share for component in self.components], axis=0)  # (components, rows)
        z = self.components[0].at(noise)
        for end, component in zip(ends[:-1], self.components[1:], strict=True):
            beyond = uniform >= end[:, None]  # (rows, draws)
            z = np.where(beyond[:, None], component.at(noise), z)
        return np.ascontiguousarray(z.transpose(0, 2, 1), np.float32)

    def log_densities(self, z: Doubles) -> Doubles:
        """log(share · density) of each component, (rows, d, draws) → (rows, components, draws)."""
        with np.errstate(divide="ignore"):  # a component without a share has no density
            each = [np.log(part.share)[:, None] + part.log_density(z) for part in self.components]
        return np.ascontiguousarray(np.stack(each, axis=1))

    def log_density(self, z: Doubles) -> Doubles:
        """The log of the mixture's density, (rows, d, draws) → (rows, draws)."""
        return log_sum(self.log_densities(z))


def log_sum(values: Doubles) -> Doubles:
    """log Σ exp over the second axis, (rows, terms, draws) → (rows, draws); −inf where every term is."""
    top = values.max(1)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(safe + np.log(np.exp(values - safe[:, None]).sum(1)))


def transposed(draws: Singles) -> Doubles:
    """Draws as a graph took them, (rows, draws, d), as the proposals' (rows, d, draws): what was rounded stays so."""
    return np.ascontiguousarray(draws.transpose(0, 2, 1), np.float64)

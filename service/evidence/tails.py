"""Tails: how heavy the tail of importance weights is, and what they are worth. Knows nothing of where they come from.

Pareto smoothed importance sampling (Vehtari, Simpson, Gelman, Yao, Gabry 2024), with the generalised Pareto fit of
Zhang and Stephens (2009) and its weakly informative prior.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]

FEWEST = 25  # draws below which a tail of five can't be had
PRIOR_DRAWS, PRIOR_SHAPE = 10, 0.5  # what the fit believes beforehand: ten draws' worth of k = 0.5


def tail_size(draws: int) -> int:
    """How many of the largest weights are the tail: min(S/5, 3√S).

    >>> tail_size(2448), tail_size(100), tail_size(10)
    (148, 20, 2)
    """
    return int(min(0.2 * draws, 3.0 * math.sqrt(draws)))


def threshold(draws: int) -> float:
    """The k̂ below which so many draws are enough: min(0.7, 1 − 1/log10 S).

    >>> threshold(10_000), round(threshold(100), 3), threshold(10)
    (0.7, 0.5, 0.0)
    """
    return min(0.7, 1.0 - 1.0 / math.log10(draws)) if draws > 1 else -math.inf


def smooth(log_weights: Doubles) -> tuple[Doubles, Doubles]:
    """Smoothed log weights, (rows, draws) in another order, and k̂ (rows,), NaN where there is no telling.

    The tail's weights are replaced by the quantiles of the Pareto fitted to them, none above the largest seen.
    """
    ordered = np.sort(log_weights, axis=-1)
    rows, draws = ordered.shape
    size = tail_size(draws)
    if draws < FEWEST:
        return ordered, np.full(rows, np.nan)
    top = ordered[:, -1:]
    with np.errstate(invalid="ignore"):
        shifted = np.exp(ordered - top)
    cutoff, tail = shifted[:, -size - 1, None], shifted[:, -size:]
    excess = np.ascontiguousarray(tail - cutoff)  # (rows, size), ascending, in units of the largest weight
    known = np.isfinite(top[:, 0]) & (excess[:, 0] >= 0)
    flat = known & ~(excess[:, -1] > 1e-12)  # weights that are all the same have no tail
    fitted = known & ~flat
    k = np.where(flat, -1.0, np.nan)
    shape, scale = fit(np.where(fitted[:, None], excess, np.linspace(0.5, 1.0, size)))
    k[fitted] = shape[fitted]
    quantiles = (np.arange(size) + 0.5) / size
    expected = cutoff + _quantile(quantiles, shape[:, None], scale[:, None])
    with np.errstate(divide="ignore"):
        replaced = np.log(np.minimum(expected, 1.0)) + top
    smoothed = ordered.copy()
    smoothed[:, -size:] = np.where(fitted[:, None], replaced, ordered[:, -size:])
    return smoothed, k


def fit(excess: Doubles) -> tuple[Doubles, Doubles]:
    """Shape k and scale σ of the generalised Pareto that each row's excesses come from; (rows, n) ascending → (rows,).

    An empirical-Bayes average over a grid of b = −k/σ, weighted by the profile likelihood.
    """
    n = excess.shape[-1]
    grid = 30 + int(math.sqrt(n))
    quartile = np.maximum(excess[:, int(n / 4 + 0.5) - 1], 1e-300)
    places = 1.0 - np.sqrt(grid / (np.arange(1, grid + 1) - 0.5))  # (grid,)
    b = places / (3.0 * quartile[:, None]) + 1.0 / excess[:, -1:]  # (rows, grid)
    k = _shape(b, excess)
    with np.errstate(divide="ignore", invalid="ignore"):
        likelihood = n * (np.log(-b / k) - k - 1.0)
    likelihood = np.where(np.isnan(likelihood), -np.inf, likelihood)
    weights = np.exp(likelihood - likelihood.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    chosen = (b * weights).sum(-1)
    shape = _shape(chosen[:, None], excess)[:, 0]
    scale = -shape / chosen
    return (n * shape + PRIOR_DRAWS * PRIOR_SHAPE) / (n + PRIOR_DRAWS), scale


def _shape(b: Doubles, excess: Doubles) -> Doubles:
    """The likeliest k for each b: the mean of log(1 − b·excess); (rows, grid) → (rows, grid)."""
    inner = np.maximum(1.0 - b[:, :, None] * excess[:, None, :], 1e-300)
    return np.asarray(np.log(inner).mean(-1))


def _quantile(p: Doubles, k: Doubles, scale: Doubles) -> Doubles:
    """The generalised Pareto's quantiles."""
    tiny = np.abs(k) < 1e-12
    with np.errstate(over="ignore", invalid="ignore"):
        curved = scale * np.expm1(-k * np.log1p(-p)) / np.where(tiny, 1.0, k)
    return np.asarray(np.where(tiny, -scale * np.log1p(-p), curved))


def effective(log_weights: Doubles) -> Doubles:
    """How many equal weights would be worth as much: (Σw)² / Σw², (rows, draws) → (rows,)."""
    top = log_weights.max(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        weights = np.exp(log_weights - top)
        return np.asarray(weights.sum(-1) ** 2 / (weights * weights).sum(-1))

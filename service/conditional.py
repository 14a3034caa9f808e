"""Conditional: what weighted draws from q say of some features given the others. Pure NumPy; knows nothing of models.

    log p(x_j|x_−j) = −log E_{p(z|x)}[1/p(x_j|z)]            p(z|x) by draws from q(z|x), each weighing p(x, z)/q(z|x)
    p(x_missing|x_observed) = E_{p(z|x_observed)}[p(x_missing|z)]

Weights are Pareto smoothed (Vehtari, Simpson, Gelman, Yao, Gabry 2024); k̂ says whether they can be relied on.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.evidence import tails
from service.evidence.estimate import log_mean
from service.scoring import COARSE

Doubles = NDArray[np.float64]

AT_ONCE = 512  # tails that are fitted at once: each needs a few thousand numbers


@dataclass(frozen=True, slots=True)
class Weights:
    """What each draw weighs, (rows, draws), summing to 1; how many draws that is worth, and k̂, (rows,).

    All NaN for a row that no draw gives any weight; pareto_k is NaN where draws are too few to tell.
    """

    each: Doubles
    effective_draws: Doubles
    pareto_k: Doubles


def weigh(log_weight: Doubles) -> Weights:
    """Smoothed and normalised weights from log p(x, z) − log q(z|x); (rows, draws).

    pareto_k is NaN, too, where log weights are so large that doubles can't tell one from another.

    >>> weigh(np.log([[3.0, 1.0]])).each.tolist()
    [[0.75, 0.25]]
    """
    order = np.argsort(log_weight, axis=-1, kind="stable")
    smoothed, k = _smoothed(np.take_along_axis(log_weight, order, axis=-1))
    placed = np.empty_like(smoothed)
    np.put_along_axis(placed, order, smoothed, axis=-1)
    with np.errstate(invalid="ignore"):
        shares = np.exp(placed - placed.max(-1, keepdims=True))
        each = shares / shares.sum(-1, keepdims=True)
    return Weights(each, np.asarray(1.0 / (each * each).sum(-1)), np.where(_fine(log_weight), k, np.nan))


def reliable(pareto_k: Doubles, draws: int) -> NDArray[np.bool_]:
    """Whether so many draws can bear weights whose tail has this shape: k̂ < min(0.7, 1 − 1/log10 draws).

    >>> reliable(np.array([0.5, 0.65, np.nan]), 256).tolist()
    [True, False, False]
    """
    return np.asarray(pareto_k < tails.threshold(draws), np.bool_)


def pick(weights: Doubles, uniforms: Doubles) -> NDArray[np.int64]:
    """Draws chosen with the probability that they weigh, by uniforms (rows, picks) → indexes (rows, picks).

    >>> pick(np.array([[0.5, 0.0, 0.5]]), np.array([[0.2, 0.7]])).tolist()
    [[0, 2]]
    """
    edges = np.cumsum(weights, axis=-1)
    rows = [np.searchsorted(edge, u * edge[-1], side="right") for edge, u in zip(edges, uniforms, strict=True)]
    chosen = np.array(rows, np.int64).reshape(uniforms.shape)
    return np.asarray(np.minimum(chosen, weights.shape[-1] - 1), np.int64)


def left_out(log_weight: Doubles, terms: Doubles) -> tuple[Doubles, Doubles]:
    """log p(x_j|x_−j) of each feature and the k̂ of its weights, (rows, D) each, in nats.

    log_weight: log p(x, z) − log q(z|x), (rows, draws). terms: log p(x_j|z), (rows, draws, D). With w/p(x_j|z) for
    weights the draws are of p(z|x_−j), and the mean of p(x_j|z) over them is sought. 0 where every term is, which is
    a feature that is missing. NaN where it can't be given.
    """
    rows, draws, features = terms.shape
    each = np.ascontiguousarray(np.moveaxis(terms, 1, -1)).reshape(rows * features, draws)
    values, k = np.empty(rows * features), np.empty(rows * features)
    for start in range(0, len(each), AT_ONCE):
        some = slice(start, start + AT_ONCE)
        of_row = np.arange(start, min(len(each), start + AT_ONCE)) // features
        values[some], k[some] = _left_out(log_weight[of_row], each[some])
    return values.reshape(rows, features), k.reshape(rows, features)


def _left_out(log_weight: Doubles, term: Doubles) -> tuple[Doubles, Doubles]:
    """The same for one feature in each line; (lines, draws) both → (lines,) both."""
    with np.errstate(invalid="ignore", over="ignore"):
        without = log_weight - term
        order = np.argsort(without, axis=-1, kind="stable")
        smoothed, k = _smoothed(np.take_along_axis(without, order, axis=-1))
        values = log_mean(smoothed + np.take_along_axis(term, order, axis=-1)) - log_mean(smoothed)
    fine = _fine(log_weight)
    return np.where(fine & np.isfinite(values), values, np.nan), np.where(fine, k, np.nan)


def _fine(log_weight: Doubles) -> NDArray[np.bool_]:
    """Whether a line's log weights, (lines, draws), are near enough to 0 for doubles to tell them apart; (lines,)."""
    return np.asarray(np.abs(log_weight.max(-1)) < COARSE, np.bool_)


def _smoothed(ascending: Doubles) -> tuple[Doubles, Doubles]:
    """Smoothed log weights in their order, and k̂; NaN throughout where the largest isn't a finite number."""
    known = np.isfinite(ascending[:, -1])
    smoothed, k = tails.smooth(np.where(known[:, None], ascending, 0.0))
    return np.where(known[:, None], smoothed, np.nan), np.where(known, k, np.nan)

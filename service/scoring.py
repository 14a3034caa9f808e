"""Scoring: draws become bounds on the log evidence, each with its error. Pure NumPy; knows nothing of models.

    ELBO(x) = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) = log p(x) − KL(q(z|x) ‖ p(z|x))

The first term is estimated from draws; the second is exact, or where it has no closed form estimated from the same
draws. The estimate is the mean of independent groups' means, so it is unbiased whatever the groups' sizes, and the
spread of those means is an honest error: a Student t with one degree of freedom fewer than there are groups.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.noise import Bank

Doubles = NDArray[np.float64]

LOG2 = float(np.log(2.0))
COARSE = 1e9  # nats, from which on doubles are too far apart for draws to be told from one another


@dataclass(frozen=True, slots=True)
class Bound:
    """The ELBO of each row, in nats; every array is (rows,) float64.

    elbo == log_likelihood − kl, as doubles. error is the standard error of elbo over noise banks, NaN where it
    can't be estimated, with error_df degrees of freedom.
    """

    elbo: Doubles
    error: Doubles
    error_df: int
    log_likelihood: Doubles
    kl: Doubles


def bound(log_likelihood: Doubles, kl: Doubles, bank: Bank) -> Bound:
    """The ELBO from log p(x|z) at each draw, (rows, draws), and the KL: exact, (rows,), or log q/p(z) at each draw.

    >>> from service.noise import bank
    >>> bound(np.array([[-3.0, -1.0]]), np.array([0.5]), bank(0, 2, 1))
    Bound(elbo=array([-2.5]), error=array([1.]), error_df=1, log_likelihood=array([-2.]), kl=array([0.5]))
    """
    means = group_means(log_likelihood, bank)
    expected = means.sum(-1) / means.shape[-1]
    kl = np.asarray(kl, np.float64)
    if kl.ndim == 2:
        kl_means = group_means(kl, bank)
        kl = kl_means.sum(-1) / kl_means.shape[-1]
        means = means - kl_means  # of each group, so that what the two have in common cancels in the error too
    return Bound(expected - kl, standard_error(means), means.shape[-1] - 1, expected, kl)


def kl(outputs: Mapping[str, NDArray[Any]]) -> Doubles:
    """The KL as `bound` takes it, from elbo.onnx's outputs: theirs, or log_likelihood − log_weight at each draw."""
    if "kl" in outputs:
        return np.asarray(outputs["kl"], np.float64)
    return np.asarray(outputs["log_likelihood"] - outputs["log_weight"], np.float64)


def group_means(values: Doubles, bank: Bank) -> Doubles:
    """The mean of each of the bank's groups: (rows, draws) → (rows, groups), C-ordered.

    Only a contiguous last axis is summed over: NumPy's order of summation then depends on the group's size alone,
    and a row's score stays the same to the last bit whatever else is in the array.
    """
    if len(bank.groups) == bank.draws:  # plain draws, each a group
        return np.asarray(values, np.float64)
    sizes = set(bank.groups)
    if len(sizes) == 1:
        grouped = np.ascontiguousarray(values).reshape(len(values), len(bank.groups), -1)
        return np.asarray(grouped.sum(-1) / grouped.shape[-1])
    spans = itertools.pairwise(np.cumsum((0, *bank.groups)))
    return np.stack([np.ascontiguousarray(values[:, a:b]).mean(-1) for a, b in spans], axis=-1)


def standard_error(means: Doubles) -> Doubles:
    """The standard error of the mean of independent, equally distributed columns; NaN for a single one.

    NaN, too, where columns are equal only because doubles so large can't differ by less.
    """
    count = means.shape[-1]
    if count < 2:
        return np.full(len(means), np.nan)
    with np.errstate(over="ignore", invalid="ignore"):  # a row scored −inf has no error that could be given
        mean = means.sum(-1, keepdims=True) / count
        away = means - mean
        error = np.asarray(np.sqrt((away * away).sum(-1) / (count * (count - 1))), np.float64)
        return unless_coarse(error, mean[:, 0])


def unless_coarse(spread: Doubles, of: Doubles) -> Doubles:
    """A spread of numbers about as large as `of`; NaN where it is below what doubles of that size can show; (rows,).

    >>> unless_coarse(np.array([0.0, 0.0, 1e60]), np.array([-5.0, -1e60, -1e60]))
    array([0.e+00,    nan, 1.e+60])
    """
    far = np.abs(of) >= COARSE
    if not far.any():
        return spread
    with np.errstate(invalid="ignore"):
        return np.asarray(np.where(far & (spread <= np.spacing(np.abs(of))), np.nan, spread), np.float64)


def bits_per_dim(elbo: Doubles, dimensions: int | NDArray[np.int64]) -> Doubles:
    """The bound as a code length, in bits a dimension that was seen; NaN for a row of none. Meaningful of a mass."""
    if isinstance(dimensions, int) and dimensions > 0:
        return np.asarray(elbo * (-1.0 / (dimensions * LOG2)), np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -elbo / (dimensions * LOG2)
    return np.asarray(np.where(np.greater(dimensions, 0), bits, np.nan), np.float64)

"""Estimate: log p(x) from draws and their weights, with its error, its diagnostic and a bound that is certain.

Knows nothing of how the draws' proposal was found; only that it was found before they were made.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.evidence import tails
from service.scoring import COARSE

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is known of each row's log p(x), in nats; every array is (rows,), NaN where it can't be given.

    lower_bound is below log p(x) with at least the confidence asked for, over seeds. error is the standard error over
    `groups` independent groups of draws, NaN where the row isn't reliable. effective_draws is of the smoothed weights.
    """

    log_evidence: Doubles
    error: Doubles
    groups: int
    lower_bound: Doubles
    pareto_k: Doubles
    effective_draws: Doubles
    reliable: Flags


def estimate(
    log_weights: Doubles, groups: int | tuple[int, ...], confidence: float, controls: Doubles | None = None
) -> Estimate:
    """The estimate from log p(x, z) − log g(z) at draws from g, (rows, draws), group after independent group.

    groups: how many of one size, or the size of each. The estimate is the mean of their means, so it is unbiased.

    controls (rows, c, draws) are numbers whose mean under g is known to be zero.
    """
    broken = np.asarray(~(log_weights < np.inf).all(-1))  # a draw without a number: nothing is certain of such a row
    weights = np.where(np.isnan(log_weights), -np.inf, log_weights)
    raw = group_means(weights, groups)  # (rows, groups)
    smoothed, k = tails.smooth(weights)
    found, error = log_mean(raw), standard_error(raw)
    if controls is not None and isinstance(groups, int):
        found, error = controlled(weights, controls, groups, found, error)
    k = np.where(np.abs(found) < COARSE, k, np.nan)
    reliable = (k < tails.threshold(weights.shape[1])) & np.isfinite(found) & ~broken
    return Estimate(
        given(found, broken),
        np.where(reliable, error, np.nan),
        raw.shape[1],
        given(certified(raw, confidence), broken),
        given(k, broken),
        given(tails.effective(smoothed), broken),
        reliable,
    )


def group_means(log_weights: Doubles, groups: int | tuple[int, ...]) -> Doubles:
    """log mean exp of each group of draws, (rows, draws) → (rows, groups)."""
    if isinstance(groups, int):
        return log_mean(np.ascontiguousarray(log_weights.reshape(len(log_weights), groups, -1)))
    spans = itertools.pairwise(np.cumsum((0, *groups)))
    return np.stack([log_mean(np.ascontiguousarray(log_weights[:, a:b])) for a, b in spans], axis=-1)


def controlled(
    log_weights: Doubles, controls: Doubles, groups: int, found: Doubles, error: Doubles
) -> tuple[Doubles, Doubles]:
    """log p̂ and its error with control variates; the raw ones where those would leave nothing above zero.

    Where p(x, z) is a sum of the mixture's parts, p̂ is exact (Owen & Zhou 2000).
    """
    with np.errstate(invalid="ignore"):
        relative = np.exp(log_weights - found[:, None])  # of mean one
    relative = np.where(np.isfinite(found)[:, None], relative, 1.0)
    rows, count, draws = controls.shape
    gram = controls @ controls.transpose(0, 2, 1)
    right = controls @ (relative - 1.0)[:, :, None]
    slope = np.linalg.solve(gram + 1e-6 * draws * np.eye(count), right)
    left = relative - (controls.transpose(0, 2, 1) @ slope)[:, :, 0]
    means = np.ascontiguousarray(left.reshape(rows, groups, -1)).mean(-1)
    mean = means.mean(-1)
    kept = np.isfinite(found) & (mean > 0.5) & (mean < 2.0)
    spread = means.std(-1, ddof=1) / math.sqrt(groups)
    safe = np.where(kept, mean, 1.0)
    return np.where(kept, found + np.log(safe), found), np.where(kept, spread / safe, error)


def certified(means: Doubles, confidence: float) -> Doubles:
    """A bound on log p(x) from log p̂ of M independent groups, (rows, M): min log p̂ − log(1/δ)/M, δ = 1 − confidence.

    Each p̂ is unbiased and not negative, so by Markov's inequality p̂ ≥ p(x)/ε happens with probability ε at most, and
    for all M at once with εᴹ at most (Gogate, Bidyuk, Dechter 2007). No variance needs to be finite.
    """
    return np.asarray(means.min(-1) + math.log1p(-confidence) / means.shape[-1])


def standard_error(means: Doubles) -> Doubles:
    """The jackknife's error of log mean exp of M groups, (rows, M) → (rows,); NaN for a single group."""
    count = means.shape[-1]
    if count < 2:
        return np.full(len(means), np.nan)
    without = np.stack([log_mean(np.delete(means, left, axis=-1)) for left in range(count)], axis=-1)
    with np.errstate(invalid="ignore"):
        return np.asarray(without.std(-1) * math.sqrt(count - 1.0))


def widening(freedom: int) -> float:
    """What an error with few degrees of freedom is multiplied by, so that three of it hold as often as a normal's.

    >>> round(widening(3), 2), round(widening(15), 2)
    (3.07, 1.2)
    """
    from scipy.special import stdtrit  # here, as in `noise`: what is only needed now and then doesn't slow the start

    return float(stdtrit(freedom, 0.5 + 0.5 * math.erf(3.0 / math.sqrt(2.0)))) / 3.0 if freedom > 0 else math.nan


def log_mean(values: Doubles) -> Doubles:
    """log mean exp over the last axis; −inf where all are."""
    top = values.max(-1)
    safe = np.where(np.isfinite(top), top, 0.0)
    with np.errstate(divide="ignore", over="ignore"):
        return np.asarray(safe + np.log(np.exp(values - safe[..., None]).mean(-1)))


def given(values: Doubles, broken: Flags) -> Doubles:
    """Values, and NaN for rows that have none."""
    return np.where(broken, np.nan, values)

"""Fitting: weighted draws become normals that lie where their weight is. Knows nothing of where the draws come from.

Two ways, since each fails where the other works. *Moments*: the mean and covariance of tempered weights; right for
any shape, but in many latents there are too few draws that count. *Regression*: the quadratic that log p(x, z) is
nearest to; exact where the posterior is normal, however far the draws are from it, and of no use where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from service.evidence.proposal import Normal, log_sum

Doubles = NDArray[np.float64]

INFLATION = 1.2  # of a covariance from moments: too wide costs little, too narrow costs the tails
PER_LATENT = 7.0  # effective draws wanted for each latent, and two more, before a normal is fitted
PER_COEFFICIENT = 1.5  # effective draws wanted for each coefficient of a quadratic
MOST_COEFFICIENTS = 600  # of a whole quadratic, which 32 latents have 561 of; past that, one without products
HEAVIEST, ROUNDS = 512, 8  # draws that modes are told apart with, and rounds in which they are
COLDEST, HALVINGS = -20.0, 16  # the log of the lowest power of the weights, and how finely it is sought
CURVATURES = 0.05, 1e4  # of the quadratic, in the inverse variances of the moments: what is believed of it


def by_moments(z: Doubles, log_weight: Doubles) -> Normal:
    """The normal with the tempered weights' mean and covariance, the latter shrunk to its diagonal and inflated."""
    return moments(z, tempered(log_weight, PER_LATENT * (z.shape[1] + 2))[0]).inflated(INFLATION)


def moments(z: Doubles, weights: Doubles) -> Normal:
    """The normal with the weights' mean and covariance; weights (rows, draws) sum to one."""
    d, effective = z.shape[1], _effective(weights)
    centre = (z @ weights[:, :, None])[:, :, 0]
    away = (z - centre[:, :, None]) * np.sqrt(weights)[:, None, :]
    covariance = away @ away.transpose(0, 2, 1)
    variance = np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 1e-12)
    kept = effective / (effective + d)  # the fewer draws a latent, the less is believed of its correlations
    covariance = covariance * kept[:, None, None]
    covariance[:, np.arange(d), np.arange(d)] = variance * (1.0 + 1e-9)
    return Normal(centre, root_of(covariance))


def modes(z: Doubles, log_weight: Doubles) -> list[tuple[Normal, Doubles]]:
    """Two normals that the tempered weights are likeliest under, each with the log of its hold on every draw.

    Expectation and maximisation among the draws with the largest weights, from a cut through the middle across the
    axis along which the draws lie least like one heap: the principal axis of the least kurtosis.
    """
    d = z.shape[1]
    weights, _ = tempered(log_weight, 2.0 * PER_LATENT * (d + 2))
    heavy = np.argsort(-weights, axis=-1, kind="stable")[:, :HEAVIEST]
    some, mass = np.take_along_axis(z, heavy[:, None], 2), np.take_along_axis(weights, heavy, 1)
    side = _side(some, moments(some, mass / mass.sum(-1, keepdims=True)), mass)
    held = np.stack([side, ~side], axis=1) * mass[:, None]  # (rows, 2, draws)
    found: list[Normal] = []
    shares = np.empty(0)
    for _ in range(ROUNDS):
        held += 1e-9 / held.shape[2]
        shares = held.sum(-1)
        found = [moments(some, held[:, mode] / shares[:, mode, None]) for mode in (0, 1)]
        held = np.exp(_holds(found, shares, some)) * mass[:, None]
    holds = _holds(found, shares, z)
    return [(one.inflated(INFLATION), holds[:, mode]) for mode, one in enumerate(found)]


def _side(z: Doubles, near: Normal, mass: Doubles) -> NDArray[np.bool_]:
    """On which side of a normal's middle draws lie, along its principal axis of the least kurtosis; (rows, draws)."""
    variances, axes = np.linalg.eigh(near.root @ near.root.transpose(0, 2, 1))
    along = axes.transpose(0, 2, 1) @ (z - near.centre[:, :, None])  # (rows, d, draws)
    fourth = (along**4 @ mass[:, :, None])[:, :, 0] / (variances * variances)
    least = np.argmin(fourth, axis=-1)
    return np.asarray(np.take_along_axis(along, least[:, None, None], 1)[:, 0] > 0.0)


def _holds(found: list[Normal], shares: Doubles, z: Doubles) -> Doubles:
    """The log of the probability that a draw belongs to a mode, (rows, modes, draws)."""
    each = np.stack([one.log_densities(z)[0] for one in found], axis=1) + np.log(shares)[:, :, None]
    return np.asarray(each - log_sum(each)[:, None])


def by_regression(z: Doubles, log_weight: Doubles, joint: Doubles, near: Normal) -> Normal:
    """The normal whose log density is, but for a constant, the quadratic that log p(x, z) is nearest to.

    In the coordinates of another normal, and shrunk to it by as much as the residuals say. joint: (rows, draws).
    """
    _, d, draws = z.shape
    white = near.whitened(z)
    features, whole = _features(white, draws)
    weights, effective = tempered(log_weight, min(PER_COEFFICIENT * features.shape[1], 0.6 * draws))
    joint = joint - joint.max(-1, keepdims=True)
    excess = np.where(weights > 0, joint + 0.5 * (white * white).sum(1), 0.0)
    slope, bend = _coefficients(_regress(features, excess, weights, effective), d, whole)
    curvature, axes = np.linalg.eigh(np.eye(d) - bend)  # (rows, d), (rows, d, d)
    curvature = np.clip(curvature, *CURVATURES)
    shift = axes @ ((slope[:, None, :] @ axes).transpose(0, 2, 1) / curvature[:, :, None])
    centre = near.centre + (near.root @ shift)[:, :, 0]
    spread = near.root @ (axes / np.sqrt(curvature)[:, None, :])
    covariance = spread @ spread.transpose(0, 2, 1)
    covariance[:, np.arange(d), np.arange(d)] *= 1.0 + 1e-9
    return Normal(centre, root_of(covariance))


def _features(white: Doubles, draws: int) -> tuple[Doubles, bool]:
    """1, u, u² and, where there are draws enough, the products of two; orthonormal under a standard normal."""
    rows, d, _ = white.shape
    count = (d + 1) * (d + 2) // 2
    whole = count <= min(MOST_COEFFICIENTS, draws)
    features = np.empty((rows, count if whole else 2 * d + 1, draws))
    features[:, 0] = 1.0
    features[:, 1 : d + 1] = white
    features[:, d + 1 : 2 * d + 1] = (white * white - 1.0) / math.sqrt(2.0)
    at = 2 * d + 1
    for latent in range(d - 1 if whole else 0):  # in the order of triu_indices
        np.multiply(white[:, latent, None], white[:, latent + 1 :], out=features[:, at : at + d - 1 - latent])
        at += d - 1 - latent
    return features, whole


def _regress(features: Doubles, values: Doubles, weights: Doubles, effective: Doubles) -> Doubles:
    """Coefficients of weighted least squares with a ridge, (rows, p).

    The ridge is the ratio of a coefficient's error to its size, both taken from a first fit that has next to none.
    """
    p = features.shape[1]
    roots = np.sqrt(weights)
    scaled, wanted = features * roots[:, None, :], values * roots
    gram = scaled @ scaled.transpose(0, 2, 1)
    right = scaled @ wanted[:, :, None]
    trial = _solved(gram + 1e-9 * np.eye(p), right)
    residual = wanted - (scaled.transpose(0, 2, 1) @ trial)[:, :, 0]
    noise = (residual * residual).sum(-1) / np.maximum(1.0 - p / effective, 1.0 / effective)
    size = (trial[:, 1:, 0] ** 2).mean(-1) + 1e-300
    ridge = np.clip(noise / (effective * size), 1e-9, 1e3)
    diagonal = ridge[:, None, None] * np.eye(p)
    diagonal[:, 0, 0] = 1e-9
    return _solved(gram + diagonal, right)[:, :, 0]


def root_of(covariance: Doubles) -> Doubles:
    """The lower triangular root of each row's covariance; of its diagonal alone where rounding left it none."""
    d = covariance.shape[1]
    spare = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))[:, :, None] * np.eye(d)
    return _row_by_row(np.linalg.cholesky, spare, covariance)


def _solved(matrix: Doubles, right: Doubles) -> Doubles:
    """The solution of each row's equations; nothing but zeros where there is none."""
    found = _row_by_row(np.linalg.solve, np.zeros_like(right), matrix, right)
    return np.asarray(np.nan_to_num(found, nan=0.0, posinf=0.0, neginf=0.0))


def _row_by_row(work: Callable[..., Doubles], spare: Doubles, *stacks: Doubles) -> Doubles:
    """Work on all rows; where one of them fails, on each: it gets what is to spare, and the others what is theirs."""
    try:
        return work(*stacks)
    except np.linalg.LinAlgError:
        if len(spare) == 1:
            return spare
    rows = (slice(row, row + 1) for row in range(len(spare)))
    return np.concatenate([_row_by_row(work, spare[row], *(stack[row] for stack in stacks)) for row in rows])


def _coefficients(found: Doubles, d: int, whole: bool) -> tuple[Doubles, Doubles]:
    """The quadratic's slope (rows, d) and matrix of second derivatives (rows, d, d)."""
    bend = np.zeros((len(found), d, d))
    bend[:, np.arange(d), np.arange(d)] = math.sqrt(2.0) * found[:, d + 1 : 2 * d + 1]
    if whole and d > 1:
        first, second = np.triu_indices(d, 1)
        bend[:, first, second] = bend[:, second, first] = found[:, 2 * d + 1 :]
    return found[:, 1 : d + 1], bend


def tempered(log_weight: Doubles, wanted: float) -> tuple[Doubles, Doubles]:
    """Weights to the highest power, at most 1, that leaves so many effective draws; they sum to one. And how many."""
    excess = log_weight - log_weight.max(-1, keepdims=True)
    low, high = np.full(len(excess), COLDEST), np.zeros(len(excess))
    warm = _effective(_powered(excess, np.ones(len(excess)))) >= wanted
    for _ in range(0 if warm.all() else HALVINGS):
        middle = 0.5 * (low + high)
        enough = _effective(_powered(excess, np.exp(middle))) >= wanted
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    weights = _powered(excess, np.where(warm, 1.0, np.exp(low)))
    weights /= weights.sum(-1, keepdims=True)
    return weights, _effective(weights)


def _powered(excess: Doubles, power: Doubles) -> Doubles:
    return np.exp(power[:, None] * excess)


def _effective(weights: Doubles) -> Doubles:
    total = weights.sum(-1)
    return np.asarray(total * total / (weights * weights).sum(-1))

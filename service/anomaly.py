"""Anomaly: the scores that a row can be strange by, each with its formula. Pure NumPy; knows nothing of models.

All come from one pass, float64, one number a row. Two are relative to typical rows: what they need is fitted here, by
`fit`, on rows that no reference is made of (the validation split), so that conformal p-values stay exact.

    elbo               log_likelihood − kl                                              nats          low is strange
    log_likelihood     E_q[log p(x|z)]                                                  nats          low
    kl                 KL(q(z|x) ‖ p(z))                                                nats          high
    iwae_gap           log Σ_k a_k w_k − Σ_k a_k log w_k, a_k the bank's weights        nats          high
    typicality         |elbo − median elbo of typical rows|                             nats          high
    density_of_states  log N(s; m, C) of s = (log_likelihood, kl, ‖mean‖, ‖scale‖)      nats          low

iwae_gap is Jensen's: never negative, and at most the evidence gap in expectation (Burda et al. 2016). Typicality is
Nalisnick et al. 2019 for single rows, density of states Morningstar et al. 2021 with one Gaussian, whose covariance is
shrunk to its diagonal (Ledoit & Wolf 2004).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from service.scoring import COARSE, unless_coarse

Doubles = NDArray[np.float64]
Strange = Literal["low", "high"]
Parameters = Mapping[str, Doubles]

STATES = 4  # statistics that a density of states is over


@dataclass(frozen=True, slots=True)
class Kind:
    """What a score is: which end of it is strange, its unit, and the shapes of what is fitted for it."""

    strange: Strange
    unit: str
    fitted: Mapping[str, tuple[int, ...]]


KINDS: Mapping[str, Kind] = {
    "elbo": Kind("low", "nats", {}),
    "log_likelihood": Kind("low", "nats", {}),
    "kl": Kind("high", "nats", {}),
    "iwae_gap": Kind("high", "nats", {}),
    "typicality": Kind("high", "nats", {"centre": ()}),
    "density_of_states": Kind(
        "low",
        "nats, of a density over four statistics",
        {"mean": (STATES,), "whitening": (STATES, STATES), "log_volume": ()},
    ),
}


@dataclass(frozen=True, slots=True)
class Statistics:
    """What scores are made of, (rows,) float64. The norms are of the posterior's mean and scale, where asked for."""

    elbo: Doubles
    log_likelihood: Doubles
    kl: Doubles
    iwae_gap: Doubles
    mean_norm: Doubles | None = None
    scale_norm: Doubles | None = None

    @property
    def states(self) -> tuple[Doubles, ...] | None:
        """The statistics that the density of states is over."""
        if self.mean_norm is None or self.scale_norm is None:
            return None
        return self.log_likelihood, self.kl, self.mean_norm, self.scale_norm


def joined(parts: Sequence[Statistics]) -> Statistics:
    """Statistics of some rows after those of others; all with norms, or none."""
    columns = {each.name: [getattr(part, each.name) for part in parts] for each in fields(Statistics)}
    return Statistics(**{name: np.concatenate(found) for name, found in columns.items() if found[0] is not None})


def picked(found: Statistics, places: NDArray[np.int64]) -> Statistics:
    """The statistics of some of the rows."""
    columns = {each.name: getattr(found, each.name) for each in fields(Statistics)}
    return Statistics(**{name: column[places] for name, column in columns.items() if column is not None})


def iwae_gap(log_weight: Doubles, weights: Doubles) -> Doubles:
    """How much higher the bound is that averages weights, not their logs: (rows, draws), (draws,) → (rows,), ≥ 0.

    NaN where log weights are so far from 0 that doubles of them can't differ by as little as they do.

    >>> iwae_gap(np.log([[1.0, 3.0]]), np.array([0.5, 0.5])).round(3)
    array([0.144])
    """
    draws = np.ascontiguousarray(log_weight, np.float64)
    if draws.shape[-1] == 1:  # nothing to average; what isn't finite has no gap
        return np.asarray(draws[:, 0] * 0.0 if not np.isfinite(draws).all() else np.zeros(len(draws)), np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        highest = draws.max(-1, keepdims=True)
        below = draws - highest
        gap = np.asarray(np.log((weights * np.exp(below)).sum(-1)) - (weights * below).sum(-1), np.float64)
    return unless_coarse(gap, highest[:, 0])


def norm(vectors: Doubles) -> Doubles:
    """Euclidean lengths, (rows, d) → (rows,); only a contiguous last axis is summed over."""
    vectors = np.ascontiguousarray(vectors, np.float64)
    with np.errstate(over="ignore"):
        return np.asarray(np.sqrt((vectors * vectors).sum(-1)), np.float64)


def fit(typical: Statistics) -> dict[str, dict[str, Doubles]]:
    """What the scores need to know of typical rows, by score and parameter; the norms may be left out."""
    fitted = {"typicality": {"centre": np.asarray(np.median(typical.elbo))}}
    if typical.states is not None:
        fitted["density_of_states"] = _fit_density(np.stack(typical.states, axis=-1))
    return fitted


def values(found: Statistics, fitted: Mapping[str, Parameters]) -> dict[str, Doubles]:
    """Every score that can be had of some rows, in the order of KINDS.

    A row of no likelihood at all (elbo −inf), or of so little that doubles can't tell its draws apart, is as strange as
    can be by each score that has no number for it.
    """
    scores = {name: getattr(found, name) for name in ("elbo", "log_likelihood", "kl", "iwae_gap")}
    with np.errstate(over="ignore", invalid="ignore"):
        if "typicality" in fitted:
            scores["typicality"] = np.abs(found.elbo - fitted["typicality"]["centre"])
        if "density_of_states" in fitted and found.states is not None:
            scores["density_of_states"] = _log_density(found.states, fitted["density_of_states"])
    lost = found.elbo <= -COARSE
    if lost.any():
        ends = {"low": -np.inf, "high": np.inf}
        scores = {n: np.where(lost & np.isnan(s), ends[KINDS[n].strange], s) for n, s in scores.items()}
    return scores


def strangeness(name: str, scores: Doubles) -> Doubles:
    """A score turned so that greater is stranger."""
    return scores if KINDS[name].strange == "high" else -scores


def _fit_density(states: Doubles) -> dict[str, Doubles]:
    """The Gaussian of some statistics, (rows, 4): its mean, what makes it a standard normal, and log |2πC|/2.

    Each column is standardised first, so that the shrinkage doesn't depend on its unit.
    """
    mean, scale = states.mean(0), states.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    shrunk = _shrink((states - mean) / scale)
    lower = np.linalg.cholesky(shrunk)
    log_volume = STATES / 2 * np.log(2 * np.pi) + np.log(np.diag(lower)).sum() + np.log(scale).sum()
    return {"mean": mean, "whitening": np.linalg.inv(lower) / scale, "log_volume": np.asarray(log_volume)}


def _shrink(standard: Doubles) -> Doubles:
    """The covariance of standardised columns, (rows, d), drawn to the identity as far as its own noise says."""
    rows, width = standard.shape
    covariance = standard.T @ standard / rows
    distance = ((covariance - np.eye(width)) ** 2).sum()
    spread = sum(((np.outer(row, row) - covariance) ** 2).sum() for row in standard) / rows**2
    share = 1.0 if distance <= 0 else min(1.0, spread / distance)
    share = max(share, 1.0 / rows)  # columns that determine one another still have a density
    return np.asarray((1 - share) * covariance + share * np.eye(width), np.float64)


def _log_density(states: tuple[Doubles, ...], fitted: Parameters) -> Doubles:
    """log N(states), a column at a time, so that a row's number doesn't depend on its neighbours."""
    centred = [column - mean for column, mean in zip(states, fitted["mean"].tolist(), strict=True)]
    total = np.zeros_like(states[0])
    for index, weights in enumerate(fitted["whitening"].tolist()):  # Python's numbers meet arrays faster than NumPy's
        white = weights[0] * centred[0]
        for weight, column in zip(weights[1 : index + 1], centred[1 : index + 1], strict=True):
            white = white + weight * column  # whitening is lower triangular
        total += white * white
    return np.asarray(-0.5 * total - fitted["log_volume"], np.float64)

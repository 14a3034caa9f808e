"""Scores: the ELBO of each row, where it stands among held-out rows, and what it is made of."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import calibration, noise, scoring
from service.artifact import Array
from service.models import Model
from service.operations.errand import Errand, chunks, off_loop
from service.operations.rows import admitted
from service.standing import Standing

Doubles = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a p-value rests on; reason says why there is none."""

    n: int | None
    seed: int | None
    draws: int | None
    smallest_p: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Score:
    """One bound a row with its error, what it is made of, and where it stands; all in nats, (rows,) float64.

    p_value and anomaly are None where the artifact isn't calibrated for this estimator. With explanations,
    feature_log_likelihood (rows, *event) and latent_kl (rows, d) sum to log_likelihood and kl.
    """

    bound: scoring.Bound
    bits_per_dim: Doubles | None
    p_value: Doubles | None
    anomaly: list[bool | None] | None
    calibration: Calibrated
    seed: int
    draws: int
    feature_log_likelihood: Doubles | None = None
    latent_kl: Doubles | None = None


async def score(
    model: Model,
    inputs: Array,
    *,
    draws: int | None = None,
    seed: int | None = None,
    alpha: float = 0.05,
    explain: bool = False,
    errand: Errand,
) -> Score:
    """The ELBO of each row, with its error, and its p-value among held-out rows."""
    x, standing = await admitted(inputs, model.manifest), model.standing
    bank = await model.bank(model.seed if seed is None else seed, draws or model.draws)
    outputs = await errand.ask(model, "elbo", {"x": x}, bank)
    bound = await off_loop(len(x) * bank.draws, lambda: scoring.bound(outputs["log_likelihood"], outputs["kl"], bank))
    facts, p = _stand(standing, bank, bound.elbo)
    if standing and p is not None and errand.served:
        await standing.watched(bound.elbo, model.manifest)
    bits = scoring.bits_per_dim(bound.elbo, model.manifest.dimensions) if model.manifest.discrete else None
    flags = None if p is None else [None if math.isnan(value) else value <= alpha for value in p.tolist()]
    features, latents = await _explain(model, x, bank, errand) if explain else (None, None)
    return Score(bound, bits, p, flags, facts, bank.seed, bank.draws, features, latents)


def _stand(standing: Standing | None, bank: noise.Bank, elbo: Doubles) -> tuple[Calibrated, Doubles | None]:
    """Where scores stand among the reference scores, if those were made with this bank."""
    if standing is None:
        return Calibrated(None, None, None, None, "the artifact is not calibrated: python -m training calibrate"), None
    facts, reason = standing.facts, None
    if (bank.seed, bank.draws) != (facts.seed, facts.draws):
        reason = (
            f"calibrated with seed {facts.seed} and {facts.draws} draws; "
            f"seed {bank.seed} and {bank.draws} draws give another score"
        )
    p = None if reason else calibration.p_values(standing.reference, elbo)
    return Calibrated(facts.n, facts.seed, facts.draws, standing.reference.smallest_p, reason), p


async def _explain(model: Model, x: Array, bank: noise.Bank, errand: Errand) -> tuple[Doubles, Doubles]:
    """Each feature's share of log_likelihood and each latent's of kl; chunked, since the terms are large."""
    features, latents = [], []
    for rows in chunks(len(x), bank.draws * model.manifest.dimensions):
        terms = await errand.ask(model, "terms", {"x": x[rows]}, bank)
        drawn = terms["feature_log_likelihood"]
        features.append(await asyncio.to_thread(_weigh, drawn, bank.weights))
        latents.append(terms["latent_kl"])
    return np.concatenate(features), np.concatenate(latents)


def _weigh(values: Array, weights: Doubles) -> Doubles:
    """Σ_k weights[k] · values[:, k], draw after draw, so that a row's sum doesn't depend on its neighbours."""
    total = np.zeros((len(values), *values.shape[2:]))
    for index, weight in enumerate(weights):
        total += weight * values[:, index]
    return total

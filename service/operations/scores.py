"""Scores: the ELBO of each row, where it stands among held-out rows, and what it is made of."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from service import calibration, noise, scoring
from service.artifact import Array
from service.models import Model
from service.operations.errand import Errand, chunks, off_loop
from service.operations.left_out import left_out
from service.operations.rows import admitted, observed

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

INCOMPLETE = "rows with missing values have no p-value: the calibration rows are complete, so they are not comparable"


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
    feature_log_likelihood (rows, *event) and latent_kl (rows, d) sum to log_likelihood and kl. With conditionals,
    feature_conditional is log p(x_j|x_−j), and feature_conditional_k what its reliability is told by; (rows, *event).
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
    feature_conditional: Doubles | None = None
    feature_conditional_k: Doubles | None = None


async def score(
    model: Model,
    inputs: Array,
    *,
    draws: int | None = None,
    seed: int | None = None,
    alpha: float = 0.05,
    explain: bool = False,
    conditionals: bool = False,
    errand: Errand,
) -> Score:
    """The ELBO of each row, with its error, and its p-value among held-out rows."""
    x = await admitted(inputs, model.manifest)
    bank = await model.bank(model.seed if seed is None else seed, draws or model.draws)
    outputs = await errand.ask(model, "elbo", {"x": x}, bank)
    bound = await off_loop(len(x) * bank.draws, lambda: scoring.bound(outputs["log_likelihood"], outputs["kl"], bank))
    seen = await observed(x, model.manifest)
    facts, p = _stand(model, bank, bound.elbo)
    if model.manifest.calibration and model.manifest.calibration.complete:
        facts, p = _of_complete_rows(facts, p, seen == model.manifest.dimensions)
    bits = scoring.bits_per_dim(bound.elbo, seen) if model.manifest.discrete else None
    flags = None if p is None else [None if math.isnan(value) else value <= alpha for value in p.tolist()]
    features, latents = await _explain(model, x, bank, errand) if explain else (None, None)
    alone = await left_out(model, x, bank, outputs["log_weight"], errand) if conditionals else (None, None)
    return Score(bound, bits, p, flags, facts, bank.seed, bank.draws, features, latents, *alone)


def _stand(model: Model, bank: noise.Bank, elbo: Doubles) -> tuple[Calibrated, Doubles | None]:
    """Where scores stand among the reference scores, if those were made with this bank."""
    facts = model.manifest.calibration
    if facts is None or model.reference is None:
        return Calibrated(None, None, None, None, "the artifact is not calibrated: python -m training calibrate"), None
    reason = None
    if (bank.seed, bank.draws) != (facts.seed, facts.draws):
        reason = (
            f"calibrated with seed {facts.seed} and {facts.draws} draws; "
            f"seed {bank.seed} and {bank.draws} draws give another score"
        )
    p = None if reason else calibration.p_values(model.reference, elbo)
    return Calibrated(facts.n, facts.seed, facts.draws, model.reference.smallest_p, reason), p


def _of_complete_rows(facts: Calibrated, p: Doubles | None, complete: Flags) -> tuple[Calibrated, Doubles | None]:
    """p-values of complete rows alone: the reference rows are complete, and a row with holes is not one like them."""
    if p is None or complete.all():
        return facts, p
    return replace(facts, reason=INCOMPLETE), np.where(complete, p, np.nan)


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

"""Scores: the ELBO of each row and its other scores, where each stands among held-out rows, and what it is made of."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from service import anomaly, appraisal, calibration, noise, scoring
from service.appraisal import P, Yardstick, appraise
from service.artifact import Array, Arrays
from service.batcher import Answer
from service.errors import EngineFailed, EngineLost, Problem
from service.models import Model
from service.operations.errand import Errand, chunks, off_loop, together
from service.operations.left_out import left_out
from service.operations.rows import admit, admitted, observed
from service.works import SCORE

Doubles = NDArray[np.float64]
Flags = NDArray[np.bool_]

INCOMPLETE = "rows with missing values have no p-value: the calibration rows are complete, so they are not comparable"

UNCALIBRATED = "the artifact is not calibrated: python -m training calibrate"


@dataclass(frozen=True, slots=True)
class Rule:
    """What makes a row an anomaly: p ≤ alpha, or with fdr a discovery of Benjamini & Hochberg's at that level.

    correction: what is done to p-values first, so that with probability ≥ confidence they hold for this calibration.
    """

    alpha: float
    fdr: float | None
    correction: calibration.Correction
    confidence: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a p-value rests on, and which score p_value is of; reason says why there is none.

    smallest_p is the least that any row can have. warning says what can't be found with so few held-out rows.
    """

    n: int | None
    seed: int | None
    draws: int | None
    smallest_p: float | None
    reason: str | None
    score: str | None = None
    warning: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """One score of each row, (rows,), as it is, and its p-value where the artifact is calibrated for it."""

    value: Doubles
    p_value: Doubles | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a score is made of: feature_log_likelihood (rows, *event) and latent_kl (rows, d), in nats.

    No latent_kl where the KL is sampled: it isn't a sum over the latents then.

    The deviations say how many scales of the calibration each lies from its centre, greater is stranger; None where
    the artifact isn't calibrated for this estimator.
    """

    feature_log_likelihood: Doubles
    latent_kl: Doubles | None
    feature_deviation: Doubles | None = None
    latent_deviation: Doubles | None = None
    feature_names: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Score:
    """One bound a row with its error, what it is made of, and where it stands; all in nats, (rows,) float64.

    scores are all that can be had, by name. p_value and anomaly are of the score that the artifact's calibration names,
    and None where the artifact isn't calibrated for this estimator. With conditionals, feature_conditional is
    log p(x_j|x_−j), and feature_conditional_k what its reliability is told by; (rows, *event).
    """

    bound: scoring.Bound
    bits_per_dim: Doubles | None
    scores: Mapping[str, Standing]
    p_value: Doubles | None
    anomaly: list[bool | None] | None
    calibration: Calibrated
    seed: int
    draws: int
    explanation: Explanation | None = None
    feature_conditional: Doubles | None = None
    feature_conditional_k: Doubles | None = None


async def score(
    model: Model,
    inputs: Array,
    *,
    draws: int | None = None,
    seed: int | None = None,
    alpha: float = 0.05,
    fdr: float | None = None,
    correction: calibration.Correction = "none",
    confidence: float = 0.9,
    explain: bool = False,
    conditionals: bool = False,
    errand: Errand,
) -> Score:
    """The scores of each row, the ELBO with its error, and their p-values among held-out rows; see Rule."""
    x = await admitted(inputs, model.manifest)
    seed, draws = model.seed if seed is None else seed, draws or model.draws
    by = await model.yardstick(seed, draws, served=errand.served)
    found = _judged(model, x, by, await appraised(model, x, by, errand), Rule(alpha, fdr, correction, confidence))
    if explain:
        found = replace(found, explanation=await _explain(model, x, by, errand))
    if conditionals:
        values, k = await left_out(model, x, by.bank, errand)
        found = replace(found, feature_conditional=values, feature_conditional_k=k)
    return found


def post_score(
    model: Model,
    inputs: Array,
    draws: int,
    seed: int | None,
    rule: Rule,
    errand: Errand,
    tell: Callable[[Score | Problem], None],
) -> Callable[[], None] | None:
    """The same for who would rather be told than wait; how to say that nobody waits any more.

    None where it can't be had without waiting: for a bank that must be made first, or draws that don't fit one call.
    """
    door, seed = model.doors[SCORE], model.seed if seed is None else seed
    by = model.kept(seed, draws, errand.served)
    if by is None or draws > door.size:
        return None
    x = admit(inputs, model.manifest)

    def told(answer: Answer | Problem) -> None:
        if isinstance(answer, Answer):
            errand.queued, errand.computed = answer.queued, answer.computed
            tell(_judged(model, x, by, answer.outputs, rule))
        else:
            tell(answer)

    ticket = door.post({"x": x}, told, bank=by, key=by, deadline=errand.deadline)
    return lambda: door.drop(ticket)


def calibrated(model: Model, by: Yardstick) -> Calibrated:
    """What p-values by a yardstick rest on, or why there are none."""
    return _facts(model.calibrated, by)


def standing(model: Model, by: Yardstick, x: Array, found: Arrays) -> tuple[Calibrated, dict[str, Doubles]]:
    """What an appraisal of many requests' rows gives each of them by the usual rule, by the names that it has in npz.

    Not of models for rows with missing values: what is said of these depends on a request's other rows.
    """
    facts = calibrated(model, by)
    columns = {name: found[name] for name in ("elbo", "elbo_error", "log_likelihood", "kl")}
    for name in anomaly.KINDS:
        if name in found:
            columns[f"scores.{name}.value"] = found[name]
        if (p := found.get(P + name)) is not None:
            columns[f"scores.{name}.p_value"] = p
    if facts.score and (chosen := found.get(P + facts.score)) is not None:
        columns["p_value"] = chosen
    if model.manifest.discrete:
        columns["bits_per_dim"] = scoring.bits_per_dim(found["elbo"], observed(x, model.manifest))
    return facts, columns


def _judged(model: Model, x: Array, by: Yardstick, found: Arrays, rule: Rule) -> Score:
    """A score from what an appraisal found, by a rule."""
    facts = calibrated(model, by)
    standings = _stand(found, by, rule)
    p = standings[facts.score].p_value if facts.score and facts.score in standings else None
    flags, facts = _decide(p, facts, rule)
    seen = observed(x, model.manifest)
    bound = scoring.Bound(found["elbo"], found["elbo_error"], by.error_df, found["log_likelihood"], found["kl"])
    bits = scoring.bits_per_dim(bound.elbo, seen) if model.manifest.discrete else None
    if p is not None and by.complete and model.manifest.missing and bool(np.any(seen < model.manifest.dimensions)):
        facts = replace(facts, reason=INCOMPLETE)
    return Score(bound, bits, standings, p, flags, facts, by.bank.seed, by.bank.draws)


async def appraised(model: Model, x: Array, by: Yardstick, errand: Errand) -> Arrays:
    """All that is said of admitted rows by default, together with other requests where a row's draws fit one call."""
    if by.bank.draws <= model.doors[SCORE].size:
        return await errand.appraise(model, x, by)
    outputs = await errand.ask(model, "elbo", {"x": x}, by.bank)
    posterior = await _posterior(model, x, by, errand) if by.normed else {}
    found = await off_loop(
        len(x) * by.bank.draws, lambda: appraise(x, outputs, lambda _: posterior, model.manifest, by)
    )
    if by.notice:
        by.notice(found)
    return found


async def _posterior(model: Model, x: Array, by: Yardstick, errand: Errand) -> Arrays:
    """The posterior for a score that isn't asked for together with others; see appraise."""
    try:
        return await errand.ask(model, "encoder", {"x": x})
    except EngineLost:
        raise
    except EngineFailed:
        if by.hinges:
            raise
    parts = []
    for row in np.split(x, len(x)):
        try:
            parts.append(await errand.ask(model, "encoder", {"x": row}))
        except EngineLost:
            raise
        except EngineFailed:
            parts.append(appraisal.unknown(model.manifest))
    return appraisal.stacked(parts)


async def measure(
    model: Model, x: Array, bank: noise.Bank, *, norms: bool, errand: Errand
) -> tuple[scoring.Bound, anomaly.Statistics]:
    """The bound of admitted rows and what their scores are made of; the posterior's norms come from the encoder."""
    if norms:
        asked = errand.ask(model, "elbo", {"x": x}, bank), errand.ask(model, "encoder", {"x": x})
        outputs, posterior = await together(*asked)
    else:
        outputs, posterior = await errand.ask(model, "elbo", {"x": x}, bank), None
    return await off_loop(len(x) * bank.draws, lambda: appraisal.measure(outputs, posterior, bank))


@lru_cache(maxsize=64)  # the same are asked for over and over; both compare by identity
def _facts(used: noise.Bank | None, by: Yardstick) -> Calibrated:
    """What p-values of a bank's scores rest on, or why there are none; used is the bank of the calibration."""
    references = by.references
    if used is None or references is None:
        return Calibrated(None, None, None, None, UNCALIBRATED)
    reason = None
    if not by.comparable:
        reason = (
            f"calibrated with seed {used.seed} and {used.draws} draws; "
            f"seed {by.bank.seed} and {by.bank.draws} draws give another score"
        )
    smallest = references.scores[references.chosen].smallest_p
    return Calibrated(references.n, used.seed, used.draws, smallest, reason, references.chosen)


def _stand(found: Arrays, by: Yardstick, rule: Rule) -> dict[str, Standing]:
    """Every score with its p-value, which rows unlike the reference rows don't have."""
    standings = {}
    for name in anomaly.KINDS:
        if name in found:
            p = found.get(P + name)
            if p is not None and by.references is not None and rule.correction != "none":
                p = calibration.correct(p, by.references.n, rule.confidence)
            standings[name] = Standing(found[name], p)
    return standings


def _decide(p: Doubles | None, facts: Calibrated, rule: Rule) -> tuple[list[bool | None] | None, Calibrated]:
    """Which rows are anomalies, and the calibration's facts with what it can't find."""
    smallest = facts.smallest_p
    plain = rule.fdr is None and rule.correction == "none"
    if plain and p is not None and smallest is not None and smallest <= rule.alpha:  # nearly always: nothing to warn of
        return [None if math.isnan(value) else value <= rule.alpha for value in p.tolist()], facts
    if smallest is not None and facts.n is not None and rule.correction != "none":
        smallest = float(calibration.correct(np.array([smallest]), facts.n, rule.confidence)[0])
        facts = replace(facts, smallest_p=smallest)
    if p is None or smallest is None:
        return None, facts
    if rule.fdr is None:
        flags = [None if math.isnan(value) else value <= rule.alpha for value in p.tolist()]
        warning = f"no row can have p ≤ {rule.alpha:g}: the least is {smallest:.3g}" if smallest > rule.alpha else None
    else:
        flags = calibration.discoveries(p, rule.fdr)
        warning = _too_few(int((~np.isnan(p)).sum()), smallest, rule)
    return flags, replace(facts, warning=warning)


def _too_few(rows: int, smallest: float, rule: Rule) -> str | None:
    """What Benjamini & Hochberg can't find among some rows, since no p-value is small enough."""
    assert rule.fdr is not None
    fewest = calibration.fewest_discoveries(rows, smallest, rule.fdr)
    if fewest == 1:
        return None
    found = "none can be found" if fewest > rows else f"fewer than {fewest} together can't be found"
    warning = f"of {rows} rows at fdr {rule.fdr:g} {found}: the smallest p-value is {smallest:.3g}"
    if rule.correction != "none":
        return warning
    return f"{warning}; a lone one needs {calibration.fewest_references(rows, rule.fdr)} calibration rows"


async def _explain(model: Model, x: Array, by: Yardstick, errand: Errand) -> Explanation:
    """Each feature's share of log_likelihood and each latent's of kl, and how unusual each is."""
    features, latents = await terms(model, x, by.bank, errand)
    columns = model.manifest.features
    names = [column.name for column in columns] if columns else None
    references = model.references
    if references is None or not by.comparable or references.feature is None:
        return Explanation(features, latents, feature_names=names)
    deviations = calibration.deviations(references.feature, features, "low")
    unusual = None
    if latents is not None and references.latent is not None:
        unusual = calibration.deviations(references.latent, latents, "high")
    return Explanation(
        features,
        latents,
        np.where(np.isnan(x), np.nan, deviations),  # a missing value is not a strange one
        unusual,
        names,
    )


async def terms(model: Model, x: Array, bank: noise.Bank, errand: Errand) -> tuple[Doubles, Doubles | None]:
    """feature_log_likelihood (rows, *event) and latent_kl (rows, d), if any; chunked, since the terms are large."""
    features, latents = [], []
    for rows in chunks(len(x), bank.draws * model.manifest.dimensions):
        found = await errand.ask(model, "terms", {"x": x[rows]}, bank)
        drawn = found["feature_log_likelihood"]
        features.append(await asyncio.to_thread(_weigh, drawn, bank.weights))
        latents += [found["latent_kl"]] if "latent_kl" in found else []
    return np.concatenate(features), np.concatenate(latents) if latents else None


def _weigh(values: Array, weights: Doubles) -> Doubles:
    """Σ_k weights[k] · values[:, k], draw after draw, so that a row's sum doesn't depend on its neighbours."""
    total = np.zeros((len(values), *values.shape[2:]))
    for index, weight in enumerate(weights):
        total += weight * values[:, index]
    return total

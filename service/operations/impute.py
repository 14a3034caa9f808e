"""Impute: what is missing of a row, given what is there: its expectation, and draws of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import conditional, evidence, families, noise
from service.artifact import Array, Arrays, Manifest
from service.errors import TooLarge
from service.models import Model
from service.operations.draws import encoded
from service.operations.errand import PIECE, Errand, chunks, in_time
from service.operations.posterior import pooled
from service.operations.rows import admitted

Doubles = NDArray[np.float64]

POOL, PER_DRAW = 1024, 4  # draws that are weighed: at least so many, and so many for each that is asked for
MOST = 2 * PIECE  # numbers in the draws of one answer
PICKING, DRAWING = 4, 5  # what a request's two generators are for


@dataclass(frozen=True, slots=True)
class Imputation:
    """Rows made whole: outputs (rows, *event) with E[x_missing|x_observed], imputations (rows, draws, *event).

    Values that were sent are in both as they were sent. effective_draws and pareto_k, (rows,), say what the pool of
    draws from p(z|x_observed) is worth; reliable, whether its weights have a tail that so many draws can bear.
    """

    outputs: Doubles
    imputations: Doubles
    effective_draws: Doubles
    pareto_k: Doubles
    reliable: list[bool]
    seed: int
    draws: int
    pool: int


def pool(draws: int) -> int:
    """How many draws from a proposal fitted to p(z|x_observed) are weighed for so many draws of what is missing.

    >>> pool(16), pool(400)
    (1024, 1600)
    """
    return -(-max(POOL, PER_DRAW * draws) // evidence.GROUPS) * evidence.GROUPS


def cost(draws: int) -> int:
    """Decoder calls of a row: to fit a proposal, to weigh its draws, and to decode them."""
    return evidence.pooling(pool(draws), 0, 1).draws + pool(draws)


async def impute(model: Model, inputs: Array, *, draws: int = 16, seed: int = 0, errand: Errand) -> Imputation:
    """E[x_missing|x_observed] and draws from p(x_missing|x_observed), by sampling–importance–resampling.

    A pool of draws z ~ g, a proposal fitted to each row as evidence does, by noise that a seed has for all rows, is
    weighed by p(x_observed, z)/g(z). The expectation is over all of them; a draw is of x ~ p(x|z) at one of them,
    picked with the probability that it weighs. Picks and draws come from the request's generators, row by row.
    """
    x = await admitted(inputs, model.manifest)
    if (numbers := len(x) * draws * model.manifest.dimensions) > MOST:
        raise TooLarge(f"{numbers} numbers in all draws is over the limit of {MOST} numbers a request")
    plan = evidence.pooling(pool(draws), seed, model.manifest.latent_size)
    q = await encoded(model, x, errand)
    generators = noise.generator(seed, PICKING), noise.generator(seed, DRAWING)
    outputs: Doubles = np.array(inputs, np.float64)
    imputations = np.repeat(outputs[:, None], draws, axis=1)
    holes = np.asarray(np.isnan(x), np.bool_)
    worth, k = np.empty(len(x)), np.empty(len(x))
    for rows in in_time(chunks(len(x), plan.last * _width(model.manifest)), len(x), errand):
        drawn = await pooled(model, x[rows], q[rows], plan, errand)
        weights = await asyncio.to_thread(conditional.weigh, drawn.log_weight)
        worth[rows], k[rows] = weights.effective_draws, weights.pareto_k
        decoded = await errand.ask(model, "decoder", {"z": drawn.z.reshape(-1, drawn.z.shape[-1])})
        mean, drawn_x = await asyncio.to_thread(_made_whole, model.manifest, decoded, weights.each, draws, generators)
        outputs[rows] = np.where(holes[rows], mean, outputs[rows])
        imputations[rows] = np.where(holes[rows][:, None], drawn_x, imputations[rows])
    reliable = conditional.reliable(k, plan.last).tolist()
    return Imputation(outputs, imputations, worth, k, reliable, seed, draws, plan.last)


def _width(manifest: Manifest) -> int:
    """Numbers that are held at once for a draw: what is decoded, or what a proposal is fitted with."""
    return max(manifest.dimensions * (1 + len(manifest.parameters)), 32 * manifest.latent_size)


def _made_whole(
    manifest: Manifest,
    decoded: Arrays,
    weights: Doubles,
    draws: int,
    generators: tuple[np.random.Generator, np.random.Generator],
) -> tuple[Doubles, Array]:
    """The weighted mean of each row's pool, (rows, *event), and a draw of x at each latent picked from it.

    Draw after draw, so that a row's sum doesn't depend on its neighbours. NaN for a row that no draw gives weight.
    """
    rows, size = weights.shape
    each = {name: values.reshape(rows, size, *values.shape[1:]) for name, values in decoded.items()}
    ones = (1,) * len(manifest.event_shape)
    mean = np.zeros((rows, *manifest.event_shape))
    for index in range(size):
        mean += weights[:, index].reshape(rows, *ones) * each["mean"][:, index]
    picking, drawing = generators
    known = np.asarray(np.isfinite(weights).all(-1))
    usable = np.where(known[:, None], weights, 1.0 / size)
    chosen = conditional.pick(usable, picking.random((rows, draws)))
    lines = np.arange(rows)[:, None]
    picked = {name: each[name][lines, chosen] for name in manifest.parameters}
    parameters = {name: values.reshape(-1, *values.shape[2:]) for name, values in picked.items()}
    drawn = families.draw(manifest, parameters, drawing).astype(np.float64)
    drawn = drawn.reshape(rows, draws, *manifest.event_shape)
    return mean, np.where(known.reshape(rows, 1, *ones), drawn, np.nan)

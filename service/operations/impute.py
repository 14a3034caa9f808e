"""Impute: what is missing of a row, given what is there: its expectation, and draws of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import conditional, families, noise
from service.artifact import Array, Arrays, Manifest
from service.errors import TooLarge
from service.models import Model
from service.operations.draws import encoded, posterior
from service.operations.errand import PIECE, Errand, chunks, off_loop
from service.operations.rows import admitted

Doubles = NDArray[np.float64]

POOL, PER_DRAW = 1024, 4  # draws from q that are weighed: at least so many, and so many for each that is asked for
MOST = 2 * PIECE  # numbers in the draws of one answer
PICKING, DRAWING = 4, 5  # what a request's two generators are for


@dataclass(frozen=True, slots=True)
class Imputation:
    """Rows made whole: outputs (rows, *event) with E[x_missing|x_observed], imputations (rows, draws, *event).

    Values that were sent are in both as they were sent. effective_draws and pareto_k, (rows,), say what the pool of
    draws from q(z|x_observed) is worth; reliable, whether its weights have a tail that so many draws can bear.
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
    """How many draws from q(z|x_observed) are weighed for so many draws of what is missing.

    >>> pool(16), pool(400)
    (1024, 1600)
    """
    return max(POOL, PER_DRAW * draws)


async def impute(model: Model, inputs: Array, *, draws: int = 16, seed: int = 0, errand: Errand) -> Imputation:
    """E[x_missing|x_observed] and draws from p(x_missing|x_observed), by sampling–importance–resampling.

    A pool of draws z ~ q(z|x_observed), from the noise bank that a score of this seed has, is weighed by
    p(x_observed, z)/q(z|x_observed). The expectation is over all of them; a draw is of x ~ p(x|z) at one of them,
    picked with the probability that it weighs. Picks and draws come from the request's generators, row by row.
    """
    x = await admitted(inputs, model.manifest)
    if (numbers := len(x) * draws * model.manifest.dimensions) > MOST:
        raise TooLarge(f"{numbers} numbers in all draws is over the limit of {MOST} numbers a request")
    bank = await model.bank(seed, pool(draws))
    weighed = await errand.ask(model, "elbo", {"x": x}, bank)
    weights = await off_loop(len(x) * bank.draws, lambda: conditional.weigh(weighed["log_weight"]))
    q = await encoded(model, x, errand)
    generators = noise.generator(seed, PICKING), noise.generator(seed, DRAWING)
    outputs: Doubles = np.array(inputs, np.float64)
    imputations = np.repeat(outputs[:, None], draws, axis=1)
    holes = np.asarray(np.isnan(x), np.bool_)
    for rows in chunks(len(x), bank.draws * model.manifest.dimensions * (1 + len(model.manifest.parameters))):
        z = await posterior(model, x[rows], q[rows], bank.noise, errand)
        flat = np.ascontiguousarray(z.reshape(-1, z.shape[-1]), np.float32)
        decoded = await errand.ask(model, "decoder", {"z": flat})
        mean, drawn = await asyncio.to_thread(
            _made_whole, model.manifest, decoded, weights.each[rows], draws, generators
        )
        outputs[rows] = np.where(holes[rows], mean, outputs[rows])
        imputations[rows] = np.where(holes[rows][:, None], drawn, imputations[rows])
    reliable = conditional.reliable(weights.pareto_k, bank.draws).tolist()
    return Imputation(
        outputs, imputations, weights.effective_draws, weights.pareto_k, reliable, seed, draws, bank.draws
    )


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

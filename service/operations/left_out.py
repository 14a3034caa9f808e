"""Left out: how likely each feature of a row is, given its others."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from service import conditional, evidence, noise
from service.artifact import Array
from service.evidence import Plan, Pool
from service.models import Model
from service.operations.draws import Normal, encoded
from service.operations.errand import Errand, chunks, in_time
from service.operations.posterior import pooled

Doubles = NDArray[np.float64]

COPIES = 8  # of the terms that are held while their weights are sorted and smoothed
POOL = 1024  # draws from p(z|x) that are weighed, at least; fewer can't tell whether most features' tails are borne


def pool(draws: int) -> int:
    """How many draws from p(z|x) are weighed beside a score of so many.

    >>> pool(16), pool(2000)
    (1024, 2000)
    """
    return -(-max(POOL, draws) // evidence.GROUPS) * evidence.GROUPS


def cost(draws: int) -> int:
    """Decoder calls of a row, a score of so many draws aside: to fit a proposal, to weigh its draws, for the terms."""
    return evidence.pooling(pool(draws), 0, 1).draws + pool(draws)


async def left_out(model: Model, x: Array, bank: noise.Bank, errand: Errand) -> tuple[Doubles, Doubles]:
    """log p(x_j|x_−j) and the k̂ of its weights, (rows, *event) each, by draws from a proposal fitted to each row.

    Where q isn't a diagonal normal its own draws are weighed instead: the terms' graph takes noise and no latents, and
    which noise a latent would have come from is then unknown.
    """
    shape, size = tuple(model.manifest.event_shape), model.manifest.dimensions
    plan = evidence.pooling(pool(bank.draws), bank.seed, model.manifest.latent_size)
    draw = _of_q if "posterior" in model.manifest.graphs else _fitted
    values, k = np.empty((len(x), *shape)), np.empty((len(x), *shape))
    parts = chunks(len(x), COPIES * plan.last * max(size, 4 * plan.latent_size))
    for rows in in_time(parts, len(x), errand):
        weights, terms = await draw(model, x[rows], plan, errand)
        left = await asyncio.to_thread(conditional.left_out, weights, terms.reshape(len(terms), plan.last, size))
        values[rows], k[rows] = (part.reshape(-1, *shape) for part in left)
    return values, k


async def _of_q(model: Model, x: Array, plan: Plan, errand: Errand) -> tuple[Array, Array]:
    """Log weights (rows, draws), and terms (rows, draws, *event), at draws from q."""
    bank = await model.bank(plan.seed, plan.last)
    weights = (await errand.ask(model, "elbo", {"x": x}, bank))["log_weight"]
    return weights, (await errand.ask(model, "terms", {"x": x}, bank))["feature_log_likelihood"]


async def _fitted(model: Model, x: Array, plan: Plan, errand: Errand) -> tuple[Array, Array]:
    """The same at draws from a proposal fitted to each row.

    The terms' graph has one bank for all its rows, so each row is asked for alone, with the noise that its own draws
    would have come from.
    """
    q = await encoded(model, x, errand)
    drawn = await pooled(model, x, q, plan, errand)
    terms = np.empty((len(x), plan.last, *model.manifest.event_shape))
    for row, own in enumerate(_banks(q, drawn, plan.seed)):
        found = await errand.ask(model, "terms", {"x": x[row, None]}, own, own=True)
        terms[row] = found["feature_log_likelihood"][0]
    return drawn.log_weight, terms


def _banks(q: Normal, drawn: Pool, seed: int) -> list[noise.Bank]:
    """For each row the noise that makes its draws of its q's mean and scale."""
    scale = np.exp(np.asarray(q.log_scale, np.float64))
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        epsilon = ((drawn.z - np.asarray(q.mean, np.float64)[:, None]) / scale[:, None]).astype(np.float32)
    return [noise.Bank(seed, own, (1,) * len(own)) for own in epsilon]

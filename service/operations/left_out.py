"""Left out: how likely each feature of a row is, given its others."""

from __future__ import annotations

import asyncio

import numpy as np
from numpy.typing import NDArray

from service import conditional, noise
from service.artifact import Array
from service.models import Model
from service.operations.errand import Errand, chunks

Doubles = NDArray[np.float64]

COPIES = 8  # of the terms that are held while their weights are sorted and smoothed


async def left_out(model: Model, x: Array, bank: noise.Bank, errand: Errand) -> tuple[Doubles, Doubles]:
    """log p(x_j|x_−j) and the k̂ of its weights, (rows, *event) each, from the draws that the bound was taken at."""
    shape, size = tuple(model.manifest.event_shape), model.manifest.dimensions
    values, k = np.empty((len(x), *shape)), np.empty((len(x), *shape))
    for rows in chunks(len(x), COPIES * bank.draws * size):
        weights = (await errand.ask(model, "elbo", {"x": x[rows]}, bank))["log_weight"]
        terms = (await errand.ask(model, "terms", {"x": x[rows]}, bank))["feature_log_likelihood"]
        flat = terms.reshape(len(terms), bank.draws, size)
        found = await asyncio.to_thread(conditional.left_out, weights, flat)
        values[rows], k[rows] = (part.reshape(-1, *shape) for part in found)
    return values, k

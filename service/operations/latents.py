"""Latents: rows to their posterior and back, and samples from the prior."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from service import families, noise
from service.artifact import Array, Arrays
from service.models import Model
from service.operations.draws import Normal, encoded, posterior, prior
from service.operations.errand import Errand, chunks, off_loop
from service.operations.rows import admit_latents, admitted

CHOOSING = 6  # what the generator is for that chooses a mixture's components


@dataclass(frozen=True, slots=True)
class Encoding:
    """q(z|x): mean and scale (rows, d), and latents (rows, draws, d) where draws were asked for.

    No scale where q is a flow, and so no normal: its mean is one over a few draws, and its draws say the rest.
    """

    mean: Array
    scale: Array | None
    latents: Array | None
    seed: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Draws from the model: outputs (count, *event), the latents they came from (count, d), and the seed."""

    outputs: Array
    latents: Array
    seed: int


async def encode(model: Model, inputs: Array, *, draws: int = 0, seed: int = 0, errand: Errand) -> Encoding:
    """The posterior of each row, and draws from it."""
    x = await admitted(inputs, model.manifest)
    q = await encoded(model, x, errand)
    latents = await _drawn(model, x, q, draws, seed, errand) if draws else None
    scale = None if model.manifest.prior.posterior == "flow" else np.exp(q.log_scale)
    return Encoding(q.mean, scale, latents, seed)


async def decode(model: Model, latents: Array, *, errand: Errand) -> Array:
    """The mean of p(x|z) for each latent; (rows, *event)."""
    z = admit_latents(latents, model.manifest)
    return (await errand.ask(model, "decoder", {"z": z}))["mean"]


async def decode_parameters(model: Model, latents: Array, *, errand: Errand) -> Arrays:
    """The parameters of p(x|z) for each latent, by name; (rows, *event) each."""
    z = admit_latents(latents, model.manifest)
    outputs = await errand.ask(model, "decoder", {"z": z})
    return {name: outputs[name] for name in model.manifest.parameters}


async def decode_sample(model: Model, latents: Array, *, seed: int = 0, errand: Errand) -> Array:
    """One draw of x ~ p(x|z) for each latent; (rows, *event)."""
    parameters = await decode_parameters(model, latents, errand=errand)
    size = sum(array.size for array in parameters.values())
    generator = noise.generator(seed, purpose=1)
    return await off_loop(size, lambda: families.draw(model.manifest, parameters, generator))


async def reconstruct(model: Model, inputs: Array, *, draws: int = 0, seed: int = 0, errand: Errand) -> Array:
    """E[x'|z] at the posterior mean, or averaged over draws from the posterior; (rows, *event)."""
    x = await admitted(inputs, model.manifest)
    q = await encoded(model, x, errand)
    if draws == 0:
        return (await errand.ask(model, "decoder", {"z": q.mean}))["mean"]
    z = await _drawn(model, x, q, draws, seed, errand)  # (rows, draws, d)
    width = draws * model.manifest.dimensions
    parts = [await _mean_over_draws(model, z[rows], errand) for rows in chunks(len(z), width)]
    return np.concatenate(parts)


async def sample(
    model: Model,
    count: int = 1,
    *,
    seed: int | None = None,
    temperature: float = 1.0,
    output: Literal["mean", "sample"] = "mean",
    errand: Errand,
) -> Samples:
    """Latents from the prior, the scale of its noise times the temperature, decoded. Without a seed one is drawn."""
    seed = noise.fresh_seed() if seed is None else seed
    epsilon = noise.normals(seed, (count, model.manifest.latent_size)) * np.float32(temperature)
    z = await prior(model, epsilon, noise.generator(seed, CHOOSING).random(count, dtype=np.float32), errand)
    if output == "sample":
        return Samples(await decode_sample(model, z, seed=seed, errand=errand), z, seed)
    return Samples(await decode(model, z, errand=errand), z, seed)


async def _drawn(model: Model, x: Array, q: Normal, draws: int, seed: int, errand: Errand) -> Array:
    """Draws from the posterior, (rows, draws, d), by the request's generator, row by row."""
    shape = (len(x), draws, model.manifest.latent_size)
    epsilon = await off_loop(math.prod(shape), lambda: noise.normals(seed, shape))
    return await posterior(model, x, q, epsilon, errand)


async def _mean_over_draws(model: Model, z: Array, errand: Errand) -> Array:
    """The mean of the decoded draws, (rows, *event), from z (rows, draws, d); holds PIECE numbers at the most."""
    rows, draws, size = z.shape
    total = np.zeros((rows, *model.manifest.event_shape))
    dtype = np.dtype(np.float64)
    for span in chunks(draws, rows * model.manifest.dimensions):
        flat = np.ascontiguousarray(z[:, span]).reshape(-1, size)
        means = (await errand.ask(model, "decoder", {"z": flat}))["mean"]
        dtype = means.dtype
        total += means.reshape(rows, -1, *model.manifest.event_shape).sum(1, dtype=np.float64)
    return np.asarray(total / draws, dtype)

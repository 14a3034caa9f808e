"""Draws: latents from the posterior of rows and from the prior, whatever forms these have.

A diagonal normal is drawn from here; any other form has a graph that makes latents of noise.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from service.artifact import Array
from service.models import Model
from service.operations.errand import Errand, off_loop


@dataclass(frozen=True, slots=True)
class Normal:
    """What the encoder says of q(z|x), mean and log_scale (rows, d): all of it, where q is a diagonal normal."""

    mean: Array
    log_scale: Array

    def __getitem__(self, rows: slice) -> Normal:
        """Of some rows."""
        return Normal(self.mean[rows], self.log_scale[rows])


async def encoded(model: Model, x: Array, errand: Errand) -> Normal:
    """The mean and the log scale of each row's posterior."""
    outputs = await errand.ask(model, "encoder", {"x": x})
    return Normal(outputs["mean"], outputs["log_scale"])


async def posterior(model: Model, x: Array, q: Normal, epsilon: Array, errand: Errand) -> Array:
    """z ~ q(z|x) by noise (rows, k, d), or (k, d) for all rows alike; (rows, k, d) float32."""
    shape = (len(x), *epsilon.shape[-2:])
    if "posterior" not in model.manifest.graphs:
        return await off_loop(int(np.prod(shape)), lambda: _scaled(q, epsilon))
    given = np.ascontiguousarray(np.broadcast_to(epsilon, shape))
    return (await errand.ask(model, "posterior", {"x": x, "epsilon": given}))["z"]


def _scaled(q: Normal, epsilon: Array) -> Array:
    """z = mean + scale·ε."""
    return np.asarray(q.mean[:, None] + np.exp(q.log_scale)[:, None] * epsilon)


async def prior(model: Model, epsilon: Array, uniform: Array, errand: Errand) -> Array:
    """z ~ p(z) by noise, standard normals (n, d) and uniforms (n,), float32; (n, d) float32."""
    if (graph := model.manifest.graphs.get("prior")) is None:
        return epsilon
    given = {"epsilon": epsilon, "uniform": uniform}
    return (await errand.ask(model, "prior", {name: given[name] for name in graph.rows}))["z"]

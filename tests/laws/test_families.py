"""Families: the service's draws of x follow the density that travels as a graph, on the committed artifacts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from service import artifact, families, noise
from service.engine import open_engine

MODELS = Path(__file__).parents[2] / "exported_models"


@pytest.mark.parametrize("name", ["tiny", "mnist", "breast-cancer"])
def test_draws_have_the_log_likelihood_of_their_own_density(name: str) -> None:
    """E[log p(x|z)] over the service's draws is the graph's own negative entropy, estimated from its parameters.

    For each feature, the graph's log density at a draw is compared with that of independent draws made by another
    route: an inverse CDF over the levels for discrete families, SciPy's normal for the continuous one.
    """
    found = artifact.read(MODELS / name / "1")
    manifest = found.manifest
    engine = open_engine(found)
    z = noise.normals(4, (1, manifest.latent_size))
    count = 400
    parameters = {key: np.repeat(value, count, 0) for key, value in engine.compute("decoder", {"z": z}).items()}
    x = families.draw(manifest, parameters, noise.generator(1))
    other = _by_another_route(manifest, parameters, np.random.default_rng(2))
    ours, theirs = (
        engine.compute("joint", {"x": rows, "z": np.repeat(z[:, None], count, 0)})["log_likelihood"][:, 0]
        for rows in (x, other.astype(manifest.event_dtype))
    )
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-3
    assert x.dtype == manifest.event_dtype


def _by_another_route(
    manifest: artifact.Manifest, parameters: artifact.Arrays, generator: np.random.Generator
) -> artifact.Array:
    if manifest.family == "normal":
        return np.asarray(
            stats.norm.ppf(generator.random(parameters["loc"].shape), parameters["loc"], parameters["scale"])
        )
    if manifest.family == "bernoulli":
        return np.asarray(generator.random(parameters["logits"].shape) < 1 / (1 + np.exp(-parameters["logits"])))
    u = generator.random(parameters["loc"].shape)
    x = np.zeros(u.shape)
    step = float(manifest.support.step or 1)
    for level in np.arange(float(manifest.support.lowest or 0), float(manifest.support.highest or 0), step):
        a = (level + step / 2 - parameters["loc"].astype(float)) / parameters["scale"].astype(float)
        x += step * (u > stats.logistic.cdf(a))
    return x

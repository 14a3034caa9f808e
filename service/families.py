"""Families: draws of x ~ p(x|z) for each likelihood family. Pure NumPy; the densities travel as graphs, not here.

This is the one restatement of a family outside the graphs; a law in tests/laws holds it to the graphs' density.
All draws are filled row by row, so a row's draw does not depend on the rows after it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from service.artifact import Array, Manifest, Support

Parameters = Mapping[str, Array]
Draw = Callable[[Parameters, Support, np.random.Generator], Array]


def draw(manifest: Manifest, parameters: Parameters, generator: np.random.Generator) -> Array:
    """One draw of x for each row of the decoder's parameters; (rows, *event), of the event's dtype."""
    x = DRAWS[manifest.family](parameters, manifest.support, generator)
    return x.astype(manifest.event_dtype)


def _bernoulli(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """x = 1 where a uniform falls below σ(logits)."""
    logits = parameters["logits"].astype(np.float64)
    return _logistic(logits.shape, generator) < logits


def _discretised_logistic(parameters: Parameters, support: Support, generator: np.random.Generator) -> Array:
    """A logistic draw, rounded to the nearest level; the levels at the edges take the tails."""
    lowest, highest, step = float(support.lowest or 0), float(support.highest or 0), float(support.step or 1)
    loc, scale = (parameters[name].astype(np.float64) for name in ("loc", "scale"))
    x = loc + scale * _logistic(loc.shape, generator)
    levels = np.floor((x - lowest) / step + 0.5)
    return np.clip(lowest + step * levels, lowest, highest)


def _normal(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """x = loc + scale·ε."""
    loc, scale = (parameters[name].astype(np.float64) for name in ("loc", "scale"))
    return np.asarray(loc + scale * generator.standard_normal(loc.shape))


def _logistic(shape: tuple[int, ...], generator: np.random.Generator) -> Array:
    """Standard logistic draws, log u − log(1 − u)."""
    u = generator.uniform(np.finfo(np.float64).tiny, 1.0, shape)
    return np.asarray(np.log(u) - np.log1p(-u))


DRAWS: Mapping[str, Draw] = {
    "bernoulli": _bernoulli,
    "discretised_logistic": _discretised_logistic,
    "normal": _normal,
}

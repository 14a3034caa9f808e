"""Families: draws of x ~ p(x|z) for each likelihood family. Pure NumPy; the densities travel as graphs, not here.

This is the one restatement of a family outside the graphs; a law in tests/laws holds it to the graphs' density.
All draws are filled row by row, so a row's draw does not depend on the rows after it: what takes several steps takes
each of them from a generator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from service.artifact import FURTHEST_KNOT, Array, Manifest, Support

Parameters = Mapping[str, Array]
Doubles = NDArray[np.float64]
Draw = Callable[[Parameters, Support, np.random.Generator], Array]

HIGHEST_RATE = 2.0**52  # of a Poisson draw: past it counts leave the support, and float64 the whole numbers
STRAIGHT = 1e-6  # below this slope the inverse of a continuous Bernoulli's CDF is u to the last digits


def draw(manifest: Manifest, parameters: Parameters, generator: np.random.Generator) -> Array:
    """One draw of x for each row of the decoder's parameters; (rows, *event), of the event's dtype."""
    if manifest.blocks is None:
        return _held(DRAWS[manifest.family](parameters, manifest.support, generator), manifest.event_dtype)
    x = np.empty((len(parameters[manifest.parameters[0]]), manifest.dimensions), manifest.event_dtype)
    for block, own in zip(manifest.blocks, generator.spawn(len(manifest.blocks)), strict=True):
        each = {name: parameters[f"{block.name}.{name}"] for name in block.parameters}
        x[:, block.columns] = DRAWS[block.family](each, block.support, own)
    return x


def _held(x: Array, dtype: str) -> Array:
    """Draws in the event's dtype; a count past the range of whole numbers of that dtype is its greatest."""
    if x.dtype.kind == "i" and np.dtype(dtype).kind in "iu":
        x = np.minimum(x, np.iinfo(dtype).max)
    return x.astype(dtype)


def _bernoulli(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """x = 1 where a logistic draw falls below the logits."""
    logits = _doubles(parameters["logits"])
    return _logistic(logits.shape, generator) < logits


def _discretised_logistic(parameters: Parameters, support: Support, generator: np.random.Generator) -> Array:
    """A logistic draw, rounded to the nearest level; the levels at the edges take the tails."""
    lowest, highest, step = support.levels
    loc, scale = (_doubles(parameters[name]) for name in ("loc", "scale"))
    x = loc + scale * _logistic(loc.shape, generator)
    levels = np.floor((x - lowest) / step + 0.5)
    return np.clip(lowest + step * levels, lowest, highest)


def _categorical(parameters: Parameters, support: Support, generator: np.random.Generator) -> Array:
    """The first level whose cumulative mass passes a uniform."""
    lowest, _, step = support.levels
    logits = np.ascontiguousarray(_doubles(parameters["logits"]))  # (rows, *event, levels)
    mass = np.exp(logits - logits.max(-1, keepdims=True))
    below = np.cumsum(mass, -1)
    u = generator.random(logits.shape[:-1]) * below[..., -1]
    return np.asarray(lowest + step * (below[..., :-1] <= u[..., None]).sum(-1))


def _ordinal(parameters: Parameters, support: Support, generator: np.random.Generator) -> Array:
    """How many cutpoints lie below a logistic draw around loc."""
    lowest, _, step = support.levels
    loc, cutpoints = (_doubles(parameters[name]) for name in ("loc", "cutpoints"))
    latent = loc + _logistic(loc.shape, generator)
    return np.asarray(lowest + step * (latent[..., None] > cutpoints).sum(-1))


def _normal(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """x = loc + scale·ε."""
    loc, scale = (_doubles(parameters[name]) for name in ("loc", "scale"))
    return np.asarray(loc + scale * generator.standard_normal(loc.shape))


def _student_t(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """x = loc + scale·t, t with df degrees of freedom."""
    loc, scale, df = (_doubles(parameters[name]) for name in ("loc", "scale", "df"))
    return np.asarray(loc + scale * generator.standard_t(df))


def _lognormal(parameters: Parameters, support: Support, generator: np.random.Generator) -> Array:
    """The exponential of a normal draw, kept above 0 where it is too small for a double."""
    return np.maximum(np.exp(_normal(parameters, support, generator)), np.finfo(np.float64).tiny)


def _quantile_normal(parameters: Parameters, support: Support, generator: np.random.Generator) -> Array:
    """A normal draw y, taken along straight lines from evenly spaced y_i to the knots x_i; the end pieces go on."""
    y, knots = _normal(parameters, support, generator), _doubles(parameters["knots"])
    step = 2 * FURTHEST_KNOT / (knots.shape[-1] - 1)
    place = (y + FURTHEST_KNOT) / step
    piece = np.clip(np.floor(place), 0, knots.shape[-1] - 2).astype(np.int64)[..., None]
    left, right = (np.take_along_axis(knots, piece + i, -1)[..., 0] for i in (0, 1))
    return np.asarray(left + (place - piece[..., 0]) * (right - left))


def _poisson(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """A Poisson draw."""
    return generator.poisson(np.minimum(_doubles(parameters["rate"]), HIGHEST_RATE))


def _negative_binomial(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """A Poisson draw whose rate is a gamma draw of mean `rate` and shape `concentration`."""
    rate, concentration = (_doubles(parameters[name]) for name in ("rate", "concentration"))
    first, second = generator.spawn(2)
    mixed = first.standard_gamma(concentration) * (rate / concentration)
    return second.poisson(np.minimum(mixed, HIGHEST_RATE))


def _zero_inflated(parameters: Parameters, support: Support, generator: np.random.Generator) -> Array:
    """0 where a logistic draw falls below the inflation's logits, elsewhere a negative binomial draw."""
    first, second = generator.spawn(2)
    logits = _doubles(parameters["inflation_logits"])
    counts = _negative_binomial(parameters, support, second)
    return np.where(_logistic(logits.shape, first) < logits, 0, counts)


def _continuous_bernoulli(parameters: Parameters, _: Support, generator: np.random.Generator) -> Array:
    """The inverse CDF, log(1 + u(eˡ − 1))/l, at −|l|, where nothing overflows; turned round where l is above 0."""
    logits = _doubles(parameters["logits"])
    u = generator.random(logits.shape)
    slope = -np.maximum(np.abs(logits), STRAIGHT)
    x = np.where(np.abs(logits) < STRAIGHT, u, np.log1p(u * np.expm1(slope)) / slope)
    return np.clip(np.where(logits > 0, 1.0 - x, x), 0.0, 1.0)


def _doubles(values: Array) -> Doubles:
    """In float64."""
    return values.astype(np.float64)


def _logistic(shape: tuple[int, ...], generator: np.random.Generator) -> Doubles:
    """Standard logistic draws, log u − log(1 − u)."""
    u = generator.uniform(np.finfo(np.float64).tiny, 1.0, shape)
    return np.asarray(np.log(u) - np.log1p(-u))


DRAWS: Mapping[str, Draw] = {
    "bernoulli": _bernoulli,
    "discretised_logistic": _discretised_logistic,
    "categorical": _categorical,
    "ordinal": _ordinal,
    "normal": _normal,
    "student_t": _student_t,
    "lognormal": _lognormal,
    "quantile_normal": _quantile_normal,
    "poisson": _poisson,
    "negative_binomial": _negative_binomial,
    "zero_inflated_negative_binomial": _zero_inflated,
    "continuous_bernoulli": _continuous_bernoulli,
}

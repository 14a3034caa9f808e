"""Operations: what the service can do with a VAE, each said once. Knows nothing of HTTP.

Rows are checked here, before they queue, so that one bad row never reaches its neighbours. An `Errand` goes along
with each operation: it carries the deadline in and the clock readings out.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from service import calibration, families, noise, scoring
from service.artifact import Array, Arrays, Manifest, Support
from service.errors import Fault, Invalid, invalid
from service.models import Model

T = TypeVar("T")
Doubles = NDArray[np.float64]

PIECE = 8_388_608  # numbers that an operation holds at once between the engine and its answer; 64 MiB of float64
INLINE = 65_536  # numbers that are worked on without leaving the event loop: well under a millisecond


@dataclass(slots=True)
class Errand:
    """What goes along with a request: its deadline (the loop's clock) in, seconds queued and computed out."""

    deadline: float = math.inf
    queued: float = 0.0
    computed: float = 0.0

    async def ask(self, model: Model, graph: str, rows: Arrays, bank: noise.Bank | None = None) -> Arrays:
        """Have one graph computed, and note how long it took."""
        answer = await model.ask(graph, rows, bank=bank, deadline=self.deadline)
        self.queued += answer.queued
        self.computed += answer.computed
        return answer.outputs


@dataclass(frozen=True, slots=True)
class Encoding:
    """q(z|x): mean and scale (rows, d), and latents (rows, draws, d) where draws were asked for."""

    mean: Array
    scale: Array
    latents: Array | None
    seed: int


@dataclass(frozen=True, slots=True)
class Samples:
    """Draws from the model: outputs (count, *event), the latents they came from (count, d), and the seed."""

    outputs: Array
    latents: Array
    seed: int


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What a p-value rests on; reason says why there is none."""

    n: int | None
    seed: int | None
    draws: int | None
    smallest_p: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Score:
    """One bound a row with its error, what it is made of, and where it stands; all in nats, (rows,) float64.

    p_value and anomaly are None where the artifact isn't calibrated for this estimator. With explanations,
    feature_log_likelihood (rows, *event) and latent_kl (rows, d) sum to log_likelihood and kl.
    """

    bound: scoring.Bound
    bits_per_dim: Doubles | None
    p_value: Doubles | None
    anomaly: list[bool | None] | None
    calibration: Calibrated
    seed: int
    draws: int
    feature_log_likelihood: Doubles | None = None
    latent_kl: Doubles | None = None


async def encode(model: Model, inputs: Array, *, draws: int = 0, seed: int = 0, errand: Errand) -> Encoding:
    """The posterior of each row, and draws from it."""
    mean, log_scale = await _posterior(model, await _admitted(inputs, model.manifest), errand)
    scale = np.exp(log_scale)
    latents = await _draws(mean, scale, draws, seed) if draws else None
    return Encoding(mean, scale, latents, seed)


async def decode(model: Model, latents: Array, *, errand: Errand) -> Array:
    """The mean of p(x|z) for each latent; (rows, *event)."""
    z = _latents(latents, model.manifest)
    return (await errand.ask(model, "decoder", {"z": z}))["mean"]


async def decode_parameters(model: Model, latents: Array, *, errand: Errand) -> Arrays:
    """The parameters of p(x|z) for each latent, by name; (rows, *event) each."""
    z = _latents(latents, model.manifest)
    outputs = await errand.ask(model, "decoder", {"z": z})
    return {name: outputs[name] for name in model.manifest.parameters}


async def decode_sample(model: Model, latents: Array, *, seed: int = 0, errand: Errand) -> Array:
    """One draw of x ~ p(x|z) for each latent; (rows, *event)."""
    parameters = await decode_parameters(model, latents, errand=errand)
    size = sum(array.size for array in parameters.values())
    generator = noise.generator(seed, purpose=1)
    return await _off_loop(size, lambda: families.draw(model.manifest, parameters, generator))


async def reconstruct(model: Model, inputs: Array, *, draws: int = 0, seed: int = 0, errand: Errand) -> Array:
    """E[x'|z] at the posterior mean, or averaged over draws from the posterior; (rows, *event)."""
    mean, log_scale = await _posterior(model, await _admitted(inputs, model.manifest), errand)
    if draws == 0:
        return (await errand.ask(model, "decoder", {"z": mean}))["mean"]
    z = await _draws(mean, np.exp(log_scale), draws, seed)  # (rows, draws, d)
    width = draws * model.manifest.dimensions
    parts = [await _mean_over_draws(model, z[rows], errand) for rows in _chunks(len(z), width)]
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
    """Latents from the prior, their scale times the temperature, decoded. Without a seed one is drawn."""
    seed = noise.fresh_seed() if seed is None else seed
    z = noise.normals(seed, (count, model.manifest.latent_size)) * np.float32(temperature)
    if output == "sample":
        return Samples(await decode_sample(model, z, seed=seed, errand=errand), z, seed)
    return Samples(await decode(model, z, errand=errand), z, seed)


async def score(
    model: Model,
    inputs: Array,
    *,
    draws: int | None = None,
    seed: int | None = None,
    alpha: float = 0.05,
    explain: bool = False,
    errand: Errand,
) -> Score:
    """The ELBO of each row, with its error, and its p-value among held-out rows."""
    x = await _admitted(inputs, model.manifest)
    bank = await model.bank(model.seed if seed is None else seed, draws or model.draws)
    outputs = await errand.ask(model, "elbo", {"x": x}, bank)
    bound = await _off_loop(len(x) * bank.draws, lambda: scoring.bound(outputs["log_likelihood"], outputs["kl"], bank))
    facts, p = _stand(model, bank, bound.elbo)
    bits = scoring.bits_per_dim(bound.elbo, model.manifest.dimensions) if model.manifest.discrete else None
    flags = None if p is None else [None if math.isnan(value) else value <= alpha for value in p.tolist()]
    features, latents = await _explain(model, x, bank, errand) if explain else (None, None)
    return Score(bound, bits, p, flags, facts, bank.seed, bank.draws, features, latents)


def _stand(model: Model, bank: noise.Bank, elbo: Doubles) -> tuple[Calibrated, Doubles | None]:
    """Where scores stand among the reference scores, if those were made with this bank."""
    facts = model.manifest.calibration
    if facts is None or model.reference is None:
        return Calibrated(None, None, None, None, "the artifact is not calibrated: python -m training calibrate"), None
    reason = None
    if (bank.seed, bank.draws) != (facts.seed, facts.draws):
        reason = (
            f"calibrated with seed {facts.seed} and {facts.draws} draws; "
            f"seed {bank.seed} and {bank.draws} draws give another score"
        )
    p = None if reason else calibration.p_values(model.reference, elbo)
    return Calibrated(facts.n, facts.seed, facts.draws, model.reference.smallest_p, reason), p


async def _explain(model: Model, x: Array, bank: noise.Bank, errand: Errand) -> tuple[Doubles, Doubles]:
    """Each feature's share of log_likelihood and each latent's of kl; chunked, since the terms are large."""
    features, latents = [], []
    for rows in _chunks(len(x), bank.draws * model.manifest.dimensions):
        terms = await errand.ask(model, "terms", {"x": x[rows]}, bank)
        drawn = terms["feature_log_likelihood"]
        features.append(await asyncio.to_thread(_weigh, drawn, bank.weights))
        latents.append(terms["latent_kl"])
    return np.concatenate(features), np.concatenate(latents)


def _weigh(values: Array, weights: Doubles) -> Doubles:
    """Σ_k weights[k] · values[:, k], draw after draw, so that a row's sum doesn't depend on its neighbours."""
    total = np.zeros((len(values), *values.shape[2:]))
    for index, weight in enumerate(weights):
        total += weight * values[:, index]
    return total


async def _posterior(model: Model, x: Array, errand: Errand) -> tuple[Array, Array]:
    outputs = await errand.ask(model, "encoder", {"x": x})
    return outputs["mean"], outputs["log_scale"]


async def _draws(mean: Array, scale: Array, draws: int, seed: int) -> Array:
    """z = mean + scale·ε, (rows, draws, d), ε from the request's generator, row by row."""
    rows, size = mean.shape
    return await _off_loop(
        rows * draws * size, lambda: mean[:, None] + scale[:, None] * noise.normals(seed, (rows, draws, size))
    )


async def _mean_over_draws(model: Model, z: Array, errand: Errand) -> Array:
    """The mean of the decoded draws, (rows, *event), from z (rows, draws, d); holds PIECE numbers at the most."""
    rows, draws, size = z.shape
    total = np.zeros((rows, *model.manifest.event_shape))
    dtype = np.dtype(np.float64)
    for span in _chunks(draws, rows * model.manifest.dimensions):
        flat = np.ascontiguousarray(z[:, span]).reshape(-1, size)
        means = (await errand.ask(model, "decoder", {"z": flat}))["mean"]
        dtype = means.dtype
        total += means.reshape(rows, -1, *model.manifest.event_shape).sum(1, dtype=np.float64)
    return np.asarray(total / draws, dtype)


def _chunks(count: int, width: int) -> Iterator[slice]:
    """Slices of `count` things of `width` numbers each, none holding more than PIECE numbers if it can be helped."""
    step = max(1, PIECE // max(1, width))
    return (slice(start, min(count, start + step)) for start in range(0, count, step))


async def _off_loop(size: int, work: Callable[[], T]) -> T:
    """Work on so many numbers: here if they are few, else on a thread."""
    return work() if size <= INLINE else await asyncio.to_thread(work)


async def _admitted(inputs: Array, manifest: Manifest) -> Array:
    return await _off_loop(inputs.size, lambda: admit(inputs, manifest))


def admit(inputs: Array, manifest: Manifest, pointer: str = "/inputs") -> Array:
    """Rows as the graphs take them, C-ordered and of the event's dtype; Invalid says which value is wrong and why.

    Fractions are rounded to a float event's precision; anything else must be exact in the event's dtype.
    """
    shape = tuple(manifest.event_shape)
    if inputs.dtype.kind not in "iuf":
        raise invalid(pointer, f"holds {inputs.dtype} where numbers are wanted")
    if inputs.shape[1:] != shape:
        raise invalid(pointer, f"has shape {_shape(inputs.shape)}; {manifest.name} takes {_shape(('n', *shape))}")
    if len(inputs) == 0:
        raise invalid(pointer, "holds 0 rows; send at least one")
    _refuse(inputs, ~np.isfinite(inputs), pointer, "is not a finite number")
    with np.errstate(over="ignore", invalid="ignore"):
        x = np.ascontiguousarray(inputs, dtype=manifest.event_dtype)
    if x.dtype.kind == "f":
        _refuse(inputs, ~np.isfinite(x), pointer, f"is past the range of {x.dtype}")
        if inputs.dtype.kind in "iu":
            _refuse(inputs, _moved(inputs, x), pointer, f"can't be held exactly by {x.dtype}")
    else:
        _refuse(inputs, x != inputs, pointer, _off_support(manifest.support))
    _check_support(x, manifest.support, pointer)
    return x


def _moved(whole: Array, x: Array) -> Array:
    """Where an integer's float is another number; one rounded up to past the integer's range has no way back."""
    with np.errstate(invalid="ignore"):
        return np.asarray((x >= float(np.iinfo(whole.dtype).max) + 1.0) | (x.astype(whole.dtype) != whole))


def _check_support(x: Array, support: Support, pointer: str) -> None:
    """Refuse values that the likelihood gives no mass or density to."""
    if support.kind == "real":
        return
    lowest, highest, step = float(support.lowest or 0), float(support.highest or 0), float(support.step or 1)
    off = (x < lowest) | (x > highest)
    if step != 1:
        off |= (x - lowest) % step != 0
    _refuse(x, off, pointer, _off_support(support))


def _off_support(support: Support) -> str:
    if support.kind == "real":
        return "is not a whole number"
    if (support.highest or 0) - (support.lowest or 0) == support.step:
        return f"is off the likelihood's support: it takes {support.lowest:g} or {support.highest:g}"
    return (
        f"is off the likelihood's support: levels from {support.lowest:g} to {support.highest:g} "
        f"in steps of {support.step:g}"
    )


def _latents(latents: Array, manifest: Manifest) -> Array:
    """Latents as the decoder takes them: (rows, d) float32."""
    if latents.dtype.kind not in "iuf":
        raise invalid("/latents", f"holds {latents.dtype} where numbers are wanted")
    if latents.ndim != 2 or latents.shape[1] != manifest.latent_size:
        raise invalid(
            "/latents",
            f"has shape {_shape(latents.shape)}; {manifest.name} takes {_shape(('n', manifest.latent_size))}",
        )
    if len(latents) == 0:
        raise invalid("/latents", "holds 0 rows; send at least one")
    _refuse(latents, ~np.isfinite(latents), "/latents", "is not a finite number")
    with np.errstate(over="ignore"):
        z = np.ascontiguousarray(latents, np.float32)
    _refuse(latents, ~np.isfinite(z), "/latents", "is past the range of float32")
    return z


def _refuse(values: Array, wrong: Array, pointer: str, reason: str, most: int = 8) -> None:
    """Raise Invalid with the first wrong values, each by its place."""
    if not wrong.any():
        return
    places = np.argwhere(wrong)
    faults = [
        Fault("/".join([pointer, *map(str, place)]), f"{_shown(values[tuple(place)])} {reason}")
        for place in places[:most]
    ]
    if len(places) > most:
        faults.append(Fault(pointer, f"and {len(places) - most} more values like these"))
    raise Invalid(*faults)


def _shape(shape: tuple[object, ...]) -> str:
    """A shape as people write it.

    >>> _shape(("n", 28, 28))
    '[n, 28, 28]'
    """
    return f"[{', '.join(map(str, shape))}]"


def _shown(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, np.floating | float) else str(value)

"""Trial: rows drawn from a model, and what the model's own operations say of them. Knows no judgement.

z* is an exact posterior draw of its row, so among K draws of a proposal g, z* in place of one of them,

    E[log mean w] ≥ log p(x),    w = p(x, z) / g(z)

where the K draws alone have E[log mean w] ≤ log p(x). Given the K points, which of them is z* has probability w / Σw:
so z*'s place among them, weighed, is uniform exactly, whatever g is.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import evidence, noise, operations
from service.artifact import Array
from service.evidence.estimate import log_mean
from service.evidence.proposal import Proposal, transposed
from service.evidence.search import adapt
from service.models import Model
from service.operations import Errand

Doubles = NDArray[np.float64]
Say = Callable[[int, int], None]

FEW = 8  # rows that the graphs are held to one another with
AT_ONCE, NUMBERS = 16, 262_144  # rows that share a proposal's noise, and numbers worked on at once
FEWEST_DRAWS = 64  # of the ELBO that the gap is taken from; a quarter of the draws, where that is more
RANKED = 255  # draws from q that a latent is ranked among where q is no normal
GROUPS = 4  # of draws, whose spread tells how reliable an estimate is
LATENTS, NOISES, PLACES, COMPONENTS, RANKS = (
    11,
    12,
    13,
    14,
    15,
)  # the purposes of a seed's streams; others are taken by operations


@dataclass(frozen=True, slots=True)
class Trial:
    """What n rows of the model's own gave; all in nats.

    elbo, elbo_error, lower, upper, reliable: (n,). latent_kl, encoder_ranks, posterior_ranks: (n, d), ranks in [0, 1];
    no latent_kl where the KL is no sum over latents.
    own, reference: the rows' scores as calibrated, (n,), and those of held-out rows, or None. disagreement: by how much
    the graphs differ where they may not, over what they may. alone: rows whose score changes with their company.
    """

    elbo: Doubles
    elbo_error: Doubles
    own: Doubles
    lower: Doubles
    upper: Doubles
    reliable: NDArray[np.bool_]
    latent_kl: Doubles | None
    encoder_ranks: Doubles
    posterior_ranks: Doubles
    reference: Doubles | None
    disagreement: dict[str, float]
    alone: int
    draws: int
    seed: int

    @property
    def gap(self) -> Doubles:
        """log p̂ − ELBO of each row."""
        return np.asarray(self.lower - self.elbo)

    @property
    def numbers(self) -> NDArray[np.bool_]:
        """Which rows have numbers at all; (n,)."""
        return np.isfinite(self.elbo) & np.isfinite(self.lower) & np.isfinite(self.upper)

    def kept(self, rows: NDArray[np.bool_]) -> Trial:
        """The trial of some of its rows."""
        each = (
            "elbo",
            "elbo_error",
            "own",
            "lower",
            "upper",
            "reliable",
            "encoder_ranks",
            "posterior_ranks",
        )
        latent_kl = None if self.latent_kl is None else self.latent_kl[rows]
        return dataclasses.replace(self, latent_kl=latent_kl, **{name: getattr(self, name)[rows] for name in each})


async def trial(model: Model, rows: int, draws: int, seed: int, say: Say) -> Trial:
    """Draw rows from a model and have the model speak of them; say is told how many of how many rows are done."""
    errand = Errand()
    epsilon = noise.generator(seed, LATENTS).standard_normal((rows, model.manifest.latent_size)).astype(np.float32)
    uniform = noise.generator(seed, COMPONENTS).random(rows, dtype=np.float32)
    z = await operations.prior(model, epsilon, uniform, errand)
    x = await operations.decode_sample(model, z, seed=seed, errand=errand)
    scored = await operations.score(model, x, errand=errand)  # as its calibration rows were
    finer = await operations.score(model, x, draws=max(FEWEST_DRAWS, draws // 4), seed=seed, errand=errand)
    q = await operations.encoded(model, x, errand)
    mean, log_scale = (np.asarray(values, np.float64) for values in (q.mean, q.log_scale))
    parts = []
    for part in _parts(rows, draws * model.manifest.latent_size):
        parts.append(await _sandwich(model, x[part], z[part], mean[part], np.exp(log_scale[part]), draws, seed, part))
        say(part.stop, rows)
    lower, upper, reliable, ranks = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Trial(
        elbo=finer.bound.elbo,
        elbo_error=finer.bound.error,
        own=scored.bound.elbo,
        lower=lower,
        upper=upper,
        reliable=reliable,
        latent_kl=(await operations.terms(model, x, await model.bank(model.seed, model.draws), errand))[1],
        encoder_ranks=await _encoder_ranks(model, x, z, q, seed, errand),
        posterior_ranks=ranks,
        reference=model.references.scores["elbo"].scores if model.references else None,
        disagreement=await _disagreement(model, x[:FEW], q[slice(FEW)], errand),
        alone=await _alone(model, x[: 2 * FEW]),
        draws=draws,
        seed=seed,
    )


def _parts(rows: int, width: int) -> Iterator[slice]:
    step = max(1, min(AT_ONCE, NUMBERS // width))
    return (slice(start, min(rows, start + step)) for start in range(0, rows, step))


async def _encoder_ranks(model: Model, x: Array, z: Array, q: operations.Normal, seed: int, errand: Errand) -> Doubles:
    """Where each latent of z* lies in q, as a share of q's mass; by draws where q is no normal; (rows, d)."""
    from scipy.special import ndtr

    if model.manifest.prior.posterior != "flow":
        return np.asarray(ndtr((z - q.mean.astype(np.float64)) * np.exp(-q.log_scale.astype(np.float64))), np.float64)
    generator = noise.generator(seed, RANKS)
    epsilon = generator.standard_normal((len(x), RANKED, z.shape[1])).astype(np.float32)
    below = (await operations.posterior(model, x, q, epsilon, errand) < z[:, None]).sum(1)
    return np.asarray((below + generator.random(below.shape)) / (RANKED + 1), np.float64)


# ---------------------------------------------------------------- the sandwich


async def _sandwich(
    model: Model, x: Array, z: Array, mean: Doubles, scale: Doubles, draws: int, seed: int, part: slice
) -> tuple[Doubles, Doubles, NDArray[np.bool_], Doubles]:
    """log p̂ from below and from above, whether to rely on it, and z*'s weighed ranks."""
    proposal, generator = await _proposal(model, x, mean, scale, draws, seed, part)
    last = draws // 2 // GROUPS * GROUPS
    drawn = proposal.draw(generator.random(last), generator.standard_normal((z.shape[1], last)))  # (rows, last, d)
    points = np.concatenate([drawn, z[:, None].astype(drawn.dtype)], axis=1)
    weights = await _joint(model, x, points) - await asyncio.to_thread(proposal.log_density, transposed(points))
    found = evidence.estimate(np.ascontiguousarray(weights[:, :-1]), GROUPS, 0.95)
    upper = log_mean(weights[:, 1:])
    return log_mean(weights[:, :-1]), upper, found.reliable, _ranks(points, weights, generator)


async def _proposal(
    model: Model, x: Array, mean: Doubles, scale: Doubles, draws: int, seed: int, part: slice
) -> tuple[Proposal, np.random.Generator]:
    """A proposal fitted to these rows' posteriors with half of the draws, and fresh noise for the other half.

    The noise is plain, not quasi-random: what is said of z* among the draws needs them independent.
    """
    generator = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(NOISES, part.start)))
    stage = max(1, draws // 2 // 5)
    plan = evidence.Plan(int(generator.integers(noise.SEEDS)), mean.shape[1], 0, (2 * stage, stage, stage, stage), 1, 1)
    near = model.manifest.prior.moments
    searching = adapt(np.ascontiguousarray(mean), np.ascontiguousarray(scale), plan, near)
    asked = await asyncio.to_thread(next, searching)
    while True:
        joint = await _joint(model, x, asked)
        try:
            asked = searching.send(joint)
        except StopIteration as done:
            return done.value, generator


async def _joint(model: Model, x: Array, z: Array) -> Doubles:
    found = await Errand().ask(model, "joint", {"x": x, "z": z})
    return np.asarray(found["log_likelihood"], np.float64) + np.asarray(found["log_prior"], np.float64)


def _ranks(points: Array, weights: Doubles, generator: np.random.Generator) -> Doubles:
    """The weight below z*, the last of the points, with a random share of its own; (rows, d)."""
    share = np.exp(weights - weights.max(-1, keepdims=True))
    share /= share.sum(-1, keepdims=True)
    below = ((points < points[:, -1:]) * share[:, :, None]).sum(1)
    return np.asarray(below + generator.random(below.shape) * share[:, -1:], np.float64)


# ---------------------------------------------------------------- the graphs, held to one another


async def _disagreement(model: Model, x: Array, q: operations.Normal, errand: Errand) -> dict[str, float]:
    """The largest difference between graphs that say the same thing, over what rounding may make of it."""
    bank = await model.bank(model.seed, model.draws)
    z, log_q = await _drawn(model, x, q, bank, errand)
    fused = await errand.ask(model, "elbo", {"x": x}, bank)
    joint = await errand.ask(model, "joint", {"x": x, "z": z.astype(np.float32)})
    terms = await errand.ask(model, "terms", {"x": x}, bank)
    features = terms["feature_log_likelihood"].reshape(*fused["log_likelihood"].shape, -1).sum(-1)
    scale = np.abs(terms["feature_log_likelihood"]).reshape(*features.shape, -1).sum(-1)
    allowed = 1e-3 + 2e-5 * scale
    found = {
        "joint's log p(x|z) and elbo's": _worst(joint["log_likelihood"] - fused["log_likelihood"], allowed),
        "elbo's weights and joint's": _worst(
            joint["log_likelihood"] + joint["log_prior"] - log_q - fused["log_weight"], allowed
        ),
        "terms' features and elbo's log p(x|z)": _worst(features - fused["log_likelihood"], allowed),
    }
    if model.manifest.kl == "sampled":
        return found
    kl, near = fused["kl"], 1e-3 + 1e-4 * np.abs(fused["kl"])
    found["terms' KL and elbo's"] = _worst(terms["latent_kl"].sum(-1) - kl, near)
    if model.manifest.prior.posterior == "diagonal_normal":
        mean, log_scale = q.mean.astype(np.float64), q.log_scale.astype(np.float64)
        own = (0.5 * (np.exp(2 * log_scale) + mean**2 - 1) - log_scale).sum(-1)
        found["elbo's KL and the encoder's"] = _worst(kl - own, near)
    return found


async def _drawn(
    model: Model, x: Array, q: operations.Normal, bank: noise.Bank, errand: Errand
) -> tuple[Array, Doubles]:
    """z at a bank's noise, (rows, k, d), and log q(z|x) there, (rows, k); in float64 where q is a diagonal normal."""
    epsilon = bank.noise.astype(np.float64)
    if "posterior" in model.manifest.graphs:
        given = np.ascontiguousarray(np.broadcast_to(bank.noise, (len(x), *bank.noise.shape)))
        drawn = await errand.ask(model, "posterior", {"x": x, "epsilon": given})
        return drawn["z"], drawn["log_density"]
    mean, log_scale = q.mean.astype(np.float64), q.log_scale.astype(np.float64)
    log_q = (-0.5 * (epsilon**2 + math.log(2 * math.pi)) - log_scale[:, None]).sum(-1)
    return mean[:, None] + np.exp(log_scale)[:, None] * epsilon, log_q


def _worst(difference: Array, allowed: Doubles) -> float:
    return float(np.nan_to_num(np.abs(difference) / allowed, nan=np.inf).max())


async def _alone(model: Model, x: Array) -> int:
    """How many rows score otherwise alone than together; to the last bit on the CPU."""
    bank = await model.bank(model.seed, model.draws)

    def compare() -> int:
        together = model.engine.compute("elbo", {"x": x, "noise": bank.noise})["log_likelihood"]
        singles = [
            model.engine.compute("elbo", {"x": x[i : i + 1], "noise": bank.noise})["log_likelihood"][0]
            for i in range(len(x))
        ]
        tolerance = 0.0 if model.engine.device == "cpu" else model.manifest.golden.tolerance["elbo.log_likelihood"]
        return sum(bool(np.abs(a - b).max() > tolerance) for a, b in zip(together, singles, strict=True))

    return await asyncio.to_thread(compare)

"""Measures: what is found out of an own model before it is exported: a scale, sums to one, and a sane encoder."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service import noise
from service.artifact import Array
from service.errors import ArtifactRefused
from training import strangers
from training.config import Unusable
from training.data import DataSet
from training.likelihoods import Likelihood, Mixed, Parameters
from training.own.parts import Pair

Doubles = NDArray[np.float64]

ROWS, DRAWS, AT_ONCE = 2048, 64, 32  # that a scale is estimated from, and how many of the rows together
FEW, FEW_DRAWS = 128, 8  # that a scale is searched with
NARROWEST = 1e-6  # of a scale in the spread of its feature: below, the density has no bound to speak of
LOOSE, TIGHT = 5.0, -20.0  # log scale of q(z|x): e⁵ prior deviations cost 11,000 nats a latent
ROOM = "bound it in the encoder, as by log_variance.clamp(-12, 4): any q gives a valid bound, so training needn't know"


@torch.no_grad()
def scale(pair: Pair, rows: Array, *, shared: bool) -> Doubles:
    """The scale of x that is most likely at draws from q(z|x), (D,); one number for all of them where it is shared.

    The expected log-likelihood under q is the part of the bound that a scale moves. A normal's is the root mean
    squared residual; others are searched, and every step is taken for all features at once.
    """
    parts = np.array_split(rows[:ROWS], -(-min(len(rows), ROWS) // AT_ONCE))
    squares = [((x - loc) ** 2).mean(1) for x, loc in (_located(pair, part, DRAWS) for part in parts)]
    square, variance = torch.cat(squares).mean(0), torch.from_numpy(rows.reshape(len(rows), -1)).double().var(0)
    if shared:
        square, variance = square.mean().expand_as(square), variance.mean().expand_as(variance)
    spread, deviation = square.sqrt(), variance.sqrt()
    if not bool((spread > NARROWEST * deviation).all()):
        place = int(torch.argmin(spread - NARROWEST * deviation))
        raise ArtifactRefused(
            f"scale: the decoder gives feature {place} back to the last digits on held-out rows, or it never varies "
            "there, so its density grows without bound; leave it out, state a scale, or use scale='shared'"
        )
    if pair.likelihood.family == "normal":
        return spread.numpy().copy()
    flat, loc = _located(pair, rows[:FEW], FEW_DRAWS)

    def worth(log_scale: Tensor) -> Tensor:
        terms = pair.likelihood.log_prob(flat, {"loc": loc, "scale": torch.exp(log_scale).expand_as(loc)}).mean((0, 1))
        return terms.mean().expand_as(terms) if shared else terms

    lowest = math.log(0.1 * float(pair.likelihood.support.step or 1.0))  # as narrow as the trainer's own
    high = spread.log().clamp(min=lowest) + 1.0
    return np.asarray(torch.exp(_highest(worth, torch.full_like(high, lowest), high)).numpy())


def _located(pair: Pair, rows: Array, draws: int) -> tuple[Tensor, Tensor]:
    """Rows, (n, 1, D), and the decoder's location of x at each of their draws, (n, k, D)."""
    x = torch.from_numpy(np.ascontiguousarray(rows))
    q = pair.posterior(x)
    z = q.draws(torch.tensor(noise.bank(0, draws, q.mean.shape[1]).noise).to(pair.dtype))
    loc = pair.parameters_at(z.flatten(0, 1))["loc"].double()
    return x.double().flatten(1).unsqueeze(1), loc.reshape(len(x), draws, -1)


def _highest(worth: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int = 30) -> Tensor:
    """Where a function with one peak has it, by golden sections, elementwise."""
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(steps):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        better = worth(left) > worth(right)
        low, high = torch.where(better, low, left), torch.where(better, right, high)
    return (low + high) / 2


# ---------------------------------------------------------------- the encoder and the decoder


@torch.no_grad()
def posterior(pair: Pair, dataset: DataSet) -> None:
    """Refuse a posterior that explodes, on rows that the model should know or on strangers.

    A stranger's posterior may be anything that is finite: how strange it is, the score says.
    """
    for split, rows in dataset.splits.items():
        log_scale = _posterior(pair, rows[:1024], f"the {split} rows")
        found = log_scale.flatten()[log_scale.flatten().abs().argmax()]
        highest, lowest = float(log_scale.max()), float(log_scale.min())
        if highest > LOOSE or lowest < TIGHT:
            raise ArtifactRefused(
                f"encoder: its log variance explodes on the sample: log σ of q(z|x) is {found:.3g}, where {TIGHT:g} to "
                f"{LOOSE:g} can be meant. Is encoder_gives={pair.encoder_gives!r} right? If so, {ROOM}"
            )
    made = strangers.made(dataset.splits["validation"], pair.likelihood.support, 0)
    for kind, strange in made.items():
        log_scale = _posterior(pair, strange[:1024], f"rows that are {kind}")
        if float(log_scale.max()) > 40.0:
            raise ArtifactRefused(f"encoder: its log variance explodes on rows that are {kind}: log σ of q(z|x) is "
                                  f"{float(log_scale.max()):.3g}; {ROOM}")  # fmt: skip


@torch.no_grad()
def looks_like_a_log(pair: Pair, dataset: DataSet) -> None:
    """Refuse a second output that nobody said is a log variance and that is above 0 for every row and latent.

    As a log variance it would say of every q that it is wider than a standard normal, which no training brings about.
    """
    spread = torch.cat([pair.encoder(pair.converted(torch.from_numpy(x[:1024])))[1] for x in dataset.splits.values()])
    low, high = float(spread.min()), float(spread.max())
    if low > 0:
        raise Unusable(
            f"encoder: its second output is from {low:.3g} to {high:.3g} on the sample; is it a log variance, above 0 "
            "for every row and latent? Say what it is: encoder_gives='scale', 'variance', 'log_scale' or 'log_variance'"
        )


@torch.no_grad()
def parameters(pair: Pair, dataset: DataSet) -> None:
    """Refuse parameters that aren't finite numbers, or not above 0 where they have to be."""
    z = _latents(pair, dataset)
    if pair.decoder_gives == "probabilities":
        _probable(pair.decoder(z)[0])
    for name, value in pair.parameters_at(z).items():
        own = name.rpartition(".")[2]
        if not bool(torch.isfinite(value).all()):
            why = "; probabilities that reach 0 or 1 do that: give logits" if own == "logits" else ""
            raise ArtifactRefused(f"decoder: {name} isn't a finite number on held-out rows{why}")
        if own in ("scale", "rate", "concentration", "df") and not bool((value > 0).all()):
            raise ArtifactRefused(
                f"decoder: {name} is {float(value.min()):.3g} on held-out rows, and it is above 0; give it by softplus "
                "or exp (if the decoder gives its logarithm, take exp of that)"
            )


def _probable(given: Tensor) -> None:
    """Refuse what can't be probabilities."""
    low, high = float(given.min()), float(given.max())
    if low < 0 or high > 1:
        raise Unusable(
            f"decoder: gives {low:.3g} to {high:.3g} on held-out rows, and probabilities are from 0 to 1; if these are "
            "logits, before a sigmoid or softmax, say decoder_gives='logits' (--decoder-gives logits)"
        )


def _posterior(pair: Pair, rows: Array, which: str) -> Tensor:
    x = torch.from_numpy(rows)
    if pair.encoder_gives in ("scale", "variance") and float(lowest := pair.encoder(pair.converted(x))[1].min()) < 0:
        raise Unusable(
            f"encoder: its second output goes down to {float(lowest):.3g}, and a {pair.encoder_gives} is above 0; say "
            "what it is by encoder_gives, 'log_variance' or 'log_scale'"
        )
    q = pair.posterior(x)
    if not bool(torch.isfinite(q.mean).all() and torch.isfinite(q.log_scale).all()):
        raise ArtifactRefused(
            f"encoder: q(z|x) isn't a finite number on {which}; a scale or variance that reaches 0 does that, and a "
            f"log variance that overflows: {ROOM}"
        )
    return q.log_scale


def _latents(pair: Pair, dataset: DataSet) -> Tensor:
    """Draws from q(z|x) of held-out rows, and from the prior."""
    q = pair.posterior(torch.from_numpy(dataset.splits["test"][:16]))
    bank = torch.tensor(noise.bank(0, 4, q.mean.shape[1]).noise).to(pair.dtype)
    uniform = (torch.arange(len(bank)) + 0.5) / len(bank)
    return torch.cat((q.draws(bank).flatten(0, 1), pair.prior.draws(bank, uniform)))


# ---------------------------------------------------------------- sums to one


SHOWN = 6  # features at each of so many latents
OFF = 1e-6


@torch.no_grad()
def normalisation(pair: Pair, dataset: DataSet) -> str:
    """What p(x_j|z) sums or integrates to at latents of held-out rows, in words; ArtifactRefused where it isn't 1.

    Levels and counts are summed, the unit interval and the line are integrated.
    """
    likelihood = pair.likelihood
    if isinstance(likelihood, Mixed):
        return "not summed: the blocks of a mixed table have their families' own"
    z = _latents(pair, dataset)
    z = z[torch.linspace(0, len(z) - 1, SHOWN).long()]
    own = {
        name: value.double().expand(len(z), *value.shape[-len(_one(likelihood, name)) :])
        for name, value in pair.parameters_at(z).items()
    }
    x, log_weights, how = _nodes(likelihood, own)
    if x is None:
        return f"not summed: {how}"
    each = {name: value.unsqueeze(0) for name, value in own.items()}
    mass = torch.exp(likelihood.log_prob(x, each).double() + log_weights).sum(0)
    worst = float((mass - 1.0).abs().max())
    if worst > OFF:
        found = float(mass.flatten()[(mass - 1.0).abs().argmax()])
        raise ArtifactRefused(
            f"likelihood {likelihood.family}: p(x|z) {how} to {found:.6g}, not to 1, so log p(x) would be of no mass "
            "or density; use a normalised family"
        )
    return f"p(x_j|z) {how} to 1 within {worst:.1g}, at {len(z)} latents of held-out rows"


def _one(likelihood: Likelihood, name: str) -> tuple[int, ...]:
    return likelihood.parameter_shape(name, (1,))


def _nodes(likelihood: Likelihood, parameters: Parameters) -> tuple[Tensor | None, Tensor, str]:
    """Points x, (points, 1 or rows, D or 1), and the logarithm of what each weighs."""
    none = torch.zeros(())
    match likelihood.support.kind:
        case "levels":
            lowest, highest, step = likelihood.support.levels
            levels = torch.arange(round((highest - lowest) / step) + 1, dtype=torch.float64) * step + lowest
            shape = next(iter(parameters.values())).shape[1]
            return levels.reshape(-1, 1, 1).expand(-1, 1, shape), none, "sums"
        case "counts":
            rate = parameters["rate"]
            most = int(float(rate.max()) * 4 + 2_000)
            if most > 20_000 or likelihood.family != "poisson":
                return None, none, "the counts have a long tail"
            counts = torch.arange(most + 1, dtype=torch.float64)
            return counts.reshape(-1, 1, 1).expand(-1, 1, rate.shape[1]), none, "sums"
        case "unit":
            nodes, weights = np.polynomial.legendre.leggauss(400)
            x = torch.from_numpy((nodes + 1) / 2).reshape(-1, 1, 1)
            size = next(iter(parameters.values())).shape[1]
            return x.expand(-1, 1, size), torch.from_numpy(np.log(weights / 2)).reshape(-1, 1, 1), "integrates"
    if "loc" not in parameters or "scale" not in parameters:
        return None, none, "the family has no location and scale to integrate by"
    t = torch.linspace(-26.0, 26.0, 4001, dtype=torch.float64).reshape(-1, 1, 1)  # x by sinh, so that tails are far
    loc, scale = parameters["loc"], parameters["scale"]
    u, slope = torch.sinh(t), torch.log(torch.cosh(t)) + math.log(52.0 / 4000)
    if likelihood.support.kind == "positive":
        u, slope = 10.0 * t / 26.0, torch.full_like(t, math.log(20.0 / 4000))
        x = torch.exp(loc + scale * u)
        return x, slope + torch.log(scale) + torch.log(x), "integrates"
    return loc + scale * u, slope + torch.log(scale), "integrates"

"""Tables: several small VAEs fitted at once to a table's rows, and a bound on the evidence of their mixture.

Knows no file, no graph and no label. Networks, bound and noise are those of every other VAE here. Its own are two
likelihoods that see a row differently, and the members' weights in the mixture, which the normal rows decide.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from service import noise
from training import config, objective
from training.config import Unusable
from training.likelihoods import Normal, Parameters, softclip
from training.likelihoods.base import FURTHEST
from training.networks import Decoder, Encoder
from training.vae import VAE

Doubles = NDArray[np.float64]

FEWEST = 8  # rows to fit
BLOCK = 256  # rows scored at once: always as many, so that a row's bits don't depend on its company
CHECKED = 400  # held-out rows that a member is stopped and weighed by, at most
LARGEST_GRADIENT = 10.0  # a member's norm, on average; a rare row far out would undo hundreds of steps
NARROWEST = 1e-12  # deviation of a column, against its largest value, below which it is constant


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a table is fitted: one recipe for all of them. docs/detection.md says how it was chosen."""

    members: int = 2  # of each of the two kinds
    hidden: int = 128
    largest_latent: int = 32
    smallest_scale: float = 0.05  # of p(x|z), in standard deviations of the column
    steps: int = 1200
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-2
    every: int = 50  # steps between looks at the held-out bound
    patience: int = 6  # looks without a better bound of any member, after which the rest is spared
    held_out: float = 0.2  # of the rows; other ones for each member
    draws: int = 16  # of the bank that rows are scored with


RECIPE = Recipe()


class ColumnNormal(Normal):
    """Normal on standardised columns, in the networks' precision: loc is the first head, scale one number a column.

    log scale = a learned number + the second head, softly bounded: what a column may miss its reconstruction by
    depends on z. So a dependence that is exact in one region counts there, however loose it is elsewhere.
    """

    heads = 2

    def __init__(self, columns: int, smallest_scale: float) -> None:
        """columns: how many, each of mean 0 and standard deviation 1, or constant at 0."""
        super().__init__(np.stack((-np.ones(columns), np.ones(columns))), smallest_scale)
        self.heads = type(self).heads

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """x, cut at ±50: q stays finite for absurd rows, and any q gives a bound."""
        return x.clamp(-FURTHEST, FURTHEST).to(dtype)

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The location, and the scale of each column at each z."""
        raw = self.raw_scale + heads[..., 1, :]
        return {"loc": heads[..., 0, :], "scale": torch.exp(softclip(raw, *self.bounds))}

    def log_prob(self, x: Tensor, parameters: Parameters) -> Tensor:
        """−½((x − loc)/scale)² − log scale − ½ log 2π."""
        residual = (x.to(parameters["loc"].dtype) - parameters["loc"]) / parameters["scale"]
        return -0.5 * residual * residual - torch.log(parameters["scale"]) - 0.5 * math.log(2 * math.pi)


class EvenNormal(ColumnNormal):
    """Normal of one learned scale for all columns, rows and z: as coarse in every direction, as a distance is.

    What counts is how far a row is from its reconstruction, however well a single column could be told.
    """

    heads = 1

    def parameters_of(self, heads: Tensor) -> Parameters:
        """The location; scale is (D,), all the same."""
        loc = heads[..., 0, :]
        even = self.raw_scale.mean().expand(loc.shape[-1])
        return {"loc": loc, "scale": torch.exp(softclip(even, *self.bounds))}


class Bound(nn.Module):
    """A member as a function of rows and noise, so that several can be computed at once."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, u: Tensor, epsilon: Tensor) -> Tensor:
        """ELBO(u) of each row, (rows,) float64; u (rows, D), noise (k, d) for all rows or (rows, k, d)."""
        return objective.elbo(objective.terms(self.vae, u, epsilon))


class Stack:
    """Members of one kind with their weights stacked: every tensor has the members along its first axis."""

    def __init__(self, members: list[VAE], latent_size: int) -> None:
        bounds = [Bound(member) for member in members]
        self.count, self.latent_size = len(bounds), latent_size
        self.weights, self.buffers = stack_module_state(bounds)
        self.shape = copy.deepcopy(bounds[0]).to("meta")

    def bounds(self, u: Tensor, epsilon: Tensor) -> Tensor:
        """ELBO of each member's rows, (members, rows); u (members, rows, D), noise (members, …, k, d)."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], u: Tensor, epsilon: Tensor) -> Tensor:
            found: Tensor = functional_call(self.shape, (weights, buffers), (u, epsilon))
            return found

        together: Tensor = torch.vmap(one)(self.weights, self.buffers, u, epsilon)
        return together

    @torch.no_grad()
    def scored(self, u: Tensor, epsilon: Tensor) -> Doubles:
        """ELBO of each member's rows, (members, rows), by one bank of noise, (k, d); u (members, rows, D), float64."""
        bank = epsilon.expand(self.count, *epsilon.shape)
        rows = u.shape[1]
        padded = nn.functional.pad(u, (0, 0, 0, -rows % BLOCK))
        parts = [self.bounds(block, bank) for block in torch.split(padded, BLOCK, dim=1)]
        return np.asarray(torch.cat(parts, dim=1)[:, :rows].numpy(), np.float64)


@dataclass(frozen=True, slots=True)
class Member:
    """What is known of a member, in nats a row.

    held_out: the mean ELBO of the rows that it was stopped by. spread: the standard deviation of its ELBO over the
    same rows. Over fitted rows members hardly differ; rows that surprise a member are rows that it wasn't fitted to.
    """

    held_out: float
    spread: float


@dataclass(frozen=True, slots=True)
class Table:
    """Fitted members: a bound on the log evidence of a row under their mixture. Columns: (D,) all of them.

    centre and deviation standardise; a column that never varied among the fitted rows is divided by 1.
    """

    centre: Doubles
    deviation: Doubles
    stacks: tuple[Stack, ...]
    members: tuple[Member, ...]
    draws: int

    @property
    def weights(self) -> Doubles:
        """What each member weighs in the mixture, (members,): in inverse proportion to its spread; they sum to 1.

        Were members weighed alike, the one whose bounds vary most would decide alone, and it may vary most because
        normal rows surprise it.
        """
        inverse = np.array([1.0 / member.spread for member in self.members])
        return np.asarray(inverse / inverse.sum(), np.float64)

    def bounds(self, rows: Doubles) -> Doubles:
        """Each member's ELBO of each row, (members, n), in nats, against Lebesgue measure in the units of x."""
        u = torch.from_numpy((rows - self.centre) / self.deviation)
        jacobian = -np.log(self.deviation).sum()
        parts = [stack.scored(u.expand(stack.count, *u.shape), _bank(stack, self.draws)) for stack in self.stacks]
        return np.asarray(np.concatenate(parts) + jacobian, np.float64)

    def score(self, rows: Doubles) -> Doubles:
        """A bound on log p(x) of each row, (n,), in nats: Σ w_i ELBO_i(x) ≤ log Σ w_i p_i(x), by Jensen's inequality.

        p = Σ w_i p_i is the mixture of the members' densities, each of which integrates to 1 over x in the units of the
        rows. The weights are `weights`. A row's score is a function of the row.
        """
        return np.asarray((self.weights[:, None] * self.bounds(rows)).sum(0), np.float64)


def fit(rows: Doubles, recipe: Recipe = RECIPE, seed: int = 0) -> Table:
    """Fit the recipe's members to a table's rows, (n, D); the same for the same seed. Unusable for too few rows."""
    if rows.ndim != 2 or len(rows) < FEWEST or not np.isfinite(rows).all():
        raise Unusable(f"a table needs {FEWEST} rows of finite numbers at least")
    centre, deviation = rows.mean(0), rows.std(0)
    deviation = np.where(deviation > NARROWEST * np.abs(rows).max(0), deviation, 1.0)
    u = torch.from_numpy((rows - centre) / deviation)
    torch.manual_seed(seed)
    columns = rows.shape[1]
    half, all_of_them = columns // 2 + 1, min(columns, recipe.largest_latent)
    stacks = (
        _stack(ColumnNormal, columns, min(half, recipe.largest_latent // 2), recipe),
        _stack(EvenNormal, columns, all_of_them, recipe),
    )
    generator = torch.Generator().manual_seed(seed)
    members = [member for stack in stacks for member in _fit(stack, u, recipe, generator)]
    return Table(centre, deviation, stacks, tuple(members), recipe.draws)


def _stack(kind: type[ColumnNormal], columns: int, latent_size: int, recipe: Recipe) -> Stack:
    """Members with fresh weights."""
    network = config.Mlp(kind="mlp", sizes=[recipe.hidden])
    members = [
        VAE(
            Encoder(network, (columns,), latent_size),
            Decoder(network, (columns,), latent_size, (kind.heads, columns)),
            kind(columns, recipe.smallest_scale),
            (columns,),
        )
        for _ in range(recipe.members)
    ]
    return Stack(members, latent_size)


def _fit(stack: Stack, u: Tensor, recipe: Recipe, generator: torch.Generator) -> list[Member]:
    """Fit members to rows, u (n, D), each to others; each keeps its weights at its highest held-out bound.

    The stack computes in float64 from then on.
    """
    fitted, checked = _shares(u, stack.count, recipe, generator)
    bank = _bank(stack, 4).float().expand(stack.count, 4, stack.latent_size)
    optimiser = torch.optim.AdamW(stack.weights.values(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    best = {name: value.detach().clone() for name, value in stack.weights.items()}
    highest = torch.full((stack.count,), -math.inf, dtype=torch.float64)
    last = 0
    for step in range(1, recipe.steps + 1):
        optimiser.param_groups[0]["lr"] = recipe.lr * _warmth(step / recipe.steps)
        _step(stack, _batch(fitted, recipe.batch, generator), optimiser, generator)
        if step % recipe.every and step < recipe.steps:
            continue
        with torch.no_grad():
            bound = stack.bounds(checked, bank).mean(1)
        better = bound > highest
        highest = torch.where(better, bound, highest)
        for name, value in stack.weights.items():
            best[name][better] = value.detach()[better]
        last = step if better.any() else last
        if step - last >= recipe.patience * recipe.every:
            break
    stack.weights = {name: value.double() for name, value in best.items()}
    return _known(stack, highest, checked.double(), recipe)


def _step(stack: Stack, u: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator) -> None:
    """Climb the members' ELBOs of a batch, u (members, rows, D), with one draw a row."""
    epsilon = torch.randn((*u.shape[:2], 1, stack.latent_size), generator=generator)
    loss = -stack.bounds(u, epsilon).mean(1).sum()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(stack.weights.values(), LARGEST_GRADIENT * stack.count)
    optimiser.step()


def _known(stack: Stack, held_out: Tensor, u: Tensor, recipe: Recipe) -> list[Member]:
    """What is known of each member by rows that it held out, u (members, rows, D); a spread of 0 is taken for 1."""
    spreads = stack.scored(u, _bank(stack, recipe.draws)).std(1)
    return [
        Member(mean, float(spread) if spread > 0 else 1.0)
        for mean, spread in zip(held_out.tolist(), spreads, strict=True)
    ]


def _shares(u: Tensor, members: int, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rows that each member is fitted to, and those that it is stopped by: (members, rows, D) each."""
    held_out = max(2, round(recipe.held_out * len(u)))
    order = torch.stack([torch.randperm(len(u), generator=generator) for _ in range(members)])
    return u[order[:, held_out:]], u[order[:, : min(held_out, CHECKED)]]


def _batch(fitted: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """Some of each member's rows, drawn with replacement."""
    members, n, _ = fitted.shape
    chosen = torch.randint(n, (members, min(size, n)), generator=generator)
    return fitted[torch.arange(members)[:, None], chosen]


def _warmth(part: float) -> float:
    """What the learning rate is times, after a part of the steps: up within a thirtieth, then down a cosine to 1 %."""
    return min(1.0, 30.0 * part) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * part)))


def _bank(stack: Stack, draws: int) -> Tensor:
    """The noise that rows are scored with, (draws, d), float64; the same for every row, member and table."""
    return torch.tensor(noise.bank(0, draws, stack.latent_size).noise, dtype=torch.float64)

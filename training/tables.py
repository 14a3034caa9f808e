"""Tables: several small VAEs fitted at once to a table's rows, and a bound on the evidence of their mixture.

Knows no file, no graph and no label. A member sees the columns in one of two coordinates: standardised x, or u(x),
bent by the column's own distribution (`Bent`). Its networks, likelihood and bound are those of every other VAE here.
"""

from __future__ import annotations

import copy
import itertools
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
from training.networks import Decoder, Encoder
from training.vae import VAE

Doubles = NDArray[np.float64]

FEWEST = 8  # rows to fit
BLOCK = 256  # rows scored at once: always as many, so that a row's bits don't depend on its company
CHECKED = 400  # held-out rows a member is stopped by
DRAWS_CHECKED = 4
LARGEST_GRADIENT = 10.0  # a member's norm, on average; a rare row far out would undo hundreds of steps


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a table is fitted: one recipe for all of them. docs/detection.md says how it was chosen."""

    members: int = 2  # of each kind: (Plain, Bent) × (scale from the decoder, one scale)
    hidden: int = 128
    largest_latent: int = 24
    smallest_scale: float = 0.05  # of p(x|z), in standard deviations of the member's coordinates
    steps: int = 1000
    batch: int = 256
    lr: float = 2e-3
    weight_decay: float = 1e-2
    every: int = 50  # steps between looks at the held-out bound
    patience: int = 4  # looks without a better one, of any member, after which the rest is spared
    held_out: float = 0.1  # of the rows; another draw for each member
    draws: int = 16  # of the bank that rows are scored with

    def latent_size(self, columns: int) -> int:
        """As many as columns, at least 2 and at most largest_latent."""
        return max(2, min(columns, self.largest_latent))


RECIPE = Recipe()


class Plain:
    """Standardised columns: u = (x − mean)/deviation. Constant columns keep their units."""

    def __init__(self, rows: Doubles) -> None:
        """rows: the fitted ones, (n, D)."""
        self.mean = rows.mean(0)
        deviation = rows.std(0)
        self.deviation = np.where(deviation > 0, deviation, 1.0)

    def __call__(self, rows: Doubles) -> Doubles:
        """Rows of x, (n, D), in these coordinates."""
        return np.asarray((rows - self.mean) / self.deviation, np.float64)

    def log_slope(self, rows: Doubles) -> Doubles:
        """log |∂u/∂x| of each row, (n,), in the units of standardised x: nothing."""
        return np.zeros(len(rows))


class Bent:
    """Columns bent by their own distribution: u = log F(x) − log(1 − F(x)), standardised.

    F is a mixture of logistic distribution functions at the column's quantiles, each as wide as the gaps to its
    neighbours. So u is smooth and strictly rising, without an end: beyond the data it goes on in a straight line.
    A heavy tail comes near, and a crowd is spread.
    """

    def __init__(self, rows: Doubles, knots: int = 32, narrowest: float = 0.05) -> None:
        """rows: the fitted ones, (n, D). narrowest: a knot's width, in standard deviations of the column."""
        self.plain = Plain(rows)
        count = max(4, min(knots, len(rows) // 4))
        self.knots = np.quantile(self.plain(rows), (np.arange(count) + 0.5) / count, axis=0)  # (knots, D)
        self.widths = np.maximum(np.gradient(self.knots, axis=0), narrowest)
        self.centre, self.spread = np.zeros(rows.shape[1]), np.ones(rows.shape[1])
        raw = self(rows)
        self.centre, deviation = raw.mean(0), raw.std(0)
        self.spread = np.where(deviation > 0, deviation, 1.0)

    def __call__(self, rows: Doubles) -> Doubles:
        """Rows of x, (n, D), in these coordinates."""
        below, above, _ = self._logs(self.plain(rows))
        return np.asarray((below - above - self.centre) / self.spread, np.float64)

    def log_slope(self, rows: Doubles) -> Doubles:
        """log |∂u/∂x| of each row, (n,), in the units of standardised x; u' = f/(F(1 − F))."""
        below, above, density = self._logs(self.plain(rows))
        return np.asarray((density - below - above - np.log(self.spread)).sum(1), np.float64)

    def _logs(self, standardised: Doubles) -> tuple[Doubles, Doubles, Doubles]:
        """log F, log(1 − F) and log f of each number, (n, D) each."""
        shape = standardised.shape
        below, above, density = np.empty(shape), np.empty(shape), np.empty(shape)
        for column in range(shape[1]):
            a = (standardised[:, column, None] - self.knots[:, column]) / self.widths[:, column]  # (n, knots)
            under, over = -np.logaddexp(0.0, -a), -np.logaddexp(0.0, a)
            below[:, column] = log_mean_exp(under)
            above[:, column] = log_mean_exp(over)
            density[:, column] = log_mean_exp(under + over - np.log(self.widths[:, column]))
        return below, above, density


View = Plain | Bent


class ScaledNormal(Normal):
    """Normal whose scale comes from the decoder too, or is one number for all columns.

    free: log scale = second head + a number a column, softly bounded. Else: the mean of those numbers, the same for
    every column and z, so that the density is as coarse in one direction as in another, as a distance is. Both are
    one architecture, so that members of both can be computed at once.
    """

    heads = 2
    free: Tensor

    def __init__(self, fitted: Doubles, smallest_scale: float, *, free: bool) -> None:
        """fitted: the rows to be fitted, (n, D), standardised; a constant column may be among them."""
        spread = np.where(fitted.std(0) > 0, fitted.std(0), 1.0)
        super().__init__(np.stack((fitted.mean(0) - spread, fitted.mean(0) + spread)), smallest_scale)
        self.register_buffer("free", torch.tensor(float(free), dtype=torch.float64))

    def parameters_of(self, heads: Tensor) -> Parameters:
        """Two heads: the location, and the log scale."""
        each, own = heads[..., 1, :].double(), self.raw_scale.double()
        raw = self.free * (each + own) + (1.0 - self.free) * own.mean()
        scale = self.spread * torch.exp(softclip(raw, *self.bounds))
        return {"loc": self.centre + self.spread * heads[..., 0, :].double(), "scale": scale}


class Bound(nn.Module):
    """A member as a function of rows and noise, so that several can be computed at once."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, u: Tensor, epsilon: Tensor) -> Tensor:
        """ELBO(u) of each row, (rows,) float64; u (rows, D), noise (k, d) for all rows or (rows, k, d)."""
        return objective.elbo(objective.terms(self.vae, u, epsilon))


class Stack:
    """Members of one architecture with their weights stacked: every tensor has the members along its first axis."""

    def __init__(self, members: list[VAE]) -> None:
        bounds = [Bound(member) for member in members]
        self.weights, self.buffers = stack_module_state(bounds)
        self.shape = copy.deepcopy(bounds[0]).to("meta")

    def bounds(self, u: Tensor, epsilon: Tensor) -> Tensor:
        """ELBO of each member's rows, (members, rows); u (members, rows, D), noise (members, …, k, d)."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], u: Tensor, epsilon: Tensor) -> Tensor:
            found: Tensor = functional_call(self.shape, (weights, buffers), (u, epsilon))
            return found

        together: Tensor = torch.vmap(one)(self.weights, self.buffers, u, epsilon)
        return together

    def keep(self, best: dict[str, Tensor], better: Tensor) -> None:
        """Copy the weights of the members that are better, (members,), over the best so far."""
        for name, value in self.weights.items():
            best[name][better] = value.detach()[better]


@dataclass(frozen=True, slots=True)
class Table:
    """Fitted members, each with its view: a bound on the log evidence of a row under their equal mixture.

    held_out: each member's ELBO of the rows that it was stopped by, nats a row, in its own coordinates.
    """

    views: tuple[View, ...]
    stack: Stack
    bank: Tensor
    held_out: Doubles

    @torch.no_grad()
    def bounds(self, rows: Doubles) -> Doubles:
        """ELBO of each row's coordinates under each member, (members, n), in nats: log density against du."""
        seen = {view: _padded(view(rows)) for view in set(self.views)}
        parts = []
        for start in range(0, len(rows), BLOCK):
            u = torch.from_numpy(np.stack([seen[view][start : start + BLOCK] for view in self.views]))
            parts.append(self.stack.bounds(u, self.bank.expand(len(u), *self.bank.shape)).numpy())
        return np.asarray(np.concatenate(parts, axis=1)[:, : len(rows)], np.float64)

    def score(self, rows: Doubles) -> Doubles:
        """The mean of the members' bounds, (n,), in nats: at most the log density of their mixture (Jensen).

        It is a density against the base measure whose own log density in standardised x is the members' mean of
        log |∂u/∂x|, halfway between x and u: m(x) = Π_j u_j'(x_j)^½. For with p_i(u_i) |∂u_i/∂x| a member's density
        in x, log (1/n) Σ_i p_i(u_i) |∂u_i/∂x| − log m(x) ≥ (1/n) Σ_i log p_i(u_i), the slopes cancelling. A row's
        score is a function of the row.
        """
        return np.asarray(self.bounds(rows).mean(0), np.float64)

    def log_base(self, rows: Doubles) -> Doubles:
        """log m(x) of each row, (n,): add it to `score` for a bound on the density in standardised x."""
        return np.asarray(np.mean([view.log_slope(rows) for view in self.views], axis=0), np.float64)


def fit(rows: Doubles, recipe: Recipe = RECIPE, seed: int = 0) -> Table:
    """Fit the recipe's members to a table's rows, (n, D); the same for the same seed. Unusable for too few rows."""
    if rows.ndim != 2 or len(rows) < FEWEST or not np.isfinite(rows).all():
        raise Unusable(f"a table needs {FEWEST} rows of finite numbers at least")
    coordinates: tuple[View, ...] = (Plain(rows), Bent(rows))
    kinds = list(itertools.product(coordinates, (True, False))) * recipe.members
    views = tuple(view for view, _ in kinds)
    seen = {view: view(rows) for view in set(views)}
    torch.manual_seed(seed)
    stack = Stack([_member(recipe, seen[view], free=free) for view, free in kinds])
    u = torch.from_numpy(np.stack([seen[view] for view in views]))
    generator = torch.Generator().manual_seed(seed)
    held_out = _fit(stack, u, recipe, generator)
    bank = torch.tensor(noise.bank(seed, recipe.draws, recipe.latent_size(rows.shape[1])).noise)
    return Table(views, stack, bank.double(), held_out)


def _member(recipe: Recipe, u: Doubles, *, free: bool) -> VAE:
    """A VAE with fresh weights."""
    columns, latent_size = u.shape[1], recipe.latent_size(u.shape[1])
    network = config.Mlp(kind="mlp", sizes=[recipe.hidden])
    likelihood = ScaledNormal(u, recipe.smallest_scale, free=free)
    encoder = Encoder(network, (columns,), latent_size)
    decoder = Decoder(network, (columns,), latent_size, (likelihood.heads, columns))
    return VAE(encoder, decoder, likelihood, (columns,))


def _fit(stack: Stack, u: Tensor, recipe: Recipe, generator: torch.Generator) -> Doubles:
    """Fit members to their rows, u (members, n, D), each keeping its weights at its highest held-out bound.

    Each holds out rows of its own. The bounds of those, (members,), are returned, and the stack computes in float64
    from then on.
    """
    members = len(u)
    fitted, checked = _shares(u, recipe, generator)
    latent_size = recipe.latent_size(u.shape[-1])
    normals = torch.randn((members, checked.shape[1], DRAWS_CHECKED, latent_size), generator=generator)
    optimiser = torch.optim.AdamW(stack.weights.values(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    best = {name: value.detach().clone() for name, value in stack.weights.items()}
    highest = torch.full((members,), -math.inf, dtype=torch.float64)
    last, size, which = 0, min(recipe.batch, fitted.shape[1]), torch.arange(members)[:, None]
    for step in range(1, recipe.steps + 1):
        optimiser.param_groups[0]["lr"] = recipe.lr * _warmth(step / recipe.steps)
        batch = fitted[which, torch.randint(fitted.shape[1], (members, size), generator=generator)]
        epsilon = torch.randn((members, size, 1, latent_size), generator=generator)
        loss = -stack.bounds(batch, epsilon).mean(1).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(stack.weights.values(), LARGEST_GRADIENT * members)
        optimiser.step()
        if step % recipe.every == 0 or step == recipe.steps:
            with torch.no_grad():
                bound = stack.bounds(checked, normals).mean(1)
            better = bound > highest
            highest = torch.where(better, bound, highest)
            stack.keep(best, better)
            last = step if better.any() else last
            if step - last >= recipe.patience * recipe.every:
                break
    stack.weights = {name: value.double() for name, value in best.items()}
    return np.asarray(highest.numpy(), np.float64)


def _shares(u: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rows that each member is fitted to and those it is stopped by, (members, rows, D) each."""
    members, n, _ = u.shape
    held_out = max(2, round(recipe.held_out * n))
    order = torch.stack([torch.randperm(n, generator=generator) for _ in range(members)])
    which = torch.arange(members)[:, None]
    return u[which, order[:, held_out:]], u[which, order[:, : min(held_out, CHECKED)]]


def _warmth(part: float) -> float:
    """What the learning rate is times, after a part of the steps: up within a thirtieth, then down a cosine to 1 %."""
    return min(1.0, 30.0 * part) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * part)))


def _padded(u: Doubles) -> Doubles:
    """Rows with zeros after them, up to whole blocks."""
    return np.pad(u, ((0, -len(u) % BLOCK), (0, 0)))


def log_mean_exp(a: Doubles) -> Doubles:
    """log of the mean of eᵃ over the last axis."""
    return np.asarray(np.logaddexp.reduce(a, axis=-1) - math.log(a.shape[-1]), np.float64)

"""Members: small VAEs fitted at once, each with a prior made of the rows that it was fitted to.

A member's prior is the mixture of its own posteriors at exemplars, some of the rows that it was fitted to, each wider
than the posterior by a learned factor (after Tomczak & Welling 2018, Norouzi et al. 2020). Networks and noise are those
of every other VAE here; knows nothing of the mixture that members are part of.
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
from training import config
from training.likelihoods import Normal, Parameters, softclip, total
from training.likelihoods.base import FURTHEST
from training.networks import Decoder, Encoder
from training.posteriors import DiagonalNormal
from training.vae import VAE

Doubles = NDArray[np.float64]

BLOCK = 256  # rows scored at once: always as many, so that a row's bits don't depend on its company
CHECKED = 400  # held-out rows that a member is stopped and weighed by, at most
LARGEST_GRADIENT = 10.0  # a member's norm, on average; a rare row far out would undo hundreds of steps
LOG_TWO_PI = math.log(2.0 * math.pi)
WIDER = 2.0  # what the prior's components are wider by than the posteriors, before fitting


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a table is fitted: one recipe for all of them. docs/detection.md says how it was chosen."""

    members: int = 2
    hidden: int = 128
    largest_latent: int = 16  # latents are half of the columns, and at most as many
    smallest_scale: float = 0.05  # of p(x|z), in standard deviations of the column
    steps: int = 1200
    batch: int = 128
    beside: int = 384  # exemplars of a step, none of them among the rows of its batch
    exemplars: int = 768  # rows that the prior is made of, at most
    lr: float = 2e-3
    weight_decay: float = 1e-2
    every: int = 50  # steps between looks at the held-out bound
    patience: int = 6  # looks without a better bound of any member, after which the rest is spared
    held_out: float = 0.2  # of the rows; other ones for each member
    draws: int = 16  # of the bank that rows are scored with


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
        return -0.5 * residual * residual - torch.log(parameters["scale"]) - 0.5 * LOG_TWO_PI


class Bound(nn.Module):
    """A member as a function of rows, noise and exemplars, so that several can be computed at once."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.vae = vae
        self.log_wider = nn.Parameter(torch.tensor(math.log(WIDER)))

    def forward(self, u: Tensor, epsilon: Tensor, exemplars: Tensor) -> Tensor:
        """E_q[log p(u|z) + log r(z) − log q(z|u)], (rows,) float64.

        u (rows, D), noise (k, d) for all rows or (rows, k, d), exemplars (E, D).
        """
        q = self.vae.posterior(u)
        assert isinstance(q, DiagonalNormal)
        z = q.draws(epsilon.to(self.vae.dtype))  # (rows, k, d)
        entropy = total(q.log_scale) + 0.5 * z.shape[-1] * (1.0 + LOG_TWO_PI)
        return (self.vae.log_likelihood(u, z) + self.log_prior(z, exemplars)).mean(-1) + entropy

    def log_prior(self, z: Tensor, exemplars: Tensor) -> Tensor:
        """log r(z), r = 1/E Σ_n N(mean(e_n), wider² scale(e_n)²), z (rows, k, d) → (rows, k).

        Squares are multiplied out, so that all distances are one product of matrices.
        """
        q = self.vae.posterior(exemplars)
        assert isinstance(q, DiagonalNormal)
        log_scale = q.log_scale + self.log_wider
        precision = torch.exp(-2.0 * log_scale)  # (E, d)
        flat = z.reshape(-1, z.shape[-1])
        constant = (-0.5 * q.mean * q.mean * precision - log_scale).sum(-1)
        exponent = flat @ (q.mean * precision).T - 0.5 * (flat * flat) @ precision.T + constant  # (rows · k, E)
        found = torch.logsumexp(exponent, -1) - 0.5 * z.shape[-1] * LOG_TWO_PI - math.log(len(exemplars))
        return found.double().reshape(z.shape[:-1])


class Stack:
    """Members with their weights stacked: every tensor has the members along its first axis."""

    def __init__(self, vaes: list[VAE], latent_size: int, exemplars: Tensor, draws: int) -> None:
        """exemplars (members, E, D); draws: how many rows are scored with."""
        members = [Bound(vae) for vae in vaes]
        self.count, self.latent_size, self.draws = len(members), latent_size, draws
        self.exemplars = exemplars
        self.weights, self.buffers = stack_module_state(members)
        self.shape = copy.deepcopy(members[0]).to("meta")

    def compute(self, u: Tensor, epsilon: Tensor, exemplars: Tensor) -> Tensor:
        """Each member's bound of its rows, (members, rows); u (members, rows, D), noise (members, …, k, d)."""

        def one(weights: dict[str, Tensor], buffers: dict[str, Tensor], *given: Tensor) -> Tensor:
            found: Tensor = functional_call(self.shape, (weights, buffers), given)
            return found

        together: Tensor = torch.vmap(one)(self.weights, self.buffers, u, epsilon, exemplars)
        return together

    def bounds(self, u: Tensor) -> Doubles:
        """Each member's bound of every row, (members, n), by one bank of noise; u (n, D), float64."""
        return self.of_each(u.expand(self.count, *u.shape))

    @torch.no_grad()
    def of_each(self, u: Tensor) -> Doubles:
        """Each member's bound of its own rows, (members, rows); u (members, rows, D)."""
        bank, rows = self.bank(self.draws), u.shape[1]
        padded = nn.functional.pad(u, (0, 0, 0, -rows % BLOCK))
        parts = [self.compute(block, bank, self.exemplars) for block in torch.split(padded, BLOCK, dim=1)]
        return np.asarray(torch.cat(parts, dim=1)[:, :rows].numpy(), np.float64)

    def bank(self, draws: int) -> Tensor:
        """The noise that rows are scored with, (members, draws, d), float64; the same for every row and member."""
        bank = torch.tensor(noise.bank(0, draws, self.latent_size).noise, dtype=torch.float64)
        return bank.expand(self.count, *bank.shape)


def fit(u: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Stack, Doubles]:
    """Members fitted to rows, u (n, D), and their bounds of rows that each held out, (members, rows).

    Each is fitted to other rows, and keeps its weights at its highest held-out bound.
    """
    fitted, checked = _shares(u, recipe, generator)
    stack = _stack(fitted[:, : recipe.exemplars], recipe)
    best = _climb(stack, fitted, checked, recipe, generator)
    stack.weights = {name: value.double() for name, value in best.items()}
    return stack, stack.of_each(checked)


def _stack(exemplars: Tensor, recipe: Recipe) -> Stack:
    """Members with fresh weights."""
    network, columns = config.Mlp(kind="mlp", sizes=[recipe.hidden]), exemplars.shape[-1]
    size = min(columns // 2 + 1, recipe.largest_latent)
    vaes = [
        VAE(
            Encoder(network, (columns,), size),
            Decoder(network, (columns,), size, (ColumnNormal.heads, columns)),
            ColumnNormal(columns, recipe.smallest_scale),
            (columns,),
        )
        for _ in range(recipe.members)
    ]
    return Stack(vaes, size, exemplars, recipe.draws)


def _climb(
    stack: Stack, fitted: Tensor, checked: Tensor, recipe: Recipe, generator: torch.Generator
) -> dict[str, Tensor]:
    """Take the recipe's steps; each member's weights at its highest bound of the rows that it is checked by."""
    bank = stack.bank(4)
    optimiser = torch.optim.AdamW(stack.weights.values(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    best = {name: value.detach().clone() for name, value in stack.weights.items()}
    highest = torch.full((stack.count,), -math.inf, dtype=torch.float64)
    last = 0
    for step in range(1, recipe.steps + 1):
        optimiser.param_groups[0]["lr"] = recipe.lr * _warmth(step / recipe.steps)
        _step(stack, *_batch(fitted, recipe, generator), optimiser, generator)
        if step % recipe.every and step < recipe.steps:
            continue
        with torch.no_grad():
            bound = stack.compute(checked, bank, stack.exemplars).mean(1)
        better = bound > highest
        highest = torch.where(better, bound, highest)
        for name, value in stack.weights.items():
            best[name][better] = value.detach()[better]
        last = step if better.any() else last
        if step - last >= recipe.patience * recipe.every:
            break
    return best


def _step(
    stack: Stack, u: Tensor, exemplars: Tensor, optimiser: torch.optim.Optimizer, generator: torch.Generator
) -> None:
    """Climb the members' bounds of a batch, u (members, rows, D), with one draw a row."""
    epsilon = torch.randn((*u.shape[:2], 1, stack.latent_size), generator=generator)
    loss = -stack.compute(u, epsilon, exemplars).mean(1).sum()
    optimiser.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(stack.weights.values(), LARGEST_GRADIENT * stack.count)
    optimiser.step()


def _shares(u: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The rows that each member is fitted to, and those that it is stopped by: (members, rows, D) each."""
    held_out = max(2, round(recipe.held_out * len(u)))
    order = torch.stack([torch.randperm(len(u), generator=generator) for _ in range(recipe.members)])
    return u[order[:, held_out:]], u[order[:, : min(held_out, CHECKED)]]


def _batch(fitted: Tensor, recipe: Recipe, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some of each member's rows, and others as exemplars: a row beside itself would be explained by itself."""
    members, n, _ = fitted.shape
    rows = min(recipe.batch, n // 3 + 1)
    order = torch.stack([torch.randperm(n, generator=generator)[: rows + recipe.beside] for _ in range(members)])
    chosen = fitted[torch.arange(members)[:, None], order]
    return chosen[:, :rows], chosen[:, rows:]


def _warmth(part: float) -> float:
    """What the learning rate is times, after a part of the steps: up within a thirtieth, then down a cosine to 1 %."""
    return min(1.0, 30.0 * part) * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * part)))

"""Posteriors: the forms of q(z|x): a diagonal normal, a normal with all covariances, a flow. Know no encoder.

Noise is an input, (k, d) for a bank that all rows share or (rows, k, d). Densities are float64, in nats.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service import noise
from service.artifact import PosteriorFamily
from training import config
from training.couplings import Couplings
from training.likelihoods import aligned, softclip, total

LOG_SCALE = -6.0, 2.0  # bounds of log σ of q(z|x), soft
LOOKS = 64  # draws that the mean and the scale of a flow are taken from
LEAST = 1e-12  # variance of a latent
LOG_TWO_PI = math.log(2.0 * math.pi)


class Posterior(ABC):
    """q(z|x)."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor]:
        """The mean and the log of the standard deviation of each latent, (rows, d)."""

    @abstractmethod
    def drawn(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z at every ε of the noise, (rows, k, d), and log q(z|x) there, (rows, k)."""

    def draws(self, noise: Tensor) -> Tensor:
        """z at every ε of the noise, (rows, k, d)."""
        return self.drawn(noise)[0]

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """log q(z|x) at any z (rows, k, d), (rows, k)."""

    @abstractmethod
    def held(self) -> Posterior:
        """The same, from which no gradient reaches the encoder."""

    def kl(self) -> Tensor | None:
        """KL(q(z|x) ‖ N(0, I)), split over the latents, (rows, d), none below 0; None where it has no closed form."""
        return None


@dataclass(frozen=True, slots=True)
class DiagonalNormal(Posterior):
    """q(z|x) = N(mean, diag e^(2 log_scale)); both (rows, d)."""

    mean: Tensor
    log_scale: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """As they are."""
        return self.mean, self.log_scale

    def drawn(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z = mean + σ ε."""
        z = self.mean.unsqueeze(1) + torch.exp(self.log_scale).unsqueeze(1) * noise
        return z, log_normal(noise) - total(self.log_scale).unsqueeze(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """log N(ε) − Σ log σ at ε = (z − mean)/σ."""
        noise = (z - self.mean.unsqueeze(1)) * torch.exp(-self.log_scale).unsqueeze(1)
        return log_normal(noise) - total(self.log_scale).unsqueeze(-1)

    def held(self) -> DiagonalNormal:
        """The same, detached."""
        return DiagonalNormal(self.mean.detach(), self.log_scale.detach())

    def kl(self) -> Tensor:
        """½(σ² + mean² − 1) − log σ of each latent, in nats, float64, (rows, d)."""
        mean, log_scale = self.mean.double(), self.log_scale.double()
        return 0.5 * (aligned(torch.exp, 2.0 * log_scale) + mean * mean - 1.0) - log_scale


@dataclass(frozen=True, slots=True)
class FullNormal(Posterior):
    """q(z|x) = N(mean, L Lᵀ), L (rows, d, d) lower triangular; log_scale of the marginals, log_root of L's diagonal."""

    mean: Tensor
    log_scale: Tensor
    root: Tensor
    log_root: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """As they are."""
        return self.mean, self.log_scale

    def drawn(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z = mean + L ε, summed number by number: a product of matrices has other bits for other numbers of draws."""
        spread = total(self.root.unsqueeze(1) * noise.unsqueeze(-2)).to(self.mean.dtype)
        return self.mean.unsqueeze(1) + spread, log_normal(noise) - total(self.log_root).unsqueeze(-1)

    def log_density(self, z: Tensor) -> Tensor:
        """log N(ε) − Σ log L_ii at ε = L⁻¹(z − mean)."""
        away = (z - self.mean.unsqueeze(1)).transpose(1, 2)
        noise = torch.linalg.solve_triangular(self.root, away, upper=False).transpose(1, 2)
        return log_normal(noise) - total(self.log_root).unsqueeze(-1)

    def held(self) -> FullNormal:
        """The same, detached."""
        return FullNormal(self.mean.detach(), self.log_scale.detach(), self.root.detach(), self.log_root.detach())

    def kl(self) -> Tensor:
        """½(Σ_j L_ij² + mean_i² − 1) − log L_ii: of each latent given those before it, the mean over these; (rows, d).

        Their sum is KL(q(z|x) ‖ N(0, I)), by the chain rule.
        """
        mean, root = self.mean.double(), self.root.double()
        return 0.5 * (total(root * root) + mean * mean - 1.0) - self.log_root.double()


@dataclass(frozen=True, slots=True)
class FlowPosterior(Posterior):
    """q(z|x): a diagonal normal whose draws go through couplings.

    base is the normal, context (rows, c) what the couplings know of the row; looks, (LOOKS, d), the noise of the draws
    that its moments are taken from.
    """

    base: DiagonalNormal
    context: Tensor
    couplings: Couplings
    looks: Tensor

    def moments(self) -> tuple[Tensor, Tensor]:
        """Those of a few draws that balance one another, always the same: there is no closed form."""
        seen = self.draws(self.looks.to(self.context.dtype)).transpose(1, 2).double()
        mean = total(seen) / LOOKS
        away = seen - mean.unsqueeze(-1)
        log_scale = 0.5 * aligned(torch.log, (total(away * away) / (LOOKS - 1)).clamp(min=LEAST))
        return mean.to(self.context.dtype), log_scale.to(self.context.dtype)

    def drawn(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z = couplings(mean + σ ε), and the base's density over the Jacobian."""
        start, log_base = self.base.drawn(noise)
        z, log_jacobian = self.couplings(start, self.context)
        return z, log_base - log_jacobian

    def log_density(self, z: Tensor) -> Tensor:
        """The same, from z back to where it came from."""
        start, log_jacobian = self.couplings.back(z, self.context)
        return self.base.log_density(start) - log_jacobian

    def held(self) -> FlowPosterior:
        """The same, of detached weights."""
        couplings = copy.deepcopy(self.couplings).requires_grad_(False)
        return FlowPosterior(self.base.held(), self.context.detach(), couplings, self.looks)


class Form(nn.Module, ABC):
    """How an encoder's numbers become a posterior. numbers: how many it wants of a row; family: as in the manifest."""

    numbers: int
    family: PosteriorFamily

    @abstractmethod
    def forward(self, raw: Tensor) -> Posterior:
        """The posterior from the encoder's numbers, (rows, numbers)."""


class Diagonal(Form):
    """mean and log σ, the latter softly bounded."""

    family = "diagonal_normal"

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        self.numbers = 2 * latent_size

    def forward(self, raw: Tensor) -> DiagonalNormal:
        """The posterior."""
        mean, log_scale = raw.chunk(2, dim=-1)
        return DiagonalNormal(mean, softclip(log_scale, *LOG_SCALE))


class Full(Form):
    """mean, the log of L's diagonal, softly bounded, and what is below it, in units of the diagonal of its column."""

    family = "full_normal"
    places: Tensor

    def __init__(self, latent_size: int) -> None:
        super().__init__()
        below = latent_size * (latent_size - 1) // 2
        places = torch.full((latent_size, latent_size), below)  # where the zeros are
        places[tuple(torch.tril_indices(latent_size, latent_size, -1))] = torch.arange(below)
        self.latent_size, self.numbers = latent_size, 2 * latent_size + below
        self.register_buffer("places", places.reshape(-1), persistent=False)

    def forward(self, raw: Tensor) -> FullNormal:
        """The posterior."""
        d = self.latent_size
        mean, log_root = raw[:, :d], softclip(raw[:, d : 2 * d], *LOG_SCALE)
        padded = torch.cat((raw[:, 2 * d :], torch.zeros_like(raw[:, :1])), -1)
        below = padded[:, self.places].reshape(-1, d, d)
        unit = below + torch.eye(d, dtype=raw.dtype, device=raw.device)
        root = unit * torch.exp(log_root).unsqueeze(1)
        variance = total(root.double() * root.double())
        return FullNormal(mean, 0.5 * aligned(torch.log, variance).to(raw.dtype), root, log_root)


class Flow(Form):
    """A base's mean and log σ, and a context for the couplings."""

    family = "flow"
    looks: Tensor

    def __init__(self, latent_size: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.latent_size, self.numbers = latent_size, 2 * latent_size + hidden
        self.couplings = Couplings(latent_size, layers, hidden, hidden)
        looks = torch.tensor(noise.bank(0, LOOKS, latent_size).noise)
        self.register_buffer("looks", looks, persistent=False)

    def forward(self, raw: Tensor) -> FlowPosterior:
        """The posterior."""
        mean, log_scale, context = raw.tensor_split((self.latent_size, 2 * self.latent_size), dim=-1)
        base = DiagonalNormal(mean, softclip(log_scale, *LOG_SCALE))
        return FlowPosterior(base, context, self.couplings, self.looks)


def build(wanted: config.Posterior, latent_size: int) -> Form:
    """The form that a run asks for."""
    match wanted:
        case config.DiagonalPosterior():
            return Diagonal(latent_size)
        case config.FullPosterior():
            return Full(latent_size)
        case config.FlowPosterior():
            return Flow(latent_size, wanted.layers, wanted.hidden)


def log_normal(noise: Tensor) -> Tensor:
    """log N(ε; 0, I) over the last axis, in float64; (…, d) → (…)."""
    doubles = noise.double()
    return -0.5 * (total(doubles * doubles) + noise.shape[-1] * LOG_TWO_PI)

"""Priors: the forms of p(z): a standard normal, a mixture of normals, a flow. Know no likelihood.

A prior is drawn from by noise that is given to it, standard normals (n, d) and, for a mixture, uniforms (n,) that
choose the component. Densities are float64, in nats.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from service import noise
from service.artifact import PriorFamily
from training import config
from training.couplings import Couplings
from training.likelihoods import aligned, softclip, total
from training.networks import Encoder
from training.posteriors import LOG_SCALE, LOG_TWO_PI, log_normal

LOOKS = 4096  # draws that the mean and the scale of a flow are taken from
LOWEST = 1e-300  # of a sum that a logarithm is taken of


class Prior(nn.Module, ABC):
    """p(z). family: as in the manifest."""

    family: PriorFamily

    def renew(self, encoder: Encoder) -> None:
        """Make again what the encoder makes of the prior."""

    @abstractmethod
    def log_density(self, z: Tensor) -> Tensor:
        """log p(z), (…, d) → (…)."""

    @abstractmethod
    def draws(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """z ~ p(z) by standard normals (n, d) and uniforms (n,), which not every prior wants; (n, d)."""

    @abstractmethod
    def moments(self) -> tuple[Tensor, Tensor] | None:
        """The mean and the standard deviation of each latent, (d,); None for 0 and 1."""


class StandardNormal(Prior):
    """p(z) = N(0, I)."""

    family = "standard_normal"

    def log_density(self, z: Tensor) -> Tensor:
        """−½(Σ z² + d log 2π)."""
        return log_normal(z)

    def draws(self, noise: Tensor, uniform: Tensor) -> Tensor:  # noqa: ARG002  a mixture's
        """The noise."""
        return noise

    def moments(self) -> None:
        """Known to everyone."""


class Mixture(Prior):
    """p(z) = Σ_c weight_c N(mean_c, diag e^(2 log_scale_c)); subclasses say where these come from.

    mean, log_scale: (components, d). log_weight: (components,).
    """

    family = "mixture"
    mean: Tensor
    log_scale: Tensor

    @property
    @abstractmethod
    def log_weight(self) -> Tensor:
        """Of each component, (components,); float64."""

    def log_density(self, z: Tensor) -> Tensor:
        """log Σ_c exp(log weight_c + log N(z)).

        Squares are multiplied out, so that all distances are one product of matrices; in float64, or they would cancel.
        """
        z, mean, log_scale = z.double(), self.mean.double(), self.log_scale.double()
        precision = torch.exp(-2.0 * log_scale)  # (components, d)
        constant = self.log_weight - (0.5 * mean * mean * precision + log_scale).sum(-1)
        exponent = torch.cat((z, z * z), -1) @ torch.cat((mean * precision, -0.5 * precision), -1).T + constant
        top = exponent.amax(-1, keepdim=True)
        found = total(aligned(torch.exp, exponent - top)).clamp(min=LOWEST)
        return top.squeeze(-1) + aligned(torch.log, found) - 0.5 * z.shape[-1] * LOG_TWO_PI

    def draws(self, noise: Tensor, uniform: Tensor) -> Tensor:
        """mean_c + σ_c ε, c the component in whose share of the unit interval the uniform lies."""
        edges = torch.cumsum(torch.exp(self.log_weight), 0)[:-1]
        chosen = (uniform.double().unsqueeze(-1) >= edges).sum(-1)
        return self.mean[chosen] + torch.exp(self.log_scale)[chosen] * noise

    def moments(self) -> tuple[Tensor, Tensor]:
        """Of the mixture."""
        weight, mean = torch.exp(self.log_weight).unsqueeze(-1), self.mean.double()
        centre = (weight * mean).sum(0)
        variance = (weight * (torch.exp(2.0 * self.log_scale.double()) + (mean - centre) ** 2)).sum(0)
        return centre, variance.sqrt()


class Learned(Mixture):
    """A mixture whose means, scales and weights are learned."""

    def __init__(self, components: int, latent_size: int) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.randn(components, latent_size))
        self.raw_scale = nn.Parameter(torch.zeros(components, latent_size))
        self.raw_weight = nn.Parameter(torch.zeros(components))

    @property
    def log_scale(self) -> Tensor:  # type: ignore[override]  # made of a parameter
        """Softly bounded."""
        return softclip(self.raw_scale, *LOG_SCALE)

    @property
    def log_weight(self) -> Tensor:
        """Of each component."""
        return torch.log_softmax(self.raw_weight.double(), 0)


class Vamp(Mixture):
    """The posteriors of rows that are learned, all of one weight (Tomczak & Welling 2018, VAE with a VampPrior).

    rows: what the encoder is given, (components, D). Made again whenever they or the encoder may have changed.
    """

    def __init__(self, rows: Tensor, latent_size: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(rows.clone())
        self.register_buffer("mean", torch.zeros(len(rows), latent_size))
        self.register_buffer("log_scale", torch.zeros(len(rows), latent_size))

    def renew(self, encoder: Encoder) -> None:
        """Encode the rows."""
        self.mean, self.log_scale = encoder(self.rows).moments()

    @property
    def log_weight(self) -> Tensor:
        """Of each component."""
        count = len(self.mean)
        return torch.full((count,), -math.log(count), dtype=torch.float64, device=self.mean.device)


class Stated(Mixture):
    """A mixture whose means, scales and weights are given, and which nothing learns."""

    log_weights: Tensor

    def __init__(self, mean: Tensor, log_scale: Tensor, weight: Tensor) -> None:
        """mean, log_scale: (components, d). weight: (components,), adding up to 1."""
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("log_scale", log_scale.float())
        self.register_buffer("log_weights", torch.log(weight.double()))

    @property
    def log_weight(self) -> Tensor:
        """Of each component."""
        return self.log_weights


class Flow(Prior):
    """p(z): a standard normal whose draws go through couplings."""

    family = "flow"

    def __init__(self, latent_size: int, layers: int, hidden: int) -> None:
        super().__init__()
        self.latent_size = latent_size
        self.couplings = Couplings(latent_size, layers, hidden)

    def log_density(self, z: Tensor) -> Tensor:
        """log N(ε) − log |∂z/∂ε|."""
        start, log_jacobian = self.couplings.back(z)
        return log_normal(start) - log_jacobian

    def draws(self, noise: Tensor, uniform: Tensor) -> Tensor:  # noqa: ARG002  a mixture's
        """The noise, through the couplings."""
        z: Tensor = self.couplings(noise)[0]
        return z

    def moments(self) -> tuple[Tensor, Tensor]:
        """Of many draws, always the same."""
        looks = torch.tensor(noise.bank(0, LOOKS, self.latent_size).noise)
        z = self.couplings(looks.to(next(self.parameters())))[0].double()
        return z.mean(0), z.std(0)


def build(wanted: config.Prior, latent_size: int, rows: Tensor) -> Prior:
    """The prior that a run asks for. rows: what the encoder is given for fitted rows; a VampPrior begins there."""
    match wanted:
        case config.StandardNormalPrior():
            return StandardNormal()
        case config.MixturePrior():
            return Learned(wanted.components, latent_size)
        case config.VampPrior():
            return Vamp(rows[torch.randperm(len(rows))[: wanted.components]], latent_size)
        case config.FlowPrior():
            return Flow(latent_size, wanted.layers, wanted.hidden)

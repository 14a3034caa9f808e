"""The objective: what training maximises. The score that is served never uses any of it but the ELBO itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from training.config import Objective
from training.likelihoods import total
from training.vae import VAE


@dataclass(frozen=True, slots=True)
class Terms:
    """The two terms of the ELBO of each row, in nats, (rows,) float64."""

    log_likelihood: Tensor
    kl: Tensor


def terms(vae: VAE, x: Tensor, noise: Tensor) -> Terms:
    """E_q[log p(x|z)], from the draws of a noise bank (k, d), and KL(q(z|x) ‖ p(z)), exact."""
    q = vae.posterior(x)
    return Terms(vae.log_likelihood(x, q.draws(noise.to(vae.dtype))).mean(-1), total(q.kl()))


def elbo(bound: Terms) -> Tensor:
    """ELBO(x) = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x)."""
    return bound.log_likelihood - bound.kl


def weighted(bound: Terms, beta: float) -> Tensor:
    """E_q[log p(x|z)] − β·KL (Higgins et al. 2017); a bound on log p(x) only where β ≥ 1."""
    return bound.log_likelihood - beta * bound.kl


def beta_at(epoch: int, objective: Objective) -> float:
    """β, rising linearly from β/(warm_up + 1) in epoch 0 to all of it in epoch warm_up (Bowman et al. 2016)."""
    return objective.beta * min(1.0, (epoch + 1) / (objective.warm_up + 1))


def formula(objective: Objective) -> str:
    """The objective in words, for the manifest."""
    if objective.beta == 1 and objective.warm_up == 0:
        return "E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))"
    rising = f", β rising linearly over {objective.warm_up} epochs" if objective.warm_up else ""
    return f"E_q[log p(x|z)] − β KL(q(z|x) ‖ p(z)), β = {objective.beta:g}{rising}"

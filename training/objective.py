"""The objective: what training maximises. The score that is served never uses any of it but the ELBO itself."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from training.config import Objective
from training.likelihoods import total
from training.vae import VAE


@dataclass(frozen=True, slots=True)
class Terms:
    """The two terms of the ELBO of each row, in nats, (rows,) float64; the KL's share of each latent where it is exact.

    bound: what training with β = 1 maximises, (rows,); the ELBO, or the importance-weighted bound.
    """

    log_likelihood: Tensor
    kl: Tensor
    latent_kl: Tensor | None
    bound: Tensor


def terms(vae: VAE, x: Tensor, noise: Tensor) -> Terms:
    """E_q[log p(x|z)] and KL(q(z|x) ‖ p(z)) from draws by noise (k, d) or (rows, k, d).

    The KL is exact where it has a closed form, else the mean of log q(z|x) − log p(z) over the draws.
    """
    q = vae.posterior(x)
    z, log_q = q.drawn(noise.to(vae.dtype))
    log_likelihood = vae.log_likelihood(x, z).mean(-1)
    latent_kl = vae.kl(q)
    kl = (log_q - vae.log_prior(z)).mean(-1) if latent_kl is None else total(latent_kl)
    return Terms(log_likelihood, kl, latent_kl, log_likelihood - kl)


def importance_weighted(vae: VAE, x: Tensor, noise: Tensor) -> Terms:
    """log 1/K Σ_k w_k, w = p(x, z)/q(z|x), as bound (Burda et al. 2016), its gradient doubly reparameterised.

    By the encoder's weights φ it is Σ_k ŵ_k² ∂log w_k/∂z · ∂z_k/∂φ, ŵ = w/Σw (Tucker et al. 2019, eq. 8): unbiased like
    the plain gradient Σ_k ŵ_k ∂log w_k/∂φ, and without the part of it that is noise alone. By all other weights it is
    the plain one.
    """
    q = vae.posterior(x)
    z = q.draws(noise.to(vae.dtype))
    log_likelihood = vae.log_likelihood(x, z)
    log_weight = log_likelihood + vae.log_prior(z) - q.held().log_density(z)
    share = torch.softmax(log_weight.detach(), -1)
    if z.requires_grad:
        z.register_hook(lambda slope: share.unsqueeze(-1).to(slope.dtype) * slope)  # type: ignore[no-untyped-call]
    value = torch.logsumexp(log_weight.detach(), -1) - math.log(z.shape[1])
    climbed = (share * log_weight).sum(-1)
    kl = (log_likelihood - log_weight).mean(-1)
    return Terms(log_likelihood.mean(-1), kl, None, value + (climbed - climbed.detach()))


def measured(vae: VAE, x: Tensor, noise: Tensor, objective: Objective) -> Terms:
    """The terms, and the bound of the kind that is maximised."""
    return (importance_weighted if objective.kind == "importance_weighted" else terms)(vae, x, noise)


def climbed(found: Terms, epoch: int, objective: Objective) -> Tensor:
    """The mean over rows of what is maximised in an epoch."""
    if objective.kind == "importance_weighted":
        return found.bound.mean()
    if objective.free_bits and found.latent_kl is not None:
        kl = freed(found.latent_kl, objective.free_bits)
        return found.log_likelihood.mean() - beta_at(epoch, objective) * kl
    return weighted(found, beta_at(epoch, objective)).mean()


def elbo(bound: Terms) -> Tensor:
    """ELBO(x) = E_q[log p(x|z)] − KL(q(z|x) ‖ p(z)) ≤ log p(x)."""
    return bound.log_likelihood - bound.kl


def weighted(bound: Terms, beta: float) -> Tensor:
    """E_q[log p(x|z)] − β·KL (Higgins et al. 2017); a bound on log p(x) only where β ≥ 1."""
    return bound.log_likelihood - beta * bound.kl


def freed(latent_kl: Tensor, free: float) -> Tensor:
    """Σ_j max(free, mean over rows of KL_j): no latent is pushed nearer to the prior than that (Kingma et al. 2016)."""
    return latent_kl.mean(0).clamp(min=free).sum()


def beta_at(epoch: int, objective: Objective) -> float:
    """β, rising linearly from β/(warm_up + 1) in epoch 0 to all of it in epoch warm_up (Bowman et al. 2016)."""
    return objective.beta * min(1.0, (epoch + 1) / (objective.warm_up + 1))


def formula(objective: Objective) -> str:
    """The objective in words, for the manifest."""
    if objective.kind == "importance_weighted":
        mean = f"E_q[log mean of {objective.draws} p(x, z)/q(z|x)]"
        return f"{mean}, the gradient doubly reparameterised"
    if objective.beta == 1 and objective.warm_up == 0 and objective.free_bits == 0:
        return "E_q[log p(x|z)] − KL(q(z|x) ‖ p(z))"
    kl = "Σ_j max(λ, KL_j)" if objective.free_bits else "KL(q(z|x) ‖ p(z))"
    free = f", λ = {objective.free_bits:g} nats" if objective.free_bits else ""
    rising = f", β rising linearly over {objective.warm_up} epochs" if objective.warm_up else ""
    return f"E_q[log p(x|z)] − β {kl}, β = {objective.beta:g}{rising}{free}"

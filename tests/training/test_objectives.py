"""Objectives: what is maximised, and that its gradient is the one of the equation."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.linear import LATENTS, D, linear
from training import config, fit, objective
from training.config import Unusable
from training.vae import VAE


def gradients(vae: VAE, x: Tensor, noise: Tensor, doubly: bool) -> Tensor:
    """The gradient of the importance-weighted bound by the encoder's weights, one row of numbers."""
    if doubly:
        bound = objective.importance_weighted(vae, x, noise).bound
    else:
        q = vae.posterior(x)
        z, log_q = q.drawn(noise)
        bound = torch.logsumexp(vae.log_likelihood(x, z) + vae.log_prior(z) - log_q, -1)
    found = torch.autograd.grad(bound.mean(), list(vae.encoder.parameters()))
    return torch.cat([each.reshape(-1) for each in found])


def test_the_doubly_reparameterised_gradient_is_the_gradient() -> None:
    """Over many draws its mean is that of the plain gradient, number by number; and it varies less."""
    vae, x = linear(1.1)
    generator = torch.Generator().manual_seed(1)
    found: dict[bool, list[Tensor]] = {True: [], False: []}
    for _ in range(1500):
        noise = torch.randn((len(x), 8, LATENTS), generator=generator, dtype=torch.float64)
        for doubly, some in found.items():
            some.append(gradients(vae, x, noise, doubly))
    twice, once = (torch.stack(found[doubly]).numpy() for doubly in (True, False))
    difference = twice - once  # of the same draws
    error = difference.std(0, ddof=1) / np.sqrt(len(difference))
    live = error > 0  # what is above L's diagonal has no gradient at all
    assert live.sum() == D * LATENTS + 3
    assert np.abs(difference.mean(0)[live] / error[live]).max() < 4
    assert (twice.var(0)[live] < 0.5 * once.var(0)[live]).all()


def test_at_the_exact_posterior_every_draw_of_it_is_zero() -> None:
    """All weights are p(x) then, whatever the draws: the bound is log p(x), and nothing is to be learned."""
    vae, x = linear(1.0)
    noise = torch.randn((len(x), 8, LATENTS), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert gradients(vae, x, noise, True).abs().max() < 1e-12
    assert gradients(vae, x, noise, False).abs().max() > 1e-3
    found, other = (objective.importance_weighted(vae, x, each) for each in (noise, noise.flip(1) * 1.5))
    assert torch.allclose(found.bound, found.log_likelihood - found.kl)
    assert torch.allclose(found.bound, other.bound)
    assert not torch.allclose(found.log_likelihood, other.log_likelihood, rtol=1e-3)


def test_the_bound_rises_with_the_draws() -> None:
    """E[log mean of K weights] is between the ELBO and log p(x), and nearer the latter the more there are."""
    vae, x = linear(1.3)
    noise = torch.randn((len(x), 2048, LATENTS), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    with torch.no_grad():
        means = [
            torch.stack(
                [objective.importance_weighted(vae, x, part).bound for part in torch.split(noise, size, 1)]
            ).mean()
            for size in (2, 8, 32, 128)
        ]
    exact = objective.terms(vae, x, noise).bound.mean()
    assert exact < means[0]
    assert all(later > earlier for earlier, later in itertools.pairwise(means))


def test_the_decoders_gradient_is_the_plain_one() -> None:
    """Its weights are learned as without the trick."""
    vae, x = linear(1.1)
    noise = torch.randn((len(x), 8, LATENTS), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    q = vae.posterior(x)
    z, log_q = q.drawn(noise)
    plain = torch.logsumexp(vae.log_likelihood(x, z) + vae.log_prior(z) - log_q, -1).mean()
    twice = objective.importance_weighted(vae, x, noise).bound.mean()
    weights = list(vae.decoder.parameters())
    for one, other in zip(torch.autograd.grad(plain, weights), torch.autograd.grad(twice, weights), strict=True):
        assert torch.allclose(one, other)


def test_free_bits_leave_a_latent_alone() -> None:
    """A latent whose mean KL is below what is free has no gradient from it; one above has its own."""
    latent_kl = torch.tensor([[0.1, 2.0], [0.3, 4.0]], requires_grad=True)
    found = objective.freed(latent_kl, 0.5)
    assert found.item() == pytest.approx(0.5 + 3.0)
    (slope,) = torch.autograd.grad(found, latent_kl)
    assert slope.tolist() == [[0.0, 0.5], [0.0, 0.5]]


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"kind": "importance_weighted", "draws": 4}, "log mean of 4"),
        ({"free_bits": 0.5, "warm_up": 2}, "λ = 0.5 nats"),
        ({"draws": 3}, "E_q[log p(x|z)] − KL"),
    ],
)
def test_every_objective_fits(wanted: dict[str, object], said: str, tmp_path: Path) -> None:
    """A few epochs raise the held-out bound, and the manifest's formula says what was maximised."""
    plain = config.read(Path("configs/tiny.yaml")).plain()
    changes = {"objective": wanted, "optimiser": {**plain["optimiser"], "epochs": 3}}
    fitted = fit.fit(config.check({**plain, **changes}, "a test"), tmp_path)
    bounds = [fit.held_out(line) for line in fitted.figures]
    assert bounds == sorted(bounds)
    assert len(bounds) == 3
    assert said in objective.formula(fitted.run.objective)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objective": {"kind": "importance_weighted"}}, "set draws to 2 or more"),
        ({"objective": {"kind": "importance_weighted", "draws": 5, "beta": 2.0}}, "leave out beta"),
        ({"objective": {"free_bits": 0.1}, "prior": {"kind": "mixture"}}, "no closed form"),
        ({"prior": {"kind": "vamp"}, "posterior": {"kind": "full_normal"}}, "diagonal_normal"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: dict[str, object], said: str) -> None:
    """With the reason, before anything is fitted."""
    plain = config.read(Path("configs/tiny.yaml")).plain()
    with pytest.raises(Unusable, match=said):
        config.check({**plain, **changes}, "a test")

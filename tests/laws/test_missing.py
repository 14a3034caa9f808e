"""Missing values against exact truth: the bound is one on log p(x_observed), whichever values are missing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn

from service import noise
from training import graphs
from training.likelihoods import Likelihood
from training.networks import Decoder, DiagonalNormal, Encoder
from training.vae import VAE

Doubles = NDArray[np.float64]
SPREAD = 0.6


@dataclass(frozen=True)
class Factors:
    """z ~ N(0, I_d), x|z ~ N(Wz + b, s²I_D): every marginal and every posterior has a closed form."""

    W: Doubles
    b: Doubles

    def evidence(self, x: Doubles) -> float:
        """log p(x_observed) of one row, NaN where a value is missing; 0 of a row of nothing."""
        seen = ~np.isnan(x)
        W, D = self.W[seen], int(seen.sum())
        if D == 0:
            return 0.0
        return float(stats.multivariate_normal(self.b[seen], W @ W.T + SPREAD**2 * np.eye(D)).logpdf(x[seen]))


class Gaussian(nn.Module):
    """The likelihood of such a model: N(heads, s²)."""

    def standardised(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """As it is."""
        return x.to(dtype)

    def parameters_of(self, heads: Tensor) -> dict[str, Tensor]:
        """The location."""
        return {"loc": heads[..., 0, :]}

    def log_prob(self, x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        """Of each number."""
        residual = (x - parameters["loc"]) / SPREAD
        return -0.5 * residual * residual - math.log(SPREAD) - 0.5 * math.log(2 * math.pi)


class Exact(nn.Module):
    """The best diagonal q(z|x_observed) for every pattern of missing values; with one latent the posterior itself."""

    def __init__(self, truth: Factors) -> None:
        super().__init__()
        self.W, self.b = nn.Parameter(torch.from_numpy(truth.W)), torch.from_numpy(truth.b)

    def forward(self, given: Tensor) -> DiagonalNormal:
        """given: values, 0 where missing, and beside them which are seen; (rows, 2D)."""
        x, seen = given.chunk(2, -1)
        precision = torch.eye(self.W.shape[1]) + torch.einsum("nj,jd,je->nde", seen, self.W, self.W) / SPREAD**2
        pull = ((x - self.b) * seen) @ self.W / SPREAD**2
        mean = torch.linalg.solve(precision, pull.unsqueeze(-1)).squeeze(-1)
        return DiagonalNormal(mean, -0.5 * torch.log(torch.diagonal(precision, dim1=-2, dim2=-1)))


class Linear(nn.Module):
    """z → Wz + b, one head."""

    def __init__(self, truth: Factors) -> None:
        super().__init__()
        self.W, self.b = torch.from_numpy(truth.W), torch.from_numpy(truth.b)

    def forward(self, z: Tensor) -> Tensor:
        """(rows, 1, D)."""
        return (z @ self.W.T + self.b).unsqueeze(1)


def case(d: int, D: int = 9, rows: int = 40) -> tuple[Factors, VAE, Doubles]:
    """A random model, and rows from it: the first complete, the last of nothing, holes of all sizes between."""
    g = np.random.default_rng(d)
    truth = Factors(g.normal(size=(D, d)), g.normal(size=D))
    parts = cast(Encoder, Exact(truth)), cast(Decoder, Linear(truth)), cast(Likelihood, Gaussian())
    x = g.normal(size=(rows, d)) @ truth.W.T + truth.b + SPREAD * g.normal(size=(rows, D))
    x[g.random(x.shape) < np.linspace(0, 1, rows)[:, None]] = np.nan
    x[-1] = np.nan
    return truth, VAE(*parts, (D,), torch.zeros(D, dtype=torch.float64)), x


@torch.no_grad()
def test_with_the_exact_posterior_each_weight_is_the_evidence_of_what_is_seen() -> None:
    """With one latent q(z|x_observed) = p(z|x_observed), so log p(x_observed, z)/q(z) is log p(x_observed) at any z."""
    truth, vae, x = case(1)
    epsilon = torch.from_numpy(np.random.default_rng(0).normal(size=(7, 1)))
    _, log_weight, _ = graphs.ElboGraph(vae)(torch.from_numpy(x), epsilon)
    exact = np.array([truth.evidence(row) for row in x])
    np.testing.assert_allclose(log_weight, np.broadcast_to(exact[:, None], (len(x), 7)), rtol=1e-9, atol=1e-9)
    assert not log_weight[-1].any()  # log p(nothing) = 0


@torch.no_grad()
@pytest.mark.parametrize("d", [2, 4])
def test_the_bound_is_the_evidence_of_what_is_seen_less_the_gap(d: int) -> None:
    """ELBO + ½(Σ log Λ_jj − log|Λ|) = log p(x_observed), Λ the precision of the posterior given what is seen."""
    truth, vae, x = case(d)
    bank = noise.bank(0, 4096, d)
    log_likelihood, _, kl = graphs.ElboGraph(vae)(torch.from_numpy(x), torch.from_numpy(bank.noise.astype(np.float64)))
    elbo = log_likelihood.numpy() @ bank.weights - kl.numpy()
    for row, found in zip(x, elbo, strict=True):
        W = truth.W[~np.isnan(row)]
        precision = np.eye(d) + W.T @ W / SPREAD**2
        gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
        assert found + gap == pytest.approx(truth.evidence(row), abs=1e-2)
        assert gap > -1e-12


@torch.no_grad()
def test_what_stands_in_for_a_missing_value_never_reaches_a_number() -> None:
    """Another stand-in, and even one at which the density overflows, changes no bit of any output of any graph."""
    _, vae, x = case(3)
    epsilon, z = torch.ones((5, 3), dtype=torch.float64), torch.ones((len(x), 5, 3), dtype=torch.float64)
    given = torch.from_numpy(x)

    def numbers() -> list[bytes]:
        outputs = [*graphs.ElboGraph(vae)(given, epsilon), *graphs.JointGraph(vae)(given, z)]
        outputs += [*graphs.TermsGraph(vae)(given, epsilon), *graphs.EncoderGraph(vae)(given)]
        assert all(torch.isfinite(output).all() for output in outputs)
        return [output.numpy().tobytes() for output in outputs]

    first = numbers()
    for stand_in in (-3.0, 1e300):
        assert vae.stand_in is not None
        vae.stand_in.fill_(stand_in)
        assert numbers() == first
    terms = graphs.TermsGraph(vae)(given, epsilon)[0].numpy()
    assert not terms[np.broadcast_to(np.isnan(x)[:, None], terms.shape)].any()

"""Missing values against exact truth: the bound is one on log p(x_observed), and what is imputed is p(x_missing|…)."""

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

from service import artifact, noise, operations
from service.artifact import Arrays, Manifest
from service.batcher import Answer
from service.models import Model
from tests.kit import COMMITTED
from training import graphs
from training.likelihoods import Likelihood
from training.networks import Decoder, Encoder
from training.posteriors import DiagonalNormal
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

    def given(self, x: Doubles) -> tuple[Doubles, Doubles]:
        """E and the standard deviation of each missing value of one row given those that are there; in order."""
        seen = ~np.isnan(x)
        covariance = self.W @ self.W.T + SPREAD**2 * np.eye(len(x))
        gain = covariance[~seen][:, seen] @ np.linalg.inv(covariance[seen][:, seen])
        spread = covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]
        return self.b[~seen] + gain @ (x[seen] - self.b[seen]), np.sqrt(np.diag(spread))


class Gaussian(nn.Module):
    """The likelihood of such a model: N(heads, s²)."""

    def parameter_shape(self, _: str, event_shape: tuple[int, ...]) -> tuple[int, ...]:
        """One number for each of x."""
        return event_shape

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

    def __init__(self, truth: Factors, stretch: float = 1.0) -> None:
        """stretch: of q's scales, for one that is wrong."""
        super().__init__()
        self.W, self.b = nn.Parameter(torch.from_numpy(truth.W)), torch.from_numpy(truth.b)
        self.more = math.log(stretch)

    def forward(self, given: Tensor) -> DiagonalNormal:
        """given: values, 0 where missing, and beside them which are seen; (rows, 2D)."""
        x, seen = given.chunk(2, -1)
        precision = torch.eye(self.W.shape[1]) + torch.einsum("nj,jd,je->nde", seen, self.W, self.W) / SPREAD**2
        pull = ((x - self.b) * seen) @ self.W / SPREAD**2
        mean = torch.linalg.solve(precision, pull.unsqueeze(-1)).squeeze(-1)
        return DiagonalNormal(mean, self.more - 0.5 * torch.log(torch.diagonal(precision, dim1=-2, dim2=-1)))


class Linear(nn.Module):
    """z → Wz + b, one head."""

    def __init__(self, truth: Factors) -> None:
        super().__init__()
        self.W, self.b = torch.from_numpy(truth.W), torch.from_numpy(truth.b)

    def forward(self, z: Tensor) -> Tensor:
        """(rows, 1, D)."""
        return (z @ self.W.T + self.b).unsqueeze(1)


def case(d: int, D: int = 9, rows: int = 40, stretch: float = 1.0) -> tuple[Factors, VAE, Doubles]:
    """A random model, and rows from it: the first complete, the last of nothing, holes of all sizes between."""
    g = np.random.default_rng(d)
    truth = Factors(g.normal(size=(D, d)), g.normal(size=D))
    parts = cast(Encoder, Exact(truth, stretch)), cast(Decoder, Linear(truth)), cast(Likelihood, Gaussian())
    x = g.normal(size=(rows, d)) @ truth.W.T + truth.b + SPREAD * g.normal(size=(rows, D))
    x[g.random(x.shape) < np.linspace(0, 1, rows)[:, None]] = np.nan
    x[-1] = np.nan
    vae = VAE(*parts, (D,), torch.zeros(D, dtype=torch.float64))
    return truth, vae.requires_grad_(False), x


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
def test_what_stands_in_for_a_missing_value_never_reaches_a_density() -> None:
    """Another stand-in, and even one at which the density overflows, changes no bit of log p(x_observed, z)."""
    _, vae, x = case(3)
    z = torch.ones((len(x), 5, 3), dtype=torch.float64)

    def numbers() -> bytes:
        outputs = [*graphs.JointGraph(vae)(torch.from_numpy(x), z), vae.feature_log_likelihood(torch.from_numpy(x), z)]
        assert all(torch.isfinite(output).all() for output in outputs)
        return b"".join(output.numpy().tobytes() for output in outputs)

    first = numbers()
    terms = vae.feature_log_likelihood(torch.from_numpy(x), z).numpy()
    assert not terms[np.broadcast_to(np.isnan(x)[:, None], terms.shape)].any()
    for stand_in in (-3.0, 1e300):
        assert vae.stand_in is not None
        vae.stand_in.fill_(stand_in)
        assert numbers() == first


@torch.no_grad()
def test_the_encoder_sees_nothing_where_a_value_is_missing() -> None:
    """Exactly 0, whatever stands in, and beside it which values it sees."""
    _, vae, x = case(2)
    given: list[Tensor] = []
    vae.encoder.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    assert vae.stand_in is not None
    vae.stand_in.fill_(0.7)
    vae.posterior(torch.from_numpy(x))
    values, seen = given[0].chunk(2, -1)
    gone = np.isnan(x)
    assert np.array_equal(seen.numpy(), ~gone)
    assert not values.numpy()[gone].any()
    assert np.isin(values.numpy()[~gone], (x - 0.7)[~gone]).all()


# ---------------------------------------------------------------- what is missing, given what is there


@dataclass(frozen=True)
class Stage:
    """Such a model where a served one stands: its graphs are computed by torch."""

    manifest: Manifest
    vae: VAE

    async def ask(
        self, graph: str, rows: Arrays, *, bank: noise.Bank | None = None, own: bool = False, deadline: float
    ) -> Answer:
        """What a graph answers; of those that impute asks none takes a bank."""
        assert deadline > 0
        assert bank is None
        assert not own
        if graph == "decoder":
            loc = self.vae.parameters_at(torch.from_numpy(rows["z"]).double())["loc"].numpy()
            return Answer({"mean": loc, "loc": loc, "scale": np.full_like(loc, SPREAD)}, 0.0, 0.0)
        module = {"encoder": graphs.EncoderGraph, "joint": graphs.JointGraph}[graph](self.vae)
        outputs = module(*(torch.from_numpy(np.asarray(value)).double() for value in rows.values()))
        named = ("mean", "log_scale") if graph == "encoder" else ("log_likelihood", "log_prior")
        return Answer(dict(zip(named, (output.numpy() for output in outputs), strict=True)), 0.0, 0.0)


async def imputed(vae: VAE, x: Doubles, d: int, **asked: int) -> operations.Imputation:
    """The rows, made whole by the operation."""
    manifest = artifact.read(COMMITTED / "breast-cancer" / "1").manifest
    changes = {"event_shape": [x.shape[1]], "latent_size": d, "missing": True}
    stage = cast(Model, Stage(manifest.model_copy(update=changes), vae))
    return await operations.impute(stage, x, errand=operations.Errand(), **asked)


@pytest.mark.anyio
@pytest.mark.parametrize("d", [1, 3])
async def test_what_is_imputed_is_the_expectation_given_what_is_there(d: int) -> None:
    """Within five of its standard errors for every value, by the effective draws; what was sent is as it was sent."""
    truth, vae, x = case(d, rows=120)
    found = await imputed(vae, x, d, draws=2, seed=3)
    seen = ~np.isnan(x)
    assert np.array_equal(found.outputs[seen], x[seen])
    assert np.isfinite(found.outputs).all()
    off = []
    for row, output, effective in zip(x, found.outputs, found.effective_draws, strict=True):
        mean, spread = truth.given(row)
        off += ((output[np.isnan(row)] - mean) / spread * np.sqrt(effective)).tolist()
    assert np.abs(off).max() < 5
    assert np.std(off) < 1  # the draws are better than independent ones


@pytest.mark.anyio
async def test_imputations_are_draws_from_the_conditional() -> None:
    """Standardised by the exact mean and spread of p(x_j|x_observed) they are standard normal (Kolmogorov–Smirnov)."""
    truth, vae, x = case(2, rows=400)
    found = await imputed(vae, x, 2, draws=3, seed=1)
    seen = np.broadcast_to(~np.isnan(x)[:, None], found.imputations.shape)
    assert np.array_equal(found.imputations[seen], np.broadcast_to(x[:, None], seen.shape)[seen])
    places = []
    for row, draws in zip(x, found.imputations, strict=True):
        mean, spread = truth.given(row)
        places += ((draws[:, np.isnan(row)] - mean) / spread)[:, :1].ravel().tolist()  # of each row one feature
    assert len(places) > 800
    assert stats.kstest(places, "norm").pvalue > 1e-3


@pytest.mark.anyio
async def test_a_posterior_too_narrow_is_made_up_for() -> None:
    """Of a q of a quarter of its scale few draws would be worth anything; of the fitted proposal's pool most are."""
    good, bad = [(await imputed(case(3, stretch=stretch)[1], case(3)[2], 3)) for stretch in (1.0, 0.25)]
    for found in (good, bad):
        assert np.all(found.reliable)
        assert np.min(found.effective_draws) > 0.5 * found.pool

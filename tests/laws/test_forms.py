"""Laws of posteriors and priors of every form: densities, what is drawn by noise, and exact truths, in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from service import evidence, noise, scoring
from service.evidence.proposal import Doubles, Singles
from tests.laws.test_bound import model
from tests.linear import LATENTS, linear
from training import config, data, graphs, objective, vae
from training.couplings import Layer
from training.likelihoods import total
from training.vae import VAE

EDGE, NODES = 12.0, 241  # of a grid over two latents
POSTERIORS = {"diagonal": {"kind": "diagonal_normal"}, "full": {"kind": "full_normal"}, "flow": {"kind": "flow"}}
PRIORS = {
    "normal": {"kind": "standard_normal"},
    "mixture": {"kind": "mixture", "components": 5},
    "vamp": {"kind": "vamp", "components": 7},
    "flow": {"kind": "flow", "layers": 3},
}


def built(latent_size: int = 2, **changes: object) -> tuple[VAE, Tensor]:
    """A VAE of tiny's digits with weights far from where they begin, in float64, and three rows."""
    plain = config.read(Path("configs/tiny.yaml")).plain()
    run = config.check({**plain, "latent_size": latent_size, **changes}, "a test")
    dataset = data.of(run)
    made = vae.build(run, dataset)
    with torch.no_grad():
        for parameter in made.prior.parameters() if made.prior.family == "mixture" else ():
            parameter.add_(0.5 * torch.randn(parameter.shape))
        for module in made.modules():
            if isinstance(module, Layer):
                module.outer.weight.add_(0.05 * torch.randn(module.outer.weight.shape))
    return made.double().eval().requires_grad_(False), torch.from_numpy(dataset.splits["test"][:3])


def grid() -> tuple[Tensor, float]:
    """Midpoints of squares over two latents, (NODES², 2), and what a square measures."""
    line = (torch.arange(NODES, dtype=torch.float64) + 0.5) * (2 * EDGE / NODES) - EDGE
    return torch.cartesian_prod(line, line), (2 * EDGE / NODES) ** 2


def agree(drawn: Doubles, density: Doubles) -> float:
    """The p-value of draws (n, 2) being from a density on the grid: a χ² test over the squares of a coarse grid."""
    step = 2 * EDGE / NODES
    edges = np.quantile(drawn, [0.05, 0.2, 0.35, 0.5, 0.65, 0.8, 0.95], axis=0)
    edges = np.rint((edges + EDGE) / step) * step - EDGE  # between squares
    nodes = grid()[0].numpy()
    cells = [np.stack([np.searchsorted(edges[:, i], z[:, i]) for i in (0, 1)]) for z in (drawn, nodes)]
    found, wanted = (np.zeros((8, 8)) for _ in cells)
    np.add.at(found, tuple(cells[0]), 1)
    np.add.at(wanted, tuple(cells[1]), density / density.sum() * len(drawn))
    kept = wanted.ravel() > 5
    seen, hoped = (np.append(each.ravel()[kept], each.ravel()[~kept].sum()) for each in (found, wanted))
    terms = (seen - hoped) ** 2 / np.maximum(hoped, 1)
    return float(stats.chi2.sf(terms.sum(), len(terms) - 1))


@pytest.mark.parametrize("form", POSTERIORS)
def test_a_posteriors_draws_are_from_its_density(form: str) -> None:
    """The density integrates to 1, is what it is said to be at a draw, and is what the draws follow."""
    made, x = built(posterior=POSTERIORS[form])
    q = made.posterior(x)
    nodes, square = grid()
    density = torch.exp(q.log_density(nodes.expand(len(x), *nodes.shape)))
    assert torch.allclose(density.sum(-1) * square, torch.ones(len(x), dtype=torch.float64), atol=2e-3)
    z, log_q = q.drawn(torch.randn((len(x), 20_000, 2), dtype=torch.float64))
    assert torch.allclose(log_q, q.log_density(z), atol=1e-9)
    p = [agree(one.numpy(), at.numpy()) for one, at in zip(z, density, strict=True)]
    assert min(p) > 1e-4
    assert torch.equal(q.draws(torch.ones(4, 2).double()), q.draws(torch.ones(len(x), 4, 2).double()))


@pytest.mark.parametrize("form", PRIORS)
def test_a_priors_draws_are_from_its_density(form: str) -> None:
    """The same, by the noise that prior.onnx takes; and its mean and scale are the draws'."""
    made, _ = built(prior=PRIORS[form])
    nodes, square = grid()
    density = torch.exp(made.log_prior(nodes))
    assert float(density.sum() * square) == pytest.approx(1, abs=2e-3)
    z = made.prior.draws(torch.randn(20_000, 2).double(), torch.rand(20_000))
    assert agree(z.numpy(), density.numpy()) > 1e-4
    centre, scale = made.prior.moments() or (torch.zeros(2), torch.ones(2))
    assert ((z.mean(0) - centre).abs() < 5 * scale / 20_000**0.5).all()
    assert torch.allclose(z.std(0), scale.double(), rtol=0.05)


def test_a_mixture_of_one_kind_is_the_mixture_that_scipy_knows() -> None:
    """log Σ weight N(z), to the last digits, far out too."""
    made, _ = built(prior=PRIORS["mixture"])
    prior = made.prior
    weight, mean, scale = (getattr(prior, name).numpy() for name in ("log_weight", "mean", "log_scale"))
    z = np.random.default_rng(0).normal(0, 6, (50, 2))
    each = stats.norm.logpdf(z[:, None], mean, np.exp(scale)).sum(-1) + weight
    found = prior.log_density(torch.from_numpy(z)).numpy()
    np.testing.assert_allclose(found, np.logaddexp.reduce(each, -1), rtol=1e-12)


def test_a_full_covariance_leaves_no_gap() -> None:
    """Where the posterior is a normal, q with its covariances is exact: every weight is p(x), and ELBO = log p(x)."""
    made, x = linear(1.0)
    made.requires_grad_(False)
    bank = torch.from_numpy(noise.bank(0, 64, LATENTS).noise.astype(np.float64))
    _, log_weight, kl = graphs.modules(made)["elbo"](x, bank)
    parameters = made.parameters_at(torch.cat((torch.zeros(1, LATENTS), torch.eye(LATENTS))).double())
    loc, scale = parameters["loc"], parameters["scale"].expand(x.shape[1])
    slope = loc[1:] - loc[0]
    exact = stats.multivariate_normal(loc[0].numpy(), (slope.T @ slope + torch.diag(scale**2)).numpy()).logpdf(
        x.numpy()
    )
    np.testing.assert_allclose(log_weight.numpy(), np.repeat(exact[:, None], 64, 1), rtol=1e-10)
    q = made.posterior(x)
    z, log_q = q.drawn(bank)
    shares = q.kl()
    assert shares is not None
    assert (shares > 0).all()
    assert torch.allclose(total(shares), kl)
    root = q.root  # type: ignore[attr-defined]  # a full normal has one
    covariance = root @ root.transpose(1, 2)
    mean = q.moments()[0]
    trace = torch.diagonal(covariance, dim1=1, dim2=2).sum(-1)
    closed = 0.5 * (trace + (mean * mean).sum(-1) - LATENTS - torch.logdet(covariance))
    assert torch.allclose(kl, closed)
    assert torch.allclose(log_q, q.log_density(z))


@pytest.mark.parametrize(("d", "draws"), [(2, 16), (8, 16), (2, 18), (2, 8), (8, 64)])
def test_a_sampled_kl_is_unbiased_and_its_error_covers(d: int, draws: int) -> None:
    """With log q − log p at each draw in place of the exact KL: the same ELBO on average, and an honest error."""
    truth = model(d, off=0.5)
    found = []
    for seed in range(300):
        bank = noise.bank(seed, draws, d)
        epsilon = bank.noise.astype(np.float64)
        z = truth.m + np.sqrt(truth.v) * epsilon
        log_ratio = (stats.norm.logpdf(epsilon) - 0.5 * np.log(truth.v) - stats.norm.logpdf(z)).sum(-1)
        found.append(scoring.bound(truth.at(epsilon)[None], log_ratio[None], bank))
    exact = truth.log_likelihood - truth.kl
    elbo = np.array([one.elbo[0] for one in found])
    error = np.array([one.error[0] for one in found])
    assert all(one.elbo[0] == one.log_likelihood[0] - one.kl[0] for one in found)
    assert stats.ttest_1samp(elbo, exact).pvalue > 1e-4
    assert stats.ttest_1samp([one.kl[0] for one in found], truth.kl).pvalue > 1e-4
    held = np.abs(elbo - exact) <= stats.t.ppf(0.975, found[0].error_df) * error
    promised = 0.95 if draws >= noise.FEWEST_FRAMED else 0.92
    assert stats.binomtest(int(held.sum()), len(held), promised, alternative="less").pvalue > 1e-4


FORMS = [("diagonal", "mixture"), ("diagonal", "vamp"), ("full", "mixture"), ("flow", "normal"), ("flow", "flow")]


@pytest.mark.parametrize(("posterior", "prior"), FORMS)
def test_the_evidence_is_that_of_quadrature(posterior: str, prior: str) -> None:
    """Two latents, a decoder that isn't linear: within a twentieth of a nat of a grid, whatever the forms."""
    made, x = built(posterior=POSTERIORS[posterior], prior=PRIORS[prior])
    joint = graphs.modules(made)["joint"]
    nodes, square = grid()
    each = sum(joint(x, nodes.expand(len(x), *nodes.shape)))
    exact = torch.logsumexp(each, -1).numpy() + np.log(square)
    mean, log_scale = made.posterior(x).moments()
    plan = evidence.plan(4096, 16, 0, 2)
    assert plan is not None

    def asked(z: Singles) -> Doubles:
        return np.asarray(sum(joint(x, torch.from_numpy(z).double())).numpy(), np.float64)

    near = made.prior.moments()
    moments = (0.0, 1.0) if near is None else (near[0].numpy(), near[1].numpy())
    found = evidence.evaluate(asked, mean.numpy(), np.exp(log_scale.numpy()), plan, near=moments)
    assert found.reliable.all()
    assert np.abs(found.log_evidence - exact).max() < 0.05
    assert (found.lower_bound < exact).all()
    bound = objective.terms(made, x, torch.randn(2000, 2).double()).bound.numpy()
    assert (bound < exact + 0.05).all()

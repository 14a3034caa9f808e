"""Priors of own models: what is said of them is what is served, held to exact truths; or one line why it can't be."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import training
from service import artifact
from service.artifact import Array
from tests import kit
from training import likelihoods
from training.config import Unusable
from training.own import assembly, given
from training.own import prior as priors
from training.own.parts import Pair
from training.own.rows import dataset

torch.set_num_threads(1)
SIGMA = 0.5
GENERATOR = np.random.default_rng(0)
W = GENERATOR.normal(size=(4, 2)).astype(np.float32)
MEAN = np.array([[-3.0, 0.0], [2.0, 2.0], [1.0, -2.0]])
SCALE = np.array([[0.5, 1.0], [0.8, 0.3], [1.5, 0.7]])
WEIGHT = np.array([0.5, 0.2, 0.3])


class Line(nn.Module):
    """x → the mean of a normal around z, and a log variance that is somewhat wide."""

    def __init__(self) -> None:
        super().__init__()
        self.back = nn.Parameter(torch.linalg.pinv(torch.from_numpy(W)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 2) each."""
        mean = x @ self.back.T
        return mean, torch.full_like(mean, -2.0)


class Plane(nn.Module):
    """z → W z."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.from_numpy(W))

    def forward(self, z: Tensor) -> Tensor:
        """(n, 4)."""
        return z @ self.w.T


def drawn(rows: int) -> Array:
    """Rows of the model: a mixture through a plane, with noise."""
    chosen = GENERATOR.choice(len(WEIGHT), rows, p=WEIGHT)
    z = MEAN[chosen] + SCALE[chosen] * GENERATOR.normal(size=(rows, 2))
    return np.asarray(z @ W.T + SIGMA * GENERATOR.normal(size=(rows, 4)))


def exact(x: Array) -> Array:
    """log p(x): a mixture of normals again."""
    each = [
        stats.multivariate_normal(W @ mean, W * scale**2 @ W.T + SIGMA**2 * np.eye(4)).logpdf(x)
        for mean, scale in zip(MEAN, SCALE, strict=True)
    ]
    return np.asarray(np.logaddexp.reduce(np.stack(each, 1) + np.log(WEIGHT), 1))


ROWS, FRESH = drawn(400), drawn(20)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plane with a mixture for its prior, exported."""
    return training.export(
        encoder=Line(),
        decoder=Plane(),
        likelihood="normal",
        decoder_gives="mean",
        scale=SIGMA,
        prior={"kind": "mixture", "mean": MEAN, "scale": torch.from_numpy(SCALE).requires_grad_(), "weight": WEIGHT},
        sample=ROWS,
        to=tmp_path_factory.mktemp("models"),
        name="plane",
    )


def test_the_manifest_says_which_prior_it_is(folder: Path) -> None:
    """A mixture with its mean and scale, and a KL that is sampled."""
    manifest = artifact.read(folder).manifest
    assert (manifest.prior.family, manifest.prior.posterior, manifest.kl) == ("mixture", "diagonal_normal", "sampled")
    assert manifest.training.config["prior"] == {"kind": "mixture", "components": 3}
    centre = WEIGHT @ MEAN
    np.testing.assert_allclose(manifest.prior.mean or (), centre, rtol=1e-6)
    np.testing.assert_allclose(
        manifest.prior.scale or (), np.sqrt(WEIGHT @ (SCALE**2 + (MEAN - centre) ** 2)), rtol=1e-6
    )


@pytest.mark.anyio
async def test_an_own_prior_is_in_every_operation(folder: Path) -> None:
    """The evidence is the exact log p(x) of the mixture, the bound lies below it, and samples are the prior's."""
    rows = FRESH.tolist()
    async with kit.open_house(kit.configured(folder.parents[1])) as house:
        score = await house.answer("plane/score", {"inputs": rows, "explain": True})
        evidence = await house.answer("plane/evidence", {"inputs": rows})
        sample = await house.answer("plane/sample", {"count": 3000, "seed": 1})
        cold = await house.answer("plane/sample", {"count": 200, "seed": 1, "temperature": 0})
    truth = exact(FRESH)
    assert all(evidence["reliable"])
    far = 6 * np.array(evidence["log_evidence_error"]) + 1e-4
    assert (np.abs(np.array(evidence["log_evidence"]) - truth) < far).all()
    assert (np.array(score["elbo"]) < truth + 6 * np.array(score["elbo_error"])).all()
    assert "latent_kl" not in score
    assert all(0 < p <= 1 for p in score["p_value"])
    z = np.array(sample["latents"])
    each = stats.norm.cdf((z[:, None] - MEAN) / SCALE)
    for latent in (0, 1):
        ranks = each[:, :, latent] @ WEIGHT
        assert stats.kstest(ranks, "uniform").pvalue > 1e-4
    assert {tuple(one) for one in np.unique(np.array(cold["latents"]), axis=0)} == {tuple(one) for one in MEAN}


def test_a_model_with_an_own_prior_is_held_to_its_own_rows(folder: Path, tmp_path: Path) -> None:
    """`check`: the sandwich holds, and latents that are drawn from the prior rank uniformly."""
    found = kit.program("check", str(folder), "--rows", "200", "--draws", "512", cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "the weighed posterior is right" in found.stdout


@pytest.fixture(scope="module")
def pair() -> Pair:
    """The plane as it is before it has a prior."""
    rows = dataset(ROWS)
    family = likelihoods.build(given.family("normal"), rows)
    units = torch.full((4,), 1.0).double(), torch.full((4,), 2.0).double()
    return assembly.assembled(Line(), Plane(), family, rows, units, "log_variance", "mean")


def test_pseudo_inputs_are_what_the_encoder_is_given(pair: Pair) -> None:
    """After preprocessing: a VampPrior's components are the encoder's own outputs for them, all of one weight."""
    rows = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    mean, log_variance = Line()(rows)
    vamp = priors.made({"kind": "vamp", "rows": rows.numpy()}, pair)
    same = priors.made({"kind": "mixture", "mean": mean, "log_variance": log_variance, "weight": [0.2] * 5}, pair)
    z = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    scale = torch.exp(log_variance / 2).detach().numpy()
    each = np.asarray(stats.norm.logpdf(z[:, None].numpy(), mean.detach().numpy(), scale)).sum(-1)
    wanted = np.logaddexp.reduce(each, 1) - np.log(5)
    for prior in (vamp, same):
        np.testing.assert_allclose(prior.log_density(z).numpy(), wanted, rtol=1e-5, atol=1e-5)
    assert priors.words(vamp, {"kind": "vamp"}) == {"kind": "vamp", "components": 5}


@pytest.mark.parametrize("spread", [{"log_scale": np.log(2)}, {"variance": 4.0}, {"scale": [[2.0], [2.0], [2.0]]}])
def test_a_width_may_be_said_in_any_word(spread: dict[str, Any], pair: Pair) -> None:
    """And in any shape that fits the means; components without weights are alike."""
    prior = priors.made({"kind": "mixture", "mean": MEAN, **spread}, pair)
    plain = priors.made({"kind": "mixture", "mean": MEAN, "scale": np.full((3, 2), 2.0), "weight": None}, pair)
    z = torch.randn(30, 2, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(prior.log_density(z), plain.log_density(z), rtol=1e-6, atol=1e-6)


MIXTURE = {"kind": "mixture", "mean": MEAN, "scale": SCALE}
REFUSED: dict[str, tuple[Any, str]] = {
    "no such kind": (
        "flow",
        "prior 'flow': the prior of an own model is a standard normal or a mixture; say 'standard_",
    ),
    "no arrays": ("vamp", "prior: has no rows; say .*whose rows are pseudo-inputs as the encoder is given them"),
    "a module": (nn.Linear(1, 1), "prior: Linear; say"),
    "no scale": ({"kind": "mixture", "mean": MEAN}, "one of scale, log_scale, variance, log_variance is needed"),
    "two scales": ({**MIXTURE, "variance": 1.0}, r"and there is \['scale', 'variance'\]"),
    "more": ({**MIXTURE, "weights": WEIGHT}, "prior: there is no weights"),
    "more of a normal": ({"kind": "standard_normal", "mean": 0}, "prior: there is no mean"),
    "other latents": ({**MIXTURE, "mean": np.zeros((3, 5))}, r"mean is \[3, 5\], and .* with 2 latents is needed"),
    "other scales": ({**MIXTURE, "scale": np.ones((3, 5))}, r"scale is \[3, 5\] beside a mean of \[3, 2\]"),
    "scale of 0": ({**MIXTURE, "scale": 0.0 * SCALE}, "mean or scale is no finite number above 0"),
    "narrow": ({**MIXTURE, "scale": 1e-7}, "lies 3e.07 of its own scales from 0, and at most 100000 can be told"),
    "logits": ({**MIXTURE, "weight": [1.0, 2.0, -1.0]}, "these are -1 or more and add up to 2; give a softmax"),
    "two weights": ({**MIXTURE, "weight": [0.5, 0.5]}, r"weight is \[2\], and one for each of 3 components"),
    "text": ({**MIXTURE, "mean": "zeros"}, "mean isn't an array of numbers"),
    "ragged": ({**MIXTURE, "mean": [[1.0], [1.0, 2.0]]}, "mean isn't an array of numbers"),
    "holes": ({**MIXTURE, "mean": np.nan * MEAN}, "mean holds nothing, or what is no finite number"),
    "other rows": ({"kind": "vamp", "rows": np.zeros((9, 3))}, r"rows are \[9, 3\], and pseudo-inputs \['n', 4\]"),
    "many": ({**MIXTURE, "mean": np.zeros((5000, 2)), "scale": 1.0}, "5000 components, and at most 4096 are held"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_prior_that_says_nothing_is_one_line(case: str, pair: Pair) -> None:
    """What is wrong with it, and what would be right."""
    said, wanted = REFUSED[case]
    with pytest.raises(Unusable) as refused:
        priors.made(said, pair)
    assert re.search(wanted, str(refused.value)), str(refused.value)
    assert "\n" not in str(refused.value)

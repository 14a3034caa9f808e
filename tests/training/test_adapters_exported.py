"""The table of docs/bring-your-own.md, row by row: its code is run, and scores are held to the libraries' own."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from pyod.models import vae as detectors
from pythae import models as library
from torch import Tensor, nn

import training
from service import artifact
from service.artifact import Array
from tests import kit
from training import adapters, exporting, graphs, independence
from training.config import Unusable
from training.own.assembly import Own

torch.set_num_threads(1)
TABLE = Path("docs/bring-your-own.md").read_text().split("## Other libraries")[1]
EVENT, LATENTS, DRAWS = (1, 4, 4), 3, 6
ELBO = "log_likelihood", "log_weight", "kl"


def code(row: str) -> str:
    """What the table has a user of that library write."""
    (line,) = [line for line in TABLE.splitlines() if line.startswith(f"| {row} |")]
    return "\n".join(re.findall(r"`([^`]+)`", line.split("|")[2]))


def grey(rows: int, *event: int) -> Array:
    """Numbers from 0 to 1."""
    return np.random.default_rng(0).random((rows, *event), np.float32)


def black_and_white(rows: int) -> Array:
    """0 and 1."""
    return (grey(rows, *EVENT) < 0.3).astype(np.uint8)


def of_pythae(kind: str, loss: str, **options: Any) -> Any:
    """One of pythae's models with its own networks and fresh weights."""
    torch.manual_seed(0)
    wanted = getattr(library, f"{kind}Config")(input_dim=EVENT, latent_dim=LATENTS, reconstruction_loss=loss, **options)
    return getattr(library, kind)(wanted).eval()


class Mine(nn.Module):
    """A module of a user's, as in the table."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = Two(), nn.Linear(2, 4)


class Two(nn.Module):
    """Mean and log variance."""

    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(n, 2) each."""
        mean, log_variance = self.both(x).chunk(2, -1)
        return mean, log_variance


def autoencoder() -> AutoencoderKL:
    """A random AutoencoderKL with attention, for pictures of 1 × 4 × 4; its latents are 1 × 2 × 2."""
    torch.manual_seed(0)
    return AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(2, 4),
        latent_channels=1,
        layers_per_block=1,
        norm_num_groups=1,
        sample_size=4,
        scaling_factor=0.5,
    ).eval()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What users come with, by the table's rows."""
    checkpoint = tmp_path_factory.mktemp("checkpoint") / "mine.ckpt"
    torch.manual_seed(0)
    torch.save({"state_dict": Mine().state_dict()}, checkpoint)
    rows = np.random.default_rng(0).normal([0, 100, -5, 1e4], [1, 20, 0.1, 1e3], (200, 4))
    small = {"encoder_neuron_list": [8], "decoder_neuron_list": [8], "latent_dim": 2, "verbose": 0}
    return {
        "pythae `VAE`": of_pythae("VAE", "bce"),
        "pythae `BetaVAE`": of_pythae("BetaVAE", "mse", beta=4.0),
        "pythae `IWAE`": of_pythae("IWAE", "bce", number_samples=DRAWS),
        "pythae `VAMP`": of_pythae("VAMP", "bce", number_components=7),
        "diffusers `AutoencoderKL`": autoencoder(),
        "PyOD `VAE`": detectors.VAE(epoch_num=5, **small).fit(rows),
        "Lightning, yours": checkpoint,
    }


SAMPLES = {
    "pythae `VAE`": black_and_white(200),
    "pythae `BetaVAE`": grey(200, *EVENT),
    "pythae `IWAE`": black_and_white(200),
    "pythae `VAMP`": black_and_white(200),
    "diffusers `AutoencoderKL`": 2 * grey(200, *EVENT) - 1,
    "PyOD `VAE`": np.random.default_rng(1).normal([0, 100, -5, 1e4], [1, 20, 0.1, 1e3], (200, 4)),
    "Lightning, yours": grey(200, 4),
}


@pytest.fixture(scope="module")
def exported(models: dict[str, Any]) -> dict[str, Own]:
    """The table's code, run for each row, up to what is then written: traced, measured, and held to its promises."""
    return {row: run(row, model) for row, model in models.items()}


def run(row: str, model: Any, to: Path | None = None) -> Own:
    """A row's code as it stands in the table; its artifact is written where there is a place for it."""
    found: list[Own] = []
    write = exporting.export

    def written(own: Own, *_: Any, **__: Any) -> Path:
        found.append(own)
        return write(own, to, say=lambda _: None) if to else Path()

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(exporting, "export", written)
        export = functools.partial(training.export, calibrate=False)
        names = {"training": SimpleNamespace(export=export, adapters=adapters), "rows": SAMPLES[row], "Mine": Mine}
        names |= dict.fromkeys(("model", "vae", "detector"), model)
        exec(code(row).replace("mine.ckpt", str(model)), names)
    return found[0]


@torch.no_grad()
def terms(own: Own, x: Array, draws: int = DRAWS) -> tuple[dict[str, Array], Tensor]:
    """log_likelihood, log_weight (rows, draws), kl (rows,) where it is exact, as the elbo graph has them; the noise."""
    noise = torch.from_numpy(np.random.default_rng(2).standard_normal((draws, own.run.latent_size)))
    outputs = graphs.modules(own.vae)["elbo"](torch.from_numpy(x), noise)
    return {name: value.numpy() for name, value in zip(ELBO, outputs, strict=False)}, noise.float()


def asked(
    row: str, models: dict[str, Any], exported: dict[str, Own]
) -> tuple[Any, dict[str, Array], Tensor, Tensor, Any]:
    """A model of pythae; what its artifact says of seven rows, by which noise; the rows, and the model's q of them."""
    model, x = models[row], SAMPLES[row][:7]
    rows = torch.from_numpy(x).float()
    return model, *terms(exported[row], x), rows, model.encoder(rows)


def latents(mean: Tensor, log_variance: Tensor, noise: Tensor) -> Tensor:
    """z, (draws, rows, d)."""
    return mean + torch.exp(0.5 * log_variance) * noise.unsqueeze(1)


@torch.no_grad()
@pytest.mark.parametrize("row", ["pythae `VAE`", "pythae `BetaVAE`"])
def test_the_score_is_pythaes_own_loss_without_its_beta(
    row: str, models: dict[str, Any], exported: dict[str, Own]
) -> None:
    """Bernoulli: minus its two terms. Squared error: half of it over the scale's square, with the constant it lacks."""
    model, found, noise, rows, q = asked(row, models, exported)
    z = latents(q.embedding, q.log_covariance, noise)
    losses = [
        model.loss_function(model.decoder(each).reconstruction, rows, q.embedding, q.log_covariance, each) for each in z
    ]
    loss, squares, kl = (torch.stack(each).double().numpy() for each in zip(*losses, strict=True))  # means over rows
    expected = -squares
    if row == "pythae `BetaVAE`":
        (scale,) = exported[row].run.plain()["scale"]
        expected = -squares / scale**2 - 16 * math.log(scale * math.sqrt(2 * math.pi))
        np.testing.assert_allclose(loss, squares + 4.0 * kl, rtol=1e-5)  # where β is
    np.testing.assert_allclose(found["log_likelihood"].mean(0), expected, rtol=2e-5)
    np.testing.assert_allclose(found["kl"].mean(), kl[0], rtol=1e-4)


@torch.no_grad()
def test_weights_are_those_that_iwae_was_trained_with(models: dict[str, Any], exported: dict[str, Own]) -> None:
    """pythae's loss, Σ ŵ log w, from the artifact's log weights; and the score is the ELBO, below their bound."""
    model, found, noise, rows, q = asked("pythae `IWAE`", models, exported)
    z = latents(q.embedding, q.log_covariance, noise).transpose(0, 1)  # (rows, draws, d)
    mean, log_variance = (value.unsqueeze(1).expand(z.shape) for value in (q.embedding, q.log_covariance))
    decoded = model.decoder(z.flatten(0, 1)).reconstruction.reshape(*z.shape[:2], -1)
    loss, _, _ = model.loss_function(decoded, rows, mean, log_variance, z)
    log_weight = torch.from_numpy(found["log_weight"])
    ours = -(torch.softmax(log_weight, 1) * log_weight).sum(1).mean()
    assert float(ours) == pytest.approx(float(loss), rel=2e-5)
    bound = torch.logsumexp(log_weight, 1) - math.log(DRAWS)
    assert bool((log_weight.mean(1) < bound).all())


@torch.no_grad()
def test_weights_are_those_of_vamps_own_prior(models: dict[str, Any], exported: dict[str, Own]) -> None:
    """The mean of the log weights is minus pythae's loss, and the mean weight what its get_nll gives, draw for draw."""
    model, found, noise, rows, q = asked("pythae `VAMP`", models, exported)
    z = latents(q.embedding, q.log_covariance, noise)
    losses = [
        model.loss_function(model.decoder(each).reconstruction, rows, q.embedding, q.log_covariance, each, epoch=1)[0]
        for each in z
    ]
    np.testing.assert_allclose(-found["log_weight"].mean(0), torch.stack(losses), rtol=2e-5)
    assert "kl" not in found
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(model, "_sample_gauss", lambda mean, scale: (mean + scale * noise, noise))
        theirs = model.get_nll(rows, n_samples=DRAWS, batch_size=DRAWS)
    ours = torch.logsumexp(torch.from_numpy(found["log_weight"]), 1) - math.log(DRAWS)
    assert float(ours.mean()) == pytest.approx(theirs, rel=2e-5)


@torch.no_grad()
def test_a_picture_of_diffusers_is_scored_by_the_scale_that_was_found(
    models: dict[str, Any], exported: dict[str, Own]
) -> None:
    """A normal around diffusers' own decoding, and the KL of its posterior once it is scaled."""
    row = "diffusers `AutoencoderKL`"
    vae, x = models[row], SAMPLES[row][:7]
    found, noise = terms(exported[row], x)
    rows = torch.from_numpy(x)
    q = vae.encode(rows).latent_dist
    factor = vae.config.scaling_factor
    mean, log_variance = q.mean.flatten(1) * factor, q.logvar.flatten(1) + 2 * math.log(factor)
    (scale,) = exported[row].run.plain()["scale"]
    wanted = []
    for z in latents(mean, log_variance, noise):
        decoded = vae.decode(z.reshape(q.mean.shape) / factor).sample
        log_density = -0.5 * ((rows - decoded) / scale) ** 2 - math.log(scale * math.sqrt(2 * math.pi))
        wanted.append(log_density.sum((1, 2, 3)))
    np.testing.assert_allclose(found["log_likelihood"], torch.stack(wanted, 1), rtol=1e-4)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-4)
    pixels = np.round(255 * grey(60, *EVENT)).astype(np.uint8)
    with pytest.raises(Unusable, match="a density over data of whole levels can grow without bound"):
        training.export(**adapters.diffusers(vae), sample=pixels, name="mine")


@torch.no_grad()
def test_the_graph_of_an_autoencoder_keeps_its_promises(exported: dict[str, Own]) -> None:
    """A score on the runtime, both networks in it: float64's numbers, and bits that depend on no batch."""
    row = "diffusers `AutoencoderKL`"
    own, x = exported[row], np.resize(SAMPLES[row], (300, *EVENT))
    wanted, noise = terms(own, x[:20], 9)
    graph = artifact.graphs(own.vae.likelihood.parameter_names, own.vae.form)["elbo"]
    feeds = {"x": x, "noise": noise.numpy()}
    example = {"x": torch.from_numpy(x[:3]), "noise": noise[:2]}
    session = exporting.session(graphs.export("elbo", graphs.modules(own.vae)["elbo"], example, tuple(graph.outputs)))

    def run_graph(given: Mapping[str, Array]) -> dict[str, Array]:
        return dict(zip(graph.outputs, session.run(None, dict(given)), strict=True))

    found = run_graph({**feeds, "x": x[:20]})
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-5)
    independence.check(graph, run_graph, feeds)


@torch.no_grad()
def test_a_detector_is_scored_again_in_the_units_of_its_columns(
    models: dict[str, Any], exported: dict[str, Own]
) -> None:
    """PyOD's own score is another one at each call; the artifact's is log p of the columns as sent, the KL in it."""
    row = "PyOD `VAE`"
    detector, x = models[row], SAMPLES[row][:7]
    assert not np.array_equal(detector.decision_function(x), detector.decision_function(x))
    found, noise = terms(exported[row], x)
    again, _ = terms(exported[row], x[::-1].copy())
    assert np.array_equal(found["log_likelihood"], again["log_likelihood"][::-1])
    u = torch.from_numpy((x - detector.X_mean) / (detector.X_std + 1e-8)).float()
    mean, log_variance = detector.model.encode(u)
    scale = np.array(exported[row].run.plain()["scale"])
    for draw, z in enumerate(latents(mean, log_variance, noise)):
        location = detector.X_mean + (detector.X_std + 1e-8) * detector.model.decode(z).double().numpy()
        wanted = -0.5 * ((x - location) / scale) ** 2 - np.log(scale * np.sqrt(2 * np.pi))
        np.testing.assert_allclose(found["log_likelihood"][:, draw], wanted.sum(1), rtol=1e-4)
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum(1)
    np.testing.assert_allclose(found["kl"], kl, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_checkpoint_of_yours_is_what_is_exported(models: dict[str, Any], exported: dict[str, Own]) -> None:
    """The posterior is by the checkpoint's weights, the scale by held-out rows."""
    row = "Lightning, yours"
    own, x = exported[row], torch.from_numpy(SAMPLES[row][:5])
    module = adapters.lightning(models[row], into=Mine())
    torch.testing.assert_close(own.vae.posterior(x).mean, module.encoder(x)[0])
    assert own.run.scale_from == "maximum likelihood on validation rows, one a feature"


def test_grey_rows_are_no_mass_to_a_model_trained_with_bce(models: dict[str, Any]) -> None:
    """The refusal names the family to take instead."""
    arguments = adapters.pythae(models["pythae `VAE`"])
    with pytest.raises(Unusable, match=r"neither 0 nor 1.*continuous_bernoulli"):
        training.export(**arguments, sample=grey(60, *EVENT), name="mine")


@pytest.mark.anyio
async def test_a_model_of_another_library_is_served_like_any_other(models: dict[str, Any], tmp_path: Path) -> None:
    """Its artifact keeps its promises, says where the model is from, and the service's score is its graph's."""
    row = "pythae `VAMP`"
    own, x = run(row, models[row], tmp_path), SAMPLES[row][:3]
    manifest = artifact.read(tmp_path / "mine" / "1").manifest
    said = "pythae VAMP, trained for the ELBO, its prior the posteriors of 7 pseudo-inputs"
    assert (manifest.description, manifest.family) == (said, "bernoulli")
    assert (manifest.prior.family, manifest.kl, manifest.training.config["prior"]["components"]) == (
        "mixture",
        "sampled",
        7,
    )
    async with kit.open_house(kit.configured(tmp_path)) as house:
        score = await house.answer("mine/score", {"inputs": x.tolist(), "draws": 4096})
        drawn = await house.answer("mine/sample", {"count": 2000, "seed": 1})
    found = terms(own, x, 4096)[0]
    far = 6 * np.hypot(score["elbo_error"], found["log_weight"].std(1) / 64)
    assert (np.abs(score["elbo"] - found["log_weight"].mean(1)) < far).all()
    off = np.abs(np.mean(drawn["latents"], 0) - manifest.prior.moments[0]) / manifest.prior.moments[1]
    assert off.max() < 5 / 2000**0.5
    assert np.allclose(np.array(score["log_likelihood"]) - score["kl"], score["elbo"])

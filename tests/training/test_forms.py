"""Posteriors and priors that aren't diagonal normals: fitted, resumed, exported, and served."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from service import artifact
from service.artifact import Artifact
from service.errors import ArtifactRefused
from tests import kit
from training import calibrate, config, data, exporting, fit, graphs, vae
from training.config import Run
from training.couplings import Layer
from training.fit import Fitted
from training.priors import Vamp

MIXED = {"posterior": {"kind": "full_normal"}, "prior": {"kind": "mixture", "components": 6}}
FLOWING = {
    "posterior": {"kind": "flow", "layers": 2, "hidden": 16},
    "prior": {"kind": "flow", "layers": 2, "hidden": 16},
}
FORMS: dict[str, dict[str, Any]] = {"mixed": MIXED, "flowing": FLOWING}


def run(name: str, **changes: Any) -> Run:
    """`tiny` in another form, stopped early, and with room for missing values."""
    plain = config.read(kit.ROOT / "configs" / "tiny.yaml").plain()
    optimiser = {**plain["optimiser"], "epochs": 2}
    return config.check({**plain, "name": name, "missing": {}, **changes, "optimiser": optimiser}, name)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    """Both forms with weights that nothing was fitted by, calibrated."""
    folder = tmp_path_factory.mktemp("forms")
    made: dict[str, Artifact] = {}
    for name, changes in FORMS.items():
        wanted = run(name, **changes)
        dataset = data.of(wanted)
        fresh = vae.build(wanted, dataset)
        with torch.no_grad():
            for module in fresh.modules():
                if isinstance(module, Layer):
                    module.outer.weight.add_(0.2 * torch.randn(module.outer.weight.shape))
        fitted = Fitted(wanted, dataset, fresh.eval().requires_grad_(False), [])
        found = exporting.export(fitted, folder, say=lambda _: None)
        calibrate.calibrate(found)
        made[name] = artifact.read(found)
    return made


@pytest.fixture(scope="module")
async def house(written: dict[str, Artifact], anyio_backend: str) -> AsyncIterator[kit.House]:  # noqa: ARG001  its scope
    """The service on both."""
    async with kit.open_house(kit.configured(written["mixed"].folder.parents[1])) as opened:
        yield opened


@pytest.mark.parametrize("name", FORMS)
def test_the_manifest_says_what_the_graphs_are(name: str, written: dict[str, Artifact]) -> None:
    """A sampled KL, the forms and where the prior lies; and the graphs that draw, in place of numbers that aren't."""
    manifest = written[name].manifest
    assert manifest.kl == "sampled"
    assert (manifest.prior.posterior, manifest.prior.family) == {
        "mixed": ("full_normal", "mixture"),
        "flowing": ("flow", "flow"),
    }[name]
    assert len(manifest.prior.mean or ()) == len(manifest.prior.scale or ()) == manifest.latent_size
    assert {"posterior.onnx", "prior.onnx"} < manifest.files.keys()
    assert "elbo.kl" not in manifest.parity
    assert "terms.latent_kl" not in manifest.parity
    calibration = written[name].calibration
    assert calibration is not None
    assert "terms.latent.centre" not in calibration


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kl": "exact"}, "kl is sampled"),
        ({"prior": {"family": "mixture", "posterior": "full_normal"}}, "mean and scale"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(
    changes: dict[str, object], said: str, written: dict[str, Artifact]
) -> None:
    """What the forms come to can't be claimed otherwise."""
    fields = written["mixed"].manifest.model_dump(mode="json")
    with pytest.raises(ValueError, match=said):
        artifact.Manifest.model_validate({**fields, **changes})


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORMS)
async def test_a_score_is_made_of_a_sampled_kl(name: str, house: kit.House) -> None:
    """elbo = log_likelihood − kl, the mean of the weights' logs; no share of a latent, and a p-value all the same."""
    rows = kit.digits(6).tolist()
    found = await house.answer(f"{name}/score", {"inputs": rows, "explain": True, "conditionals": True})
    elbo, log_likelihood, kl = (np.array(found[key]) for key in ("elbo", "log_likelihood", "kl"))
    assert (elbo == log_likelihood - kl).all()
    assert "latent_kl" not in found
    assert "latent_deviation" not in found
    features = np.array(found["feature_log_likelihood"])
    np.testing.assert_allclose(features.sum((1, 2)), log_likelihood, rtol=5e-6)
    assert np.isfinite(found["elbo_error"]).all()
    assert all(0 < p <= 1 for p in found["p_value"])
    alone = await house.answer(f"{name}/score", {"inputs": rows[2:3]})
    assert alone["elbo"] == [found["elbo"][2]]
    other = await house.answer(f"{name}/score", {"inputs": rows, "draws": 4096, "seed": 3})
    assert (np.abs(elbo - other["elbo"]) < 8 * np.hypot(found["elbo_error"], other["elbo_error"])).all()


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORMS)
async def test_draws_are_the_posteriors(name: str, house: kit.House) -> None:
    """encode's draws have encode's mean, and its scale where it has one; the first ones are the same for fewer."""
    rows = kit.digits(3).tolist()
    found = await house.answer(f"{name}/encode", {"inputs": rows, "draws": 4000, "seed": 1})
    z = np.array(found["latents"])
    scale = np.array(found["scale"]) if name == "mixed" else z.std(1)
    assert ("scale" in found) == (name == "mixed")
    near = 5 / np.sqrt(4000) if name == "mixed" else 0.3  # a flow's mean is one over 64 draws
    assert (np.abs(z.mean(1) - found["mean"]) < near * scale).all()
    np.testing.assert_allclose(z.std(1), scale, rtol=0.08)
    fewer = await house.answer(f"{name}/encode", {"inputs": rows[:1], "draws": 5, "seed": 1})
    assert fewer["latents"] == [found["latents"][0][:5]]
    means = [await house.answer(f"{name}/reconstruct", {"inputs": rows, "draws": draws}) for draws in (0, 9)]
    assert np.array(means[0]["outputs"]).shape == np.array(means[1]["outputs"]).shape == (3, 8, 8)


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORMS)
async def test_samples_are_the_priors(name: str, house: kit.House, written: dict[str, Artifact]) -> None:
    """Latents with the prior's mean and scale, the same for a seed; a temperature of 0 takes all noise away."""
    found = await house.answer(f"{name}/sample", {"count": 4000, "seed": 2})
    again = await house.answer(f"{name}/sample", {"count": 3, "seed": 2, "output": "sample"})
    z, prior = np.array(found["latents"]), written[name].manifest.prior
    centre, scale = prior.moments
    assert (np.abs(z.mean(0) - centre) < 5 * np.asarray(scale) / np.sqrt(4000)).all()
    np.testing.assert_allclose(z.std(0), scale, rtol=0.08)
    assert np.array(again["outputs"]).shape == (3, 8, 8)
    cold = await house.answer(f"{name}/sample", {"count": 500, "seed": 2, "temperature": 0})
    assert len(np.unique(np.array(cold["latents"]), axis=0)) == (6 if name == "mixed" else 1)


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORMS)
async def test_the_evidence_is_above_the_bound(name: str, house: kit.House) -> None:
    """log p̂ with its gap to the ELBO; with few draws too, which come from q alone."""
    found = await house.answer(f"{name}/evidence", {"inputs": kit.digits(3).tolist()})
    assert all(found["reliable"])
    assert (np.array(found["gap"]) > -3 * np.array(found["gap_error"])).all()
    few = await house.answer(f"{name}/evidence", {"inputs": kit.digits(3).tolist(), "draws": 64})
    assert np.abs(np.array(few["log_evidence"]) - found["log_evidence"]).max() < 3


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORMS)
async def test_what_is_missing_is_imputed(name: str, house: kit.House) -> None:
    """By draws from the posterior's graph."""
    rows = kit.digits(2).astype(float)
    rows[:, :4] = np.nan
    given = [[[None if np.isnan(v) else v for v in line] for line in row] for row in rows.tolist()]
    found = await house.answer(f"{name}/impute", {"inputs": given, "draws": 3})
    outputs = np.array(found["outputs"])
    assert (outputs[:, 4:] == rows[:, 4:]).all()
    assert ((outputs[:, :4] > 0) & (outputs[:, :4] < 1)).all()


@pytest.mark.anyio
@pytest.mark.parametrize("name", FORMS)
async def test_the_protocol_lists_what_there_is(name: str, house: kit.House) -> None:
    """No scale of a flow among encode's outputs."""
    listed = (await house.client.get(f"/v2/models/{name}.encode")).json()["outputs"]
    assert [tensor["name"] for tensor in listed] == (["mean", "scale"] if name == "mixed" else ["mean"])


@pytest.mark.parametrize("name", FORMS)
def test_a_model_is_held_to_its_own_rows(name: str, written: dict[str, Artifact], tmp_path: Path) -> None:
    """`check` draws by prior.onnx: the sandwich holds, z* ranks uniformly, and the graphs say the same."""
    found = kit.program("check", str(written[name].folder), "--rows", "200", "--draws", "512", cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    assert "the weighed posterior is right" in found.stdout
    assert "latents aren't told apart" in found.stdout


def test_a_vampprior_is_resumed_and_kept(tmp_path: Path) -> None:
    """Its components are what the fitted encoder makes of its rows, wherever it is loaded; training moves both."""
    wanted = run("vamp", prior={"kind": "vamp", "components": 9})
    fitted = fit.fit(wanted, tmp_path)
    prior = fitted.vae.prior
    assert isinstance(prior, Vamp)
    assert torch.equal(prior.mean, fitted.vae.encoder(prior.rows).moments()[0])
    begun = vae.build(wanted, fitted.data).prior
    assert isinstance(begun, Vamp)
    assert not torch.equal(prior.rows, begun.rows)
    z = torch.randn(5, 2)
    double = exporting.doubled(fitted)
    np.testing.assert_allclose(fitted.vae.log_prior(z).numpy(), double.log_prior(z).numpy(), rtol=1e-4)
    assert fit.held_out(fitted.figures[-1]) > fit.held_out(fitted.figures[0])


@pytest.mark.parametrize("kind", ["elbo", "importance_weighted"])
def test_a_flow_is_fitted(kind: str, tmp_path: Path) -> None:
    """By the ELBO and by the importance-weighted bound, whose gradient goes back through the couplings."""
    objective = {"kind": kind, "draws": 3}
    fitted = fit.fit(run("flow", objective=objective, **FLOWING), tmp_path)
    assert fit.held_out(fitted.figures[-1]) > fit.held_out(fitted.figures[0])
    moved = [module.outer.weight.abs().max() for module in fitted.vae.modules() if isinstance(module, Layer)]
    assert min(moved) > 0


def test_a_full_posterior_keeps_its_promises(tmp_path: Path) -> None:
    """With a standard normal prior: an exact KL whose shares sum to it, and bits that depend on no batch."""
    wanted = run("full", posterior={"kind": "full_normal"}, latent_size=3, missing=None)
    dataset = data.of(wanted)
    fitted = Fitted(wanted, dataset, vae.build(wanted, dataset).eval().requires_grad_(False), [])
    made = exporting.build(fitted.vae, fitted, say=lambda _: None)
    exporting.write(made, fitted, tmp_path / "full" / "1", say=lambda _: None)
    manifest = artifact.read(tmp_path / "full" / "1").manifest
    assert manifest.kl == "exact"
    assert list(manifest.graphs) == ["encoder", "decoder", "elbo", "joint", "terms", "posterior"]
    x, bank = dataset.splits["test"][:4], np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
    elbo, terms = (made[name].run({"x": x, "noise": bank}) for name in ("elbo", "terms"))
    np.testing.assert_allclose(terms["latent_kl"].sum(1), elbo["kl"], rtol=5e-6)
    drawn = made["posterior"].run({"x": x, "epsilon": np.broadcast_to(bank, (4, 6, 3)).copy()})
    joint = made["joint"].run({"x": x, "z": drawn["z"]})
    weight = joint["log_likelihood"] + joint["log_prior"] - drawn["log_density"]
    np.testing.assert_allclose(weight, elbo["log_weight"], rtol=5e-6)
    with torch.no_grad():
        other = exporting.doubled(fitted)
        next(other.encoder.parameters()).add_(1e-3)
    spoilt = dataclasses.replace(made["posterior"], truth=graphs.modules(other)["posterior"])
    with pytest.raises(ArtifactRefused, match=r"posterior\.z differs"):
        exporting.measure({"posterior": spoilt}, fitted)

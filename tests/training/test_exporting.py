"""Export: an artifact that keeps its promises, or none at all."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from service import anomaly, artifact
from service.artifact import Array, Arrays, Artifact
from service.errors import ArtifactRefused
from training import calibrate, config, graphs, independence
from training import exporting as export
from training.__main__ import app
from training.config import Unusable
from training.exporting import Exported
from training.fit import Fitted

COMMITTED = Path("exported_models/tiny/1")


def silent(_: str) -> None:
    """Nobody is told how far it is."""


@pytest.fixture(scope="session")
def written(made: dict[str, Exported], fitted: Fitted, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """`tiny` rebuilt from its config, as an artifact."""
    folder = tmp_path_factory.mktemp("models") / "tiny" / "1"
    export.write(made, fitted, folder, say=silent)
    return artifact.read(folder)


def test_tiny_rebuilt_is_the_committed_tiny(written: Artifact) -> None:
    """The same shapes, splits and config, and a held-out ELBO within half a nat."""
    new, old = written.manifest, artifact.read(COMMITTED).manifest
    assert new.model_dump(include=SAME) == old.model_dump(include=SAME)
    assert new.training.splits == old.training.splits
    assert config.check(new.training.config, "new") == config.check(old.training.config, "old")
    assert new.training.held_out["elbo"] == pytest.approx(old.training.held_out["elbo"], abs=0.5)
    assert {name: array.shape for name, array in written.golden.items()} == {
        name: array.shape for name, array in artifact.read(COMMITTED).golden.items()
    }


SAME = {"name", "event_shape", "event_dtype", "latent_size", "family", "parameters", "mean", "support", "base_measure"}


def test_the_manifest_tells_where_the_numbers_come_from(written: Artifact) -> None:
    """Parity of every output, golden tolerances, held-out terms that add up, versions, and no name of a folder."""
    manifest = written.manifest
    outputs = {f"{name}.{output}" for name, graph in manifest.graphs.items() for output in graph.outputs}
    assert manifest.parity.keys() == manifest.golden.tolerance.keys() == outputs
    assert all(parity.error <= parity.tolerance for parity in manifest.parity.values())
    held_out = manifest.training.held_out
    assert held_out["elbo"] == pytest.approx(held_out["log_likelihood"] - held_out["kl"])
    assert {"torch", "onnx", "onnxruntime", "numpy"} <= manifest.training.versions.keys()
    assert str(Path.cwd()) not in (written.folder / "manifest.json").read_text()


def test_the_graphs_agree_with_each_other(made: dict[str, Exported], fitted: Fitted) -> None:
    """terms sum to elbo's terms; joint at q's draws gives elbo's log-likelihood and, with q, its log weight."""
    x = fitted.data.splits["test"][:7]
    noise = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    elbo, terms = made["elbo"].run({"x": x, "noise": noise}), made["terms"].run({"x": x, "noise": noise})
    q = made["encoder"].run({"x": x})
    z = q["mean"][:, None] + np.exp(q["log_scale"])[:, None] * noise
    joint = made["joint"].run({"x": x, "z": z})
    np.testing.assert_allclose(terms["feature_log_likelihood"].sum((2, 3)), elbo["log_likelihood"], rtol=5e-6)
    np.testing.assert_allclose(terms["latent_kl"].sum(1), elbo["kl"], rtol=5e-6)
    np.testing.assert_allclose(joint["log_likelihood"], elbo["log_likelihood"], rtol=5e-6)
    log_q = (-0.5 * noise.astype(float) ** 2 - 0.5 * np.log(2 * np.pi) - q["log_scale"][:, None]).sum(-1)
    log_weight = joint["log_likelihood"] + joint["log_prior"] - log_q
    np.testing.assert_allclose(log_weight, elbo["log_weight"], rtol=5e-6)


class Sociable(graphs.ElboGraph):
    """A fault: the bound looks at the rest of the batch."""

    def forward(self, x: Tensor, noise: Tensor) -> graphs.Outputs:
        """Each row's bound, moved by the mean of all."""
        log_likelihood, log_weight, kl = super().forward(x, noise)
        return log_likelihood + 1e-12 * log_likelihood.mean(), log_weight, kl


def test_a_model_whose_rows_depend_on_their_batch_is_refused(
    made: dict[str, Exported], fitted: Fitted, tmp_path: Path
) -> None:
    """A shift in the twelfth digit by one's neighbours is enough, and nothing is left on disk."""
    x = torch.from_numpy(fitted.data.splits["fit"][:3])
    example = {"x": x, "noise": torch.randn(2, 2)}
    content = graphs.export("elbo", Sociable(fitted.vae), example, tuple(made["elbo"].graph.outputs))
    faulty = dataclasses.replace(made["elbo"], content=content, session=export.session(content))
    with pytest.raises(ArtifactRefused, match=r"elbo\.log_likelihood: .* other bits"):
        export.write({**made, "elbo": faulty}, fitted, tmp_path / "1", say=silent)
    assert not list(tmp_path.iterdir())


def test_a_model_out_of_tolerance_is_refused(made: dict[str, Exported], fitted: Fitted, tmp_path: Path) -> None:
    """A graph one weight of which is off by a thousandth is not the model that was fitted."""
    other = export.doubled(fitted)
    with torch.no_grad():
        next(other.decoder.parameters()).add_(1e-3)
    faulty = dataclasses.replace(made["joint"], truth=graphs.modules(other)["joint"])
    with pytest.raises(ArtifactRefused, match=r"joint\.log_likelihood differs from torch in float64 by .* is allowed"):
        export.write({**made, "joint": faulty}, fitted, tmp_path / "1", say=silent)
    assert not list(tmp_path.iterdir())


def test_an_answer_that_is_no_number_is_refused() -> None:
    """A NaN has no distance from the truth, and is never within tolerance."""
    ones = np.ones((2, 2))
    with pytest.raises(ArtifactRefused, match="finite"):
        export.compare("elbo.kl", ones * np.nan, ones, ones)


def test_the_check_sees_a_single_bit(made: dict[str, Exported]) -> None:
    """Whatever moves with a row's place in the batch or in memory is found, by however little."""
    graph = made["encoder"].graph
    x = np.random.default_rng(0).standard_normal((300, 4))

    def honest(feeds: Arrays) -> Arrays:
        return {"mean": feeds["x"] * 2, "log_scale": feeds["x"] + 1}

    def leaky(feeds: Arrays) -> Arrays:
        place: Array = np.arange(len(feeds["x"]))[:, None] == 40
        return {"mean": np.where(place, np.nextafter(feeds["x"] * 2, np.inf), feeds["x"] * 2), "log_scale": feeds["x"]}

    independence.check(graph, lambda feeds: honest(dict(feeds)), {"x": x})
    with pytest.raises(ArtifactRefused, match=r"encoder\.mean"):
        independence.check(graph, lambda feeds: leaky(dict(feeds)), {"x": x})


def test_versions_are_counted_and_kept(fitted: Fitted, tmp_path: Path) -> None:
    """The next free integer, and no version is overwritten unless asked."""
    assert export.destination(tmp_path / "tiny", None, replace=False).name == "1"
    (tmp_path / "tiny" / "7").mkdir(parents=True)
    assert export.destination(tmp_path / "tiny", None, replace=False).name == "8"
    with pytest.raises(Unusable, match="--replace"):
        export.destination(tmp_path / "tiny", 7, replace=False)
    assert export.destination(tmp_path / "tiny", 7, replace=True).name == "7"
    with pytest.raises(Unusable, match="--replace"):
        export.export(fitted, tmp_path, version=7, say=silent)


def test_calibration_scores_the_rows_that_were_set_aside(written: Artifact) -> None:
    """The command writes their scores, ascending, with the noise they were made with, bound to the graph."""
    result = CliRunner().invoke(app, ["calibrate", str(written.folder)])
    assert result.exit_code == 0, result.output
    found = artifact.read(written.folder)
    facts = found.manifest.calibration
    assert facts is not None
    assert found.calibration is not None
    assert (facts.n, facts.draws, facts.seed, facts.estimator) == (400, 16, 0, "frames_4")
    assert facts.split == written.manifest.training.splits["calibration"].sha256
    assert facts.validation == written.manifest.training.splits["validation"].sha256
    assert facts.graphs == {f"{g}.onnx": found.manifest.files[f"{g}.onnx"].sha256 for g in ("elbo", "encoder", "terms")}
    assert list(facts.named) == list(anomaly.KINDS)
    for name in facts.named:
        assert (np.diff(found.calibration["scores" if name == "elbo" else f"scores.{name}"]) >= 0).all()
    scores = found.calibration["scores"]
    assert scores.mean() == pytest.approx(written.manifest.training.held_out["elbo"], abs=1.5)


def test_calibration_is_refused_on_other_rows(written: Artifact) -> None:
    """Where the data no longer gives the rows that were set aside, nothing is calibrated."""
    training = written.manifest.training
    swapped = {**training.splits, "calibration": training.splits["test"]}
    changed = training.model_copy(update={"splits": swapped})
    with pytest.raises(Unusable, match="set aside"):
        calibrate.held_out_rows(written.manifest.model_copy(update={"training": changed}))

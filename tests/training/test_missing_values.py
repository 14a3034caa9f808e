"""Training for missing values: which are taken out, what stands in, and what an artifact then promises."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from service import artifact
from training import config, data, missing, objective, vae
from training import exporting as export
from training.config import Run, Unusable
from training.fit import Module

PLAIN = config.read(Path("configs/tiny.yaml")).plain()


def run(**changes: object) -> Run:
    """tiny, trained for missing values."""
    return config.check({**PLAIN, "missing": {}, **changes}, "a test")


def table() -> Run:
    """A table of several families, one of which makes more than one number of a value."""
    real = ["age", "bmi", "blood pressure", "total cholesterol", "ldl", "hdl", "cholesterol ratio", "log triglycerides"]
    blocks = [
        {"columns": ["sex"], "family": "categorical"},
        {"columns": real, "family": "student_t"},
        {"columns": ["glucose"], "family": "lognormal"},
        {"columns": ["progression"], "family": "negative_binomial"},
    ]
    return run(data={"name": "diabetes"}, likelihood={"family": "mixed", "blocks": blocks})


def test_what_is_missing_is_a_function_of_the_seed_and_the_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a run that was resumed ends where an uninterrupted one does; and epochs differ."""
    module = Module(run(), data.of(run()))

    def epoch(number: int) -> bytes:
        monkeypatch.setattr(Module, "current_epoch", number)
        return b"".join(batch[0].numpy().tobytes() for batch in module.train_dataloader())

    first, second = epoch(0), epoch(1)
    assert first != second
    assert epoch(0) == first
    validation = [b"".join(batch[0].numpy().tobytes() for batch in module.val_dataloader()) for _ in range(2)]
    assert validation[0] == validation[1]


def test_each_row_loses_a_share_of_its_own() -> None:
    """Uniform between least and most, and what stays is as it was."""
    rows = np.random.default_rng(0).normal(size=(4000, 50))
    holes = missing.punch(rows, config.Missing(least=0.2, most=0.6), np.random.default_rng(1))
    gone = np.isnan(holes)
    shares = gone.mean(1)
    assert shares.mean() == pytest.approx(0.4, abs=0.01)
    assert shares.std() == pytest.approx(np.sqrt(0.4**2 / 12 + (0.4 * 0.6 - 0.4**2 / 12) / 50), rel=0.05)
    np.testing.assert_array_equal(holes[~gone], rows[~gone])


def test_no_gradient_is_lost_to_a_hole() -> None:
    """0·NaN is NaN, in gradients too: every one is finite, with rows of nothing among the batch, in all networks."""
    pictures = [{"kind": kind, "sizes": [4, 8], "dense": 16} for kind in ("conv", "residual", "conv1d")]
    embedded = table().model_copy(update={"encoder": config.MlpEncoder(kind="mlp", sizes=[8], embedding=2)})
    for wanted in (run(), *(run(encoder=encoder) for encoder in pictures), table(), embedded):
        dataset = data.of(wanted)
        fresh = vae.build(wanted, dataset)
        x = missing.punch(dataset.splits["fit"][:40], config.Missing(most=1.0), np.random.default_rng(0))
        x[0] = np.nan
        dim = wanted.latent_size
        terms = objective.terms(fresh, torch.from_numpy(x), torch.zeros((3, dim)))
        assert torch.isfinite(terms.log_likelihood).all()
        assert terms.log_likelihood[0] == 0
        objective.elbo(terms).sum().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in fresh.parameters()]
        assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)


def test_whole_numbers_stay_whole_in_a_dtype_that_can_be_missing() -> None:
    """Levels become float32; the values are the same."""
    plain, room = data.load(run().data), data.of(run())
    assert (plain.event_dtype, room.event_dtype) == ("uint8", "float32")
    for name, rows in plain.splits.items():
        np.testing.assert_array_equal(room.splits[name], rows)


def test_a_file_may_have_holes_where_the_run_is_trained_for_them(tmp_path: Path) -> None:
    """NaN is taken with `missing` alone, infinity never, and a column that is never there is refused."""
    rows = np.random.default_rng(0).normal(3.0, 2.0, size=(400, 3))
    rows[::3, 1] = np.nan
    path = tmp_path / "rows.npy"
    np.save(path, rows)
    file = {"name": "file", "path": str(path), "source": "a test"}
    likelihood = {"family": "normal"}
    wanted = run(data=file, likelihood=likelihood)
    dataset = data.of(wanted)
    assert np.isnan(dataset.splits["fit"]).any()
    assert not np.isnan(dataset.without_holes().splits["fit"]).any()
    model = vae.build(wanted, dataset)
    assert model.stand_in is not None
    assert torch.isfinite(model.stand_in).all()
    filled = dataset.without_holes().splits["fit"]
    assert filled[:, 1].std() == pytest.approx(np.nanstd(dataset.splits["fit"][:, 1]), rel=0.02)
    with pytest.raises(Unusable, match="missing"):
        data.of(run(data=file, likelihood=likelihood, missing=None))
    for spoilt, reason in ((np.inf, "finite"), (np.nan, "missing in every fitted row")):
        np.save(path, np.where(np.arange(3) == 2, spoilt, rows))
        with pytest.raises(Unusable, match=reason):
            vae.build(wanted, data.of(wanted))


def test_an_artifact_says_what_it_was_trained_for_and_has_measured_it(holed: Path) -> None:
    """Golden rows are complete, with holes, and of nothing; the golden answers are finite; the config is whole."""
    found = artifact.read(holed / "holed" / "1")
    assert found.manifest.missing
    assert found.manifest.event_dtype == "float32"
    assert found.manifest.training.config["missing"] == {"least": 0.0, "most": 0.5}
    seen = np.isfinite(found.golden["elbo.x"]).reshape(export.GOLDEN_ROWS, -1).mean(1)
    assert (seen[0], seen[-1]) == (1.0, 0.0)
    assert 0 < seen[1] < 1
    assert not found.golden["terms.feature_log_likelihood"][-1].any()
    assert not artifact.read(Path("exported_models/tiny/1")).manifest.missing


def test_a_manifest_of_whole_numbers_has_no_missing_values(holed: Path) -> None:
    """uint8 has no NaN, so such a manifest contradicts itself."""
    fields = artifact.read(holed / "tiny" / "1").manifest.model_dump()
    with pytest.raises(ValueError, match="missing"):
        artifact.Manifest.model_validate({**fields, "missing": True})

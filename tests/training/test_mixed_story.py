"""A mixed table from its rows to the wire: fitted, exported, served, sampled, and refused where it is off support."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from service import artifact
from service.artifact import Artifact
from tests import kit
from training import config, fit
from training import exporting as export

ROWS = 240


def table() -> NDArray[np.float64]:
    """Visits (counts), height (real), kind (of three, from 1), cost (positive); all hang together by one number."""
    random = np.random.default_rng(3)
    z = random.standard_normal(ROWS)
    visits = random.negative_binomial(5, 5 / (5 + np.exp(1.5 + z)))
    height = 170 + 8 * z + 4 * random.standard_normal(ROWS)
    kind = 1 + (z + random.standard_normal(ROWS) > 0) + (z + random.standard_normal(ROWS) > 1)
    cost = np.exp(6 + z + 0.5 * random.standard_normal(ROWS))
    return np.column_stack((visits, height, kind, cost)).astype(np.float64)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The table fitted for a few epochs, and its artifact."""
    scratch = tmp_path_factory.mktemp("mixed")
    np.save(scratch / "rows.npy", table())
    blocks = [
        {"columns": [2], "family": "categorical", "name": "kind"},
        {"columns": [0], "family": "negative_binomial"},
        {"columns": [1], "family": "normal"},
        {"columns": [3], "family": "lognormal"},
    ]
    plain = {
        "name": "table",
        "data": {"name": "file", "path": str(scratch / "rows.npy"), "source": "made up"},
        "encoder": {"kind": "mlp", "sizes": [16]},
        "decoder": {"kind": "mlp", "sizes": [16]},
        "latent_size": 2,
        "likelihood": {"family": "mixed", "blocks": blocks},
        "optimiser": {"lr": 0.01, "epochs": 25, "batch_size": 32},
    }
    fitted = fit.fit(config.check(plain, "a test"), scratch / "run")
    assert config.read(scratch / "run" / "config.yaml") == fitted.run
    assert fit.held_out(fitted.figures[-1]) > fit.held_out(fitted.figures[0]) + 1
    return artifact.read(export.export(fitted, scratch / "models", say=lambda _: None))


@pytest.fixture(scope="module")
async def house(written: Artifact, anyio_backend: str) -> AsyncIterator[kit.House]:  # noqa: ARG001  its scope
    """The service with that model alone."""
    async with kit.open_house(kit.configured(written.folder.parents[1])) as opened:
        yield opened


pytestmark = pytest.mark.anyio


async def test_the_manifest_says_what_each_column_is(written: Artifact) -> None:
    """Blocks with their families, supports and measures; the row's own measure is their product."""
    manifest = written.manifest
    assert (manifest.family, manifest.support.kind, manifest.base_measure) == ("mixed", "mixed", "mixed")
    assert manifest.parameters == [
        *("kind.logits", "negative_binomial.rate", "negative_binomial.concentration"),
        *("normal.loc", "normal.scale", "lognormal.loc", "lognormal.scale"),
    ]
    assert manifest.blocks is not None
    assert [(block.family, block.columns, block.support.kind) for block in manifest.blocks] == [
        *(("categorical", [2], "levels"), ("negative_binomial", [0], "counts")),
        *(("normal", [1], "real"), ("lognormal", [3], "positive")),
    ]
    assert "counting measure on the columns of kind, negative_binomial" in manifest.units


async def test_a_row_is_scored_as_the_sum_of_its_columns(house: kit.House) -> None:
    """Columns' shares sum to the log-likelihood; a row out of order has a lower bound than its like."""
    rows = table()[:6]
    odd = rows.copy()
    odd[:, 3] = rows[:, 3] * 1e3
    answer = await house.answer("table/score", {"inputs": np.concatenate((rows, odd)).tolist(), "explain": True})
    features = np.array(answer["feature_log_likelihood"])
    assert features.shape == (12, 4)
    np.testing.assert_allclose(features.sum(1), answer["log_likelihood"], rtol=5e-6, atol=5e-6 * np.abs(features).max())
    assert (np.array(answer["elbo"][6:]) < np.array(answer["elbo"][:6])).all()
    assert "bits_per_dim" not in answer


async def test_parameters_have_their_blocks_columns(house: kit.House) -> None:
    """Each by its block's name, one entry a column, logits with an axis for the levels; the mean is a whole row."""
    latents = np.zeros((3, 2)).tolist()
    found = (await house.answer("table/decode", {"latents": latents, "output": "parameters"}))["parameters"]
    shapes = {name: np.array(value).shape for name, value in found.items()}
    assert shapes == {name: (3, 1, 3) if name == "kind.logits" else (3, 1) for name in found}
    mean = np.array((await house.answer("table/decode", {"latents": latents}))["outputs"])
    assert mean.shape == (3, 4)
    assert mean[:, 0] == pytest.approx(np.array(found["negative_binomial.rate"])[:, 0])
    npz = await house.answer("table/decode", {"latents": latents, "output": "parameters"}, accept=kit.NPZ)
    assert any(array.shape == (3, 1, 3) for array in npz.values())


async def test_samples_are_rows_that_can_be_scored(house: kit.House) -> None:
    """Every draw is on its column's support, and the draws' medians are near those of the table."""
    answer = await house.answer("table/sample", {"count": 400, "seed": 1, "output": "sample"})
    drawn = np.array(answer["outputs"])
    assert (await house.ask("table/score", {"inputs": drawn.tolist()})).status_code == 200
    assert set(drawn[:, 2]) <= {1.0, 2.0, 3.0}
    near = np.abs(np.median(drawn, 0) - np.median(table(), 0)) / table().std(0)
    assert (near < 0.5).all()


async def test_values_off_a_columns_support_are_each_named(house: kit.House) -> None:
    """Half a visit, a kind that isn't one, a cost of nothing: each by its place, with what the column takes."""
    rows: list[list[Any]] = table()[:3].tolist()
    rows[0][0], rows[1][2], rows[1][3], rows[2][1] = 2.5, 4, 0, -1e9
    body = kit.refused(await house.ask("table/score", {"inputs": rows}), 422)
    faults = {fault["pointer"]: fault["reason"] for fault in body["errors"]}
    assert set(faults) == {"/inputs/0/0", "/inputs/1/2", "/inputs/1/3"}
    assert "whole numbers from 0" in faults["/inputs/0/0"]
    assert "levels from 1 to 3" in faults["/inputs/1/2"]
    assert "above 0" in faults["/inputs/1/3"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"blocks": None}, "blocks are those of the family mixed"),
        ({"base_measure": "counting"}, "these blocks have"),
        ({"event_dtype": "float32"}, "in float64"),
        ({"family": "normal"}, "blocks are those of the family mixed"),
    ],
)
async def test_a_manifest_whose_blocks_lie_is_refused(written: Artifact, change: dict[str, Any], reason: str) -> None:
    """The blocks, the measure, the support and the parameters are held to one another."""
    fields = {**written.manifest.model_dump(), **change}
    with pytest.raises(ValueError, match=reason):
        artifact.Manifest.model_validate(fields)


async def test_blocks_hold_each_column_once(written: Artifact) -> None:
    """A column in two blocks or in none is refused."""
    fields = written.manifest.model_dump()
    fields["blocks"][0]["columns"] = [3]
    with pytest.raises(ValueError, match="each of 4 columns once"):
        artifact.Manifest.model_validate(fields)

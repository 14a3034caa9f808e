"""A CSV with text and gaps from its file to the wire: roles → fitted → exported → calibrated → served by codes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from service import artifact
from service.artifact import Artifact
from tests import kit
from training import calibrate, config, exporting, fit

ROWS = 240
COLOURS = ("blue", "green", "red")


def table(path: Path) -> Path:
    """Height, income, colour, whether a member, visits, by one number; a tenth of the cells is missing."""
    random = np.random.default_rng(3)
    with path.open("w") as file:
        file.write("height,income,colour,member,visits\n")
        for _ in range(ROWS):
            z = random.standard_normal()
            colour = COLOURS[int(z > -0.4) + int(z > 0.4)]
            cells = [
                f"{170 + 8 * z + random.standard_normal():.2f}",
                f"{np.exp(6 + z + 0.1 * random.standard_normal()):.4f}",
                colour,
                "yes" if z + 0.3 * random.standard_normal() > 0 else "no",
                str(random.poisson(np.exp(1 + z / 2))),
            ]
            file.write(",".join(cell if random.random() > 0.1 else "" for cell in cells) + "\n")
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The table fitted for a few epochs by its roles alone, and its artifact, calibrated."""
    scratch = tmp_path_factory.mktemp("table")
    columns = {
        "income": {"role": "real", "transform": "log", "unit": "€"},
        "height": {"role": "real", "transform": "quantile"},
    }
    plain = {
        "name": "people",
        "data": {"name": "table", "path": str(table(scratch / "t.csv")), "source": "made up", "columns": columns},
        "encoder": {"kind": "mlp", "sizes": [16]},
        "decoder": {"kind": "mlp", "sizes": [16]},
        "latent_size": 2,
        "likelihood": {"family": "mixed"},
        "missing": {"most": 0.3},
        "optimiser": {"lr": 0.01, "epochs": 20, "batch_size": 32},
    }
    fitted = fit.fit(config.check(plain, "a test"), scratch / "run")
    assert config.read(scratch / "run" / "config.yaml") == fitted.run
    assert fit.held_out(fitted.figures[-1]) > fit.held_out(fitted.figures[0]) + 1
    folder = exporting.export(fitted, scratch / "models", say=lambda _: None)
    calibrate.calibrate(folder)
    return artifact.read(folder)


@pytest.fixture(scope="module")
async def house(written: Artifact, anyio_backend: str) -> AsyncIterator[kit.House]:  # noqa: ARG001  its scope
    """The service with that model alone."""
    async with kit.open_house(kit.configured(written.folder.parents[1])) as opened:
        yield opened


pytestmark = pytest.mark.anyio


async def test_the_manifest_says_what_to_send(house: kit.House) -> None:
    """Columns by name with their units; categories in the order of their codes; a family for each by its role."""
    body = (await house.client.get("/v1/models/people")).json()
    assert [feature["name"] for feature in body["features"]] == ["height", "income", "colour", "member", "visits"]
    assert [feature["categories"] for feature in body["features"]] == [None, None, list(COLOURS), ["no", "yes"], None]
    assert body["features"][1]["unit"] == "€"
    assert {block["family"]: block["columns"] for block in body["blocks"]} == {
        **{"quantile_normal": [0], "lognormal": [1], "categorical": [2], "bernoulli": [3], "negative_binomial": [4]}
    }


async def test_a_row_with_gaps_is_scored_and_made_whole(house: kit.House) -> None:
    """By codes, with null for what is missing; what is drawn for it is on each column's support."""
    rows = [[171.5, 400.0, 2, 1, 3], [171.5, None, None, 1, None]]
    scored = await house.answer("people/score", {"inputs": rows, "explain": True})
    assert np.isfinite(scored["elbo"]).all()
    assert np.array(scored["feature_log_likelihood"])[1, [1, 2, 4]].tolist() == [0, 0, 0]
    imputed = np.array((await house.answer("people/impute", {"inputs": rows}))["imputations"])
    assert set(imputed[1, :, 2]) <= {0.0, 1.0, 2.0}
    assert (imputed[1, :, 1] > 0).all()
    assert (imputed[1, :, 4] == np.floor(imputed[1, :, 4])).all()


async def test_a_code_that_is_none_is_refused_with_what_codes_stand_for(house: kit.House) -> None:
    """The place, the column, and each code's category; text is no number."""
    rows = [[171.5, 400.0, 3, 1, 3], [171.5, 0.0, 2, 0.5, 3]]
    body = kit.refused(await house.ask("people/score", {"inputs": rows}), 422)
    faults = {fault["pointer"]: fault["reason"] for fault in body["errors"]}
    assert set(faults) == {"/inputs/0/2", "/inputs/1/1", "/inputs/1/3"}
    assert "in the column colour, which stand for 0 blue, 1 green, 2 red" in faults["/inputs/0/2"]
    assert "in the column member, which stand for 0 no, 1 yes" in faults["/inputs/1/3"]
    kit.refused(await house.ask("people/score", {"inputs": [[171.5, 400.0, "red", 1, 3]]}), 422)


async def test_a_manifest_whose_categories_are_not_its_levels_is_refused(written: Artifact) -> None:
    """A client would send a code that stands for something else."""
    fields = written.manifest.model_dump()
    fields["features"][2]["categories"] = ["blue", "green"]
    with pytest.raises(ValueError, match=r"features\.2: the categories are not those of its support"):
        artifact.Manifest.model_validate(fields)

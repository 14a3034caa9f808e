"""Models: the same bits in company as alone, on the committed artifacts; and who is ready when."""

from __future__ import annotations

import asyncio
import math
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest

from service import artifact, models, noise, operations
from service.artifact import Array
from service.engine import open_engine
from service.errors import ArtifactRefused, NotReady, Unknown
from service.lanes import Lanes
from service.models import Model, Models, Workshop
from service.operations import Errand
from service.operations.errand import together

ROOT = Path(__file__).parents[2] / "exported_models"


def events(name: str, count: int) -> Array:
    """Rows that a model takes: its golden rows, recombined and, where they are real numbers, scaled."""
    golden = artifact.read(ROOT / name / "1").golden["encoder.x"]
    generator = np.random.default_rng(count)
    picked = golden[generator.integers(0, len(golden), count)]
    if picked.dtype.kind == "f":
        return picked * generator.uniform(0.9, 1.1, picked.shape)
    return np.array([generator.permuted(row.ravel()).reshape(row.shape) for row in picked], picked.dtype)


@pytest.mark.anyio
@pytest.mark.parametrize("lanes", [1, 3])
@pytest.mark.parametrize("name", ["tiny", "mnist", "breast-cancer"])
async def test_many_callers_get_exactly_the_bits_they_would_get_alone(name: str, lanes: int) -> None:
    """Random sizes, banks and operations at once, cut and batched at will: every bit is as for one row alone."""
    rows = events(name, 60)
    generator = np.random.default_rng(0)
    requests = [
        (generator.integers(0, 60, generator.integers(1, 24)), int(d)) for d in generator.choice([1, 16, 40], 24)
    ]
    errand = Errand()
    async with models.open_one(ROOT / name / "1", Workshop(open_engine, Lanes(lanes), size=96)) as model:
        alone = {
            (index, draws): await operations.score(model, rows[index : index + 1].copy(), draws=draws, errand=errand)
            for draws in (1, 16, 40)
            for index in {int(i) for picked, d in requests if d == draws for i in picked}
        }
        together = await asyncio.gather(
            *(operations.score(model, rows[picked], draws=draws, errand=errand) for picked, draws in requests)
        )
        codes = await asyncio.gather(*(operations.encode(model, rows[picked], errand=errand) for picked, _ in requests))
        whole = await operations.encode(model, rows, errand=errand)
    for (picked, draws), scored, code in zip(requests, together, codes, strict=True):
        for place, index in enumerate(picked):
            single = alone[int(index), draws]
            assert scored.bound.elbo[place] == single.bound.elbo[0]
            assert scored.bound.kl[place] == single.bound.kl[0]
            assert np.array_equal(scored.bound.error[place], single.bound.error[0], equal_nan=True)
            assert np.array_equal(code.mean[place], whole.mean[index])


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["tiny", "mnist", "breast-cancer"])
async def test_explanations_sum_to_the_score(name: str) -> None:
    """Features to log_likelihood and latents to kl, to 5e-6 of the sum of the terms' sizes."""
    rows = events(name, 5)
    async with models.open_one(ROOT / name / "1", Workshop(open_engine, Lanes(1))) as model:
        found = await operations.score(model, rows, explain=True, errand=Errand())
    terms = found.explanation
    assert terms is not None
    assert terms.latent_kl is not None
    for parts, whole in ((terms.feature_log_likelihood, found.bound.log_likelihood), (terms.latent_kl, found.bound.kl)):
        flat = parts.reshape(len(rows), -1)
        assert (np.abs(flat.sum(-1) - whole) <= 5e-6 * np.maximum(1, np.abs(flat).sum(-1))).all()


@pytest.mark.anyio
async def test_the_calibrated_bank_is_the_stored_one() -> None:
    """The bank on disk is used as it is; where it is of frames, its seed makes it."""
    async with models.open_one(ROOT / "tiny" / "1", Workshop(open_engine, Lanes(1))) as model:
        bank = await model.bank(0, 16)
        assert bank is model.calibrated
        assert model.manifest.calibration is not None
        made = np.array_equal(bank.noise, noise.bank(0, 16, 2).noise)
        assert made == (model.manifest.calibration.estimator == "frames_4")
        assert (await model.bank(1, 16)) is not model.calibrated


@pytest.mark.anyio
async def test_an_absurd_row_is_an_anomaly_not_a_gap() -> None:
    """A row 10^200 away scores −inf or a huge negative number; its p-value is the least there is."""
    rows = events("breast-cancer", 2)
    rows[1] = 1e200
    async with models.open_one(ROOT / "breast-cancer" / "1", Workshop(open_engine, Lanes(1))) as model:
        found = await operations.score(model, rows, errand=Errand())
    assert math.isfinite(found.bound.elbo[0])
    assert found.bound.elbo[1] < -1e100  # −inf, here
    assert found.p_value is not None
    assert found.anomaly is not None
    assert found.p_value[1] == found.calibration.smallest_p
    assert found.anomaly[1] is True


def stub(name: str, version: int) -> Model:
    """A model that is only looked up."""
    return cast(Model, SimpleNamespace(key=(name, version), manifest=SimpleNamespace(name=name, version=version)))


def test_the_highest_loaded_version_answers() -> None:
    """Without a version the highest that is loaded; a refused or absent one is told apart."""
    served = Models()
    served.found({("a", 1), ("a", 2), ("a", 3), ("b", 1)})
    served.serve(stub("a", 1))
    served.serve(stub("a", 2))
    served.refuse("a", 3, "it is spoilt")
    assert served.get("a").manifest.version == 2
    assert served.get("a", 1).manifest.version == 1
    with pytest.raises(NotReady, match="a/3 was refused: it is spoilt"):
        served.get("a", 3)
    with pytest.raises(NotReady, match="b/1 is still being loaded"):
        served.get("b")
    with pytest.raises(Unknown, match="a has no version 9; it has 1, 2"):
        served.get("a", 9)
    with pytest.raises(Unknown, match="there is no model 'c'; there is a"):
        served.get("c")
    assert served.catalogue() == [("a", [1, 2])]


def test_ready_means_every_required_model_at_its_highest_version() -> None:
    """By default every model found; else those that are named. Others never matter."""
    every, named, absent, none = Models(), Models(("a",)), Models(("z",)), Models()
    assert every.unready()
    none.found(set())
    assert "no models were found" in none.unready()[0]
    for served in (every, named, absent):
        served.found({("a", 1), ("b", 1)})
        served.serve(stub("a", 1))
    assert every.unready() == ["b/1 is still being loaded"]
    assert named.unready() == []
    assert absent.unready() == ["z is required and was not found"]
    every.refuse("b", 1, "spoilt")
    assert every.unready() == ["b/1 was refused: spoilt"]
    every.serve(stub("b", 1))
    assert every.unready() == []
    every.found({("a", 2)})
    assert every.unready() == ["a/2 is still being loaded"]
    every.refuse("a", 2, "spoilt")
    assert every.unready() == []  # one bad upload takes nobody out of rotation


@pytest.mark.anyio
async def test_an_estimator_that_its_draws_are_not_is_refused(tmp_path: Path) -> None:
    """Sixteen draws are four frames, whatever the manifest says."""
    folder = Path(shutil.copytree(ROOT / "tiny" / "1", tmp_path / "1"))
    found = artifact.read(folder)
    assert found.manifest.calibration is not None
    facts = found.manifest.calibration.model_dump() | {"estimator": "plain"}
    artifact.rewrite(found, {"calibration": facts}, {})
    with pytest.raises(ArtifactRefused, match=r"calibration\.estimator is plain; 16 draws are frames_4"):
        await models.load(folder, Workshop(open_engine, Lanes(1)))


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"strange": "high"}, "no score elbo whose high end is strange"),
        ({"fitted": {"centre": [400]}}, "what was fitted for elbo is not nothing"),
    ],
)
def test_a_score_that_is_not_known_as_it_is_stored_is_refused(
    tiny: Path, facts: dict[str, object], reason: str
) -> None:
    """Its name, its strange end and what was fitted for it are the service's own."""
    found = artifact.read(tiny / "tiny" / "1")
    assert found.manifest.calibration is not None
    assert found.calibration is not None
    changed = found.manifest.calibration.model_dump()
    changed["scores"]["elbo"] |= facts
    more = {"fitted.elbo.centre": found.calibration["scores"]} if "fitted" in facts else {}
    packed = artifact.pack({**found.calibration, **more})
    artifact.rewrite(found, {"calibration": changed}, {artifact.CALIBRATION: packed})
    with pytest.raises(ArtifactRefused, match=reason):
        asyncio.run(models.load(tiny / "tiny" / "1", Workshop(open_engine, Lanes(1))))


@pytest.mark.anyio
@pytest.mark.parametrize("estimator", ["frames_4", "sobol_scrambles_4"])
async def test_a_stored_bank_is_used_however_it_was_made(tmp_path: Path, estimator: str) -> None:
    """Calibrations from before frames go on being served: with their own noise, whatever their seed makes now."""
    folder = Path(shutil.copytree(ROOT / "tiny" / "1", tmp_path / "1"))
    found = artifact.read(folder)
    assert found.manifest.calibration is not None
    assert found.calibration is not None
    noise = np.random.default_rng(0).standard_normal((16, 2)).astype(np.float32)
    facts = found.manifest.calibration.model_dump() | {"estimator": estimator}
    packed = artifact.pack({**found.calibration, "noise": noise})
    artifact.rewrite(found, {"calibration": facts}, {artifact.CALIBRATION: packed})
    model = await models.load(folder, Workshop(open_engine, Lanes(1)))
    bank = await model.bank(0, 16)
    assert np.array_equal(bank.noise, noise)
    assert bank.groups == (4, 4, 4, 4)
    assert model.references is not None


@pytest.mark.anyio
@pytest.mark.parametrize("first", [True, False])
async def test_of_two_things_done_together_the_other_is_cancelled_when_one_fails(first: bool) -> None:
    """And the error is the one that was raised, not a group of it."""
    cancelled = asyncio.Event()

    async def fails() -> int:
        await asyncio.sleep(0)
        raise ArtifactRefused("no")

    async def waits() -> int:
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with pytest.raises(ArtifactRefused, match="no"):
        await (together(fails(), waits()) if first else together(waits(), fails()))
    assert cancelled.is_set()

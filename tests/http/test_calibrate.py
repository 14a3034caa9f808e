"""Calibrate: rows from whoever runs the service become what p-values rest on, here and after a restart."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from service import state
from service.artifact import Array
from service.errors import Unkept
from service.settings import Settings
from tests.kit import (
    COMMITTED,
    NPY,
    NPZ,
    Gate,
    House,
    answered,
    configured,
    copied,
    digits,
    held_out,
    npy,
    open_house,
    refused,
    until,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def settings(small: Path, tmp_path: Path) -> Settings:
    """The service on tiny, with calibrating switched on."""
    return configured(small, state=tmp_path / "state", calibrate=True)


def like(count: int, seed: int = 0) -> list[Any]:
    """Rows that a caller takes for normal."""
    found: list[Any] = digits(count, seed).tolist()
    return found


def kept(settings: Settings) -> list[Path]:
    """The files in the state."""
    assert settings.state
    return sorted(settings.state.glob("*/*"))


async def catalogued(house: House, model: str = "tiny") -> dict[str, Any]:
    """What the catalogue says of a model."""
    found: dict[str, Any] = (await house.client.get(f"/v1/models/{model}")).json()
    return found


async def test_p_values_rest_on_the_rows_that_were_sent(settings: Settings) -> None:
    """p = (1 + #{reference as strange}) / (n + 1), of the chosen score, among the rows' own scores."""
    async with open_house(settings) as house:
        before = await house.answer("tiny/score", {"inputs": like(8, 1)})
        reference = await house.answer("tiny/score", {"inputs": like(60)})
        found = await house.answer("tiny/calibrate", {"inputs": like(60)})
        assert found == {
            "model": "tiny",
            "version": 1,
            "n": 60,
            "seed": 0,
            "draws": 16,
            "score": before["calibration"]["score"],
            "smallest_p": pytest.approx(1 / 61),
            "made": found["made"],
            "digest": found["digest"],
        }
        after = await house.answer("tiny/score", {"inputs": like(8, 1)})
    assert {name: after[name] for name in ("elbo", "kl")} == {name: before[name] for name in ("elbo", "kl")}
    assert after["calibration"]["n"] == 60
    assert after["p_value"] != before["p_value"]
    p = [(1 + sum(r <= e for r in reference["elbo"])) / 61 for e in after["elbo"]]
    assert after["scores"]["elbo"]["p_value"] == pytest.approx(p)


async def test_the_trainers_rows_make_the_trainers_calibration(settings: Settings) -> None:
    """To the last bit: p-values of every score, and how unusual each feature and latent is."""
    body = {"inputs": like(20, 1), "explain": True, "fdr": 0.2}
    async with open_house(settings) as house:
        before = await house.answer("tiny/score", body)
        found = await house.answer("tiny/calibrate", {"inputs": held_out("calibration").tolist()})
        assert found["n"] == before["calibration"]["n"]
        assert (await catalogued(house))["calibration_source"] == "state"
        assert await house.answer("tiny/score", body) == before


async def test_a_restart_keeps_it_and_the_artifact_stays_as_it_is(settings: Settings) -> None:
    """It is used from the state by the manifest's digest, also where calibrating is no longer offered."""
    disk = {path.name: path.read_bytes() for path in (COMMITTED / "tiny" / "1").iterdir()}
    async with open_house(settings) as house:
        assert (await catalogued(house))["calibration_source"] == "artifact"
        assert (await catalogued(house))["calibration_in_use"]["made"] is None
        made = await house.answer("tiny/calibrate", {"inputs": like(60)})
        answer = await house.answer("tiny/score", {"inputs": like(8, 1), "explain": True})
    async with open_house(settings.model_copy(update={"calibrate": False})) as house:
        assert await house.answer("tiny/score", {"inputs": like(8, 1), "explain": True}) == answer
        found = await catalogued(house)
        assert found["calibration_source"] == "state"
        assert found["calibration_in_use"]["n"] == 60
        assert found["calibration_in_use"]["made"] == made["made"]
        metrics = (await house.client.get("/metrics")).text
        assert 'vae_serve_calibration_rows{model="tiny",source="state",version="1"} 60.0' in metrics
        assert 'vae_serve_calibration_rows{model="tiny",source="artifact"' not in metrics
    assert disk == {path.name: path.read_bytes() for path in (COMMITTED / "tiny" / "1").iterdir()}


async def test_drift_is_watched_anew(settings: Settings) -> None:
    """An alarm ends with the calibration it was raised against."""
    noise = np.random.default_rng(0).integers(0, 2, (60, 8, 8)).tolist()
    async with open_house(settings) as house:
        await house.answer("tiny/score", {"inputs": noise})
        assert (await catalogued(house))["drift"]["alarm"]
        await house.answer("tiny/calibrate", {"inputs": noise})
        drift = (await catalogued(house))["drift"]
        assert (drift["alarm"], drift["rows"]) == (False, 0)
        assert 'vae_serve_drift_alarm{model="tiny",version="1"} 0.0' in (await house.client.get("/metrics")).text
        await house.answer("tiny/score", {"inputs": noise[:20]})
        assert not (await catalogued(house))["drift"]["alarm"]


async def test_another_version_is_not_calibrated_by_it(tmp_path: Path) -> None:
    """Nor another artifact, and one without a calibration gets its first."""
    for version in (1, 2):
        copied("plain", tmp_path / "models", version=version, calibration=None)
    async with open_house(configured(tmp_path / "models", state=tmp_path / "state", calibrate=True)) as house:
        assert (await house.answer("plain/versions/1/calibrate", {"inputs": like(30)}))["version"] == 1
        score = await house.answer("plain/versions/1/score", {"inputs": like(3, 1)})
        assert len(score["p_value"]) == 3
        assert score["calibration"]["score"] == "elbo"
        assert (await house.answer("plain/score", {"inputs": like(3, 1)}))["p_value"] is None
        assert (await catalogued(house, "plain"))["calibration_source"] is None


@pytest.mark.parametrize("spoil", ["arrays", "facts", "another manifest", "gone", "folder", "no file"])
async def test_one_that_is_not_what_it_must_be_is_refused(
    settings: Settings, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The artifact's own is used then, and the log says why."""
    async with open_house(settings) as house:
        before = await house.answer("tiny/score", {"inputs": like(4, 1)})
        await house.answer("tiny/calibrate", {"inputs": like(60)})
    arrays, facts = kept(settings)
    if spoil == "arrays":
        arrays.write_bytes(arrays.read_bytes()[:-1] + b"x")
    elif spoil == "facts":
        facts.write_text(facts.read_text()[:-20])
    elif spoil == "another manifest":
        facts.write_text(facts.read_text().replace(facts.parent.name, "0" * 64))
    elif spoil == "gone":
        arrays.unlink()
    elif spoil == "no file":
        facts.unlink()
        facts.mkdir()
        (facts / "in the way").touch()
    else:
        facts.write_text(json.dumps(json.loads(facts.read_text()) | {"file": "../calibration-0.npz"}))
    async with open_house(settings) as house:
        assert await house.answer("tiny/score", {"inputs": like(4, 1)}) == before
        assert (await catalogued(house))["calibration_source"] == "artifact"
        said = [record.getMessage() for record in caplog.records if "in the state was refused" in record.getMessage()]
        assert len(said) == 1
        assert "the artifact's own is used" in said[0]
        assert str(settings.state) not in said[0]
        if spoil == "no file":  # which nothing can be renamed over
            refused(await house.ask("tiny/calibrate", {"inputs": like(60)}), 503)
            return
        await house.answer("tiny/calibrate", {"inputs": like(60)})  # and it can be made again
    async with open_house(settings) as house:
        assert (await catalogued(house))["calibration_source"] == "state"


async def test_off_unless_it_is_switched_on(small: Path, settings: Settings) -> None:
    """A 404, and nothing in the schema; switched on it is there, and no example is ever tried."""
    path = "/v1/models/{model}/calibrate"
    async with open_house(configured(small)) as house:
        refused(await house.ask("tiny/calibrate", {"inputs": like(30)}), 404)
        assert path not in (await house.client.get("/openapi.json")).json()["paths"]
    async with open_house(settings) as house:
        assert path in (await house.client.get("/openapi.json")).json()["paths"]
        assert (await catalogued(house))["calibration_source"] == "artifact"


async def test_the_page_shows_scores_by_the_calibration_in_use(settings: Settings) -> None:
    """Its examples are computed again, and its own body for calibrate is too small to replace anything."""

    async def example(house: House, operation: str) -> tuple[Any, Any]:
        post = (await house.client.get("/openapi.json")).json()["paths"][f"/v1/models/{{model}}/{operation}"]["post"]
        body = post["requestBody"]["content"]["application/json"]["examples"]["tiny"]["value"]
        return body, post["responses"]["200"]["content"]["application/json"].get("example")

    async with open_house(settings) as house:
        assert (await example(house, "score"))[1]["calibration"]["n"] == 400
        body, answer = await example(house, "calibrate")
        assert answer is None
        refused(await house.ask("tiny/calibrate", body), 422)
        await house.answer("tiny/calibrate", {"inputs": like(30)})
        assert (await example(house, "score"))[1]["calibration"]["n"] == 30


async def test_rows_that_make_no_calibration_are_refused(settings: Settings) -> None:
    """Too few, with how many it takes; rows, fields and draws are held to what they always are."""
    async with open_house(settings.model_copy(update={"max_rows": 50})) as house:
        few = refused(await house.ask("tiny/calibrate", {"inputs": like(18)}), 422)
        assert "holds 18 rows; 19 are needed" in few["detail"]
        bad = like(30)
        bad[7][0][0] = 2
        assert (
            refused(await house.ask("tiny/calibrate", {"inputs": bad}), 422)["errors"][0]["pointer"] == "/inputs/7/0/0"
        )
        refused(await house.ask("tiny/calibrate", {"inputs": like(30), "seed": 1}), 422)
        refused(await house.ask("tiny/calibrate", {}), 422)
        refused(await house.ask("tiny/calibrate", {"inputs": like(51)}), 413)
        refused(await house.ask("nobody/calibrate", {"inputs": like(30)}), 404)
        assert (await catalogued(house))["calibration_source"] == "artifact"
        assert answered(await house.send("tiny/calibrate", npy(digits(19)), content_type=NPY, accept=NPZ))["n"] == 19
    assert len(kept(settings)) == 2


async def test_a_row_without_a_number_is_named(tmp_path: Path) -> None:
    """Nothing could be told from a row that scores −∞."""
    copied("breast-cancer", tmp_path / "models", source="breast-cancer")
    with np.load(COMMITTED / "breast-cancer" / "1" / "golden.npz") as golden:
        rows = np.repeat(golden["encoder.x"], 4, axis=0)
    rows[5] = 1e200
    async with open_house(configured(tmp_path / "models", state=tmp_path / "state", calibrate=True)) as house:
        body = refused(await house.ask("breast-cancer/calibrate", {"inputs": rows.tolist()}), 422)
        assert body["errors"] == [{"pointer": "/inputs/5", "reason": "has a score that isn't a finite number"}]


@pytest.mark.parametrize("step", ["mkdir", "fsync", "replace"])
async def test_a_disk_that_can_not_be_written_changes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A 503 that says so; what was used before is used on, and there is no litter."""

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/secret")

    async with open_house(settings) as house:
        with monkeypatch.context() as broken:
            broken.setattr(os if step == "fsync" else Path, step, fails)
            body = refused(await house.ask("tiny/calibrate", {"inputs": like(30)}), 503)
        assert "can't be kept: Read-only file system" in body["detail"]
        assert "secret" not in body["detail"]
        assert (await catalogued(house))["calibration_source"] == "artifact"
        await until(lambda: not kept(settings))
        await house.answer("tiny/calibrate", {"inputs": like(30)})


async def test_a_commit_that_fails_leaves_the_one_before(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last rename is the one that counts; before it the old calibration is whole."""
    async with open_house(settings) as house:
        await house.answer("tiny/calibrate", {"inputs": like(30)})
        with monkeypatch.context() as broken:
            broken.setattr(state.Prepared, "commit", _refuse)
            refused(await house.ask("tiny/calibrate", {"inputs": like(40, 1)}), 503)
        await until(lambda: len(kept(settings)) == 2)
        assert (await catalogued(house))["calibration_in_use"]["n"] == 30
    async with open_house(settings) as house:
        assert (await catalogued(house))["calibration_in_use"]["n"] == 30


def _refuse(_: state.Prepared) -> None:
    raise Unkept("the calibration can't be kept: no")


@pytest.mark.parametrize("end", ["late", "gone"])
async def test_one_that_ends_while_its_rows_are_computed_changes_nothing(settings: Settings, end: str) -> None:
    """A deadline that passes is a 503, a caller may leave; all is as it was, and the next one isn't kept waiting."""
    gate = Gate()
    async with open_house(settings, opener=gate.opener) as house:
        gate.shut()
        if end == "late":
            refused(await house.ask("tiny/calibrate", {"inputs": like(30)}, x_timeout_ms="300"), 503)
        else:
            asked = asyncio.create_task(house.ask("tiny/calibrate", {"inputs": like(30)}))
            await gate.held()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)
        gate.open()
        found = await house.answer("tiny/score", {"inputs": like(4, 1)})
        assert found["calibration"]["n"] == 400
        assert kept(settings) == []
        assert (await house.answer("tiny/calibrate", {"inputs": like(30)}))["n"] == 30


async def test_one_cancelled_while_it_is_written_changes_nothing(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written meanwhile is put away."""
    gate, write = Gate(), state.prepare

    def slow(*arguments: Any) -> state.Prepared:
        prepared = write(*arguments)
        gate.passes("prepare", np.zeros(0))
        return prepared

    async with open_house(settings) as house:
        monkeypatch.setattr(state, "prepare", slow)
        gate.shut()
        asked = asyncio.create_task(house.ask("tiny/calibrate", {"inputs": like(30)}))
        await gate.held()
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)
        gate.open()
        await until(lambda: not kept(settings))
        assert (await catalogued(house))["calibration_source"] == "artifact"


async def test_calibrating_under_load_loses_no_request(settings: Settings) -> None:
    """Two at once take turns; every score is answered by one calibration or another, whole."""
    rows: Array = digits(3, 1)

    async def score(house: House) -> httpx.Response:
        return await house.ask("tiny/score", {"inputs": rows.tolist()})

    async with open_house(settings) as house:
        plain = answered(await score(house))
        calibrating = [asyncio.create_task(house.ask("tiny/calibrate", {"inputs": like(n)})) for n in (60, 90)]
        scoring: list[asyncio.Task[httpx.Response]] = []
        while not all(task.done() for task in calibrating):
            scoring.append(asyncio.create_task(score(house)))
            await asyncio.wait(scoring[-8:], return_when=asyncio.FIRST_COMPLETED)
        last = answered(await score(house))
        assert {answered(task.result())["n"] for task in calibrating} == {60, 90}
        assert last["calibration"]["n"] == (await catalogued(house))["calibration_in_use"]["n"]
        seen: dict[int, list[float]] = {400: plain["p_value"], last["calibration"]["n"]: last["p_value"]}
        for task in scoring:
            found = answered(await task)
            assert found["elbo"] == plain["elbo"]
            assert found["p_value"] == seen.setdefault(found["calibration"]["n"], found["p_value"])
            assert found["calibration"]["smallest_p"] == pytest.approx(1 / (found["calibration"]["n"] + 1))
        assert set(seen) <= {400, 60, 90}
        await until(lambda: len(kept(settings)) == 2)  # of the other nothing is left, once its folder is settled

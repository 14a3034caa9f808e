"""Drift as it is served: what the catalogue and the metrics say of rows that are like the calibration's or aren't."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service import artifact
from service.artifact import Array
from tests.kit import COMMITTED, House, configured, digits, open_house
from training import config, data

pytestmark = pytest.mark.anyio


def held_out() -> Array:
    """The rows of tiny's test split: as like its calibration rows as rows can be."""
    manifest = artifact.read(COMMITTED / "tiny" / "1").manifest
    return np.asarray(data.load(config.check(manifest.training.config, "manifest").data).splits["test"])


async def drift(house: House, model: str = "tiny") -> dict[str, Any]:
    """What the catalogue says of drift."""
    found = (await house.client.get(f"/v1/models/{model}")).json()["drift"]
    assert isinstance(found, dict)
    return found


async def metric(house: House, name: str, model: str = "tiny") -> float | None:
    """A gauge of drift; None where there is none."""
    text = (await house.client.get("/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith(f'vae_serve_drift_{name}{{model="{model}"')]
    return float(lines[0].split()[-1]) if lines else None


async def test_rows_like_the_calibrations_raise_nothing(small: Path) -> None:
    """Rows are counted in the catalogue and in the metrics, whichever way they are cut into requests."""
    rows = held_out()
    async with open_house(configured(small, drift_false_alarm=0.01)) as house:
        assert await drift(house) | {"since": ""} == {
            "log_wealth": 0,
            "threshold": pytest.approx(np.log(100)),
            "alarm": False,
            "rows": 0,
            "since": "",
            "recent_strange": None,
            "recent_typical": None,
        }
        await house.answer("tiny/score", {"inputs": rows[:1].tolist()})
        await house.answer("tiny/score", {"inputs": rows[1:].tolist(), "explain": True})
        found = await drift(house)
        assert found["rows"] == len(rows) == await metric(house, "rows")
        assert found["log_wealth"] == await metric(house, "log_wealth") < found["threshold"]
        assert await metric(house, "alarm") == 0
        assert not found["alarm"]
        assert found["recent_strange"] < 2


async def test_strange_rows_raise_the_alarm_and_one_line(small: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The line says what it means; the alarm stays, whatever is sent after it."""
    rows, noise = held_out(), np.random.default_rng(0).integers(0, 2, (30, 8, 8))
    async with open_house(configured(small)) as house:
        await house.answer("tiny/score", {"inputs": rows.tolist()})
        with caplog.at_level(logging.WARNING, "service.footing"):
            for _ in range(3):
                await house.answer("tiny/score", {"inputs": noise.tolist()})
        found = await drift(house)
        assert found["alarm"]
        assert found["recent_strange"] > 5
        assert await metric(house, "alarm") == 1
        said = [record.getMessage() for record in caplog.records if record.name == "service.footing"]
        assert len(said) == 1
        assert "drift: tiny/1" in said[0]
        assert "calibrate or fit again" in said[0]
        await house.answer("tiny/score", {"inputs": rows.tolist()})
        assert (await drift(house))["alarm"]


async def test_only_scores_as_calibrated_count(small: Path) -> None:
    """Another seed or other draws are another score, other operations are none, and the docs' examples are nobody's."""
    rows = digits(5).tolist()
    async with open_house(configured(small)) as house:
        for asked in ({"seed": 1}, {"draws": 32}):
            await house.answer("tiny/score", {"inputs": rows, **asked})
        await house.answer("tiny/encode", {"inputs": rows})
        schema = (await house.client.get("/openapi.json")).json()
        post = schema["paths"]["/v1/models/{model}/score"]["post"]
        assert "example" in json.dumps(post["responses"]["200"])
        assert (await house.ask("tiny/score", {"inputs": [rows[0], [[2]]]})).status_code == 422
        assert (await drift(house))["rows"] == 0
        await house.answer("tiny/score", {"inputs": rows, "seed": 0, "draws": 16, "alpha": 0.5})
        assert (await drift(house))["rows"] == 5


async def test_without_a_calibration_or_a_rate_there_is_no_watch(house: House, small: Path) -> None:
    """null in the catalogue, and no gauge."""
    assert (await house.client.get("/v1/models/plain")).json()["drift"] is None
    assert await metric(house, "rows", "plain") is None
    async with open_house(configured(small, drift_false_alarm=0)) as off:
        await off.answer("tiny/score", {"inputs": digits(2).tolist()})
        assert (await off.client.get("/v1/models/tiny")).json()["drift"] is None
        assert await metric(off, "rows") is None


async def test_a_score_is_the_same_watched_or_not(small: Path) -> None:
    """The watch looks on."""
    body = {"inputs": digits(300).tolist()}
    async with open_house(configured(small)) as watched, open_house(configured(small, drift_false_alarm=0)) as off:
        assert await watched.answer("tiny/score", body) == await off.answer("tiny/score", body)
        assert (await drift(watched))["rows"] == 300

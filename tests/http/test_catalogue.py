"""The catalogue: what is served, its manifest, and where it runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.kit import COMMITTED, House, configured, open_house, refused

pytestmark = pytest.mark.anyio


async def test_models_are_listed_with_their_versions(house: House) -> None:
    """Name, versions ascending, and the highest as the default."""
    listed = (await house.client.get("/v1/models")).json()
    names = sorted(["plain", *(path.name for path in COMMITTED.iterdir())])
    assert [entry["name"] for entry in listed] == names
    assert {"name": "plain", "versions": [1, 2], "default_version": 2} in listed
    assert {"name": "tiny", "versions": [1], "default_version": 1} in listed


@pytest.mark.parametrize("name", [path.name for path in sorted(COMMITTED.iterdir())])
@pytest.mark.parametrize("version", ["", "/versions/1"])
async def test_a_model_shows_its_manifest_and_its_device(house: House, name: str, version: str) -> None:
    """All that is on disk, and the device and providers that are really in use."""
    response = await house.client.get(f"/v1/models/{name}{version}")
    assert response.status_code == 200
    found = response.json()
    on_disk = json.loads((COMMITTED / name / "1" / "manifest.json").read_bytes())
    assert shared(found, on_disk) == on_disk  # what the artifact was made before, it has by default
    assert found["device"] == "cpu"
    assert found["providers"] == ["CPUExecutionProvider"]
    named = (
        "name version event_shape event_dtype latent_size family support base_measure features prior training parity"
    )
    assert {*named.split(), "calibration", "files"} <= set(found)


def shared(found: Any, wanted: Any) -> Any:
    """Of what was found, the fields that are wanted, at every depth."""
    if isinstance(wanted, dict):
        return {key: shared(found[key], value) for key, value in wanted.items()}
    if isinstance(wanted, list) and len(found) == len(wanted):
        return [shared(*pair) for pair in zip(found, wanted, strict=True)]
    return found


async def test_without_a_version_the_highest_answers(house: House) -> None:
    """And each can be asked for."""
    assert (await house.client.get("/v1/models/plain")).json()["version"] == 2
    assert (await house.client.get("/v1/models/plain/versions/1")).json()["version"] == 1


@pytest.mark.parametrize(
    "path",
    [
        "/v1/models/nobody",
        "/v1/models/TINY",
        "/v1/models/tiny/versions/2",
        "/v1/models/tiny/versions/0",
        "/v1/models/tiny/versions/01",
        "/v1/models/tiny/versions/-1",
        "/v1/models/tiny/versions/1.0",
        "/v1/models/tiny/versions/one",
        "/v1/models/tiny/versions/99999999999999999999",
        "/v1/models/tiny/versions",
        "/v1/models/..%2f..%2fetc",
        "/v1/models/%00",
        "/v1/models/%ff",
        "/v1/nothing",
        "/v1",
    ],
)
async def test_what_isnt_there_is_a_404(house: House, path: str) -> None:
    """Unknown models, versions that are none, and paths that lead nowhere."""
    refused(await house.client.get(path), 404)


async def test_a_404_says_what_there_is(house: House) -> None:
    """Names beside an unknown name, versions beside an unknown version."""
    assert "tiny" in refused(await house.client.get("/v1/models/nobody"), 404)["detail"]
    assert "1, 2" in refused(await house.client.get("/v1/models/plain/versions/3"), 404)["detail"]


async def test_the_catalogue_is_json(house: House) -> None:
    """Wanted in another form it is a 406."""
    refused(await house.client.get("/v1/models", headers={"Accept": "text/html"}), 406)
    assert (await house.client.get("/v1/models", headers={"Accept": "*/*"})).status_code == 200


async def test_folders_that_are_no_models_are_left_alone(tiny: Path) -> None:
    """Names and versions that aren't ours, and files beside them, are neither served nor missed."""
    for other in ("Tiny/1", "tiny/0", "tiny/latest", "tiny/.writing-x", "notes", "_x/1"):
        (tiny / other).mkdir(parents=True)
        (tiny / other / "manifest.json").write_text("{}")
    (tiny / "README").write_text("not a model")
    async with open_house(configured(tiny)) as house:
        listed = (await house.client.get("/v1/models")).json()
        assert listed == [{"name": "tiny", "versions": [1], "default_version": 1}]

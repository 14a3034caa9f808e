"""OpenAPI: the page says what the service does, and its examples run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from tests.kit import JSON, NPY, NPZ, Gate, House, configured, golden_rows, npy, open_house

pytestmark = pytest.mark.anyio

OPERATIONS = ["encode", "decode", "reconstruct", "sample", "score", "evidence"]


async def _page(house: House) -> dict[str, Any]:
    response = await house.client.get("/openapi.json")
    assert response.status_code == 200
    return TypeAdapter(dict[str, Any]).validate_python(response.json())


async def _paths(house: House) -> dict[str, Any]:
    return TypeAdapter(dict[str, Any]).validate_python((await _page(house))["paths"])


async def test_the_root_leads_to_the_docs(house: House) -> None:
    """/ redirects to /docs, which is a page."""
    response = await house.client.get("/")
    assert response.is_redirect
    assert response.headers["location"].endswith("/docs")
    assert "text/html" in (await house.client.get("/docs")).headers["content-type"]


async def test_every_path_of_the_contract_is_on_the_page(house: House) -> None:
    """With and without a version."""
    paths = (await _page(house))["paths"]
    assert isinstance(paths, dict)
    models = {"/v1/models", "/v1/models/{model}", "/livez", "/readyz", "/metrics"}
    roots = ("/v1/models/{model}", "/v1/models/{model}/versions/{version}")
    assert models | {f"{root}/{operation}" for root in roots for operation in OPERATIONS} <= set(paths)


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operations_examples_are_answered(house: House, operation: str) -> None:
    """Each example, sent as it stands, is a 200."""
    post = (await house.client.get("/openapi.json")).json()["paths"][f"/v1/models/{{model}}/{operation}"]["post"]
    examples = post["requestBody"]["content"][JSON]["examples"]
    assert {"tiny", "mnist", "breast-cancer"} <= set(examples)
    for model, example in examples.items():
        await house.answer(f"{model}/{operation}", example["value"])


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operations_answer_has_the_fields_that_are_promised(house: House, operation: str) -> None:
    """Required fields come, and nothing comes that isn't on the page."""
    post = (await house.client.get("/openapi.json")).json()["paths"][f"/v1/models/{{model}}/{operation}"]["post"]
    schema = post["responses"]["200"]["content"][JSON]["schema"]
    found = await house.answer(f"tiny/{operation}", post["requestBody"]["content"][JSON]["examples"]["tiny"]["value"])
    assert set(schema["required"]) <= set(found) <= set(schema["properties"])


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_an_operation_lists_its_forms_and_its_refusals(house: House, operation: str) -> None:
    """JSON, npy and npz; and every status of the table with the problem body."""
    post = (await house.client.get("/openapi.json")).json()["paths"][f"/v1/models/{{model}}/{operation}"]["post"]
    assert set(post["requestBody"]["content"]) == ({JSON} if operation == "sample" else {JSON, NPY})
    assert set(post["responses"]["200"]["content"]) == {JSON, NPZ}
    for status in (400, 404, 406, 413, 415, 422, 429, 500, 503):
        assert "application/problem+json" in post["responses"][str(status)]["content"]


async def test_references_on_the_page_lead_somewhere(house: House) -> None:
    """So that a generator of clients can follow them."""
    response = await house.client.get("/openapi.json")
    schemas = response.json()["components"]["schemas"]

    def follow(part: object) -> None:
        if isinstance(part, dict):
            if isinstance(name := part.get("$ref"), str):
                assert name.removeprefix("#/components/schemas/") in schemas
            for inner in part.values():
                follow(inner)
        elif isinstance(part, list):
            for inner in part:
                follow(inner)

    follow(response.json())


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_with_a_version_an_operation_is_the_same(house: House, operation: str) -> None:
    """The same body and answers under both paths, and the page says so."""
    paths = await _paths(house)
    plain = paths[f"/v1/models/{{model}}/{operation}"]["post"]
    versioned = paths[f"/v1/models/{{model}}/versions/{{version}}/{operation}"]["post"]
    assert (versioned["requestBody"], versioned["responses"]) == (plain["requestBody"], plain["responses"])
    assert f"The same as `/v1/models/{{model}}/{operation}`" in versioned["description"]
    assert [one["name"] for one in versioned["parameters"]][:2] == ["model", "version"]
    assert versioned["operationId"] != plain["operationId"]


QUERIES: dict[str, dict[str, Any]] = {
    "encode": {"draws": 2, "seed": 1},
    "decode": {"output": "sample", "seed": 1},
    "reconstruct": {"draws": 1, "seed": 1},
    "evidence": {"draws": 600, "seed": 3, "confidence": 0.9},
    "score": {
        "draws": 16,
        "seed": 0,
        "alpha": 0.1,
        "fdr": 0.1,
        "correction": "simes",
        "confidence": 0.9,
        "explain": "true",
        "conditionals": "true",
    },
}


@pytest.mark.parametrize("operation", QUERIES)
async def test_the_query_beside_npy_is_on_the_page(house: House, operation: str) -> None:
    """Every field of the body but the array, none of them required or filled in; and so they are answered."""
    post = (await _paths(house))[f"/v1/models/{{model}}/{operation}"]["post"]
    parameters = [one for one in post["parameters"] if one["in"] == "query"]
    named = {one["name"] for one in parameters}
    assert named == set(QUERIES[operation])
    assert named == set(post["requestBody"]["content"][JSON]["schema"]["properties"]) - {"inputs", "latents"}
    for one in parameters:
        assert one["description"].startswith(f"with {NPY} only")
        assert {"type"} <= set(one["schema"])
        assert not one.get("required")
        assert "default" not in one["schema"]
    array = house.app.state.models.get("tiny").golden["decoder.z"] if operation == "decode" else golden_rows("tiny")
    query = "&".join(f"{name}={value}" for name, value in QUERIES[operation].items())
    response = await house.send(f"tiny/{operation}?{query}", npy(array), content_type=NPY)
    assert response.status_code == 200, response.text


async def test_health_and_metrics_are_on_the_page_as_they_are(house: House) -> None:
    """/livez and /readyz have the same body at 200 and 503; /metrics is text."""
    page = await _paths(house)
    for path in ("/livez", "/readyz"):
        answers = page[path]["get"]["responses"]
        assert answers["200"]["content"] == answers["503"]["content"]
        fields = await _fields(house, answers["503"]["content"][JSON]["schema"])
        assert fields == set((await house.client.get(path)).json())
    (form,) = page["/metrics"]["get"]["responses"]["200"]["content"]
    assert (await house.client.get("/metrics")).headers["content-type"].startswith(form)
    assert form == "text/plain"


async def test_the_catalogue_is_on_the_page_as_it_is(house: House) -> None:
    """What is listed and what a manifest holds, field by field, and what is refused."""
    page = await _paths(house)
    answers = page["/v1/models"]["get"]["responses"]
    listed = await _fields(house, answers["200"]["content"][JSON]["schema"]["items"])
    assert listed == set((await house.client.get("/v1/models")).json()[0])
    assert "application/problem+json" in answers["406"]["content"]
    for path in ("/v1/models/{model}", "/v1/models/{model}/versions/{version}"):
        answers = page[path]["get"]["responses"]
        described = await _fields(house, answers["200"]["content"][JSON]["schema"])
        assert described == set((await house.client.get("/v1/models/tiny")).json())
        assert {"404", "406"} <= set(answers)
        assert "application/problem+json" in answers["404"]["content"]


async def _fields(house: House, schema: dict[str, str]) -> set[str]:
    """The fields of a schema that the page names elsewhere."""
    components = TypeAdapter(dict[str, Any]).validate_python((await _page(house))["components"])
    return set(components["schemas"][schema["$ref"].rpartition("/")[2]]["properties"])


async def test_examples_are_computed_once(small: Path) -> None:
    """As long as the same models are served, the page costs no engine anything."""
    gate = Gate()
    async with open_house(configured(small), opener=gate.opener) as house:
        first = await _page(house)
        assert _answered(first) == set(OPERATIONS)
        gate.calls.clear()
        assert await _page(house) == first
        assert not gate.calls


async def test_a_busy_service_shows_its_page_without_answers(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for an example; it is there as soon as there is time for it."""
    monkeypatch.setattr("service.http.openapi.PATIENCE", 0.05)
    gate = Gate()
    async with open_house(configured(small), opener=gate.opener) as house:
        gate.shut()
        assert not _answered(await _page(house))
        monkeypatch.undo()
        gate.open()
        assert _answered(await _page(house)) == set(OPERATIONS)


async def test_where_limits_are_low_the_page_is_there_all_the_same(small: Path) -> None:
    """An example that they refuse has no answer; the others have theirs."""
    async with open_house(configured(small, max_row_draws=60)) as house:
        assert _answered(await _page(house)) == {*OPERATIONS} - {"evidence"}


def _answered(page: dict[str, Any]) -> set[str]:
    """The operations whose answer has an example."""
    found = {operation: page["paths"][f"/v1/models/{{model}}/{operation}"]["post"] for operation in OPERATIONS}
    return {name for name, post in found.items() if "example" in post["responses"]["200"]["content"][JSON]}

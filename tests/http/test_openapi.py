"""OpenAPI: the page says what the service does, and its examples run."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter

from tests.kit import JSON, NPY, NPZ, House

pytestmark = pytest.mark.anyio

OPERATIONS = ["encode", "decode", "reconstruct", "sample", "score"]


async def _page(house: House) -> dict[str, object]:
    response = await house.client.get("/openapi.json")
    assert response.status_code == 200
    return TypeAdapter(dict[str, object]).validate_python(response.json())


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
    assert models | {f"/v1/models/{{model}}/{operation}" for operation in OPERATIONS} <= set(paths)


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

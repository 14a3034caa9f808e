"""Telemetry: ids, timing, metrics and the access log."""

from __future__ import annotations

import asyncio
import json
import logging
import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.http import sparing
from service.logs import JsonLines
from tests.kit import PATIENCE, House, digits

pytestmark = pytest.mark.anyio

BODY = {"inputs": digits(2).tolist()}
EVERYWHERE = [
    "/v1/models",
    "/v1/models/tiny",
    "/v1/models/nobody",
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/nowhere",
]


@pytest.mark.parametrize("name", ["a", "0d9f-11", "x.y_z-3", "A" * 128])
async def test_a_request_id_is_echoed(house: House, name: str) -> None:
    """On answers and on refusals, where the body has it too."""
    assert (await house.ask("tiny/score", BODY, x_request_id=name)).headers["x-request-id"] == name
    response = await house.ask("tiny/score", {}, x_request_id=name)
    assert response.headers["x-request-id"] == response.json()["request_id"] == name


@pytest.mark.parametrize("name", ["", " ", "A" * 129, "two words", "<script>", "a;b"])
async def test_an_id_that_could_do_harm_is_replaced(house: House, name: str) -> None:
    """Long ones and those with strange characters don't reach the log."""
    given = (await house.ask("tiny/score", BODY, x_request_id=name)).headers["x-request-id"]
    assert given != name
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", given)


@pytest.mark.parametrize("path", EVERYWHERE)
async def test_every_response_has_an_id_and_its_timing(house: House, path: str) -> None:
    """A new id for each that brings none, and four spans in milliseconds."""
    first, second = await house.client.get(path), await house.client.get(path)
    assert first.headers["x-request-id"] != second.headers["x-request-id"]
    spans = re.findall(r"(\w+);dur=([0-9.]+)", first.headers["server-timing"])
    assert [name for name, _ in spans] == ["parse", "queue", "infer", "total"]


async def test_the_spans_are_parts_of_the_total(house: House) -> None:
    """What was parsed, waited and computed took no longer than all of it."""
    response = await house.ask("tiny/score", {**BODY, "draws": 512})
    spans = {n: float(v) for n, v in re.findall(r"(\w+);dur=([0-9.]+)", response.headers["server-timing"])}
    assert spans["infer"] > 0
    assert spans["parse"] > 0
    assert spans["parse"] + spans["queue"] + spans["infer"] <= spans["total"]


async def _samples(house: House) -> dict[tuple[str, str, str, str], float]:
    response = await house.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    found = {}
    for family in text_string_to_metric_families(response.text):
        for sample in family.samples:
            operation, model, status = (sample.labels.get(name, "") for name in ("operation", "model", "status"))
            found[sample.name, operation, model, status] = sample.value
    return found


async def test_requests_and_rows_are_counted(house: House) -> None:
    """By operation, model and status."""
    before = await _samples(house)
    await house.ask("tiny/score", BODY)
    await house.ask("tiny/score", {})
    after = await _samples(house)

    def grown(operation: str, model: str, status: str = "", what: str = "requests") -> float:
        key = (f"vae_serve_{what}_total", operation, model, status)
        return after[key] - before.get(key, 0.0)

    assert grown("score", "tiny", "200") == 1
    assert grown("score", "tiny", "422") == 1
    assert grown("score", "tiny", what="rows") == 2
    assert after["vae_serve_ready", "", "", ""] == 1


async def test_names_of_unknown_models_dont_become_labels(house: House) -> None:
    """Or any caller could make metrics without end."""
    await house.ask("no-such-model-anywhere/score", BODY)
    assert "no-such-model-anywhere" not in (await house.client.get("/metrics")).text


async def test_a_refusal_is_one_line_in_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    """With its id, method, path and status; as JSON for a machine."""
    with caplog.at_level(logging.INFO, "service.access"):
        await house.ask("tiny/score", {}, x_request_id="seen")
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    line = json.loads(JsonLines().format(record))
    assert (line["id"], line["method"], line["path"], line["status"]) == ("seen", "POST", "/v1/models/tiny/score", 422)


async def test_many_refusals_in_a_second_are_few_lines_and_a_count(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody fills the disk by asking for nonsense; every refusal is counted, and other statuses have their lines."""
    books = house.app.state.front.books
    monkeypatch.setattr(sparing, "SECOND", 1000.0)  # the second is over when this test says so
    monkeypatch.setattr(books, "_sparing", sparing.Sparing(3, books._sparing._say))
    with caplog.at_level(logging.INFO, "service.access"):
        for _ in range(8):
            await house.ask("tiny/score", {})
        await house.ask("nobody/score", BODY)
        books._sparing.tell()  # as it does once the second is over
        await house.ask("tiny/score", {})
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == "service.access"]
    told = [(line["message"], line["status"], line.get("count")) for line in lines]
    each = ("request", 422, None)
    assert told == [each, each, each, ("request", 404, None), ("more requests", 422, 5), each]


async def test_what_was_left_out_is_said_once_its_second_is_over() -> None:
    """By a clock, so also where nobody is refused any more."""
    said = asyncio.get_running_loop().create_future()
    lines = sparing.Sparing(1, lambda *found: said.set_result(found))
    assert [lines.admits("a") for _ in range(3)] == [True, False, False]
    assert await asyncio.wait_for(said, PATIENCE) == ("a", 2)
    assert lines.admits("a")


async def test_what_was_left_out_is_said_at_the_end_and_as_loudly(
    house: House, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that ends within the second says it before; of failures it is a warning, as each of them is."""
    books = house.app.state.front.books
    monkeypatch.setattr(books, "_sparing", sparing.Sparing(1, books._sparing._say))
    for status in ("503", "503", "503", "404", "404"):
        books._sparing.admits(status)
    with caplog.at_level(logging.WARNING, "service.access"):
        books.end()
    (record,) = [record for record in caplog.records if record.name == "service.access"]
    line = json.loads(JsonLines().format(record))
    assert (line["level"], line["message"], line["status"], line["count"]) == ("warning", "more requests", 503, 2)

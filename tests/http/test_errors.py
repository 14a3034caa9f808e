"""Errors: every row of the table, and the body that all of them have."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from service.artifact import Array, Arrays, Artifact
from service.engine import Engine, open_engine
from tests.kit import Gate, House, configured, digits, open_house, refused, until

pytestmark = pytest.mark.anyio

BODY = {"inputs": digits(1).tolist()}


@pytest.mark.parametrize("operation", ["encode", "decode", "reconstruct", "sample", "score"])
async def test_an_unknown_model_is_a_404(house: House, operation: str) -> None:
    """For every operation, with or without a version."""
    for path in (f"nobody/{operation}", f"tiny/versions/7/{operation}", f"tiny/versions/x/{operation}"):
        refused(await house.ask(path, BODY), 404)


async def test_an_operation_that_isnt_offered_is_a_404(house: House) -> None:
    """Whatever its name."""
    for path in ("tiny/dream", "tiny/versions/1/dream", "tiny/Score", "tiny/score/"):
        refused(await house.ask(path, BODY), 404)


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/models/tiny/score", {"POST"}),
        ("PUT", "/v1/models/tiny/score", {"POST"}),
        ("DELETE", "/v1/models/tiny/versions/1/encode", {"POST"}),
        ("POST", "/v1/models", {"GET"}),
        ("POST", "/v1/models/tiny", {"GET"}),
        ("PATCH", "/v1/models/tiny/versions/1", {"GET"}),
        ("POST", "/livez", {"GET", "HEAD"}),
        ("DELETE", "/readyz", {"GET", "HEAD"}),
        ("POST", "/metrics", {"GET"}),
    ],
)
async def test_a_wrong_method_is_a_405_with_allow(house: House, method: str, path: str, allow: set[str]) -> None:
    """Allow lists what is offered there."""
    response = await house.client.request(method, path)
    refused(response, 405)
    assert set(response.headers["allow"].split(", ")) - {"HEAD"} == allow - {"HEAD"}
    assert allow <= set(response.headers["allow"].split(", "))


@pytest.mark.parametrize("value", ["", "soon", "-5", "0", "1.5", "1e3", "5 ms", "99999999999999"])
async def test_a_malformed_deadline_is_a_400(house: House, value: str) -> None:
    """X-Timeout-Ms is a whole number of milliseconds above 0."""
    body = refused(await house.ask("tiny/score", BODY, x_timeout_ms=value), 400)
    assert "X-Timeout-Ms" in body["detail"]


async def test_a_deadline_that_is_met_changes_nothing(house: House) -> None:
    """With time enough the answer is the same."""
    hurried = await house.ask("tiny/score", BODY, x_timeout_ms="60000")
    assert hurried.content == (await house.ask("tiny/score", BODY)).content


async def test_an_answer_after_the_deadline_is_a_503(small: Path) -> None:
    """Whether the rows wait or are being computed; and those that waited are never computed."""
    gate = Gate()
    async with open_house(configured(small, lanes=1), opener=gate.opener) as house:
        gate.shut()
        computing = asyncio.create_task(house.ask("tiny/score", BODY, x_timeout_ms="400"))
        await gate.held()
        waiting = await house.ask("tiny/score", {"inputs": digits(2).tolist()}, x_timeout_ms="50")
        assert "deadline" in refused(waiting, 503)["detail"]
        assert "deadline" in refused(await computing, 503)["detail"]
        gate.open()
        assert (await house.ask("tiny/score", BODY)).status_code == 200
        assert gate.rows("elbo") == 2


async def test_a_deadline_of_the_service_holds_where_none_is_named(small: Path) -> None:
    """VAE_SERVE_TIMEOUT_MS; and a caller may not ask for more than VAE_SERVE_MAX_TIMEOUT_MS."""
    gate = Gate()
    settings = configured(small, lanes=1, timeout_ms=60, max_timeout_ms=120)
    async with open_house(settings, opener=gate.opener) as house:
        gate.shut()
        refused(await house.ask("tiny/score", BODY), 503)
        refused(await house.ask("tiny/score", BODY, x_timeout_ms="9999999"), 503)
        gate.open()


async def test_a_full_waiting_room_is_a_429(small: Path) -> None:
    """Refused at the door with Retry-After, and those who wait are answered."""
    gate = Gate()
    async with open_house(configured(small, lanes=1, waiting=32), opener=gate.opener) as house:
        gate.shut()
        computing = asyncio.create_task(house.ask("tiny/score", BODY))
        await gate.held()
        waiting = [asyncio.create_task(house.ask("tiny/score", BODY)) for _ in range(2)]
        await until(lambda: house.waiting("tiny", "score") == 32)
        body = refused(await house.ask("tiny/score", BODY), 429)
        assert "32" in body["detail"]
        gate.open()
        assert [(await task).status_code for task in (computing, *waiting)] == [200] * 3
        assert (await house.ask("tiny/score", BODY)).status_code == 200


# ---------------------------------------------------------------- ours


Fault = Literal["raises", "loses an output", "loses a row"]


@dataclass(frozen=True)
class Broken(Engine):
    """An engine that fails in one graph, once it is told to."""

    fault: Fault = "raises"
    breaks: list[bool] = field(default_factory=list)

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Fail where the encoder is asked."""
        outputs = super().compute(graph, feeds)
        if graph != "encoder" or not self.breaks:
            return outputs
        match self.fault:
            case "raises":
                raise RuntimeError(f"out of memory at 0xdeadbeef in {__file__}")
            case "loses an output":
                return {"mean": outputs["mean"]}
            case "loses a row":
                return {name: array[1:] for name, array in outputs.items()}


@dataclass(frozen=True)
class Picky(Engine):
    """An engine whose encoder can't bear a row of zeros."""

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Fail for everybody in the call."""
        if graph == "encoder" and not feeds["x"].reshape(len(feeds["x"]), -1).any(axis=1).all():
            raise RuntimeError("zeros")
        return super().compute(graph, feeds)


@pytest.mark.parametrize("batch", [1024, 8], ids=["together", "cut along draws"])
async def test_a_row_that_the_encoder_fails_on_costs_its_neighbours_nothing(small: Path, batch: int) -> None:
    """It has no density of states; theirs are, to the last bit, what they are alone."""

    def opener(found: Artifact) -> Engine:
        engine = open_engine(found, "cpu")
        return Picky(engine.device, engine.providers, engine.fallback, engine.sessions)

    rows = digits(3)
    rows[1] = 0
    async with open_house(configured(small, batch=batch), opener=opener) as house:
        found = (await house.answer("tiny/score", {"inputs": rows.tolist()}))["scores"]["density_of_states"]
        assert found["value"][1] is found["p_value"][1] is None
        for place in (0, 2):
            alone = (await house.answer("tiny/score", {"inputs": rows[place : place + 1].tolist()}))["scores"][
                "density_of_states"
            ]
            assert alone["value"][0] is not None
            assert alone == {name: [found[name][place]] for name in alone}


@pytest.mark.parametrize("fault", ["raises", "loses an output", "loses a row"])
async def test_our_mistake_is_a_500_with_a_reference_and_a_log_line(
    small: Path, caplog: pytest.LogCaptureFixture, fault: Fault
) -> None:
    """What happened stays in the log, under the number that the caller is told; other operations go on."""
    breaks: list[bool] = []

    def opener(found: Artifact) -> Engine:
        engine = open_engine(found, "cpu")
        return Broken(engine.device, engine.providers, engine.fallback, engine.sessions, fault, breaks)

    async with open_house(configured(small), opener=opener) as house:
        breaks.append(True)
        with caplog.at_level(logging.ERROR):
            body = refused(await house.ask("tiny/encode", BODY), 500)
        assert body["request_id"] in body["detail"]
        assert any(body["request_id"] in record.getMessage() for record in caplog.records)
        assert "deadbeef" not in str(body)
        scores = (await house.answer("tiny/score", BODY))["scores"]
        assert scores["elbo"]["value"][0] is not None
        assert scores["density_of_states"] == {"value": [None], "p_value": [None]}  # which alone needs the encoder
        assert (await house.client.get("/livez")).status_code == 200

"""Devices: what a caller sees of buckets, which is nothing, and of a device that is lost."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.artifact import Array, Arrays, Artifact
from service.cost import Cost
from service.engine import Engine, open_engine
from service.errors import EngineLost
from tests.kit import PATIENCE, configured, digits, open_house, refused, running, until_status
from tests.rehearsal import rehearsed

pytestmark = pytest.mark.anyio

ASKED = (
    ("tiny/score", {"inputs": digits(7).tolist(), "explain": True}),
    ("tiny/score", {"inputs": digits(3).tolist(), "draws": 5, "seed": 3}),
    ("tiny/evidence", {"inputs": digits(2).tolist(), "draws": 600}),
    ("tiny/encode", {"inputs": digits(9).tolist(), "draws": 2}),
    ("tiny/reconstruct", {"inputs": digits(2).tolist(), "draws": 3}),
    ("tiny/sample", {"count": 21, "seed": 4}),
)

# The service, with an engine whose device is lost in a score of four rows.
LOSES = """
import sys
from service import __main__, ahead, engine
from service.errors import EngineLost

class Losing(engine.Engine):
    gone = None
    lost = property(lambda self: Losing.gone)

    def compute(self, graph, feeds):
        if graph == "elbo" and len(feeds["x"]) == 4:
            Losing.gone = "the device is gone"
        if Losing.gone:
            raise EngineLost(Losing.gone)
        return super().compute(graph, feeds)

def losing(found, device, opened=ahead.open_engine):
    engine = opened(found, device)
    return Losing(engine.device, engine.providers, engine.fallback, engine.sessions)

ahead.open_engine = losing
sys.exit(__main__.main(["serve"]))
"""


async def test_with_buckets_every_answer_is_the_same_to_the_last_bit(small: Path) -> None:
    """Of every operation: the numbers are those of the service without."""
    answers = []
    for buckets in ("off", (2, 8)):
        async with open_house(configured(small, buckets=buckets, batch=64)) as house:
            answers.append([await house.answer(path, body) for path, body in ASKED])
    assert answers[0] == answers[1]


async def test_a_call_to_a_device_never_blocks_the_loop(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However quick it is: it waits for the device, for a slot, or for a model that is being opened."""
    monkeypatch.setattr(Cost, "within", lambda *_: 64)  # as if every call were quick
    with rehearsed(lambda *_: None) as (_, opened):
        changes = {"device": "cuda", "buckets": (2, 8), "batch": 64, "inline_us": 1_000}
        async with open_house(configured(small, **changes)) as house:
            here: list[object] = []
            monkeypatch.setattr(house.app.state.lanes, "here", here.append)
            opened["elbo"].runs.clear()
            answer = await house.answer("tiny/score", {"inputs": digits(3).tolist()})
            assert not here
            (run,) = opened["elbo"].runs
            assert run[0] != "-1"
            assert (await house.client.get("/v1/models/tiny")).json()["device"] == "cuda"
    async with open_house(configured(small)) as house:
        assert await house.answer("tiny/score", {"inputs": digits(3).tolist()}) == answer


class Losing(Engine):
    """An engine whose device is there until it isn't."""

    gone: str | None = None

    @property
    def lost(self) -> str | None:
        """What it was told to say."""
        return Losing.gone

    def compute(self, graph: str, feeds: dict[str, Array]) -> Arrays:  # type: ignore[override]
        """As any engine, or not any more."""
        if Losing.gone:
            raise EngineLost(Losing.gone)
        return super().compute(graph, feeds)


async def test_a_device_that_is_lost_turns_livez_503(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asked is answered, with our mistake; then the service says that it doesn't live, and ends."""

    def opener(found: Artifact) -> Engine:
        engine = open_engine(found)
        return Losing(engine.device, engine.providers, engine.fallback, engine.sessions)

    async with open_house(configured(small), opener=opener) as house:
        assert (await house.client.get("/livez")).status_code == 200
        monkeypatch.setattr(Losing, "gone", "the device is gone")
        refused(await house.ask("tiny/score", {"inputs": digits(2).tolist()}), 500)
        assert "the device is gone" in (await until_status(house, 503, "/livez")).text
        assert house.app.state.door.ended.is_set()


def test_a_process_whose_device_is_lost_ends_with_another_status_than_0(small: Path) -> None:
    """So that whatever watches over it starts it again."""
    with running(start=("-c", LOSES), models=str(small)) as (process, address):
        asked = httpx.post(f"{address}/v1/models/tiny/score", json={"inputs": digits(4).tolist()}, timeout=PATIENCE)
        refused(asked, 500)
        assert process.wait(PATIENCE) == 1
        assert process.stderr
        assert "vae-serve: the device is gone" in process.stderr.read()

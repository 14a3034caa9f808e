"""The repository over HTTP: versions come and go under load, and nobody who asked is lost."""

from __future__ import annotations

import asyncio
import shutil
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import orjson
import pytest
import tritonclient.http as triton
from starlette.requests import Request
from tritonclient.utils import InferenceServerException

from service import artifact
from service.ahead import Ahead
from service.app import ELSEWHERE, build
from service.artifact import Artifact
from service.engine import Engine, open_engine
from service.errors import Malformed, Unauthorised
from service.http.admin import Admin
from service.http.telemetry import Visit
from service.models import Model, Shelf
from tests.kit import (
    PATIENCE,
    Gate,
    House,
    answered,
    configured,
    copied,
    digits,
    listening,
    open_house,
    refused,
    until,
    wait_until,
)
from tests.oip import error

pytestmark = pytest.mark.anyio

TOKEN = "correct-horse-battery-staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
ROWS = digits(2, seed=3)
BODY = {"inputs": ROWS.tolist()}


def guarded(folder: Path, **changes: Any) -> Any:
    """Settings with a token."""
    return configured(folder, **{"admin_token": TOKEN, **changes})


async def change(house: House, path: str, **headers: str) -> httpx.Response:
    """POST a change of the repository, with the token unless told otherwise."""
    return await house.client.post(f"/v1/models/{path}", headers=headers or BEARER)


async def versions(house: House) -> dict[str, list[int]]:
    """What the catalogue lists."""
    return {one["name"]: one["versions"] for one in (await house.client.get("/v1/models")).json()}


async def default(house: House, name: str = "tiny") -> int:
    """The version that answers a score where none is named, which must be the one that the catalogue says."""
    (listed,) = (one for one in (await house.client.get("/v1/models")).json() if one["name"] == name)
    found = (await house.answer(f"{name}/score", BODY))["version"]
    assert found == listed["default_version"]
    return int(found)


def spoil(folder: Path) -> None:
    """Change a bit of an artifact's graph, which its digest then isn't."""
    path = folder / "elbo.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"\0")


def doors() -> list[str]:
    """What a service runs for as long as somebody may ask mayfly, which no other service has."""
    return sorted(task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("mayfly/"))


# ---------------------------------------------------------------- who may


async def test_without_a_token_set_there_is_nothing_to_load_by(tiny: Path) -> None:
    """Under /v1 the paths aren't there, nor on the page; under /v2 it is a 400 that says what to set."""
    async with open_house(configured(tiny)) as house:
        for path in ("tiny/load", "tiny/unload", "tiny/versions/1/unload"):
            refused(await change(house, path), 404)
            assert (
                f"/v1/models/{path.replace('tiny', '{model}').replace('1', '{version}')}"
                not in (await house.client.get("/openapi.json")).json()["paths"]
            )
        said = error(await house.client.post("/v2/repository/models/tiny/unload", headers=BEARER), 400)
        assert "VAE_SERVE_ADMIN_TOKEN" in said
        assert "model_repository" not in (await house.client.get("/v2")).json()["extensions"]
        assert await default(house) == 1


async def test_the_token_is_asked_for(tiny: Path) -> None:
    """None, another, another scheme: a 401 that says how, and nothing changes; the scheme's case doesn't matter."""
    async with open_house(guarded(tiny)) as house:
        for given in ("", "Bearer", f"Bearer {TOKEN}x", f"Bearer {TOKEN[:-1]}", f"Basic {TOKEN}", TOKEN, "Bearer é"):
            headers = [(b"authorization", given.encode())] if given else []
            for path in ("tiny/load", "tiny/unload", "tiny/versions/1/unload", "nobody/unload"):
                response = await house.client.post(f"/v1/models/{path}", headers=headers)
                refused(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
            for what in ("load", "unload"):
                response = await house.client.post(f"/v2/repository/models/tiny/{what}", headers=headers)
                error(response, 401)
                assert response.headers["www-authenticate"] == "Bearer"
        assert await versions(house) == {"tiny": [1]}
        assert (await change(house, "tiny/load", authorization=f"bearer {TOKEN}")).status_code == 200


async def test_the_page_says_that_a_token_is_needed(tiny: Path) -> None:
    """On every path that changes what is served, and on no other; what it answers is what it says."""
    async with open_house(guarded(tiny)) as house:
        page = (await house.client.get("/openapi.json")).json()
        asked = {path for path, item in page["paths"].items() if "security" in item.get("post", {})}
        assert asked == {
            *("/v1/models/{model}/load", "/v1/models/{model}/unload", "/v1/models/{model}/versions/{version}/unload"),
            *("/v2/repository/models/{model}/load", "/v2/repository/models/{model}/unload"),
        }
        assert page["components"]["securitySchemes"]["admin"]["scheme"] == "bearer"
        found = answered(await change(house, "tiny/load"))
        assert set(found) == set(page["components"]["schemas"]["Changed"]["properties"])


async def test_one_of_several_processes_says_where_to_ask(tiny: Path) -> None:
    """Changing one of them would make their answers differ; who has no token isn't told."""
    async with open_house(guarded(tiny)) as house:
        guard = Admin(house.app.state.desk, house.app.state.repository, TOKEN, ELSEWHERE)
    scope: dict[str, Any] = {"type": "http", "headers": [], "visit": Visit("mine", 0.0)}
    with pytest.raises(Unauthorised):
        guard.check(Request(scope))
    with pytest.raises(Malformed, match="send SIGHUP to the supervisor"):
        guard.check(Request({**scope, "headers": [(b"authorization", f"Bearer {TOKEN}".encode())]}))


# ---------------------------------------------------------------- what comes


async def test_a_new_version_answers_once_it_is_loaded(tiny: Path) -> None:
    """Not before it is asked for, by both ways; what is there already is left as it is, and keeps its watch."""
    async with open_house(guarded(tiny)) as house:
        copied("tiny", tiny, version=2)
        first = house.app.state.models.get("tiny", 1)
        assert await default(house) == 1
        found = answered(await change(house, "tiny/load"))
        assert found == {"model": "tiny", "versions": [1, 2], "default_version": 2, "loaded": [2], "retired": []}
        assert await default(house) == 2
        copied("tiny", tiny, version=3)
        response = await house.client.post("/v2/repository/models/tiny/load", headers=BEARER, json={})
        assert response.json()["loaded"] == [3]
        assert await versions(house) == {"tiny": [1, 2, 3]}
        assert house.app.state.models.get("tiny", 1) is first
        assert (await house.client.get("/v2/models/tiny.encode")).json()["versions"] == ["1", "2", "3"]
        assert answered(await change(house, "tiny/load"))["loaded"] == []


async def test_a_name_that_was_not_there_at_the_start(tiny: Path) -> None:
    """It is loaded like any other, and is of no account to who is ready."""
    async with open_house(guarded(tiny)) as house:
        refused(await change(house, "other/load"), 404)
        copied("other", tiny)
        assert answered(await change(house, "other/load"))["versions"] == [1]
        assert await default(house, "other") == 1
        spoil(copied("third", tiny))
        refused(await change(house, "third/load"), 422)
        assert (await house.client.get("/readyz")).status_code == 200
        refused(await house.ask("third/score", BODY), 503)


async def test_a_broken_version_leaves_what_was(tiny: Path) -> None:
    """The answer says why; the older one goes on, /readyz is as it was; mended, it is loaded."""
    async with open_house(guarded(tiny)) as house:
        copied("tiny", tiny, version=2)
        kept = (tiny / "tiny" / "2" / "elbo.onnx").read_bytes()
        spoil(tiny / "tiny" / "2")
        said = refused(await change(house, "tiny/load"), 422)["detail"]
        assert "tiny/2: elbo.onnx is not the file that the manifest lists" in said
        assert "still is" in said
        assert "elbo.onnx" in error(await house.client.post("/v2/repository/models/tiny/load", headers=BEARER), 422)
        assert await default(house) == 1
        assert (await house.client.get("/readyz")).status_code == 200
        assert "elbo.onnx" in refused(await house.ask("tiny/versions/2/score", BODY), 503)["detail"]
        assert 'vae_serve_model_refused{model="tiny",version="2"} 1.0' in (await house.client.get("/metrics")).text
        (tiny / "tiny" / "2" / "elbo.onnx").write_bytes(kept)
        assert answered(await change(house, "tiny/load"))["loaded"] == [2]
        text = (await house.client.get("/metrics")).text
        assert 'vae_serve_model_refused{model="tiny",version="2"}' not in text
        assert 'vae_serve_model_info{device="cpu",model="tiny",version="2"} 1.0' in text


async def test_a_bug_in_opening_is_in_the_log_and_leaves_what_was(tiny: Path) -> None:
    """Whatever it is: its words are for the log, since they may hold a path."""
    broken = threading.Event()

    def opener(found: Artifact) -> Engine:
        if broken.is_set():
            raise RuntimeError(f"no memory at 0xdeadbeef in {__file__}")
        return open_engine(found, "cpu")

    async with open_house(guarded(tiny), opener=opener) as house:
        broken.set()
        copied("tiny", tiny, version=2)
        assert "the service's log says why" in refused(await change(house, "tiny/load"), 422)["detail"]
        assert await default(house) == 1
        assert (await house.client.get("/livez")).status_code == 200


async def test_a_version_that_changed_is_opened_anew(tiny: Path) -> None:
    """And nothing of the old one is left in what is told of it; a changed one that is broken leaves the old one."""
    async with open_house(guarded(tiny)) as house:
        before = await house.answer("tiny/score", BODY)
        path = tiny / "tiny" / "1"
        artifact.rewrite(artifact.read(path), {"description": "another", "calibration": None}, {})
        assert (await house.client.get("/v2/models/tiny")).json()["outputs"]
        assert answered(await change(house, "tiny/load"))["loaded"] == [1]
        after = await house.answer("tiny/score", BODY)
        assert after["elbo"] == before["elbo"]
        assert before["p_value"] is not None
        assert after["p_value"] is None
        assert (await house.client.get("/v1/models/tiny")).json()["description"] == "another"
        names = {one["name"] for one in (await house.client.get("/v2/models/tiny")).json()["outputs"]}
        assert "p_value" not in names
        artifact.rewrite(artifact.read(path), {"description": "a third"}, {})
        spoil(path)
        refused(await change(house, "tiny/load"), 422)
        assert (await house.client.get("/v1/models/tiny")).json()["description"] == "another"
        index = (await house.client.post("/v2/repository/index")).json()
        assert {one["state"] for one in index} == {"READY"}


async def test_a_calibration_in_the_state_is_found_by_whoever_is_loaded(tiny: Path, tmp_path: Path) -> None:
    """By its manifest's digest, as at a start: unloaded and loaded again, it is there."""
    async with open_house(guarded(tiny, state=tmp_path / "state", calibrate=True)) as house:
        await house.answer("tiny/calibrate", {"inputs": digits(40).tolist()})
        answered(await change(house, "tiny/unload"))
        answered(await change(house, "tiny/load"))
        shown = (await house.client.get("/v1/models/tiny")).json()
        assert (shown["calibration_source"], shown["calibration_in_use"]["n"]) == ("state", 40)


# ---------------------------------------------------------------- what goes


async def test_an_unloaded_model_is_not_found(tiny: Path) -> None:
    """A 404, and no part of readiness unless it is required; the index has it, and load brings it back."""
    copied("other", tiny)
    copied("tiny", tiny, version=2)
    async with open_house(guarded(tiny)) as house:
        found = answered(await change(house, "tiny/versions/2/unload"))
        assert found == {"model": "tiny", "versions": [1], "default_version": 1, "loaded": [], "retired": [2]}
        assert await default(house) == 1
        refused(await house.ask("tiny/versions/2/score", BODY), 404)
        response = await house.client.post("/v2/repository/models/tiny/unload", headers=BEARER)
        assert (response.json()["retired"], response.json()["default_version"]) == ([1], None)
        refused(await house.ask("tiny/score", BODY), 404)
        error(await house.client.get("/v2/models/tiny/ready"), 404)
        assert (await house.client.get("/readyz")).status_code == 200
        index = (await house.client.post("/v2/repository/index")).json()
        gone = {"state": "UNAVAILABLE", "reason": "was unloaded"}
        assert [one for one in index if one["name"] == "tiny"] == [
            {"name": "tiny", "version": version, **gone} for version in ("1", "2")
        ]
        assert 'vae_serve_model_info{device="cpu",model="tiny"' not in (await house.client.get("/metrics")).text
        for path in ("tiny/unload", "tiny/versions/1/unload", "nobody/unload", "other/versions/x/unload"):
            refused(await change(house, path), 404)
        assert "with its artifact, other" in refused(await change(house, "other.encode/unload"), 404)["detail"]
        answered(await change(house, "other/unload"))
        assert "load one" in (await house.client.get("/readyz")).json()["reasons"][0]
        assert answered(await change(house, "tiny/load"))["loaded"] == [1, 2]
        assert await default(house) == 2


async def test_a_required_model_that_is_unloaded_is_missed(tiny: Path) -> None:
    """Who names what must be ready means it."""
    copied("other", tiny)
    async with open_house(guarded(tiny, required=("tiny",))) as house:
        answered(await change(house, "tiny/unload"))
        assert (await house.client.get("/readyz")).json()["reasons"] == ["tiny is required and was unloaded"]


async def test_a_version_that_is_gone_is_retired_by_a_load(tiny: Path) -> None:
    """Only where nothing was refused; and a name that is gone altogether is left, since nobody unloaded it."""
    copied("tiny", tiny, version=2)
    async with open_house(guarded(tiny)) as house:
        shutil.rmtree(tiny / "tiny" / "1")
        spoil(copied("tiny", tiny, version=3))
        refused(await change(house, "tiny/load"), 422)
        assert await versions(house) == {"tiny": [1, 2]}
        shutil.rmtree(tiny / "tiny" / "3")
        assert answered(await change(house, "tiny/load"))["retired"] == [1]
        refused(await house.ask("tiny/versions/1/score", BODY), 404)
        shutil.rmtree(tiny / "tiny")
        refused(await change(house, "tiny/load"), 404)
        assert await default(house) == 2


async def test_a_request_that_holds_a_model_is_answered_by_it(tiny: Path) -> None:
    """Unloaded while its rows are computed; then its doors are closed and its sessions' memory is let go."""
    copied("mayfly", tiny)
    gate = Gate()
    async with open_house(guarded(tiny, lanes=1), opener=gate.opener) as house:
        before = (await house.answer("mayfly/score", BODY))["elbo"]
        held: Model = house.app.state.models.get("mayfly")
        names, sessions = doors(), [weakref.ref(session) for session in held.engine.sessions.values()]
        model = weakref.ref(held)
        assert len(names) == 6
        del held
        await house.client.get("/openapi.json")  # and what is kept for the page
        await house.client.get("/v2/models/mayfly.encode")
        gate.shut()
        asking = [asyncio.create_task(house.ask("mayfly/score", BODY)) for _ in range(3)]
        asking += [asyncio.create_task(house.ask("mayfly/evidence", {**BODY, "draws": 600}))]  # asks again and again
        await gate.held()
        answered(await change(house, "mayfly/unload"))
        refused(await house.ask("mayfly/score", BODY), 404)
        assert [name for name in doors() if name != "mayfly/1 leaves"] == names
        gate.open()
        answers = [answered(await task) for task in asking]
        assert [answer["elbo"] for answer in answers[:3]] == [before] * 3
        gate.calls.clear()
        del asking, answers
        await until(lambda: not doors())
        await until(lambda: model() is None and not any(session() for session in sessions))


@pytest.mark.parametrize("changes", [{}, {"buckets": (2, 8), "batch": 64}], ids=["plain", "buckets"])
async def test_memory_is_let_go_whoever_keeps_a_model(tiny: Path, changes: dict[str, Any]) -> None:
    """A traceback or a cycle may keep what nobody asks any more; sessions do not wait until it is collected."""
    async with open_house(guarded(tiny, **changes)) as house:
        kept: Model = house.app.state.models.get("tiny")
        sessions = [weakref.ref(session) for session in kept.engine.sessions.values()]
        await house.answer("tiny/evidence", {**BODY, "draws": 600})
        answered(await change(house, "tiny/unload"))
        await until(lambda: not any(session() for session in sessions))
        assert len(sessions) == 5
        assert kept.key == ("tiny", 1)


async def test_nobody_is_waited_for_who_came_later(tiny: Path) -> None:
    """Requests of other models that never end don't keep one that is unloaded."""
    copied("mayfly", tiny)
    gate = Gate()
    async with open_house(guarded(tiny, lanes=1), opener=gate.opener) as house:
        answered(await change(house, "mayfly/unload"))
        gate.shut()
        asking = asyncio.create_task(house.ask("tiny/score", BODY))
        await gate.held()
        await until(lambda: not doors())
        gate.open()
        answered(await asking)


async def test_who_stays_for_ever_is_waited_for_as_long_as_a_request_may_take(tiny: Path) -> None:
    """Past the longest deadline nobody who is still inside has anything to ask."""
    copied("mayfly", tiny)
    async with open_house(guarded(tiny, max_timeout_ms=50)) as house:
        stays = house.app.state.door.come()
        answered(await change(house, "mayfly/unload"))
        await until(lambda: not doors())
        house.app.state.door.go(stays)
        assert house.app.state.door.inside == 0


# ---------------------------------------------------------------- while everybody asks


@contextmanager
def asking(address: str, threads: int = 3) -> Iterator[Counter[tuple[int, int | None]]]:
    """Ask tiny for scores and codes again and again, from several threads: status and version of every answer."""
    seen: Counter[tuple[int, int | None]] = Counter()
    enough = threading.Event()

    def ask(operation: str) -> None:
        with httpx.Client(base_url=address, timeout=PATIENCE) as client:
            while not enough.is_set():
                response = client.post(f"/v1/models/tiny/{operation}", json=BODY)
                seen[response.status_code, orjson.loads(response.content).get("version")] += 1

    running = [threading.Thread(target=ask, args=(("score", "encode", "evidence")[k % 3],)) for k in range(threads)]
    for thread in running:
        thread.start()
    try:
        yield seen
    finally:
        enough.set()
        for thread in running:
            thread.join(PATIENCE)


def test_under_load_versions_come_change_and_go_and_every_request_is_a_200(tiny: Path) -> None:
    """New versions, a broken one, one that changes in its place, one that is unloaded; /readyz never flips."""
    with (
        listening(guarded(tiny)) as (address, _),
        httpx.Client(base_url=address, headers=BEARER, timeout=PATIENCE) as client,
        asking(address) as seen,
    ):
        flips: list[int] = []
        done = threading.Event()

        def watch() -> None:
            with httpx.Client(base_url=address) as probe:
                while not done.is_set():
                    flips.append(probe.get("/readyz").status_code)

        watching = threading.Thread(target=watch)
        watching.start()
        try:
            for version in (2, 3):
                copied("tiny", tiny, version=version)
                assert client.post("/v1/models/tiny/load").json()["loaded"] == [version]
                wait_until(lambda version=version: seen[200, version] > 5)  # type: ignore[misc]
            spoil(copied("tiny", tiny, version=4))
            assert client.post("/v1/models/tiny/load").status_code == 422
            for text in ("one", "two"):
                artifact.rewrite(artifact.read(tiny / "tiny" / "3"), {"description": text}, {})
                assert client.post("/v1/models/tiny/load").status_code == 422  # of the fourth, which is still broken
                assert client.get("/v1/models/tiny").json()["description"] == text
            assert client.post("/v1/models/tiny/versions/3/unload").json()["retired"] == [3]
            before = seen[200, 2]
            wait_until(lambda: seen[200, 2] > before + 5)
        finally:
            done.set()
            watching.join(PATIENCE)
        assert set(flips) == {200}
    assert {status for status, _ in seen} == {200}


def test_tritonclient_loads_and_unloads(tiny: Path) -> None:
    """Unchanged, with its headers; what it is told is what we said."""
    with (
        listening(guarded(tiny)) as (address, _),
        triton.InferenceServerClient(address.removeprefix("http://")) as client,
    ):
        client.load_model("tiny", headers=BEARER)
        client.unload_model("tiny", headers=BEARER)
        assert not client.is_model_ready("tiny")
        assert {one["state"] for one in client.get_model_repository_index()} == {"UNAVAILABLE"}
        client.load_model("tiny", headers=BEARER)
        assert client.is_model_ready("tiny")
        assert "model_repository" in client.get_server_metadata()["extensions"]
        cases: dict[str, Callable[[], object]] = {
            "401": lambda: client.unload_model("tiny"),
            "404": lambda: client.load_model("nobody", headers=BEARER),
            "400": lambda: client.load_model("tiny", headers=BEARER, config='{"backend": "python"}'),
        }
        for status, ask in cases.items():
            with pytest.raises(InferenceServerException) as refusal:
                ask()
            assert refusal.value.status() == status


async def test_while_a_version_is_opened_the_service_is_ready_and_others_wait_their_turn(tiny: Path) -> None:
    """One change at a time; who stops waiting for one gets a 503, and it is carried through."""
    opening, on = threading.Event(), threading.Event()
    on.set()

    def opener(found: Artifact) -> Engine:
        opening.set()
        assert on.wait(PATIENCE)
        return open_engine(found, "cpu")

    async with open_house(guarded(tiny), opener=opener) as house:
        opening.clear()
        on.clear()
        copied("tiny", tiny, version=2)
        late = asyncio.create_task(change(house, "tiny/load", **BEARER, **{"X-Timeout-Ms": "60"}))
        assert await asyncio.to_thread(opening.wait, PATIENCE)
        assert (await house.client.get("/readyz")).status_code == 200
        assert await default(house) == 1
        index = (await house.client.post("/v2/repository/index")).json()
        assert {"name": "tiny", "version": "2", "state": "LOADING", "reason": "is still being loaded"} in index
        refused(await house.ask("tiny/versions/2/score", BODY), 503)
        assert "goes on" in refused(await late, 503)["detail"]
        unloading = asyncio.create_task(change(house, "tiny/versions/1/unload"))
        on.set()
        assert answered(await unloading)["versions"] == [2]
        assert await default(house) == 2


# ---------------------------------------------------------------- defaults, and a folder that is looked at


async def test_a_pinned_version_is_the_default(tiny: Path) -> None:
    """Whatever else is loaded; where it isn't there nobody answers in its place, and the service isn't ready."""
    copied("tiny", tiny, version=2)
    async with open_house(guarded(tiny, default_versions={"tiny": 1, "nobody": 4})) as house:
        await until(lambda: len(house.app.state.models.all()) == 2)  # to be ready takes the default alone
        assert await default(house) == 1
        assert (await house.answer("tiny/versions/2/score", BODY))["version"] == 2
        shutil.rmtree(tiny / "tiny" / "1")
        assert answered(await change(house, "tiny/load"))["retired"] == []  # a default is let go by unloading it alone
        assert await default(house) == 1
        answered(await change(house, "tiny/versions/1/unload"))
        assert "was unloaded" in refused(await house.ask("tiny/score", BODY), 503)["detail"]
        refused(await house.ask("nobody/score", BODY), 404)
        assert (await house.client.get("/readyz")).json()["reasons"] == ["tiny/1 was unloaded"]
    async with open_house(guarded(tiny, default_versions={"tiny": 7}), ready=False) as house:
        await until(lambda: bool(house.app.state.models.all()))
        assert "tiny/7 is the default version" in refused(await house.ask("tiny/score", BODY), 503)["detail"]
        assert "tiny/7 is the default version" in (await house.client.get("/readyz")).json()["reasons"][0]


async def test_a_folder_is_polled(tiny: Path) -> None:
    """Versions come, change and go without being asked for; broken and unloaded ones are left until they change."""
    ticks: asyncio.Queue[None] = asyncio.Queue()
    waits = asyncio.Event()

    async def pause() -> None:
        waits.set()
        await ticks.get()

    async with open_house(guarded(tiny)) as house:
        polling = asyncio.create_task(house.app.state.repository.poll(pause))

        async def look() -> dict[str, list[int]]:
            await waits.wait()
            waits.clear()
            ticks.put_nowait(None)
            await waits.wait()
            return await versions(house)

        copied("tiny", tiny, version=2)
        assert await versions(house) == {"tiny": [1]}
        assert await look() == {"tiny": [1, 2]}
        first = house.app.state.models.get("tiny", 1)
        copied("other", tiny)
        spoil(copied("spoilt", tiny))
        assert await look() == {"other": [1], "tiny": [1, 2]}
        assert house.app.state.models.get("tiny", 1) is first
        refused(await house.ask("spoilt/score", BODY), 503)
        shutil.rmtree(tiny / "spoilt")
        await look()
        await look()
        refused(await house.ask("spoilt/score", BODY), 404)
        assert "spoilt" not in (await house.client.get("/metrics")).text.partition("model_refused{")[2]
        artifact.rewrite(artifact.read(tiny / "tiny" / "2"), {"description": "changed"}, {})
        await look()
        assert (await house.client.get("/v1/models/tiny")).json()["description"] == "changed"
        answered(await change(house, "other/unload"))
        assert await look() == {"tiny": [1, 2]}
        away = (tiny / "tiny" / "2").rename(tiny / "away")
        assert await look() == {"tiny": [1, 2]}  # it may be being written anew
        assert await look() == {"tiny": [1]}
        away.rename(tiny / "tiny" / "2")
        assert await look() == {"tiny": [1, 2]}
        tiny.rename(tiny.parent / "lost")  # noqa: ASYNC240  the tests' own disk
        assert await look() == {"tiny": [1, 2]}
        assert await look() == {"tiny": [1, 2]}  # nothing at all is no repository, but a disk that is gone
        polling.cancel()


def test_a_folder_is_polled_where_that_is_set(tiny: Path) -> None:
    """VAE_SERVE_POLL_S."""
    with listening(configured(tiny, poll_s=0.01)) as (address, _):
        copied("tiny", tiny, version=2)
        wait_until(lambda: httpx.get(f"{address}/v1/models").json()[0]["versions"] == [1, 2])


@pytest.mark.anyio
async def test_what_was_refused_before_the_first_look_is_looked_at_again(tiny: Path) -> None:
    """What is opened while the service is imported may be written to the end meanwhile: nobody saw it change."""

    class Early:
        def look(self) -> Shelf:
            return {("tiny", 1): lambda: "it is not all there yet"}

    app = build(configured(tiny, poll_s=0.01), ahead=cast(Ahead, Early()))
    async with app.router.lifespan_context(app):
        await until(lambda: app.state.models.served(("tiny", 1)) is not None)

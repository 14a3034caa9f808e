"""The Open Inference Protocol's paths: what is told of models, what is counted, and how everything is refused."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from service.artifact import Array, Arrays, Artifact
from service.engine import Engine, open_engine
from tests.kit import Gate, House, configured, copied, digits, open_house, until, until_loaded, wait_until
from tests.kit import listening as listening_on
from tests.oip import ask, binary, error, framed, opened, send, tensor

pytestmark = pytest.mark.anyio

ROWS = digits(2, seed=1)
ROOT = "/v2/models/tiny"


async def got(house: House, path: str) -> Any:
    """What a GET is answered, which must be a 200 of JSON."""
    response = await house.client.get(path)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return orjson.loads(response.content)


# ---------------------------------------------------------------- what is told


async def test_the_server_says_what_it_is(house: House) -> None:
    """Its name, its version, and the extensions that it has, no more."""
    found = await got(house, "/v2")
    assert set(found) == {"name", "version", "extensions"}
    assert set(found["extensions"]) == {"binary_tensor_data", "parameters", "model_configuration", "statistics"}


async def test_health_is_that_of_livez_and_readyz(small: Path) -> None:
    """The same truth: while a model is loaded, when it is served, and once the service drains."""
    gate = Gate()
    settings = configured(small, drain_grace_ms=60_000)
    waits = asyncio.Event()
    loop = asyncio.get_running_loop()

    def opener(found: Artifact) -> Engine:
        assert asyncio.run_coroutine_threadsafe(waits.wait(), loop).result(20)
        return gate.opener(found)

    async with open_house(settings, opener=opener, ready=False) as house:
        await until(lambda: bool(house.app.state.models.states()))
        assert await got(house, "/v2/health/live") == {"live": True}
        assert "still being loaded" in error(await house.client.get("/v2/health/ready"), 503)
        error(await house.client.get(f"{ROOT}/ready"), 503)
        error(await send(house.client, "tiny", ROWS), 503)
        (loading,) = (await house.client.post("/v2/repository/index")).json()
        assert (loading["name"], loading["state"]) == ("tiny", "LOADING")
        waits.set()
        await until(lambda: not house.app.state.models.unready())
        assert await got(house, "/v2/health/ready") == {"live": True, "ready": True}
        assert await got(house, f"{ROOT}/ready") == {"name": "tiny", "ready": True}
        assert (await house.client.head("/v2/health/ready")).status_code == 200
        door = house.app.state.door
        door.state = "draining"
        assert (await house.client.head("/v2/health/ready")).status_code == 503
        assert "draining" in error(await house.client.get("/v2/health/ready"), 503)
        opened(await send(house.client, "tiny", ROWS))  # while draining, requests are served
        door.state = "closed"
        response = await send(house.client, "tiny", ROWS)
        assert "shutting down" in error(response, 503)
        assert response.headers["connection"] == "close"
        door.fault = "a task died"
        assert "a task died" in error(await house.client.get("/v2/health/live"), 503)
        door.state, door.fault = "open", None


MODELS = ["tiny", "mnist", "breast-cancer", "breast-cancer-missing", "diabetes", "plain"]
OPERATIONS = ["score", "encode", "decode", "reconstruct", "sample", "evidence"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("operation", [*OPERATIONS, "impute", ""])
async def test_metadata_is_what_is_answered(house: House, name: str, operation: str) -> None:
    """The outputs of a request that names none: their names, their order, their datatypes and their shapes."""
    if operation == "impute" and name != "breast-cancer-missing":
        return
    model = f"{name}.{operation}".removesuffix(".")
    told = await got(house, f"/v2/models/{model}")
    assert (told["name"], told["platform"]) == (model, "onnx_onnxv1")
    assert told["versions"] == (["1", "2"] if name == "plain" else ["1"])
    (listed,) = told["inputs"]
    if operation == "sample":
        assert listed == {"name": "count", "datatype": "INT64", "shape": [1]}
        sent, count = np.array([2]), 2
    else:
        graph = "decoder.z" if operation == "decode" else "encoder.x"
        sent, count = house.app.state.models.get(name).golden[graph][:2], 2
        assert listed == {
            "name": "latents" if operation == "decode" else "inputs",
            "datatype": tensor(sent)["datatype"],
            "shape": [-1, *sent.shape[1:]],
        }
    parameters = {"draws": 64} if operation == "evidence" else {}
    head, found = opened(await send(house.client, model, sent, name=listed["name"], parameters=parameters))
    assert [output["name"] for output in head["outputs"]] == [output["name"] for output in told["outputs"]]
    for output, listed in zip(head["outputs"], told["outputs"], strict=True):
        assert output["datatype"] == listed["datatype"]
        assert listed["shape"][0] == -1
        assert len(output["shape"]) == len(listed["shape"])
        assert all(length in (-1, found) for found, length in zip(output["shape"], listed["shape"], strict=True))
        assert output["shape"][0] == count
    assert set(found) == {output["name"] for output in told["outputs"]}


@pytest.mark.parametrize("operation", OPERATIONS)
async def test_a_configuration_has_its_metadatas_tensors(house: House, operation: str) -> None:
    """Without the axis of rows where there is one; as many rows in a batch as in a request."""
    told = await got(house, f"{ROOT}.{operation}")
    for path in (f"{ROOT}.{operation}/config", f"{ROOT}.{operation}/versions/1/config"):
        found = await got(house, path)
        assert found["name"] == f"tiny.{operation}"
        assert found["max_batch_size"] == (0 if operation == "sample" else 4096)
        assert ("dynamic_batching" in found) == (operation != "sample")
        assert found["model_transaction_policy"] == {"decoupled": False}
        assert found["response_cache"] == {"enable": False}
        for configured_, listed in ((found["input"], told["inputs"]), (found["output"], told["outputs"])):
            skipped = 0 if operation == "sample" else 1
            assert [(one["name"], one["data_type"], one["dims"]) for one in configured_] == [
                (one["name"], f"TYPE_{one['datatype']}", one["shape"][skipped:]) for one in listed
            ]
        assert [one.get("optional", False) for one in found["input"]] == [operation == "sample"]


async def test_a_version_may_be_named(house: House) -> None:
    """Everywhere; without one the highest answers. One that isn't there is a 404."""
    for version, root in (
        ("1", "/v2/models/plain/versions/1"),
        ("2", "/v2/models/plain"),
        ("2", "/v2/models/plain.score/versions/2"),
    ):
        content, headers = framed({"inputs": [binary(ROWS)]}, ROWS.tobytes())
        response = await house.client.post(f"{root}/infer", content=content, headers=headers)
        assert opened(response)[0]["model_version"] == version
        assert (await got(house, root))["versions"] == ["1", "2"]
        assert (await got(house, f"{root}/ready"))["ready"]
    for end in ("", "/ready", "/config", "/stats"):
        for version in ("3", "0", "x", "1.0", "9" * 20):
            error(await house.client.get(f"/v2/models/plain/versions/{version}{end}"), 404)
    error(await house.client.post("/v2/models/plain/versions/3/infer", content=b"{}"), 404)


async def test_the_index_lists_what_is_on_disk(models: Path, tmp_path: Path) -> None:
    """Each model under each of its names; one that was refused with the reason, unless only the ready are wanted."""
    (tmp_path / "tiny").symlink_to(models / "tiny")
    spoilt = copied("spoilt", tmp_path)
    (spoilt / "elbo.onnx").write_bytes(b"spoilt")
    async with open_house(configured(tmp_path), ready=False) as house:
        await until_loaded(house)
        listed = (await house.client.post("/v2/repository/index")).json()
        names = {"tiny", *(f"tiny.{operation}" for operation in OPERATIONS)}
        assert {one["name"] for one in listed} == names | {"spoilt"}
        assert {one["name"] for one in listed if one["state"] == "READY"} == names
        (refused,) = (one for one in listed if one["name"] == "spoilt")
        assert (refused["state"], refused["version"]) == ("UNAVAILABLE", "1")
        assert "elbo.onnx" in refused["reason"]
        ready = (await house.client.post("/v2/repository/index", json={"ready": True})).json()
        assert {one["name"] for one in ready} == names
        assert (await house.client.post("/v2/repository/index", json={"ready": False})).json() == listed
        for content in (b"[]", b"{", b"\xff"):
            error(await house.client.post("/v2/repository/index", content=content), 400)
        error(await house.client.get("/v2/models/spoilt"), 503)


async def test_models_arent_loaded_or_unloaded_while_serving(house: House) -> None:
    """That is said, and nothing changes."""
    for what in ("load", "unload"):
        response = await house.client.post(f"/v2/repository/models/tiny/{what}", json={})
        assert "while serving" in error(response, 400)
    opened(await send(house.client, "tiny", ROWS))


# ---------------------------------------------------------------- what is counted


STAGES = {"success", "fail", "queue", "compute_input", "compute_infer", "compute_output", "cache_hit", "cache_miss"}


async def _statistics(house: House, path: str = ROOT) -> dict[str, Any]:
    (found,) = (await got(house, f"{path}/stats"))["model_stats"]
    assert isinstance(found, dict)
    return found


async def test_what_is_counted(small: Path) -> None:
    """Rows, calls, successes and failures with their time, of one operation under both its names."""
    async with open_house(configured(small)) as house:
        before = await _statistics(house)
        assert before["inference_stats"] == {stage: {"count": 0, "ns": 0} for stage in STAGES}
        assert (before["inference_count"], before["execution_count"], before["last_inference"]) == (0, 0, 0)
        opened(await send(house.client, "tiny", ROWS))
        opened(await ask(house.client, "tiny.score", tensor(ROWS)))
        opened(await ask(house.client, "tiny.encode", tensor(ROWS)))
        error(await send(house.client, "tiny", ROWS + np.uint8(9)), 422)
        error(await ask(house.client, "tiny", parameters={}), 400)
        error(await house.client.post(f"{ROOT}/infer", content=b"{"), 400)
        for path in (ROOT, f"{ROOT}.score", f"{ROOT}/versions/1"):
            found = await _statistics(house, path)
            assert (found["name"], found["version"]) == (path.split("/")[3], "1")
            assert (found["inference_count"], found["execution_count"]) == (4, 2)
            assert found["last_inference"] > 1.5e12
            assert found["batch_stats"] == []
            stages = found["inference_stats"]
            assert set(stages) == STAGES
            assert {name: stage["count"] for name, stage in stages.items()} == {
                **dict.fromkeys(STAGES, 2),
                "fail": 3,
                "cache_hit": 0,
                "cache_miss": 0,
            }
            for name in STAGES - {"cache_hit", "cache_miss"}:
                assert stages[name]["ns"] > 0, name
            parts = sum(stages[name]["ns"] for name in ("compute_input", "compute_output"))
            assert parts < stages["success"]["ns"]
        assert (await _statistics(house, f"{ROOT}.encode"))["inference_count"] == 2
        everything = (await got(house, "/v2/models/stats"))["model_stats"]
        assert [one["name"] for one in everything] == ["tiny", *(f"tiny.{name}" for name in OPERATIONS)]
        assert (
            'vae_serve_inferences_total{model="tiny",operation="score",outcome="fail"'
            in (await house.client.get("/metrics")).text
        )


async def test_statistics_of_a_name_are_of_all_its_versions(house: House) -> None:
    """Unless one is named; versions are text."""
    found = (await got(house, "/v2/models/plain/stats"))["model_stats"]
    assert [(one["name"], one["version"]) for one in found] == [("plain", "1"), ("plain", "2")]
    assert (await _statistics(house, "/v2/models/plain/versions/2"))["version"] == "2"


async def test_statistics_are_read_once_and_beside_the_loop(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be in files of many processes: others are answered meanwhile."""
    counter, gate = house.app.state.metrics.inferences, Gate()
    collect = counter.collect

    def collected() -> object:
        gate.passes("statistics", ROWS)
        return collect()

    monkeypatch.setattr(counter, "collect", collected)
    gate.shut()
    asked = asyncio.create_task(got(house, f"{ROOT}/stats"))
    await gate.held()
    assert (await got(house, "/livez"))["status"] == "live"
    gate.open()
    assert (await asked)["model_stats"][0]["name"] == "tiny"
    assert len(gate.calls) == 1


# ---------------------------------------------------------------- how it is refused


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v2/", 404),
        ("GET", "/v2/nothing", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/nobody", 404),
        ("GET", "/v2/models/tiny.dream", 404),
        ("GET", "/v2/models/tiny.impute", 404),
        ("GET", "/v2/models/tiny.", 404),
        ("GET", "/v2/models/.score", 404),
        ("GET", "/v2/models/tiny.score.score", 404),
        ("GET", "/v2/models/tiny%2Fscore", 404),
        ("GET", "/v2/models/nobody/ready", 404),
        ("GET", "/v2/models/nobody/config", 404),
        ("GET", "/v2/models/nobody/stats", 404),
        ("POST", "/v2/models/nobody/infer", 404),
        ("POST", "/v2/models/tiny/generate", 404),
        ("GET", "/v2/models/tiny/infer", 405),
        ("PUT", "/v2/models/tiny/versions/1/infer", 405),
        ("POST", "/v2", 405),
        ("POST", "/v2/health/ready", 405),
        ("DELETE", "/v2/models/tiny", 405),
        ("POST", "/v2/models/tiny/config", 405),
        ("GET", "/v2/repository/index", 405),
        ("GET", "/v2/repository/models/tiny/load", 405),
        ("GET", "/v2/logging", 501),
        ("POST", "/v2/logging", 501),
        ("GET", "/v2/trace/setting", 501),
        ("POST", "/v2/models/tiny/trace/setting", 501),
        ("GET", "/v2/systemsharedmemory/status", 501),
        ("GET", "/v2/systemsharedmemory/region/a/status", 501),
        ("POST", "/v2/systemsharedmemory/region/a/register", 501),
        ("POST", "/v2/cudasharedmemory/unregister", 501),
        ("POST", "/v2/cudasharedmemory/region/a/unregister", 501),
    ],
)
async def test_every_refusal_is_the_protocols(house: House, method: str, path: str, status: int) -> None:
    """On every path below /v2, whoever refuses; a 405 says what is offered."""
    response = await house.client.request(method, path)
    error(response, status)
    assert ("allow" in response.headers) == (status == 405)


async def test_v1_and_v2_keep_their_own_forms(house: House) -> None:
    """A problem on /v1 is a problem, and a path that only looks like the protocol's is none of it."""
    for path in ("/v1/models/nobody", "/v2x", "/v1/v2/models"):
        assert (await house.client.get(path)).headers["content-type"] == "application/problem+json"


@dataclass(frozen=True)
class Failing(Engine):
    """An engine with a bug."""

    broken: list[str] = field(default_factory=list)

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Fail once there is a reason."""
        if self.broken:
            raise RuntimeError(self.broken[0])
        return super().compute(graph, feeds)


async def test_our_own_mistake_is_a_500_with_a_reference(small: Path) -> None:
    """And with nothing of its inside."""
    broken: list[str] = []

    def opener(found: Artifact) -> Engine:
        engine = open_engine(found, "cpu")
        return Failing(engine.device, engine.providers, engine.fallback, engine.sessions, broken)

    async with open_house(configured(small), opener=opener) as house:
        broken.append("a secret at 0x1234")
        response = await send(house.client, "tiny", ROWS)
        said = error(response, 500)
        assert response.headers["x-request-id"] in said
        assert "secret" not in said
        assert (await _statistics(house))["inference_stats"]["fail"]["count"] == 1


async def test_a_full_waiting_room_is_a_429(small: Path) -> None:
    """With Retry-After; and what waits is answered."""
    gate = Gate()
    async with open_house(configured(small, lanes=1, waiting=16), opener=gate.opener) as house:
        gate.shut()
        first = asyncio.create_task(send(house.client, "tiny.encode", ROWS))
        await gate.held()
        waiting = asyncio.create_task(send(house.client, "tiny.encode", digits(16)))
        await until(lambda: house.waiting("tiny", "encoder") == 16)
        assert "waiting" in error(await send(house.client, "tiny.encode", ROWS), 429)
        gate.open()
        opened(await first)
        opened(await waiting)


async def test_memory_is_shared_with_v1(small: Path) -> None:
    """Bodies of both count against the same limit."""
    gate = Gate()
    async with open_house(configured(small, max_held_bytes=100_000), opener=gate.opener) as house:
        gate.shut()
        rows = digits(1000)
        first = asyncio.create_task(send(house.client, "tiny.encode", rows))
        await gate.held()
        assert house.app.state.desk.memory.taken == rows.nbytes
        assert "bytes" in error(await send(house.client, "tiny.encode", rows), 429)
        gate.open()
        opened(await first)
        assert house.app.state.desk.memory.taken == 0


async def test_a_body_over_the_limit_is_a_413(small: Path) -> None:
    """Whether it says so or is counted."""
    async with open_house(configured(small, max_body_bytes=1000)) as house:
        assert "1000 bytes" in error(await send(house.client, "tiny", digits(20)), 413)

        async def chunks() -> Any:
            for _ in range(20):
                yield bytes(100)

        assert "1000 bytes" in error(await house.client.post(f"{ROOT}/infer", content=chunks()), 413)
        assert "1000 bytes" in error(await house.client.post("/v2/repository/index", content=bytes(2000)), 413)


@pytest.mark.parametrize("form", ["header", "parameter", "earlier", "later"])
async def test_a_deadline_may_stand_in_the_header_or_in_the_body(small: Path, form: str) -> None:
    """X-Timeout-Ms, or `timeout` in µs; a late answer is a 503, and what waited is never computed."""
    gate = Gate()
    async with open_house(configured(small, lanes=1), opener=gate.opener) as house:
        opened(await ask(house.client, "tiny", tensor(ROWS), parameters={"timeout": 30_000_000}))
        opened(await ask(house.client, "tiny", tensor(ROWS), parameters={"timeout": 0}))
        gate.shut()
        first = asyncio.create_task(send(house.client, "tiny", ROWS))
        await gate.held()
        header = {"header": "60", "parameter": "", "earlier": "60", "later": "60000"}[form]
        parameters = {"header": {}, "earlier": {"timeout": 60_000_000}}.get(form, {"timeout": 60_000})
        body = {"inputs": [tensor(digits(3))], "parameters": parameters}
        named = {"x-timeout-ms": header} if header else {}
        response = await house.client.post(f"{ROOT}/infer", json=body, headers=named)
        assert "deadline" in error(response, 503)
        gate.open()
        opened(await first)
        assert gate.rows("elbo") == 2
        assert (await _statistics(house))["inference_stats"]["fail"]["count"] == 1
        malformed = await house.client.post(f"{ROOT}/infer", json=body, headers={"x-timeout-ms": "soon"})
        assert "X-Timeout-Ms" in error(malformed, 400)


def test_rows_of_a_client_that_leaves_are_never_computed(small: Path) -> None:
    """As on /v1; its neighbours are answered, and it is counted as a failure."""
    gate = Gate()
    with (
        listening_on(configured(small, lanes=1), opener=gate.opener) as (address, app),
        ThreadPoolExecutor() as callers,
    ):
        batcher = app.state.models.get("tiny").doors["score"]
        gate.shut()
        try:
            content, headers = framed({"inputs": [binary(ROWS)]}, ROWS.tobytes())
            first = callers.submit(httpx.post, f"{address}{ROOT}/infer", content=content, headers=headers, timeout=20)
            assert gate.waits.wait(20)
            host, port = address.removeprefix("http://").split(":")
            body = json.dumps({"inputs": [tensor(digits(3))]}).encode()
            head = f"POST {ROOT}/infer HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            with socket.create_connection((host, int(port)), timeout=20) as caller:
                caller.sendall(head.encode() + body)
                wait_until(lambda: bool(batcher.waiting == 48))
            wait_until(lambda: batcher.waiting == 0)
        finally:
            gate.open()
        assert first.result().status_code == 200
        assert gate.rows("elbo") == 2
        counted = httpx.get(f"{address}{ROOT}/stats").json()["model_stats"][0]["inference_stats"]
        assert (counted["success"]["count"], counted["fail"]["count"]) == (1, 1)


async def test_a_row_is_the_same_whoever_shares_its_batch(house: House) -> None:
    """Over both protocols at once: bit for bit what it is alone."""
    rows = digits(30, seed=5)
    _, alone = opened(await send(house.client, "tiny", rows))
    answers = await asyncio.gather(
        *(send(house.client, "tiny", rows[index : index + 3]) for index in range(0, 30, 3)),
        *(house.answer("tiny/score", {"inputs": rows[index : index + 5].tolist()}) for index in range(0, 30, 5)),
    )
    for index, answer in enumerate(answers[:10]):
        assert isinstance(answer, httpx.Response)
        np.testing.assert_array_equal(opened(answer)[1]["elbo"], alone["elbo"][3 * index : 3 * index + 3], strict=True)
    beside = [value for answer in answers[10:] if isinstance(answer, dict) for value in answer["elbo"]]
    assert beside == alone["elbo"].tolist()


async def test_the_protocol_is_on_the_page(house: House) -> None:
    """Every path that is offered, its body, its answer, and its refusals in the protocol's form."""
    page = (await house.client.get("/openapi.json")).json()
    paths = page["paths"]
    roots = ("/v2/models/{model}", "/v2/models/{model}/versions/{version}")
    assert {"/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/stats", "/v2/repository/index"} <= set(paths)
    assert {f"{root}{end}" for root in roots for end in ("", "/ready", "/config", "/stats", "/infer")} <= set(paths)
    for root in roots:
        post = paths[f"{root}/infer"]["post"]
        assert set(post["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
        for status in ("400", "404", "413", "415", "422", "429", "500", "503"):
            (form,) = post["responses"][status]["content"]
            assert form == "application/json"
        assert "X-Timeout-Ms" in [parameter["name"] for parameter in post["parameters"]]
        examples = post["requestBody"]["content"]["application/json"]["examples"]
        assert {"tiny", "mnist", "diabetes", "breast-cancer-missing"} <= set(examples)
        for name, example in examples.items():
            head, found = opened(await house.client.post(f"/v2/models/{name}/infer", json=example["value"]))
            assert (head["id"], list(found)) == ("1", ["elbo", "kl"])
    told = await got(house, ROOT)
    schema = page["components"]["schemas"]
    reference = paths[roots[0]]["get"]["responses"]["200"]["content"]["application/json"]["schema"]["$ref"]
    assert set(schema[reference.rpartition("/")[2]]["properties"]) == set(told)

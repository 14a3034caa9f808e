"""Health: when the service lives, when it is ready, and what a spoilt artifact costs."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pytest

from service import artifact
from service.artifact import Artifact
from service.engine import Engine, open_engine
from tests.kit import (
    PATIENCE,
    Gate,
    House,
    configured,
    copied,
    digits,
    open_house,
    program,
    refused,
    running,
    until,
    until_loaded,
    until_status,
)

pytestmark = pytest.mark.anyio

BODY = {"inputs": digits(1).tolist()}


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_a_healthy_service_says_so(house: House, path: str) -> None:
    """200, to GET and to HEAD."""
    assert (await house.client.get(path)).status_code == 200
    assert (await house.client.head(path)).status_code == 200


def test_head_has_no_body_on_the_wire(address: str) -> None:
    """The same headers as GET, and nothing after them."""
    with httpx.Client(base_url=address) as client:
        for path in ("/livez", "/readyz"):
            response = client.head(path)
            assert response.status_code == 200
            assert response.content == b""
            assert client.get(path).status_code == 200


async def test_as_many_are_opened_at_once_as_there_are_lanes(tiny: Path) -> None:
    """Each of the two is held up until the other has begun, which no one else may have then."""
    for version in (2, 3):
        copied("tiny", tiny, version=version)
    together, begun = threading.Barrier(2), []

    def opener(found: Artifact) -> Engine:
        begun.append(found.manifest.version)
        if len(begun) <= 2:
            together.wait(PATIENCE)
            assert len(begun) == 2
        return open_engine(found, "cpu")

    async with open_house(configured(tiny, lanes=2), opener=opener) as house:
        assert sorted(begun) == [1, 2, 3]
        assert set(begun[:2]) == {1, 2}
        assert (await house.answer("tiny/score", BODY))["version"] == 3


async def test_one_lane_opens_one_after_another(tiny: Path) -> None:
    """In the order of their names and versions."""
    for version in (2, 3):
        copied("tiny", tiny, version=version)
    begun: list[int] = []
    inside = threading.Lock()

    def opener(found: Artifact) -> Engine:
        assert inside.acquire(blocking=False)
        try:
            begun.append(found.manifest.version)
            return open_engine(found, "cpu")
        finally:
            inside.release()

    async with open_house(configured(tiny, lanes=1), opener=opener):
        assert begun == [1, 2, 3]


async def test_while_an_older_version_may_still_come_a_refused_one_is_not_all_that_is_said(tiny: Path) -> None:
    """/readyz tells of both."""
    _corrupt(copied("tiny", tiny, version=2))
    gate = threading.Event()

    def opener(found: Artifact) -> Engine:
        assert gate.wait(PATIENCE)
        return open_engine(found, "cpu")

    async with open_house(configured(tiny), opener=opener, ready=False) as house:
        await until(lambda: ("tiny", 2, "refused") in [state[:3] for state in house.app.state.models.states()])
        reasons = (await house.client.get("/readyz")).json()["reasons"]
        assert len(reasons) == 1
        assert reasons[0].startswith("tiny/2 was refused: ")
        assert reasons[0].endswith("; an older one is still being loaded")
        gate.set()
        assert (await until_loaded(house)).status_code == 200


async def test_whoever_is_started_without_what_it_needs_says_so_in_the_log(
    small: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that was mistyped, or a required name that isn't there: nobody may be asking /readyz."""
    for settings, said in (
        (configured(small / "nowhere"), "no models were found"),
        (configured(small, required="tiny, nobody"), "nobody is required and was not found"),
    ):
        caplog.clear()
        async with open_house(settings, ready=False) as house:
            await until(lambda: any(said in record.getMessage() for record in caplog.records))  # noqa: B023
            assert said in (await house.client.get("/readyz")).text


async def test_until_its_models_have_answered_the_service_is_not_ready(small: Path) -> None:
    """Loading, it lives, is not ready, and answers a request with a 503."""
    gate = threading.Event()

    def opener(found: Artifact) -> Engine:
        assert gate.wait(PATIENCE)
        return open_engine(found, "cpu")

    async with open_house(configured(small), opener=opener, ready=False) as house:
        try:
            refused(await house.ask("tiny/score", BODY), 503)  # before the folder was looked at
            await until(lambda: bool(house.app.state.models.unready() != ["the models are still being looked for"]))
            response = await house.client.get("/readyz")
            assert response.status_code == 503
            assert "tiny/1" in response.text
            assert (await house.client.head("/readyz")).status_code == 503
            assert (await house.client.get("/livez")).status_code == 200
            refused(await house.ask("tiny/score", BODY), 503)
            refused(await house.ask("nobody/score", BODY), 404)
        finally:
            gate.set()
        await until_status(house, 200)
        assert (await house.ask("tiny/score", BODY)).status_code == 200


# ---------------------------------------------------------------- spoilt artifacts


def _rewrite(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))


def _corrupt(folder: Path) -> None:
    """Flip one bit of a graph."""
    content = bytearray((folder / "elbo.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "elbo.onnx").write_bytes(content)


def _cut(folder: Path) -> None:
    content = (folder / "golden.npz").read_bytes()
    (folder / "golden.npz").write_bytes(content[:-10])


def _lie_about_a_digest(folder: Path) -> None:
    def lie(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, dict)
        files["decoder.onnx"]["sha256"] = "0" * 64

    _rewrite(folder, lie)


def _list(folder: Path, name: str, content: bytes) -> None:
    """Replace a file, and have the manifest list what it is now."""
    (folder / name).write_bytes(content)
    file = artifact.describe(folder / name)

    def relist(manifest: dict[str, object]) -> None:
        files = manifest["files"]
        assert isinstance(files, dict)
        files[name] = file.model_dump()
        calibration = manifest["calibration"]
        if isinstance(calibration, dict) and name in calibration["graphs"]:
            calibration["graphs"][name] = file.sha256

    _rewrite(folder, relist)


def _move_the_golden_answers(folder: Path) -> None:
    """Answers that the graphs don't give, under a true digest."""
    with np.load(folder / "golden.npz") as archive:
        golden = {name: archive[name] for name in archive.files}
    golden["elbo.kl"] = golden["elbo.kl"] + 1
    _list(folder, "golden.npz", artifact.pack(golden))


def _pickle_the_golden_answers(folder: Path) -> None:
    _list(folder, "golden.npz", artifact.pack({"elbo.kl": np.array([{}], object)}))


SPOILT: dict[str, Callable[[Path], None]] = {
    "a bit flipped": _corrupt,
    "a file cut short": _cut,
    "a file missing": lambda folder: (folder / "terms.onnx").unlink(),
    "a digest that lies": _lie_about_a_digest,
    "golden rows that lie": _move_the_golden_answers,
    "golden rows pickled": _pickle_the_golden_answers,
    "a broken zip under a true digest": lambda folder: _list(folder, "golden.npz", b"PK\x03\x04 and nothing more"),
    "no graph under a true digest": lambda folder: _list(folder, "elbo.onnx", b"not a graph"),
    "an empty graph under a true digest": lambda folder: _list(folder, "encoder.onnx", b""),
    "another graph under a true digest": lambda folder: _list(
        folder, "elbo.onnx", (folder / "encoder.onnx").read_bytes()
    ),
    "no manifest but nonsense": lambda folder: _write(folder / "manifest.json", b"\xff{"),
    "an unknown field": lambda folder: _rewrite(folder, lambda manifest: manifest.update(more=1)),
    "another name": lambda folder: _rewrite(folder, lambda manifest: manifest.update(name="other")),
    "another version": lambda folder: _rewrite(folder, lambda manifest: manifest.update(version=7)),
    "another shape": lambda folder: _rewrite(folder, lambda manifest: manifest.update(event_shape=[64])),
    "another latent size": lambda folder: _rewrite(folder, lambda manifest: manifest.update(latent_size=3)),
    "a link for a file": lambda folder: _link(folder / "decoder.onnx"),
}


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _link(path: Path) -> None:
    path.rename(path.with_suffix(".real"))
    path.symlink_to(path.with_suffix(".real"))


@pytest.mark.parametrize("spoil", SPOILT)
async def test_a_spoilt_artifact_is_refused_and_the_others_are_served(tiny: Path, spoil: str) -> None:
    """Not ready, with the reason and no path of this machine; the sound model answers, the service lives."""
    SPOILT[spoil](copied("spoilt", tiny))
    async with open_house(configured(tiny), ready=False) as house:
        response = await until_loaded(house)
        assert response.status_code == 503
        assert "spoilt/1" in response.text
        assert "refused" in response.text
        assert str(tiny) not in response.text
        assert (await house.client.get("/livez")).status_code == 200
        assert (await house.ask("tiny/score", BODY)).status_code == 200
        refused(await house.ask("spoilt/score", BODY), 503)
        assert [entry["name"] for entry in (await house.client.get("/v1/models")).json()] == ["tiny"]


async def test_a_spoilt_newer_version_leaves_the_older_one_serving(tiny: Path) -> None:
    """The highest version that is loaded answers, and the service is ready; the refused one is counted."""
    _corrupt(copied("tiny", tiny, version=2))
    async with open_house(configured(tiny), ready=False) as house:
        assert (await until_loaded(house)).status_code == 200
        counted = (await house.client.get("/metrics")).text
        assert 'vae_serve_model_refused{model="tiny",version="2"} 1.0' in counted
        assert 'vae_serve_model_refused{model="tiny",version="1"}' not in counted
        assert (await house.answer("tiny/score", BODY))["version"] == 1
        refused(await house.ask("tiny/versions/2/score", BODY), 503)


async def test_only_the_required_models_must_be_ready(tiny: Path) -> None:
    """VAE_SERVE_REQUIRED names them; a spoilt one beside them is refused and no more."""
    _corrupt(copied("spoilt", tiny))
    async with open_house(configured(tiny, required="tiny")) as house:
        await until_loaded(house)
        assert (await house.client.get("/readyz")).status_code == 200
        refused(await house.ask("spoilt/score", BODY), 503)


async def test_a_required_model_that_isnt_there_is_named(small: Path) -> None:
    """The service lives and serves what it has, and isn't ready."""
    async with open_house(configured(small, required="tiny, absent"), ready=False) as house:
        response = await until_loaded(house)
        assert response.status_code == 503
        assert "absent" in response.text
        assert (await house.ask("tiny/score", BODY)).status_code == 200


@pytest.mark.parametrize("there", [True, False])
async def test_without_models_the_service_is_not_ready(tmp_path: Path, there: bool) -> None:
    """An empty folder, or none."""
    folder = tmp_path / "none"
    if there:
        folder.mkdir()
    async with open_house(configured(folder), ready=False) as house:
        response = await until_loaded(house)
        assert response.status_code == 503
        assert "no models" in response.text
        assert str(folder) not in response.text
        assert (await house.client.get("/v1/models")).json() == []
        refused(await house.ask("tiny/score", BODY), 404)


# ---------------------------------------------------------------- not alive


async def test_an_engine_that_stalls_turns_livez_503(small: Path) -> None:
    """A call that takes longer than VAE_SERVE_STALL_MS; when it ends, the service lives again."""
    gate = Gate()
    async with open_house(configured(small, stall_ms=50), opener=gate.opener) as house:
        assert (await house.client.get("/livez")).status_code == 200
        gate.shut()
        held = asyncio.create_task(house.ask("tiny/score", BODY))
        await gate.held()
        assert "computing" in (await until_status(house, 503, "/livez")).text
        gate.open()
        assert (await held).status_code == 200
        await until_status(house, 200, "/livez")


async def test_a_task_that_dies_turns_livez_503(small: Path) -> None:
    """What must go on as long as the service does has ended; requests are refused."""

    async def dies() -> None:
        raise RuntimeError("an accident")

    async with open_house(configured(small)) as house:
        house.app.state.door.spawn("something", dies())
        response = await until_status(house, 503, "/livez")
        assert "something died" in response.text
        refused(await house.ask("tiny/score", BODY), 503)


@pytest.mark.skipif(Path("/dev/nvidia0").exists(), reason="there is a CUDA device")
def test_cuda_that_isnt_there_ends_the_start() -> None:
    """`cuda` is strict: a line that says why, and a non-zero exit."""
    ended = program(device="cuda", port="0", log_level="error")
    assert ended.returncode not in (0, None)
    assert "CUDA" in ended.stderr.splitlines()[-1]


def test_auto_without_cuda_serves_on_the_cpu(tmp_path: Path) -> None:
    """And the catalogue says where it is."""
    shutil.copytree("exported_models/tiny", tmp_path / "tiny")
    with running(device="auto", models=str(tmp_path)) as (_, address):
        found = httpx.get(f"{address}/v1/models/tiny").json()
        assert (found["device"] == "cpu") == (found["providers"] == ["CPUExecutionProvider"])

"""The kit: how tests open the service's doors. In process, over a real socket, or as a program of its own."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import orjson
import uvicorn
from fastapi import FastAPI

from service import artifact
from service.app import build
from service.artifact import Array, Arrays, Artifact
from service.engine import Engine, open_engine
from service.models import Opener
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "exported_models"
PATIENCE = 20.0  # seconds after which a test that waits has failed

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"


def configured(models: Path, **changes: Any) -> Settings:
    """Settings that owe nothing to the environment."""
    return Settings(
        _env_file=None, **{"models": models, "device": "cpu", "lanes": 2, "inline_us": 0, "welcome": False, **changes}
    )


# ---------------------------------------------------------------- in process


@dataclass(frozen=True)
class House:
    """The service in this process, and a client that speaks ASGI to it."""

    app: FastAPI
    client: httpx.AsyncClient

    async def ask(self, path: str, body: object = None, **headers: str) -> httpx.Response:
        """POST JSON to /v1/models/{path}; headers are named with underscores."""
        return await self.send(path, json.dumps({} if body is None else body).encode(), content_type=JSON, **headers)

    async def send(self, path: str, content: bytes, **headers: str) -> httpx.Response:
        """POST bytes as they are."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(f"/v1/models/{path}", content=content, headers=named)

    async def answer(self, path: str, body: object = None, **headers: str) -> dict[str, Any]:
        """What a POST of JSON is answered, which must be a 200."""
        return answered(await self.ask(path, body, **headers))

    def waiting(self, model: str, graph: str) -> int:
        """Decoder rows that wait for a graph."""
        return int(self.app.state.models.get(model).doors[graph].waiting)


def answered(response: httpx.Response) -> dict[str, Any]:
    """The body of a 200."""
    assert response.status_code == 200, response.text
    if response.headers["content-type"] == NPZ:
        with np.load(io.BytesIO(response.content), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    assert response.headers["content-type"] == JSON
    content = orjson.loads(response.content)  # which refuses NaN and Infinity
    assert isinstance(content, dict)
    return content


def refused(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem body of a refusal, held to RFC 9457 and to what never leaves."""
    assert response.status_code == status, f"{response.status_code}: {response.text}"
    assert response.headers["content-type"] == "application/problem+json"
    body = orjson.loads(response.content)
    assert isinstance(body, dict)
    assert set(body) == {"type", "title", "status", "detail", "errors", "request_id"}
    assert body["status"] == status
    assert body["type"]
    assert body["title"]
    assert body["detail"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert all(set(fault) == {"pointer", "reason"} for fault in body["errors"])
    if status in (429, 503):
        assert int(response.headers["retry-after"]) >= 1
    for secret in ("Traceback", ".py", str(ROOT), "/tmp/", "0x", "object at"):
        assert secret not in response.text
    return body


@asynccontextmanager
async def open_house(settings: Settings, *, opener: Opener | None = None, ready: bool = True) -> AsyncIterator[House]:
    """The service with its lifespan, and unless told otherwise once it is ready and nothing is opened any more."""
    app = build(settings, opener=opener)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        house = House(app, client)
        if ready:
            await until_status(house, 200)
            await until(lambda: app.state.models.settled)
        yield house


async def until(true: Callable[[], bool]) -> None:
    """Give the loop its turns until something is true."""
    async with asyncio.timeout(PATIENCE):
        while not true():  # noqa: ASYNC110  what is waited for has no event
            await asyncio.sleep(0.001)


async def until_status(house: House, status: int, path: str = "/readyz") -> httpx.Response:
    """Ask until the answer has a status."""
    async with asyncio.timeout(PATIENCE):
        while (response := await house.client.get(path)).status_code != status:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return response


async def until_loaded(house: House) -> httpx.Response:
    """Ask /readyz until nothing is being loaded any more."""
    async with asyncio.timeout(PATIENCE):
        while "being l" in (response := await house.client.get("/readyz")).text:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        return response


# ---------------------------------------------------------------- over a socket


@contextmanager
def listening(settings: Settings, *, opener: Opener | None = None) -> Iterator[tuple[str, FastAPI]]:
    """The service on a free loopback port, in a thread with its own loop; its address, once all is opened and ready."""
    app = build(settings, opener=opener)
    server = Announced(
        uvicorn.Config(
            app,
            port=0,
            http=app.state.front.protocol(),
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    try:
        assert server.listens.wait(PATIENCE)
        address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
        wait_until(lambda: httpx.get(f"{address}/readyz").status_code == 200 and app.state.models.settled)
        yield address, app
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


class Announced(uvicorn.Server):
    """uvicorn that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        """Start, and say so."""
        await super().startup(sockets)
        self.listens.set()


def wait_until(true: Callable[[], bool]) -> None:
    """Look again and again until something is true, from a thread without a loop."""
    never = threading.Event()
    for _ in range(int(PATIENCE / 0.01)):
        if true():
            return
        never.wait(0.01)
    raise TimeoutError("what was waited for did not come")


# ---------------------------------------------------------------- as a program


def environment(**changes: str) -> dict[str, str]:
    """This process's environment without settings of ours, and with these."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return {**kept, "PYTHONPATH": str(ROOT), **{PREFIX + name.upper(): value for name, value in changes.items()}}


def program(*arguments: str, cwd: Path = ROOT, **changes: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m service` to its end."""
    command = [sys.executable, "-m", "service", *arguments]
    return subprocess.run(
        command, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=60, check=False
    )


@contextmanager
def running(
    cwd: Path = ROOT, start: tuple[str, ...] = ("-m", "service"), **changes: str
) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`python -m service` on a free port, and its address once it is ready."""
    process = subprocess.Popen(
        [sys.executable, *start],
        cwd=cwd,
        env=environment(**{"port": "0", "device": "cpu", **changes}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    assert process.stderr
    try:
        said = iter(process.stdout.readline, "")
        line = next((line for line in said if "ready at " in line), None)
        assert line, process.stderr.read()
        yield process, line.partition("ready at ")[2].split()[0]
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


# ---------------------------------------------------------------- engines that wait


@dataclass
class Gate:
    """What an engine's calls wait at. It remembers what went through, and it is open until it is shut."""

    calls: list[tuple[str, Array]] = field(default_factory=list)
    costs: list[tuple[str, int]] = field(default_factory=list)
    waits: threading.Event = field(default_factory=threading.Event)
    _open: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._open.set()

    def shut(self) -> None:
        """Hold every call from now on, and forget those before."""
        self.calls.clear()
        self.waits.clear()
        self._open.clear()

    def open(self) -> None:
        """Let everyone through."""
        self._open.set()

    def opener(self, found: Artifact) -> Engine:
        """Open an engine whose calls pass this gate."""
        engine = open_engine(found, "cpu")
        return Gated(engine.device, engine.providers, engine.fallback, engine.sessions, self)

    def passes(self, graph: str, rows: Array) -> None:
        """Wait at the gate; the call is remembered before it waits."""
        self.calls.append((graph, rows))
        self.waits.set()
        assert self._open.wait(PATIENCE)

    async def held(self) -> None:
        """Wait until a call waits at the gate."""
        assert await asyncio.to_thread(self.waits.wait, PATIENCE)

    def decoder_rows(self, graph: str) -> int:
        """How many rows × draws the engine was given for a graph."""
        return sum(cost for name, cost in self.costs if name == graph)

    def rows(self, graph: str) -> int:
        """How many rows the engine was given for a graph."""
        return sum(len(rows) for name, rows in self.calls if name == graph)


@dataclass(frozen=True)
class Gated(Engine):
    """An engine behind a gate."""

    gate: Gate = field(repr=False)

    def compute(self, graph: str, feeds: Mapping[str, Array]) -> Arrays:
        """Wait at the gate, then compute."""
        rows = next(iter(feeds.values()))
        draws = len(feeds["noise"]) if "noise" in feeds else feeds["z"].shape[1] if graph == "joint" else 1
        self.gate.costs.append((graph, len(rows) * draws))
        self.gate.passes(graph, rows)
        return super().compute(graph, feeds)


# ---------------------------------------------------------------- artifacts and rows


def copied(name: str, folder: Path, *, version: int = 1, source: str = "tiny", **changes: Any) -> Path:
    """A committed artifact under another name or version, with some of its manifest changed."""
    target = folder / name / str(version)
    shutil.copytree(COMMITTED / source / "1", target)
    artifact.rewrite(artifact.read(target), {"name": name, "version": version, **changes}, {})
    return target


def npy(rows: Array, version: tuple[int, int] | None = None) -> bytes:
    """An array as an npy file."""
    stream = io.BytesIO()
    np.lib.format.write_array(stream, rows, version=version, allow_pickle=False)
    return stream.getvalue()


def digits(count: int, seed: int = 0) -> Array:
    """Rows that tiny takes: its golden rows, with some pixels flipped."""
    golden = golden_rows("tiny")
    generator = np.random.default_rng(seed)
    chosen = golden[generator.integers(0, len(golden), count)]
    return np.asarray(chosen ^ (generator.random(chosen.shape) < 0.05), np.uint8)


def held_out(split: Literal["calibration", "test"]) -> Array:
    """Rows of tiny's data that no step of its training has seen, split as its manifest says."""
    from training import config, data  # here, since it brings torch

    manifest = artifact.read(COMMITTED / "tiny" / "1").manifest
    return np.asarray(data.load(config.check(manifest.training.config, "manifest").data).splits[split])


def golden_rows(model: str) -> Array:
    """A committed model's golden rows."""
    with np.load(COMMITTED / model / "1" / artifact.GOLDEN, allow_pickle=False) as archive:
        return np.asarray(archive["encoder.x"])

"""The app: the one place that knows all the parts and puts them together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse

from service.ahead import Ahead, at_once, standard_opener
from service.artifact import Manifest
from service.batcher import BatchReport
from service.door import Door
from service.engine import Engine
from service.errors import EngineLost, Problem
from service.http import (
    admin,
    calibrations,
    catalogue,
    evidence,
    health,
    impute,
    jobs,
    latents,
    openapi,
    samples,
    scores,
    v2,
)
from service.http.errors import Gone, answer_gone, answer_http, answer_problem
from service.http.exchange import Desk, Memory, Operation
from service.http.front import Front
from service.http.telemetry import Books, Telemetry
from service.http.wire import Limits
from service.lanes import Lanes, cores
from service.metrics import Metrics
from service.metrics.group import Group
from service.models import Model, Models, Opener, Workshop
from service.operations import Keeping
from service.repository import Repository
from service.settings import Settings
from service.workers import Member

GLANCE = 0.25  # seconds between looks at whether a device is lost
ELSEWHERE = "this process is one of several, which are to serve the same: send SIGHUP to the supervisor"

ABOUT = """Trained variational autoencoders: encode, decode, reconstruct, sample, and score every row with its ELBO.

A score is a lower bound on log p(x) of the density or mass that the model's manifest names, in nats, with its Monte
Carlo error: KL(q(z|x) ‖ p(z|x)) = log p(x) − ELBO."""

# The operations that are models of the Open Inference Protocol.
V2 = tuple(chain(*(module.OPERATIONS for module in (scores, latents, samples, evidence, impute))))


def build(
    settings: Settings,
    *,
    opener: Opener | None = None,
    door: Door | None = None,
    ahead: Ahead | None = None,
    member: Member | None = None,
) -> FastAPI:
    """The service as an ASGI app. opener, door and ahead are given by tests and by the command line.

    ahead has begun to open the models. member is what this process is of a group, which then has them opened already.
    """
    door = door or Door()
    metrics = Metrics(Group(member.folder, member.slot, member.processes) if member else None)
    models = Models(settings.required, settings.default_versions)
    lanes = Lanes(settings.lanes or cores())
    desk = _desk(settings, models, door, member)
    window = v2.window(desk, V2, metrics)

    def closed(model: Model) -> None:
        window.shelf.forget(model)
        app.state.front.forget()
        _uncount_model(metrics, model)

    workshop = _workshop(settings, opener or standard_opener(settings), lanes, metrics)
    workshop = replace(workshop, closed=closed)
    passed = partial(_passed, door, settings.max_timeout_ms / 1e3)
    look = member.look if member else ahead.look if ahead else None
    repository = Repository(models, settings.models, workshop, door.spawn, passed, look)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with _served(models, repository, member):
            if member:
                await member.may_listen.wait()
            door.spawn("devices", _watch(models))
            if settings.poll_s and not member:
                door.spawn("poll", repository.poll(partial(asyncio.sleep, settings.poll_s)))
            try:
                yield
            finally:
                await door.close()
                lanes.close()

    app = FastAPI(
        title="vae-serve",
        version="0.1.0",
        description=ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,
        openapi_url=None,  # the schema and its page are ours: openapi.install
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    operations = _add_routes(app, desk, window)
    books = Books(door, metrics, settings.access_log)
    stalled = partial(_stalled, lanes, settings.stall_ms / 1e3)
    app.include_router(health.router(models, door, metrics, stalled))
    guard = None
    if settings.admin_token:
        guard = admin.Admin(desk, repository, settings.admin_token.get_secret_value(), ELSEWHERE if member else None)
        app.include_router(admin.router(guard))
    unready = partial(health.unready, models, door)
    app.include_router(v2.router(window, partial(health.faults, door, stalled), unready, guard))
    app.add_exception_handler(Problem, answer_problem)
    app.add_exception_handler(HTTPException, answer_http)
    app.add_exception_handler(Gone, answer_gone)
    app.add_middleware(Telemetry, books=books)
    app.state.models, app.state.door, app.state.lanes, app.state.desk = models, door, lanes, desk
    app.state.repository, app.state.metrics = repository, metrics
    finders = jobs.Finder(desk, operations), v2.Finder(window)
    app.state.front = Front(desk, books, finders, lanes.count, member.debts if member else None)
    return app


def _served(models: Models, repository: Repository, member: Member | None) -> AbstractAsyncContextManager[None]:
    """The models, served: what lies in the folder, what the group has opened, or for its porter nothing yet."""
    if member and member.porter:
        models.found(member.keys)
        return nullcontext()
    return repository.serve()


def _workshop(settings: Settings, opener: Opener, lanes: Lanes, metrics: Metrics) -> Workshop:
    return Workshop(
        opener,
        lanes,
        settings.batch,
        settings.batch_ms / 1e3,
        settings.waiting,
        settings.waiting_ms / 1e3,
        settings.inline_us / 1e6,
        at_once(settings),
        partial(_count_batch, metrics),
        partial(_count_model, metrics),
        refused=partial(_count_refused, metrics),
        forgotten=partial(_uncount_refused, metrics),
        false_alarm=settings.drift_false_alarm,
        state=settings.state,
    )


def _desk(settings: Settings, models: Models, door: Door, member: Member | None) -> Desk:
    limits = Limits(
        settings.max_body_bytes,
        settings.max_json_depth,
        settings.max_rows,
        settings.max_draws,
        settings.max_row_draws,
        settings.max_evidence_draws,
    )
    memory = Memory(settings.max_held_bytes)
    keeping = None
    if settings.calibrate and settings.state:
        keeping = Keeping(settings.state, settings.drift_false_alarm)
        keeping = replace(keeping, told=member.told) if member else keeping
    return Desk(models, limits, door, memory, settings.timeout_ms / 1e3, settings.max_timeout_ms / 1e3, keeping)


def _add_routes(app: FastAPI, desk: Desk, window: v2.Window) -> dict[str, Operation[Any]]:
    """The operations by name, each with its routes."""
    tagged: dict[str, tuple[Operation[Any], ...]] = {
        "scores": (*scores.OPERATIONS, *evidence.OPERATIONS),
        "latents": (*latents.OPERATIONS, *impute.OPERATIONS),
        "samples": samples.OPERATIONS,
    }
    if desk.keeping:
        tagged["calibrations"] = calibrations.OPERATIONS
    for operations in tagged.values():
        app.include_router(openapi.router(desk, operations))
    app.include_router(catalogue.router(desk))
    app.add_api_route("/", lambda: RedirectResponse("/docs"), include_in_schema=False)
    openapi.install(app, desk, tagged, partial(v2.described, window), {"infer": v2.example})
    return {operation.name: operation for operation in chain.from_iterable(tagged.values())}


def _count_batch(metrics: Metrics, manifest: Manifest, report: BatchReport) -> None:
    counted = metrics.batches(manifest.name, str(manifest.version), report.graph)
    metrics.observe(counted.sizes, report.decoder_rows)
    metrics.later(counted.tickets, report.tickets)
    metrics.observe(counted.seconds, report.seconds)
    metrics.set(counted.waiting, report.waiting)
    metrics.later(counted.calls)


def _count_model(metrics: Metrics, manifest: Manifest, engine: Engine) -> None:
    metrics.model.labels(manifest.name, str(manifest.version), engine.device).set(1)
    metrics.fallback.labels(manifest.name, str(manifest.version)).set(engine.fallback is not None)
    _uncount_refused(metrics, manifest.name, manifest.version)


def _uncount_model(metrics: Metrics, model: Model) -> None:
    name, version = model.key
    metrics.forget(metrics.model, name, str(version), model.engine.device)
    metrics.forget(metrics.fallback, name, str(version))


def _count_refused(metrics: Metrics, name: str, version: int) -> None:
    metrics.refused.labels(name, str(version)).set(1)


def _uncount_refused(metrics: Metrics, name: str, version: int) -> None:
    metrics.forget(metrics.refused, name, str(version))


async def _passed(door: Door, longest: float) -> None:
    """Wait until all have left who are inside now; who stays past the longest deadline has nothing to ask any more."""
    with suppress(TimeoutError):
        async with asyncio.timeout(longest + GLANCE):
            await door.passed()


async def _watch(models: Models) -> None:
    """Die as soon as an engine's device is lost: the service then ends, for only a new process can compute again."""
    while True:
        if fault := _lost(models):
            raise EngineLost(fault)
        await asyncio.sleep(GLANCE)


def _lost(models: Models) -> str | None:
    """Why an engine can't compute any more; asked apart, so that whoever waits holds no model."""
    return next((model.engine.lost for model in models.all() if model.engine.lost), None)


def _stalled(lanes: Lanes, limit: float) -> str | None:
    seconds = lanes.longest()
    return f"an engine has been computing for {seconds:.0f} s" if seconds > limit else None

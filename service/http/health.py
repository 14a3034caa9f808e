"""Health: whether the process works, whether it is ready, and what it counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from service.door import Door
from service.metrics import Metrics
from service.models import Models


class Condition(BaseModel):
    """How the service is."""

    status: str = Field(description="live or not live, ready or not ready")
    reasons: list[str] = Field(description="why not")


CONDITIONS: dict[int | str, dict[str, Any]] = {
    200: {"model": Condition, "description": "it is"},
    503: {"model": Condition, "description": "it isn't, for the reasons given; see Retry-After"},
}


def router(models: Models, door: Door, metrics: Metrics, stalled: Callable[[], str | None]) -> APIRouter:
    """The routes of this module; stalled says what has been computing for too long, if anything."""
    routes = APIRouter(tags=["health"])

    @routes.get("/livez", responses=CONDITIONS)
    @routes.api_route("/livez", methods=["GET", "HEAD"], include_in_schema=False)  # first, so that Allow lists both
    async def livez(request: Request) -> Response:
        """200 while the process works; 503 when an engine stalls or something that must not die has died."""
        request.scope["visit"].operation = "livez"
        return _said("live", faults(door, stalled))

    @routes.get("/readyz", responses=CONDITIONS)
    @routes.api_route("/readyz", methods=["GET", "HEAD"], include_in_schema=False)  # first, so that Allow lists both
    async def readyz(request: Request) -> Response:
        """200 once every required model has answered its golden rows, until the service drains.

        Where a model's newest version was refused, an older one that answers is enough.
        """
        request.scope["visit"].operation = "readyz"
        return _said("ready", unready(models, door))

    @routes.get("/metrics", response_class=PlainTextResponse)
    async def prometheus(request: Request) -> Response:
        """Prometheus text."""
        request.scope["visit"].operation = "metrics"
        async with metrics.reading:
            metrics.ready.set(not unready(models, door))
            metrics.inside.set(door.inside)
            _show_calibrations(metrics, models)
            return Response(await metrics.text(), headers={"content-type": metrics.content_type})

    return routes


def faults(door: Door, stalled: Callable[[], str | None]) -> list[str]:
    """Why the service isn't live; empty when it is."""
    fault = door.fault or stalled()
    return [fault] if fault else []


def unready(models: Models, door: Door) -> list[str]:
    """Why the service isn't ready; empty when it is."""
    return ([f"the service is {door.state}"] if door.state != "open" else []) + models.unready()


def _show_calibrations(metrics: Metrics, models: Models) -> None:
    """What p-values rest on, and what the watches over them say; asked only when it is read."""
    gauges = (metrics.calibration_rows, metrics.drift_log_wealth, metrics.drift_rows, metrics.drift_alarm)
    for gauge in gauges:
        gauge.clear()
    for model in models.all():
        where = (model.manifest.name, str(model.manifest.version))
        if model.footing is None:
            continue
        metrics.calibration_rows.labels(*where, model.footing.source).set(model.footing.references.n)
        if watch := model.footing.watch:
            metrics.drift_log_wealth.labels(*where).set(watch.log_wealth)
            metrics.drift_rows.labels(*where).set(watch.rows)
            metrics.drift_alarm.labels(*where).set(watch.alarm)


def _said(name: str, reasons: list[str]) -> Response:
    body = {"status": name if not reasons else f"not {name}", "reasons": reasons}
    headers = {"Retry-After": "1"} if reasons else {}
    return Response(orjson.dumps(body), 503 if reasons else 200, headers, media_type="application/json")

"""The catalogue: what is served, and its manifest."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from service.artifact import Manifest
from service.http import wire
from service.http.exchange import Desk, find, header
from service.http.openapi import problems
from service.models import Model


class Listed(BaseModel):
    """A name that is served."""

    name: str
    versions: list[int] = Field(description="ascending")
    default_version: int = Field(description="the one that answers when none is named")


class Served(Manifest):
    """A model's manifest, and where it runs."""

    device: str
    providers: list[str]
    device_fallback: str | None = Field(description="why CUDA was wanted and the CPU is used, where that is so")


LISTED: dict[int | str, dict[str, Any]] = {200: {"model": list[Listed]}, **problems(406)}
SERVED: dict[int | str, dict[str, Any]] = {200: {"model": Served}, **problems(404, 406, 503)}


def router(desk: Desk) -> APIRouter:
    """The routes of this module."""
    routes = APIRouter(tags=["catalogue"])

    @routes.get("/v1/models", responses=LISTED)
    async def models(request: Request) -> Response:
        """Every model that is served, its versions, and the one that answers when none is named."""
        request.scope["visit"].operation = "catalogue"
        listed = [
            {"name": name, "versions": versions, "default_version": versions[-1]}
            for name, versions in desk.models.catalogue()
        ]
        return _json(request, listed)

    @routes.get("/v1/models/{model}/versions/{version}", responses=SERVED)
    @routes.get("/v1/models/{model}", responses=SERVED)
    async def model(request: Request) -> Response:
        """A model's manifest, and the device that it is really on."""
        request.scope["visit"].operation = "manifest"
        parameters = request.path_params
        return _json(request, described(find(desk.models, parameters["model"], parameters.get("version"))))

    return routes


def described(model: Model) -> dict[str, Any]:
    """A manifest as served."""
    engine = model.engine
    device = {"device": engine.device, "providers": engine.providers, "device_fallback": engine.fallback}
    return {**model.manifest.model_dump(mode="json"), **device}


def _json(request: Request, content: Any) -> Response:
    form = wire.negotiate(header(request, "accept"), (wire.JSON,))
    return Response(wire.dumps(content), media_type=form)

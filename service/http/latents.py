"""Latents: encode, decode, reconstruct. Wire models beside their routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service import operations
from service.artifact import Array
from service.http.exchange import Desk, Fields
from service.http.openapi import operation
from service.http.telemetry import Visit
from service.models import Model
from service.noise import SEEDS

Seed = Annotated[int, Field(ge=0, lt=SEEDS, description="same seed, same draws")]
NoDraws = Annotated[int, Field(ge=0, description="draws from q(z|x)")]
INPUTS = "rows, [n, *event], of the event's dtype and on the likelihood's support"
LATENTS = "latents, [n, d]"


class Encode(Fields):
    """What encode takes besides its rows."""

    draws: NoDraws = 0
    seed: Seed = 0


class Decode(Fields):
    """What decode takes besides its latents."""

    output: Literal["mean", "parameters", "sample"] = Field("mean", description="of p(x|z)")
    seed: Seed = 0


class Reconstruct(Fields):
    """What reconstruct takes besides its rows."""

    draws: Annotated[int, Field(ge=0, description="draws to average over; 0 decodes the posterior's mean")] = 0
    seed: Seed = 0


class Answered(Fields):
    """What every answer begins with."""

    model: str
    version: int


class Encoded(Answered):
    """q(z|x)."""

    mean: list[list[float]] = Field(description="[n, d]")
    scale: list[list[float]] = Field(description="[n, d]")
    latents: list[list[list[float]]] | None = Field(None, description="[n, draws, d], where draws were asked for")
    seed: int | None = Field(None, description="with latents")


class Outputs(Answered):
    """Events."""

    outputs: list[Any] | None = Field(None, description="[n, *event]")
    parameters: dict[str, list[Any]] | None = Field(None, description="of p(x|z), by name, where they were asked for")


def router(desk: Desk) -> APIRouter:
    """The routes of this module."""
    routes = APIRouter(tags=["latents"])

    @routes.post(
        "/v1/models/{model}/encode",
        openapi_extra=operation(Encode, Encoded, "inputs", INPUTS),
    )
    @routes.post("/v1/models/{model}/versions/{version}/encode", include_in_schema=False)
    async def encode(request: Request) -> Response:
        """The posterior of each row, and draws from it."""

        async def work(model: Model, asked: Encode, rows: Array, visit: Visit) -> Mapping[str, Any]:
            desk.count(visit, rows, asked.draws)
            found = await operations.encode(model, rows, draws=asked.draws, seed=asked.seed, errand=visit.errand)
            drawn = {} if found.latents is None else {"latents": found.latents, "seed": found.seed}
            return {"mean": found.mean, "scale": found.scale, **drawn}

        return await desk.serve(request, "encode", Encode, "inputs", work)

    @routes.post(
        "/v1/models/{model}/decode",
        openapi_extra=operation(Decode, Outputs, "latents", LATENTS),
    )
    @routes.post("/v1/models/{model}/versions/{version}/decode", include_in_schema=False)
    async def decode(request: Request) -> Response:
        """p(x|z) at each latent: its mean, its parameters, or a draw."""

        async def work(model: Model, asked: Decode, latents: Array, visit: Visit) -> Mapping[str, Any]:
            desk.count(visit, latents)
            if asked.output == "parameters":
                return {"parameters": await operations.decode_parameters(model, latents, errand=visit.errand)}
            if asked.output == "sample":
                drawn = await operations.decode_sample(model, latents, seed=asked.seed, errand=visit.errand)
                return {"outputs": drawn}
            return {"outputs": await operations.decode(model, latents, errand=visit.errand)}

        return await desk.serve(request, "decode", Decode, "latents", work)

    @routes.post(
        "/v1/models/{model}/reconstruct",
        openapi_extra=operation(Reconstruct, Outputs, "inputs", INPUTS),
    )
    @routes.post("/v1/models/{model}/versions/{version}/reconstruct", include_in_schema=False)
    async def reconstruct(request: Request) -> Response:
        """What the model makes of each row: decoded from the posterior's mean, or averaged over its draws."""

        async def work(model: Model, asked: Reconstruct, rows: Array, visit: Visit) -> Mapping[str, Any]:
            desk.count(visit, rows, asked.draws)
            return {
                "outputs": await operations.reconstruct(
                    model, rows, draws=asked.draws, seed=asked.seed, errand=visit.errand
                )
            }

        return await desk.serve(request, "reconstruct", Reconstruct, "inputs", work)

    return routes

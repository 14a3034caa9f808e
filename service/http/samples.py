"""Samples: draws from the model. Wire models beside their route."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from service import operations
from service.http.exchange import Desk, Fields
from service.http.latents import Answered, Seed
from service.http.openapi import operation
from service.http.telemetry import Visit
from service.models import Model


class Sample(Fields):
    """What sample takes."""

    count: Annotated[int, Field(ge=1, description="how many")] = 1
    seed: Seed | None = Field(None, description="null: one is drawn, and echoed")
    temperature: float = Field(1.0, ge=0, le=100, description="scale of the prior's draws")
    output: Literal["mean", "sample"] = Field("mean", description="of p(x|z) at each latent")


class Sampled(Answered):
    """Draws from the model."""

    outputs: list[Any] = Field(description="[count, *event]")
    latents: list[list[float]] = Field(description="[count, d]")
    seed: int


def router(desk: Desk) -> APIRouter:
    """The routes of this module."""
    routes = APIRouter(tags=["samples"])

    @routes.post("/v1/models/{model}/sample", openapi_extra=operation(Sample, Sampled, None))
    @routes.post("/v1/models/{model}/versions/{version}/sample", include_in_schema=False)
    async def sample(request: Request) -> Response:
        """Latents from the prior, decoded."""

        async def work(model: Model, asked: Sample, _: None, visit: Visit) -> Mapping[str, Any]:
            desk.limits.check(asked.count)
            visit.rows = asked.count
            found = await operations.sample(
                model,
                asked.count,
                seed=asked.seed,
                temperature=asked.temperature,
                output=asked.output,
                errand=visit.errand,
            )
            return {"outputs": found.outputs, "latents": found.latents, "seed": found.seed}

        return await desk.serve(request, "sample", Sample, None, work)

    return routes

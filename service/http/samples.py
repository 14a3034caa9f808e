"""Samples: draws from the model. Wire models beside their operation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from service import operations
from service.http.exchange import Desk, Fields, Operation
from service.http.latents import Answered, Seed
from service.http.telemetry import Visit
from service.models import Model


class Sample(Fields):
    """What sample takes."""

    count: Annotated[int, Field(ge=1, description="how many")] = 1
    seed: Seed | None = Field(None, description="null: one is drawn, and echoed")
    temperature: float = Field(1.0, ge=0, le=100, description="scale of the noise that the prior is drawn by")
    output: Literal["mean", "sample"] = Field("mean", description="of p(x|z) at each latent")


class Sampled(Answered):
    """Draws from the model."""

    outputs: list[Any] = Field(description="[count, *event]")
    latents: list[list[float]] = Field(description="[count, d]")
    seed: int


async def sample(desk: Desk, model: Model, asked: Sample, _: None, visit: Visit) -> dict[str, Any]:
    """Latents from the prior, decoded."""
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


OPERATIONS = (Operation("sample", Sample, Sampled, sample),)

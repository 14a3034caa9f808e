"""Latents: encode, decode, reconstruct. Wire models beside their operations."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from service import operations
from service.artifact import Array
from service.http.exchange import Desk, Fields, Operation
from service.http.telemetry import Visit
from service.models import Model
from service.noise import SEEDS

Seed = Annotated[int, Field(ge=0, lt=SEEDS, description="same seed, same draws")]
NoDraws = Annotated[int, Field(ge=0, description="draws from q(z|x)")]
INPUTS = (
    "rows, [n, *event], of the event's dtype and on the likelihood's support; "
    "null for a missing value where the manifest's `missing` is true"
)
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
    scale: list[list[float]] | None = Field(None, description="[n, d], of each latent; left out where q is a flow")
    latents: list[list[list[float]]] | None = Field(None, description="[n, draws, d], where draws were asked for")
    seed: int | None = Field(None, description="with latents")


class Outputs(Answered):
    """Events."""

    outputs: list[Any] | None = Field(None, description="[n, *event]")
    parameters: dict[str, list[Any]] | None = Field(None, description="of p(x|z), by name, where they were asked for")


async def encode(desk: Desk, model: Model, asked: Encode, rows: Array, visit: Visit) -> dict[str, Any]:
    """The posterior of each row, and draws from it."""
    desk.count(visit, rows, asked.draws)
    found = await operations.encode(model, rows, draws=asked.draws, seed=asked.seed, errand=visit.errand)
    drawn = {} if found.latents is None else {"latents": found.latents, "seed": found.seed}
    scale = {} if found.scale is None else {"scale": found.scale}
    return {"mean": found.mean, **scale, **drawn}


async def decode(desk: Desk, model: Model, asked: Decode, latents: Array, visit: Visit) -> dict[str, Any]:
    """p(x|z) at each latent: its mean, its parameters, or a draw."""
    desk.count(visit, latents)
    match asked.output:
        case "parameters":
            return {"parameters": await operations.decode_parameters(model, latents, errand=visit.errand)}
        case "sample":
            drawn = await operations.decode_sample(model, latents, seed=asked.seed, errand=visit.errand)
            return {"outputs": drawn}
        case "mean":
            return {"outputs": await operations.decode(model, latents, errand=visit.errand)}


async def reconstruct(desk: Desk, model: Model, asked: Reconstruct, rows: Array, visit: Visit) -> dict[str, Any]:
    """What the model makes of each row: decoded from the posterior's mean, or averaged over its draws."""
    desk.count(visit, rows, asked.draws)
    found = await operations.reconstruct(model, rows, draws=asked.draws, seed=asked.seed, errand=visit.errand)
    return {"outputs": found}


OPERATIONS = (
    Operation("encode", Encode, Encoded, encode, "inputs", INPUTS),
    Operation("decode", Decode, Outputs, decode, "latents", LATENTS),
    Operation("reconstruct", Reconstruct, Outputs, reconstruct, "inputs", INPUTS),
)

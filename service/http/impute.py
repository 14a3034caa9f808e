"""Impute: what is missing of a row, given what is there. Wire models beside their operation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service import operations
from service.artifact import Array, Manifest
from service.http.exchange import Desk, Fields, Operation
from service.http.latents import INPUTS, Answered, Seed
from service.http.scores import Numbers
from service.http.telemetry import Visit
from service.models import Model
from service.operations.impute import cost


class Asked(Fields):
    """What impute takes besides its rows. A row costs 2,729 decoder calls, and more from 257 draws on."""

    draws: int = Field(16, ge=1, description="draws of what is missing; a row costs 2.7 × pool decoder calls")
    seed: Seed = 0


class Imputed(Answered):
    """Rows made whole. Values that were sent stand as they were sent; null where a number can't be given."""

    outputs: list[Any] = Field(description="[n, *event]; E[x_missing|x_observed] where a value was missing")
    imputations: list[Any] = Field(description="[n, draws, *event]; draws from p(x_missing|x_observed)")
    effective_draws: Numbers = Field(description="draws from p(z|x_observed) that the pool is worth")
    pareto_k: Numbers = Field(description="shape of the weights' tail")
    reliable: list[bool] = Field(description="pareto_k < min(0.7, 1 − 1/log10 pool)")
    seed: int
    draws: int
    pool: int = Field(
        description="draws that were weighed, of a proposal fitted to p(z|x_observed): max(1024, 4 × draws)"
    )


async def impute(desk: Desk, model: Model, asked: Asked, rows: Array, visit: Visit) -> dict[str, Any]:
    """What is missing of each row, given what is there: its expectation, and draws of it."""
    desk.count(visit, rows, asked.draws)
    desk.count(visit, rows, cost(asked.draws), cost(asked.draws))
    found = await operations.impute(model, rows, draws=asked.draws, seed=asked.seed, errand=visit.errand)
    return {name: getattr(found, name) for name in Imputed.model_fields if name not in Answered.model_fields}


def withheld(manifest: Manifest) -> str | None:
    """Why a model doesn't offer it."""
    if manifest.missing:
        return None
    return f"impute is not offered by {manifest.name}, which was not trained for missing values"


OPERATIONS = (Operation("impute", Asked, Imputed, impute, "inputs", INPUTS, withheld),)

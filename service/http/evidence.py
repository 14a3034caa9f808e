"""Evidence: log p(x) of each row, beside its ELBO. Wire models beside their operation."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service import operations
from service.artifact import Array
from service.http.exchange import Desk, Fields, Operation
from service.http.latents import INPUTS, Answered, Seed
from service.http.scores import Numbers
from service.http.telemetry import Visit
from service.models import Model


class Asked(Fields):
    """What evidence takes besides its rows."""

    draws: int = Field(4096, ge=1, description="decoder calls a row, all together")
    seed: Seed = Field(0, description="of the proposals' noise")
    confidence: float = Field(0.95, gt=0, lt=1, description="how often, over seeds, lower_bound holds at the least")


class Found(Answered):
    """One entry a row, in nats of the density or mass that the manifest names; null where it can't be given."""

    log_evidence: Numbers = Field(description="the estimate of log p(x)")
    log_evidence_error: Numbers = Field(description="its standard error over groups of draws; null where not reliable")
    lower_bound: Numbers = Field(description="below log p(x) with the confidence asked for; may lie below elbo")
    elbo: Numbers = Field(description="the lower bound, as score gives it")
    elbo_error: Numbers = Field(description="standard error of elbo over noise banks")
    gap: Numbers = Field(description="log_evidence − elbo: the measured KL(q(z|x) ‖ p(z|x)); never clamped")
    gap_error: Numbers = Field(description="standard error of gap; null where not reliable")
    pareto_k: Numbers = Field(description="shape of the weights' tail; null where draws are too few to tell")
    effective_draws: Numbers = Field(description="draws from the posterior that the last stage is worth")
    reliable: list[bool] = Field(description="pareto_k < min(0.7, 1 − 1/log10 S), S the last stage's draws")
    seed: int
    draws: int
    confidence: float


async def evidence(desk: Desk, model: Model, asked: Asked, rows: Array, visit: Visit) -> dict[str, Any]:
    """An estimate of log p(x) for each row, with its error, a bound that is certain, and whether to rely on it."""
    desk.count(visit, rows, asked.draws, desk.limits.evidence_draws)
    found = await operations.evidence_of(
        model, rows, draws=asked.draws, seed=asked.seed, confidence=asked.confidence, errand=visit.errand
    )
    return on_the_wire(found)


def on_the_wire(found: operations.Evidence) -> dict[str, Any]:
    """Evidence by the names it has on the wire."""
    estimate = found.estimate
    return {
        "log_evidence": estimate.log_evidence,
        "log_evidence_error": estimate.error,
        "lower_bound": estimate.lower_bound,
        "elbo": found.bound.elbo,
        "elbo_error": found.bound.error,
        "gap": found.gap,
        "gap_error": found.gap_error,
        "pareto_k": estimate.pareto_k,
        "effective_draws": estimate.effective_draws,
        "reliable": estimate.reliable.tolist(),
        "seed": found.seed,
        "draws": found.draws,
        "confidence": found.confidence,
    }


OPERATIONS = (Operation("evidence", Asked, Found, evidence, "inputs", INPUTS),)

"""Evidence: log p(x) of each row beside its ELBO, and the gap between the two."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from service import evidence, scoring
from service.artifact import Array
from service.evidence import Estimate
from service.models import Model
from service.operations.errand import Errand, chunks, in_time, off_loop
from service.operations.posterior import worked
from service.operations.rows import admitted

Doubles = NDArray[np.float64]

AT_ONCE = 262_144  # numbers of one stage's draws that are worked on at once; a few megabytes with what is made of them


@dataclass(frozen=True, slots=True)
class Evidence:
    """log p(x) of each row with its error and diagnostics, the ELBO, and the gap; all in nats, (rows,) float64."""

    estimate: Estimate
    bound: scoring.Bound
    seed: int
    draws: int
    confidence: float
    independent: bool  # whether the two estimates have no draws in common

    @property
    def gap(self) -> Doubles:
        """log p(x) − ELBO, the measured KL(q(z|x) ‖ p(z|x)); never clamped."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self.estimate.log_evidence - self.bound.elbo)

    @property
    def gap_error(self) -> Doubles:
        """The error of the gap, both errors together; three of it hold as often as three of a normal's would.

        Each is widened for its degrees of freedom: a Student t with three of them has heavy tails.
        """
        parts = (
            self.bound.error * evidence.widening(self.bound.error_df),
            self.estimate.error * evidence.widening(self.estimate.groups - 1),
        )
        return np.hypot(*parts) if self.independent else np.asarray(sum(parts))


async def evidence_of(
    model: Model,
    inputs: Array,
    *,
    draws: int = 4096,
    seed: int = 0,
    confidence: float = 0.95,
    errand: Errand,
) -> Evidence:
    """log p(x) of each row by `draws` decoder calls, the ELBO's among them."""
    x = await admitted(inputs, model.manifest)
    plan = await asyncio.to_thread(evidence.plan, draws, model.draws, seed, model.manifest.latent_size)
    if plan is None:
        return await _plain(model, x, draws, seed, confidence, errand)
    bank = await model.bank(model.seed, model.draws)
    outputs = await errand.ask(model, "elbo", {"x": x}, bank)
    bound = scoring.bound(outputs["log_likelihood"], scoring.kl(outputs), bank)
    posterior = await errand.ask(model, "encoder", {"x": x})
    parts = []
    step = max(1, AT_ONCE // (plan.last * plan.latent_size))
    for rows in in_time(chunks(len(x), step=step), len(x), errand):
        scale = np.exp(np.asarray(posterior["log_scale"][rows], np.float64))
        work = evidence.steps(posterior["mean"][rows], scale, plan, confidence, model.manifest.prior.moments)
        parts.append(await worked(model, x[rows], work, errand))
    return Evidence(_together(parts), bound, seed, draws, confidence, independent=True)


async def _plain(model: Model, x: Array, draws: int, seed: int, confidence: float, errand: Errand) -> Evidence:
    """Too few calls to adapt with: one pass of a bank from q gives both numbers."""
    bank = await model.bank(seed, draws)
    outputs = await errand.ask(model, "elbo", {"x": x}, bank)
    bound = scoring.bound(outputs["log_likelihood"], scoring.kl(outputs), bank)
    groups = bank.groups if len(bank.groups) < draws else 1
    weights = np.asarray(outputs["log_weight"], np.float64)
    found = await off_loop(weights.size, lambda: evidence.estimate(weights, groups, confidence))
    # Four frames of few draws from q are too alike to tell all of their error; the weights' own spread tells more.
    own = np.sqrt(np.maximum(1.0 / found.effective_draws - 1.0 / draws, 0.0))
    found = replace(found, error=np.hypot(found.error, own))
    return Evidence(found, bound, seed, draws, confidence, independent=False)


def _together(parts: list[Estimate]) -> Estimate:
    arrays = {
        field.name: np.concatenate([getattr(part, field.name) for part in parts])
        for field in fields(Estimate)
        if field.name != "groups"
    }
    return Estimate(**arrays, groups=parts[0].groups)

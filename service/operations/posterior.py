"""The posterior: draws that a proposal fitted to each row gives, or an estimate from them; log p(x, z) by the graph."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from typing import TypeVar

import numpy as np

from service import evidence
from service.artifact import Array
from service.evidence import Plan, Pool
from service.models import Model
from service.operations.draws import Normal
from service.operations.errand import Errand

T = TypeVar("T")


async def pooled(model: Model, x: Array, q: Normal, plan: Plan, errand: Errand) -> Pool:
    """Weighed draws from p(z|x) of admitted rows, whose q has a mean and a scale like the encoder's."""
    scale = np.exp(np.asarray(q.log_scale, np.float64))
    return await worked(model, x, evidence.pool(q.mean, scale, plan, model.manifest.prior.moments), errand)


async def worked(model: Model, x: Array, work: Generator[Array, Array, T], errand: Errand) -> T:
    """Go through the steps: draws to the graph, the graph's answers back to what asked, off the event loop."""
    joint: Array | None = None
    while True:
        z, done = await asyncio.to_thread(_step, work, joint)
        if done is not None:
            return done
        found = await errand.ask(model, "joint", {"x": x, "z": z})
        joint = found["log_likelihood"] + found["log_prior"]


def _step(work: Generator[Array, Array, T], joint: Array | None) -> tuple[Array, T | None]:
    """One step: draws, or what they end with. StopIteration can't leave a thread, so it is met here."""
    try:
        return (next(work) if joint is None else work.send(joint)), None
    except StopIteration as done:
        return np.empty(0), done.value

"""Evidence: log p(x) by adaptive importance sampling, from log p(x, z) alone. Pure NumPy; knows nothing of models.

    p(x) = E_g[p(x, z) / g(z)]        g: a proposal fitted to the row's posterior by forward passes

`steps` is the whole of it, as a generator: it yields draws, is sent log p(x, z) at them, and returns the estimate.
Whoever computes log p(x, z), and where, is not its business.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from service.evidence.estimate import Estimate, estimate, widening
from service.evidence.plan import GROUPS, Plan, plan, pooling
from service.evidence.proposal import Doubles, Singles, log_sum, transposed
from service.evidence.search import STANDARD, Moments, adapt

T = TypeVar("T")

__all__ = [
    "GROUPS",
    "Estimate",
    "Plan",
    "Pool",
    "driven",
    "estimate",
    "evaluate",
    "plan",
    "pool",
    "pooling",
    "steps",
    "widening",
]


@dataclass(frozen=True, slots=True)
class Pool:
    """Fresh draws z from a fitted proposal g, (rows, draws, d), and log p(x, z) − log g(z) at them, (rows, draws).

    controls (rows, c, draws) are numbers whose mean under g is zero. Weighed, the draws are of p(z|x).
    """

    z: Singles
    log_weight: Doubles
    controls: Doubles


def steps(
    mean: Doubles, scale: Doubles, plan: Plan, confidence: float, near: Moments = STANDARD
) -> Generator[Singles, Doubles, Estimate]:
    """The estimate for rows whose q has this mean and scale, (rows, d) each, and whose prior has those of `near`.

    Yields draws (rows, draws, d) and is sent log p(x, z) at them, (rows, draws).
    """
    found = yield from pool(mean, scale, plan, near)
    return estimate(found.log_weight, plan.groups, confidence, found.controls)


def pool(mean: Doubles, scale: Doubles, plan: Plan, near: Moments = STANDARD) -> Generator[Singles, Doubles, Pool]:
    """The draws that the estimate is made of, likewise; a row's are a function of its q and of log p(x, z)."""
    mean, scale = (np.ascontiguousarray(values, np.float64) for values in (mean, scale))
    known = (
        np.isfinite(mean) & np.isfinite(scale) & (scale > 0)
    )  # any proposal will do, so the prior where there's no q
    mean, scale = np.where(known, mean, near[0]), np.where(known, scale, near[1])
    proposal = yield from adapt(mean, scale, plan, near)
    draws = proposal.draw(*plan.estimate())
    joint = yield draws
    parts = proposal.log_parts(transposed(draws))
    density = log_sum(parts)
    controls = np.exp(parts[:, 1:] - density[:, None]) - proposal.shares[:, 1:, None]
    return Pool(draws, np.asarray(joint, np.float64) - density, controls)


def evaluate(
    joint: Callable[[Singles], Doubles],
    mean: Doubles,
    scale: Doubles,
    plan: Plan,
    confidence: float = 0.95,
    near: Moments = STANDARD,
) -> Estimate:
    """The estimate with any function that gives log p(x, z), (rows, draws, d) → (rows, draws)."""
    return driven(steps(mean, scale, plan, confidence, near), joint)


def driven(process: Generator[Singles, Doubles, T], joint: Callable[[Singles], Doubles]) -> T:
    """What a process ends with that yields draws and is sent log p(x, z) at them."""
    draws = next(process)
    while True:
        try:
            draws = process.send(joint(draws))
        except StopIteration as done:
            found: T = done.value
            return found

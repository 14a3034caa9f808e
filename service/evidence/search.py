"""Search: a proposal for each row's posterior, fitted stage by stage to where log p(x, z) is large.

The first stage looks where q and the prior look. After each stage all draws so far are weighed against the mixture
they came from, the weights are tempered until enough of them count, and a normal is fitted to them. Forward passes
only: all that is known of the model is log p(x, z) at the draws.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.evidence.plan import Plan
from service.evidence.proposal import Component, Proposal, Singles, log_sum, transposed

Doubles = NDArray[np.float64]
Asking = Generator[Singles, Doubles, Proposal]

INFLATION = 1.2  # of a fitted covariance: a proposal too wide costs little, one too narrow costs the tails
PER_LATENT = 7.0  # effective draws wanted for each latent, and two more, before a normal is fitted
HALVINGS = 16  # of the range in which the temperature is sought
COLDEST = -20.0  # its log, at the least


@dataclass(slots=True)
class Pool:
    """All draws so far, what they came from, and log p(x, z) at them."""

    proposals: list[Proposal] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    draws: list[Doubles] = field(default_factory=list)  # (rows, d, draws) each
    joint: list[Doubles] = field(default_factory=list)  # (rows, draws) each

    def add(self, proposal: Proposal, draws: Singles, joint: Doubles) -> None:
        """Keep a stage's draws."""
        self.proposals.append(proposal)
        self.sizes.append(joint.shape[1])
        self.draws.append(transposed(draws))
        self.joint.append(finite(joint))

    def weighed(self) -> tuple[Doubles, Doubles]:
        """Every draw (rows, d, draws) and its log weight (rows, draws) against the mixture of all stages."""
        z = np.concatenate(self.draws, axis=2)
        shares = np.log(np.asarray(self.sizes) / sum(self.sizes))
        each = [share + found.log_density(z) for share, found in zip(shares, self.proposals, strict=True)]
        return z, np.concatenate(self.joint, axis=1) - log_sum(np.ascontiguousarray(np.stack(each, axis=1)))


def search(mean: Doubles, scale: Doubles, plan: Plan) -> Asking:
    """A proposal for the last stage, (rows, d) each of q; yields draws and is sent log p(x, z) at them."""
    proposal, pool = first(mean, scale), Pool()
    for index in range(len(plan.stages)):
        draws = proposal.draw(*plan.stage(index))
        joint = yield draws
        pool.add(proposal, draws, joint)
        proposal = around(fitted(*pool.weighed()), mean, scale)
    return proposal


def first(mean: Doubles, scale: Doubles) -> Proposal:
    """Where to look first: a quarter each from q, q at twice its scale, q at four times, and the prior."""
    share = np.full(len(mean), 0.25)
    q = Component(share, mean, scale)
    wide = (q.widened(2.0, 1.0), q.widened(4.0, 1.0))
    return Proposal((q, *wide, prior(mean, share)))


def prior(mean: Doubles, share: Doubles) -> Component:
    """The standard normal, for rows like these."""
    return Component(share, np.zeros_like(mean), np.ones_like(mean))


def around(found: Component, mean: Doubles, scale: Doubles) -> Proposal:
    """The fitted normal with most of the draws, it again but wider, q wide, and the prior: a mode may lie elsewhere."""
    share = np.full(len(mean), 0.1)
    q = Component(share, mean, scale)
    return Proposal((found.widened(1.0, 0.6), found.widened(1.6, 0.2), q.widened(2.0, 1.0), prior(mean, share)))


def fitted(z: Doubles, log_weight: Doubles) -> Component:
    """The normal with the tempered weights' mean and covariance, the latter shrunk to its diagonal and inflated."""
    rows, d, _ = z.shape
    weights, ess = tempered(log_weight, PER_LATENT * (d + 2))
    centre = (z @ weights[:, :, None])[:, :, 0]
    away = z - centre[:, :, None]
    covariance = (away * weights[:, None, :]) @ away.transpose(0, 2, 1)
    variance = np.maximum(np.diagonal(covariance, axis1=1, axis2=2), 1e-12)
    kept = ess / (ess + d)  # the fewer draws a latent, the less is believed of its correlations
    covariance = covariance * kept[:, None, None]
    covariance[:, np.arange(d), np.arange(d)] = variance * (1.0 + 1e-9)
    root = np.linalg.cholesky(INFLATION * covariance)
    return Component(np.ones(rows), centre, root)


def tempered(log_weight: Doubles, wanted: float) -> tuple[Doubles, Doubles]:
    """Weights to the highest power, at most 1, that leaves so many effective draws; they sum to one. And how many."""
    excess = np.minimum(log_weight - log_weight.max(-1, keepdims=True), 0.0)
    low, high = np.full(len(excess), COLDEST), np.zeros(len(excess))
    high[_effective(excess, np.ones(len(excess))) < wanted] = 0.0
    warm = _effective(excess, np.ones(len(excess))) >= wanted
    for _ in range(HALVINGS):
        middle = 0.5 * (low + high)
        enough = _effective(excess, np.exp(middle)) >= wanted
        low, high = np.where(enough, middle, low), np.where(enough, high, middle)
    power = np.where(warm, 1.0, np.exp(low))
    weights = np.exp(power[:, None] * excess)
    weights /= weights.sum(-1, keepdims=True)
    return weights, 1.0 / (weights * weights).sum(-1)


def _effective(excess: Doubles, power: Doubles) -> Doubles:
    weights = np.exp(power[:, None] * excess)
    total = weights.sum(-1)
    return np.asarray(total * total / (weights * weights).sum(-1))


def finite(joint: Doubles) -> Doubles:
    """log p(x, z) with a floor: what is no number, or below what a double's exponent holds, has next to no weight."""
    return np.asarray(np.clip(np.nan_to_num(joint, nan=-1e300, posinf=-1e300, neginf=-1e300), -1e300, 1e300))

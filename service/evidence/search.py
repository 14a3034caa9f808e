"""Search: a proposal for each row's posterior, fitted stage by stage to where log p(x, z) is large.

The first stage looks where q and the prior look. After each stage all draws so far are weighed against the mixture
of all proposals that they came from, normals are fitted to them, and each gets the share of the next draws that makes
the mixture likeliest. Forward passes only: all that is known of the model is log p(x, z) at the draws.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from service.evidence import fitting
from service.evidence.plan import Plan
from service.evidence.proposal import Normal, Proposal, Singles, log_densities, log_sum, transposed

Doubles = NDArray[np.float64]
Asking = Generator[Singles, Doubles, Proposal]
Moments = tuple[float | Doubles, float | Doubles]  # a mean and a scale, one number or (d,)

STANDARD: Moments = (0.0, 1.0)

FIRST = np.array([0.15, 0.20, 0.20, 0.45])  # of the first stage: q, q at twice and at four times its scale, the prior
MOST_MODAL = 8  # latents up to which two modes are looked for; with more, the draws are too few to tell two from one
# Half of the draws are shared out so, whatever the draws so far say: those that a normal was fitted to can't judge it,
# and a mode may lie where none of them was. By moments, and wider; by regression, and wider; q, q wide, the prior.
ONE = np.array([0.20, 0.06, 0.40, 0.10, 0.08, 0.08, 0.08])
# By moments, and wider; each mode by moments; each mode by regression, and wider; q, q wide, the prior.
TWO = np.array([0.20, 0.20, 0.04, 0.04, 0.09, 0.07, 0.09, 0.07, 0.06, 0.06, 0.08])
ROUNDS = 10  # of expectation and maximisation for the shares
ENOUGH = 30.0  # effective draws for the shares; tempering to more would favour what is too wide
FLOOR = -1e300  # for log p(x, z) that is no number or too low for one: a weight of nothing


@dataclass(slots=True)
class Pool:
    """All draws so far, log p(x, z) at them, and the density of the mixture of all proposals that they came from."""

    proposals: list[Proposal] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    z: Doubles = field(default_factory=lambda: np.empty(0))  # (rows, d, draws)
    joint: Doubles = field(default_factory=lambda: np.empty(0))  # (rows, draws)
    reach: Doubles = field(default_factory=lambda: np.empty(0))  # log Σ size · density

    def add(self, proposal: Proposal, draws: Singles, joint: Doubles, old: Doubles | None) -> None:
        """Keep a stage's draws; old is the log density of its proposal at the draws before them."""
        z, joint = transposed(draws), finite(joint)
        self.proposals.append(proposal)
        self.sizes.append(joint.shape[1])
        each = [math.log(size) + found.log_density(z) for size, found in zip(self.sizes, self.proposals, strict=True)]
        reach = log_sum(np.stack(each, axis=1))
        if old is not None:
            self.reach = np.logaddexp(self.reach, math.log(joint.shape[1]) + old)
            z, joint, reach = (
                np.concatenate(pair, axis=-1) for pair in ((self.z, z), (self.joint, joint), (self.reach, reach))
            )
        self.z, self.joint, self.reach = z, joint, reach

    @property
    def log_weight(self) -> Doubles:
        """Of every draw, but for a constant, (rows, draws)."""
        return self.joint - self.reach


def adapt(mean: Doubles, scale: Doubles, plan: Plan, near: Moments = STANDARD) -> Asking:
    """A proposal for the last stage, from the mean and scale of q, (rows, d); yields draws and is sent log p(x, z).

    near: the mean and the scale of the prior. Neither q nor the prior has to be a normal: a normal stands in for each.
    """
    where, width = (np.array(np.broadcast_to(each, mean.shape), np.float64) for each in near)
    q, prior = Normal(mean, scale, (1.0, 2.0)), Normal(where, width)
    wide = Normal(mean, scale, (1.0, 2.0, 4.0))
    proposal, old = Proposal((wide, prior), np.tile(FIRST, (len(mean), 1))), None
    pool = Pool()
    for index in range(len(plan.stages)):
        draws = proposal.draw(*plan.stage(index))
        joint = yield draws
        pool.add(proposal, draws, joint, old)
        proposal, old = shared((*fitted(pool), q, prior), pool)
    return proposal


def fitted(pool: Pool) -> tuple[Normal, ...]:
    """Normals fitted to all draws and to each of two modes, by moments and by regression."""
    z, log_weight = pool.z, pool.log_weight
    whole = fitting.by_moments(z, log_weight)
    modes = fitting.modes(z, log_weight) if z.shape[1] <= MOST_MODAL else []
    near = modes or [(whole, np.zeros(1))]
    quadratics = [fitting.by_regression(z, log_weight + hold, pool.joint, one) for one, hold in near]
    both = (one.at_scales(1.05, 1.6) for one in quadratics)
    return (whole.at_scales(1.0, 1.6), *(one for one, _ in modes), *both)


def shared(normals: tuple[Normal, ...], pool: Pool) -> tuple[Proposal, Doubles]:
    """The mixture of these that the weighted draws are likeliest under, and its log density at them.

    Half of the draws are shared out beforehand.
    """
    each = log_densities(normals, pool.z)  # (rows, parts, draws)
    weights, _ = fitting.tempered(pool.log_weight, ENOUGH)
    half = ONE if each.shape[1] == len(ONE) else TWO
    shares = np.tile(half, (len(each), 1))
    relative = np.exp(each - each.max(1, keepdims=True))
    for _ in range(ROUNDS):
        mixture = shares[:, None, :] @ relative  # (rows, 1, draws)
        held = relative @ (weights[:, None, :] / mixture).transpose(0, 2, 1)  # (rows, parts, 1)
        shares = 0.5 * half + 0.5 * shares * held[:, :, 0]
    shares /= shares.sum(-1, keepdims=True)
    return Proposal(normals, shares), log_sum(each + np.log(shares)[:, :, None])


def finite(joint: Doubles) -> Doubles:
    """log p(x, z) with a floor."""
    return np.asarray(np.clip(np.nan_to_num(joint, nan=FLOOR, posinf=FLOOR, neginf=FLOOR), FLOOR, -FLOOR), np.float64)

"""Plan: how the decoder calls of an estimate are spent, and the noise that each part is drawn with."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service import noise

Doubles = NDArray[np.float64]

STAGES = (0.16, 0.08, 0.08, 0.08)  # of the calls, to look around and to adapt; the draws after them are the estimate
FEWEST = 512  # decoder calls below which there are too few to adapt with
GROUPS = 16  # independent estimates that the last stage's draws are shared out among
SEARCHING, ESTIMATING = 2, 3  # the purposes of a seed's streams


@dataclass(frozen=True, slots=True)
class Plan:
    """draws decoder calls: elbo of them for the bound, the stages' for adapting, the last stage's for the estimate."""

    seed: int
    latent_size: int
    elbo: int
    stages: tuple[int, ...]
    groups: int
    group: int

    @property
    def last(self) -> int:
        """Draws of the last stage."""
        return self.groups * self.group

    @property
    def draws(self) -> int:
        """All decoder calls."""
        return self.elbo + sum(self.stages) + self.last

    def stage(self, index: int) -> tuple[Doubles, Doubles]:
        """The noise of a stage of adaptation: uniform (draws,) and normal (d, draws)."""
        return noise.sheet(self.seed, (SEARCHING, index), 1, self.stages[index], self.latent_size)

    def estimate(self) -> tuple[Doubles, Doubles]:
        """The noise of the last stage, group after group, independent of one another and of what came before."""
        return noise.sheet(self.seed, (ESTIMATING,), self.groups, self.group, self.latent_size)


def plan(draws: int, elbo: int, seed: int, latent_size: int) -> Plan | None:
    """How so many decoder calls are spent, to the last one; None where they are too few to adapt with.

    >>> made = plan(4096, 16, 0, 2)
    >>> made.elbo, made.stages, made.groups, made.group, made.draws
    (16, (654, 326, 326, 326), 16, 153, 4096)
    """
    room = draws - elbo
    if draws < FEWEST or room < FEWEST // 2:
        return None
    first, *stages = (int(share * room) for share in STAGES)
    group, over = divmod(room - first - sum(stages), GROUPS)
    return Plan(seed, latent_size, elbo, (first + over, *stages), GROUPS, group)


def pooling(least: int, seed: int, latent_size: int) -> Plan:
    """A plan whose last stage has so many draws or a few more, after as many to adapt with as an estimate would take.

    >>> made = pooling(1024, 0, 2)
    >>> made.last, made.draws
    (1024, 1705)
    """
    group = -(-least // GROUPS)
    calls = GROUPS * group / (1.0 - sum(STAGES))
    return Plan(seed, latent_size, 0, tuple(int(share * calls) for share in STAGES), GROUPS, group)
